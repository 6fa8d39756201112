//! What an edge may cost its members, and what becomes of it when it goes.

use std::time::{Duration, Instant, SystemTime};

use p2psb_proto::error::Reason;
use p2psb_proto::model::presence::PresenceState;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_runtime::Clock;

use crate::edge::{edge, true_statement};
use crate::harness::{TestServer, eventually, reason};
use crate::member::RawLink;
use crate::peer::Peer;

async fn seq(server: &TestServer, peer: &Peer) -> u64 {
    server.locate(&peer.id()).await.unwrap().record.value().seq
}

#[tokio::test]
async fn of_an_edges_peers_one_change_a_second_is_taken_and_the_newest_is_asked_for() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let server = TestServer::start_at(clock, |_| ()).await;
    let peer = Peer::new();
    let mut link = RawLink::dial_edge(&Peer::new(), server.connection().await).await.unwrap();
    link.records(vec![peer.record(1).to_wire()]).await;
    server.knows(&peer.id(), PresenceState::Offline).await;
    link.records(vec![peer.record(2).to_wire(), peer.record(3).to_wire()]).await;
    link.ask_where(1, peer.id()).await;
    assert_eq!(seq(&server, &peer).await, 1, "it came too soon");
    hand.advance(Duration::from_secs(1));
    assert_eq!(link.interest().await, [(peer.id(), true), (peer.id(), false)], "how is it now?");
    link.records(vec![peer.record(4).to_wire()]).await;
    eventually!("the newest is taken", seq(&server, &peer).await == 4);
    link.records(vec![peer.withdrawal(5).to_wire()]).await;
    eventually!("it left at once", reason(server.locate(&peer.id()).await) == Reason::PeerOffline);
}

#[tokio::test]
async fn what_finds_no_room_is_taken_when_there_is_some() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    // The edge brings a record of its own.
    let server = TestServer::start_at(clock, |config| config.limits.records_per_ip = 2).await;
    let edge = TestServer::start(edge([&server])).await;
    eventually!("it has a link", edge.links().await == 1);
    let (early, late) = (Peer::new(), Peer::new());
    let record = early.record_until(1, Duration::from_secs(60)).to_wire();
    let _early = early.open_over(edge.connection().await, 1, record).await.unwrap();
    server.knows(&early.id(), PresenceState::Online).await;
    let _late = late.open(&edge, 1).await.unwrap();
    edge.knows(&late.id(), PresenceState::Online).await;
    assert_eq!(reason(server.locate(&late.id()).await), Reason::PeerUnknown, "there is no room");
    // The record of the first one ends, whenever it was signed.
    hand.advance(Duration::from_secs(120));
    server.knows(&late.id(), PresenceState::Online).await;
    assert_eq!(seq(&server, &late).await, 1, "it has signed nothing since");
}

#[tokio::test]
async fn what_an_edge_says_beyond_a_burst_takes_its_time() {
    let server = TestServer::start(|_| ()).await;
    let start = Instant::now();
    let mut link = RawLink::dial_edge(&Peer::new(), server.connection().await).await.unwrap();
    let stranger = Peer::new().id();
    for _ in 0..20 {
        let unheard = vec![stranger.to_wire(); 256];
        link.send(wire::BridgeBatch { unheard, ..Default::default() }).await;
    }
    link.ask_where(1, stranger).await;
    // 257 things each, and a question: the first 4000 are free.
    let least = Duration::from_millis(20 * 257 + 1 - 4000);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
}

#[tokio::test]
async fn what_comes_over_a_link_that_was_replaced_does_not_count() {
    for round in 0..5 {
        let server = TestServer::start(|_| ()).await;
        let edge = Peer::new();
        let peers: Vec<Peer> = std::iter::repeat_with(Peer::new).take(100).collect();
        let old = RawLink::dial_edge(&edge, server.connection().await).await.unwrap();
        old.records(peers.iter().map(|peer| peer.record(1).to_wire()).collect()).await;
        let online = |peer| true_statement(&edge, peer, PresenceState::Online, 1);
        let presence: Vec<_> = peers.iter().map(online).collect();
        old.send(wire::BridgeBatch { presence: presence.clone(), ..Default::default() }).await;
        if round > 0 {
            eventually!("some of it was heard", server.state(&peers[20 * round - 20].id()).await.is_some());
        }
        let mut new = RawLink::dial_edge(&edge, server.connection().await).await.unwrap();
        let records = peers.iter().take(1).map(|peer| peer.record(1).to_wire()).collect();
        new.send(wire::BridgeBatch { records, begins: true, ..Default::default() }).await;
        let presence = presence.into_iter().take(1).collect();
        new.send(wire::BridgeBatch { presence, synced: true, ..Default::default() }).await;
        server.knows(&peers[0].id(), PresenceState::Online).await;
        new.ask_where(1, edge.id()).await;
        drop(old);
        for peer in &peers[1..] {
            assert_ne!(server.state(&peer.id()).await, Some(PresenceState::Online), "round {round}");
        }
    }
}
