//! Edges: rendezvous that serve their own peers, prove nothing but their id, and own nothing.

use std::collections::HashSet;

use p2psb_proto::error::{Reason, reason_of};
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::PresenceState;
use p2psb_proto::model::proof::{ProofRole, Transcript};
use p2psb_proto::wire::common::v1::LiveProof;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use p2psb_rendezvous_svc::Config;
use p2psb_rendezvous_svc::config::BridgeRole;

use crate::bridge::member;
use crate::harness::{TestServer, eventually, reason};
use crate::member::{KeyFile, RawLink};
use crate::peer::{Peer, network};
use crate::ring::{five, pages};
use crate::watch::{Said, Watch};

pub(crate) fn edge<'a>(members: impl IntoIterator<Item = &'a TestServer>) -> impl FnOnce(&mut Config) {
    let members: Vec<_> = members.into_iter().map(TestServer::pinned).collect();
    move |config| {
        config.bridge.role = BridgeRole::Edge;
        config.bridge.peers = members;
    }
}

/// An edge that was told of one member; it finds others by itself.
async fn edge_of(server: &TestServer) -> TestServer {
    let edge = TestServer::start(edge([server])).await;
    eventually!("it keeps links with three members", edge.links().await == 3);
    edge
}

#[tokio::test]
async fn what_is_at_an_edge_is_found_everywhere_and_what_is_elsewhere_at_the_edge() {
    let key = KeyFile::new();
    let servers = five(&key).await;
    let (edge, other) = (edge_of(&servers[0]).await, edge_of(&servers[1]).await);
    for home in [&edge, &servers[3], &other] {
        let peer = Peer::offering("chat");
        let session = peer.open(home, 1).await.unwrap();
        for server in servers.iter().chain([&edge, &other]) {
            server.knows(&peer.id(), PresenceState::Online).await;
            assert_eq!(server.locate(&peer.id()).await.unwrap().presence.home, Some(home.id));
            eventually!("it is found by its service", pages(server, 4).await == 1);
        }
        let (mut down, _connection) = session.close();
        while down.message().await.unwrap().is_some() {}
        for server in servers.iter().chain([&edge, &other]) {
            server.knows(&peer.id(), PresenceState::Offline).await;
        }
        peer.unregister(home, 2).await.unwrap();
        for server in servers.iter().chain([&edge, &other]) {
            eventually!("it left for good", reason(server.locate(&peer.id()).await) == Reason::PeerOffline);
            eventually!("nobody provides it", pages(server, 4).await == 0);
        }
    }
    let stranger = Peer::new();
    assert_eq!(reason(edge.locate(&stranger.id()).await), Reason::PeerUnknown);
    for server in &servers {
        assert_eq!(server.links().await, 4, "an edge is no member");
    }
}

#[tokio::test]
async fn watches_reach_through_edges_in_both_directions() {
    let key = KeyFile::new();
    let servers = five(&key).await;
    let (edge, other) = (edge_of(&servers[0]).await, edge_of(&servers[1]).await);
    for (round, home) in [&edge, &servers[4], &other, &edge].into_iter().enumerate() {
        let (peer, round) = (Peer::new(), round as u64);
        let session = peer.open(home, 2 * round + 1).await.unwrap();
        let mut watches = Vec::new();
        for server in servers.iter().chain([&edge, &other]) {
            server.knows(&peer.id(), PresenceState::Online).await;
            let mut watch = Watch::open(server, &[peer.id()]).await.unwrap();
            assert_eq!(watch.beginning().await, [Said::Is(peer.id(), PresenceState::Online)]);
            watches.push(watch);
        }
        let (_answers, _connection) = session.close();
        for watch in &mut watches {
            watch.says(Said::Is(peer.id(), PresenceState::Offline)).await;
        }
        let _again = peer.open(home, 2 * round + 2).await.unwrap();
        for watch in &mut watches {
            watch.says(Said::Is(peer.id(), PresenceState::Online)).await;
        }
    }
}

#[tokio::test]
async fn an_edge_that_loses_its_members_goes_to_others_and_takes_its_peers_along() {
    let key = KeyFile::new();
    let mut servers = five(&key).await;
    let edge = edge_of(&servers[0]).await;
    let peer = Peer::new();
    let _session = peer.open(&edge, 1).await.unwrap();
    servers[4].knows(&peer.id(), PresenceState::Online).await;
    // Two are left, of which it had a link with one at most.
    servers.iter_mut().take(3).for_each(TestServer::kill);
    eventually!("it has links with those that are left", edge.links().await == 2);
    let late = Peer::new();
    let _other = late.open(&edge, 1).await.unwrap();
    for server in &servers[3..] {
        server.knows(&peer.id(), PresenceState::Online).await;
        server.knows(&late.id(), PresenceState::Online).await;
    }
    let elsewhere = Peer::new();
    let _third = elsewhere.open(&servers[4], 1).await.unwrap();
    edge.knows(&elsewhere.id(), PresenceState::Online).await;
}

#[tokio::test]
async fn an_edge_alone_serves_its_own_peers_and_says_that_it_is_not_sure_of_others() {
    let key = KeyFile::new();
    let mut server = TestServer::start(member(&key, [])).await;
    let edge = TestServer::start(edge([&server])).await;
    eventually!("it has a link", edge.links().await == 1);
    server.kill();
    eventually!("it has none", edge.links().await == 0);
    let (here, elsewhere) = (Peer::new(), Peer::new());
    let _session = here.open(&edge, 1).await.unwrap();
    edge.knows(&here.id(), PresenceState::Online).await;
    assert_eq!(reason(edge.locate(&elsewhere.id()).await), Reason::LookupIncomplete);
}

#[tokio::test]
async fn a_member_that_bridges_with_nobody_takes_edges_and_can_refuse_them() {
    let alone = TestServer::start(|_| ()).await;
    let edge = TestServer::start(self::edge([&alone])).await;
    eventually!("it has a link", edge.links().await == 1);
    let (here, there) = (Peer::new(), Peer::new());
    let (_session, _other) = (here.open(&edge, 1).await.unwrap(), there.open(&alone, 1).await.unwrap());
    alone.knows(&here.id(), PresenceState::Online).await;
    edge.knows(&there.id(), PresenceState::Online).await;
    assert_eq!(reason(edge.locate(&Peer::new().id()).await), Reason::PeerUnknown);

    let closed = TestServer::start(|config| config.bridge.edges = false).await;
    let refused = RawLink::dial_edge(&Peer::new(), closed.connection().await).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::BridgeDisabled));
    let refused = RawLink::dial_edge(&Peer::new(), edge.connection().await).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::BridgeDisabled), "links are made with members");
}

#[tokio::test]
async fn edges_are_bounded_and_give_their_place_back() {
    let server = TestServer::start(|config| config.limits.edges_per_ip = 2).await;
    let (one, two) = (Peer::new(), Peer::new());
    let first = RawLink::dial_edge(&one, server.connection().await).await.unwrap();
    let _second = RawLink::dial_edge(&two, server.connection().await).await.unwrap();
    let refused = RawLink::dial_edge(&Peer::new(), server.connection().await).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::LimitExceeded));
    assert!(format!("{refused:?}").contains("limits.edges_per_ip"));
    drop(first);
    let again = async || RawLink::dial_edge(&Peer::new(), server.connection().await).await.is_ok();
    eventually!("its place is free again", again().await);
}

/// What an edge says of a peer: a session that it proves, at a home that it names.
fn statement(peer: &Peer, home: Option<PeerId>, proof: Option<LiveProof>) -> wire::HomePresence {
    wire::HomePresence {
        peer_id: peer.id().to_wire(),
        session_seq: 1,
        state: PresenceState::Online as i32,
        source: p2psb_proto::model::presence::PresenceSource::Session as i32,
        session_proof: Some(wire::SessionProof {
            client_nonce: vec![7; 32].into(),
            server_nonce: vec![8; 32].into(),
            proof,
            ..wire::SessionProof::default()
        }),
        home_id: home.map(|home| home.to_wire()).unwrap_or_default(),
        revision: 1,
        ..wire::HomePresence::default()
    }
}

/// What an edge says of a peer that has a session with it.
pub(crate) fn true_statement(
    edge: &Peer,
    peer: &Peer,
    state: PresenceState,
    revision: u64,
) -> wire::HomePresence {
    let transcript = Transcript {
        network: network(),
        peer: peer.id(),
        server: edge.id(),
        client_nonce: [7; 32],
        server_nonce: [8; 32],
        session_seq: 1,
    };
    let proof = transcript.prove(ProofRole::SessionPeer, &Some([9; 32]), peer.identity.key());
    wire::HomePresence { state: state as i32, revision, ..statement(peer, None, Some(proof)) }
}

#[tokio::test]
async fn an_edge_is_believed_only_as_far_as_its_peers_signed() {
    let server = TestServer::start(|_| ()).await;
    let liar = Peer::new();
    let link = RawLink::dial_edge(&liar, server.connection().await).await.unwrap();
    let (victim, honest) = (Peer::new(), Peer::new());
    link.records(vec![victim.record(1).to_wire(), honest.record(1).to_wire()]).await;
    let presence = vec![
        // Without the peer's word, with a proof of something else, and in the name of another home.
        statement(&victim, None, None),
        statement(&victim, None, Some(LiveProof::default())),
        statement(&victim, Some(server.id), None),
        statement(&victim, Some(Peer::new().id()), None),
        true_statement(&honest, &victim, PresenceState::Online, 1),
        true_statement(&liar, &honest, PresenceState::Online, 1),
    ];
    let mut forged = victim.record(2).to_wire();
    forged.payload = honest.record(2).to_wire().payload;
    link.send(wire::BridgeBatch { records: vec![forged], presence, ..Default::default() }).await;
    server.knows(&honest.id(), PresenceState::Online).await;
    assert_eq!(server.state(&victim.id()).await, Some(PresenceState::Offline), "by its record alone");
}

#[tokio::test]
async fn nothing_is_kept_of_a_proof_but_what_was_looked_at() {
    let key = KeyFile::new();
    let server = TestServer::start(member(&key, [])).await;
    let other = TestServer::start(member(&key, [&server])).await;
    eventually!("they are linked", server.links().await == 1);
    let edge = Peer::new();
    let link = RawLink::dial_edge(&edge, server.connection().await).await.unwrap();
    let (stuffed, long, plain) = (Peer::new(), Peer::new(), Peer::new());
    link.records([&stuffed, &long, &plain].map(|peer| peer.record(1).to_wire()).into()).await;
    let said = |peer| true_statement(&edge, peer, PresenceState::Online, 1);
    // What is not looked at may say anything, and does not go on.
    let mut with_more = said(&stuffed);
    with_more.session_proof.as_mut().unwrap().challenge = vec![1; 400_000].into();
    link.send(wire::BridgeBatch { presence: vec![with_more.clone()], ..Default::default() }).await;
    // Nor does it when the session is known already.
    with_more.revision = 2;
    with_more.state = PresenceState::Suspect as i32;
    link.send(wire::BridgeBatch { presence: vec![with_more], ..Default::default() }).await;
    let mut too_long = said(&long);
    too_long.session_proof.as_mut().unwrap().proof.as_mut().unwrap().channel_binding = vec![1; 4000].into();
    let presence = vec![too_long, said(&plain)];
    link.send(wire::BridgeBatch { presence, ..Default::default() }).await;
    for server in [&server, &other] {
        server.knows(&plain.id(), PresenceState::Online).await;
        server.knows(&stuffed.id(), PresenceState::Suspect).await;
        server.knows(&long.id(), PresenceState::Offline).await;
    }
    assert_eq!(other.links().await, 1, "no message was too large for the link");
}

#[tokio::test]
async fn an_edge_speaks_only_of_peers_whose_records_were_taken() {
    let server = TestServer::start(|config| config.limits.records_per_ip = 1).await;
    let edge = Peer::new();
    let link = RawLink::dial_edge(&edge, server.connection().await).await.unwrap();
    let (known, unknown) = (Peer::new(), Peer::new());
    link.records(vec![known.record(1).to_wire(), unknown.record(1).to_wire()]).await;
    let said = |peer| true_statement(&edge, peer, PresenceState::Online, 1);
    let presence = vec![said(&unknown), said(&known)];
    link.send(wire::BridgeBatch { presence, ..Default::default() }).await;
    server.knows(&known.id(), PresenceState::Online).await;
    assert_eq!(reason(server.locate(&unknown.id()).await), Reason::PeerUnknown);
}

#[tokio::test]
async fn an_edge_tells_all_once_over_each_link() {
    let server = TestServer::start(|_| ()).await;
    let mut link = RawLink::dial_edge(&Peer::new(), server.connection().await).await.unwrap();
    link.send(wire::BridgeBatch { begins: true, synced: true, ..Default::default() }).await;
    let answer = link.ask_where(1, Peer::new().id()).await;
    assert!(answer.answer.is_some(), "the link stands");
    link.send(wire::BridgeBatch { synced: true, ..Default::default() }).await;
    let ended = link.end().await.unwrap_err();
    assert_eq!(reason_of(&ended), Some(Reason::UnexpectedMessage));
}

#[tokio::test]
async fn an_edge_that_asks_and_does_not_read_is_answered_no_further() {
    let server = TestServer::start(|_| ()).await;
    let mut link = RawLink::dial_edge(&Peer::new(), server.connection().await).await.unwrap();
    let stranger = Peer::new().id();
    for number in 1..=2000 {
        let question = Some(Question::Locate(stranger.to_wire()));
        link.question_of(wire::BridgeQuestion { number, question }).await;
    }
    let (mut answered, mut refused) = (0, 0);
    for _ in 1..=2000 {
        match link.next_answer().await.answer {
            Some(Answer::Unknown(_)) => answered += 1,
            Some(Answer::Error(error)) if error.reason == Reason::LimitExceeded.as_str() => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered + refused, 2000, "each question has one answer");
    assert!(answered >= 64);
}

#[tokio::test]
async fn who_is_a_member_is_no_edge() {
    let key = KeyFile::new();
    let server = TestServer::start(member(&key, [])).await;
    let both = Peer::new();
    let mut edge = RawLink::dial_edge(&both, server.connection().await).await.unwrap();
    let link = RawLink::dial(&both, server.connection().await, Some(key.bytes())).await.unwrap();
    let ended = edge.end().await.unwrap_err();
    assert_eq!(
        reason_of(&ended),
        Some(Reason::LinkDuplicate),
        "a member takes the place of the edge that it was"
    );
    let refused = RawLink::dial_edge(&both, server.connection().await).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::LinkDuplicate));
    let peer = Peer::new();
    link.records(vec![peer.record(1).to_wire()]).await;
    server.knows(&peer.id(), PresenceState::Offline).await;
}

#[tokio::test]
async fn what_an_edge_brings_is_charged_to_its_address() {
    let server = TestServer::start(|config| config.limits.records_per_ip = 5).await;
    let link = RawLink::dial_edge(&Peer::new(), server.connection().await).await.unwrap();
    let peers: Vec<Peer> = std::iter::repeat_with(Peer::new).take(20).collect();
    link.records(peers.iter().map(|peer| peer.record(1).to_wire()).collect()).await;
    let mut link = link;
    link.ask_where(7, peers[19].id()).await;
    let mut kept = HashSet::new();
    for peer in &peers {
        if server.state(&peer.id()).await.is_some() {
            kept.insert(peer.id());
        }
    }
    assert_eq!(kept.len(), 5);
    // Whoever comes itself pays itself, and is not shut out by what an edge brought in its name.
    let refused = Peer::new().register(&server, 1).await;
    assert!(refused.is_err(), "they share an address here");
    let known = peers.iter().find(|peer| kept.contains(&peer.id())).unwrap();
    // At most one change a second is taken.
    eventually!("one's own record is never refused", known.register(&server, 2).await.is_ok());
}

#[tokio::test]
async fn an_edge_can_send_nobody_anywhere_and_ask_only_so_much() {
    let server = TestServer::start(|_| ()).await;
    let mut link = RawLink::dial_edge(&Peer::new(), server.connection().await).await.unwrap();
    let answer = link.ask(1, Peer::new().id(), "127.0.0.1:9".parse().unwrap()).await;
    let Some(Answer::Error(error)) = answer.answer else { panic!("{answer:?}") };
    assert_eq!(error.reason, Reason::NotDialed.as_str());
    let answer = link.ask_where(2, Peer::new().id()).await;
    assert!(matches!(answer.answer, Some(Answer::Unknown(unknown)) if unknown.finished));
    link.question_of(wire::BridgeQuestion { number: 3, question: None }).await;
    assert_eq!(link.next_answer().await, wire::BridgeAnswer { number: 3, answer: None });
    let malformed = Question::Locate(vec![1, 2, 3].into());
    link.question_of(wire::BridgeQuestion { number: 4, question: Some(malformed) }).await;
    assert_eq!(link.next_answer().await, wire::BridgeAnswer { number: 4, answer: None });
}
