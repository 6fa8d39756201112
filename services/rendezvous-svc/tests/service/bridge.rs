//! The backbone: what one member knows, all know.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use p2psb_proto::error::Reason;
use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_proto::model::{PeerId, PeerRecord, Signed};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use p2psb_rendezvous_svc::Config;
use p2psb_runtime::{Clock, Service as _};

use crate::harness::{TestServer, eventually, reason};
use crate::member::{Impostor, KeyFile, RawLink};
use crate::peer::{Peer, now};
use crate::watch::{Said, Watch};

pub(crate) fn member<'a>(
    key: &KeyFile,
    peers: impl IntoIterator<Item = &'a TestServer>,
) -> impl FnOnce(&mut Config) {
    let peers: Vec<_> = peers.into_iter().map(|server| server.endpoint.clone()).collect();
    let key = key.path();
    move |config| {
        config.bridge.key_file = Some(key);
        config.bridge.peers = peers;
    }
}

/// Three members, each of which was told of the first alone.
async fn three(key: &KeyFile) -> [TestServer; 3] {
    let a = TestServer::start(member(key, [])).await;
    let b = TestServer::start(member(key, [&a])).await;
    let c = TestServer::start(member(key, [&a])).await;
    let all = [a, b, c];
    for server in &all {
        eventually!("each is linked with both others", server.links().await == 2);
    }
    all
}

#[tokio::test]
async fn a_peer_registered_at_any_member_is_located_at_each() {
    let key = KeyFile::new();
    let servers = three(&key).await;
    for home in &servers {
        let (by_session, by_call) = (Peer::new(), Peer::new());
        let session = by_session.open(home, 1).await.unwrap();
        by_call.register(home, 1).await.unwrap();
        for server in &servers {
            server.knows(&by_session.id(), PresenceState::Online).await;
            server.knows(&by_call.id(), PresenceState::Online).await;
            let presence = server.locate(&by_session.id()).await.unwrap().presence;
            assert_eq!((presence.home, presence.source), (Some(home.id), PresenceSource::Session));
            let presence = server.locate(&by_call.id()).await.unwrap().presence;
            assert_eq!((presence.home, presence.source), (Some(home.id), PresenceSource::Registration));
        }
        let (mut down, _connection) = session.close();
        while down.message().await.unwrap().is_some() {}
        by_call.unregister(home, 2).await.unwrap();
        for server in &servers {
            server.knows(&by_session.id(), PresenceState::Offline).await;
            eventually!("the withdrawal arrives", server.state(&by_call.id()).await.is_none());
        }
    }
}

#[tokio::test]
async fn every_member_lists_all_and_names_them_to_its_peers() {
    let key = KeyFile::new();
    let servers = three(&key).await;
    let peer = Peer::new();
    for server in &servers {
        let listed = server.client().await.list_rendezvous(wire::ListRendezvousRequest {}).await.unwrap();
        let listed = listed.into_inner().rendezvous;
        let keys: Vec<_> = listed.iter().map(|one| one.record.clone().unwrap().key).collect();
        assert_eq!((keys.len(), keys[0].as_ref()), (3, server.id.key().as_bytes().as_slice()));
        let session = peer.open(server, now().0).await.unwrap();
        assert_eq!(session.lease.rendezvous.len(), 3);
    }
}

#[tokio::test]
async fn a_newer_record_at_one_member_is_the_newest_at_all() {
    let key = KeyFile::new();
    let servers = three(&key).await;
    let peer = Peer::new();
    let _session = peer.open(&servers[0], 1).await.unwrap();
    servers[1].knows(&peer.id(), PresenceState::Online).await;
    let _other = peer.open_over(servers[1].connection().await, 5, peer.record(7).to_wire()).await.unwrap();
    for server in &servers {
        let seq = async || server.locate(&peer.id()).await.map(|p| p.record.value().seq).unwrap_or_default();
        eventually!("the newer record arrives", seq().await == 7);
    }
    let refused = peer.register(&servers[2], 3).await;
    assert_eq!(reason(refused), Reason::RecordStale);
}

#[tokio::test]
async fn a_restarted_member_is_healed_by_the_others() {
    let key = KeyFile::new();
    let [a, b, c] = three(&key).await;
    let (at_a, at_b, at_c) = (Peer::new(), Peer::new(), Peer::new());
    at_a.register(&a, 1).await.unwrap();
    let _session = at_b.open(&b, 1).await.unwrap();
    at_c.register(&c, 1).await.unwrap();
    at_c.unregister(&c, 2).await.unwrap();
    b.knows(&at_a.id(), PresenceState::Online).await;
    let id = a.id;
    let a = a.restart().await;
    assert_eq!(a.id, id);
    a.knows(&at_b.id(), PresenceState::Online).await;
    eventually!("the record it had held comes back", a.state(&at_a.id()).await.is_some());
    assert_eq!(a.state(&at_a.id()).await, Some(PresenceState::Offline), "nobody is registered there now");
    eventually!("the withdrawal comes back", reason_is(&a, &at_c, Reason::RecordStale).await);
    for server in [&a, &b, &c] {
        eventually!("each is linked with both others again", server.links().await == 2);
    }
    b.knows(&at_a.id(), PresenceState::Offline).await;
}

async fn reason_is(server: &TestServer, peer: &Peer, expected: Reason) -> bool {
    let refused = peer.register(server, 1).await;
    refused.is_err() && reason(refused) == expected
}

#[tokio::test]
async fn when_a_home_dies_its_peers_are_suspect_first_and_then_offline() {
    let key = KeyFile::new();
    let mut a = TestServer::start(member(&key, [])).await;
    let (clock, hand) = Clock::manual(SystemTime::now());
    let b = TestServer::start_at(clock, member(&key, [&a])).await;
    let peer = Peer::new();
    let _session = peer.open(&a, 1).await.unwrap();
    b.knows(&peer.id(), PresenceState::Online).await;
    let before = b.locate(&peer.id()).await.unwrap().presence.as_of;
    a.kill();
    eventually!("the link is gone", b.links().await == 0);
    assert_eq!(b.state(&peer.id()).await, Some(PresenceState::Online), "it may be a blink");
    hand.advance(Duration::from_secs(16));
    let presence = b.locate(&peer.id()).await.unwrap().presence;
    assert_eq!(presence.state, PresenceState::Suspect);
    assert!(presence.as_of < before.plus(Duration::from_secs(6)), "no fresher than the last mark");
    hand.advance(Duration::from_secs(75));
    assert_eq!(b.state(&peer.id()).await, Some(PresenceState::Offline));
}

#[tokio::test]
async fn listed_ids_may_bridge_without_a_key() {
    let other = p2psb_client::Identity::load_or_create;
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (id_a, id_b) = (other(dir_a.path()).unwrap().peer_id(), other(dir_b.path()).unwrap().peer_id());
    let a = TestServer::start(|c| {
        c.data_dir = dir_a.path().to_owned();
        c.bridge.trust = vec![id_b.to_string()];
    })
    .await;
    let b = TestServer::start(|c| {
        c.data_dir = dir_b.path().to_owned();
        c.bridge.trust = vec![id_a.to_string()];
        c.bridge.peers = vec![a.pinned()];
    })
    .await;
    eventually!("they are linked", a.links().await == 1 && b.links().await == 1);
}

#[tokio::test]
async fn members_that_name_each_other_and_themselves_end_up_with_one_link() {
    let key = KeyFile::new();
    let a = TestServer::start(member(&key, [])).await;
    let addr = a.server.as_ref().unwrap().addr();
    let b = TestServer::start(member(&key, [&a])).await;
    // The first one again, with a list of all members.
    let list = vec![a.endpoint.clone(), b.endpoint.clone()];
    let mut a = a;
    a.config.bridge.peers = list;
    let a = a.restart().await;
    assert_eq!(a.server.as_ref().unwrap().addr(), addr);
    eventually!("they are linked", a.links().await == 1 && b.links().await == 1);
}

#[tokio::test]
async fn who_claims_to_be_a_member_does_not_keep_it_from_being_dialed() {
    let key = KeyFile::new();
    let victim = TestServer::start(member(&key, [])).await;
    let record = victim.locate(&victim.id).await.unwrap().record.to_wire();
    let mut impostor = Impostor::of(victim.id, record.clone()).await;
    let server = TestServer::start(|c| {
        member(&key, [])(c);
        c.bridge.peers = vec![impostor.endpoint.clone()];
    })
    .await;
    impostor.lied.recv().await.unwrap();
    impostor.lied.recv().await.unwrap();
    assert_eq!(server.links().await, 0);
    // Only now does it hear where the victim is.
    let link = RawLink::dial(&Peer::new(), server.connection().await, Some(key.bytes())).await.unwrap();
    link.send(wire::BridgeBatch { members: vec![record], ..wire::BridgeBatch::default() }).await;
    eventually!("the victim is dialed", server.links().await == 2);
}

#[tokio::test]
async fn without_key_and_list_bridging_is_refused() {
    let key = KeyFile::new();
    let alone = TestServer::start(|_| ()).await;
    let refused = RawLink::dial(&Peer::new(), alone.connection().await, Some(key.bytes())).await;
    assert_eq!(reason(refused), Reason::BridgeDisabled);
}

#[tokio::test]
async fn a_wrong_key_does_not_bridge() {
    let (key, wrong) = (KeyFile::new(), KeyFile::new());
    let server = TestServer::start(member(&key, [])).await;
    for attempt in [None, Some(wrong.bytes())] {
        let refused = RawLink::dial(&Peer::new(), server.connection().await, attempt).await;
        assert_eq!(reason(refused), Reason::BridgeUntrusted);
    }
    RawLink::dial(&Peer::new(), server.connection().await, Some(key.bytes())).await.unwrap();

    // A whole server with the wrong key is not believed by either end.
    let stranger = TestServer::start(member(&wrong, [&server])).await;
    let (at_server, at_stranger) = (Peer::new(), Peer::new());
    at_server.register(&server, 1).await.unwrap();
    at_stranger.register(&stranger, 1).await.unwrap();
    assert_eq!(stranger.links().await, 0);
    assert_eq!(stranger.state(&at_server.id()).await, None);
    assert_eq!(server.state(&at_stranger.id()).await, None);
}

#[tokio::test]
async fn a_member_can_pass_on_records_but_not_invent_the_presence_of_a_peer() {
    let key = KeyFile::new();
    let server = TestServer::start(member(&key, [])).await;
    let liar = Peer::new();
    let link = RawLink::dial(&liar, server.connection().await, Some(key.bytes())).await.unwrap();
    let (victim, marker) = (Peer::new(), Peer::new());
    let forged = p2psb_proto::wire::common::v1::SignedRecord {
        signature: vec![3; 64].into(),
        ..Peer::new().record(1).to_wire()
    };
    let online = wire::HomePresence {
        peer_id: victim.id().to_wire(),
        session_seq: 1,
        state: PresenceState::Online as i32,
        source: PresenceSource::Session as i32,
        session_proof: Some(wire::SessionProof {
            client_nonce: vec![1; 32].into(),
            server_nonce: vec![2; 32].into(),
            proof: Some(p2psb_proto::wire::common::v1::LiveProof {
                signature: vec![3; 64].into(),
                channel_binding: bytes::Bytes::new(),
            }),
            ..wire::SessionProof::default()
        }),
        ..wire::HomePresence::default()
    };
    link.send(wire::BridgeBatch {
        records: vec![forged, victim.record(1).to_wire()],
        presence: vec![online],
        synced: true,
        ..wire::BridgeBatch::default()
    })
    .await;
    link.send(wire::BridgeBatch {
        records: vec![marker.record(1).to_wire()],
        ..wire::BridgeBatch::default()
    })
    .await;
    eventually!("the second batch was taken", server.state(&marker.id()).await.is_some());
    let presence = server.locate(&victim.id()).await.unwrap().presence;
    assert_eq!((presence.state, presence.source), (PresenceState::Offline, PresenceSource::Record));
}

#[tokio::test]
async fn a_batch_above_its_bounds_ends_the_link() {
    let key = KeyFile::new();
    let server = TestServer::start(member(&key, [])).await;
    let mut link = RawLink::dial(&Peer::new(), server.connection().await, Some(key.bytes())).await.unwrap();
    let batch =
        wire::BridgeBatch { presence: vec![wire::HomePresence::default(); 257], ..Default::default() };
    link.send(batch).await;
    let end = async {
        loop {
            if let Err(status) = link.batch().await {
                break status;
            }
        }
    };
    assert_eq!(reason(Err::<(), _>(end.await)), Reason::InvalidArgument);
}

#[tokio::test]
async fn a_drained_member_leaves_its_peers_suspect_until_they_are_elsewhere() {
    let key = KeyFile::new();
    let [mut a, b, c] = three(&key).await;
    let peer = Peer::new();
    let session = peer.open(&a, 1).await.unwrap();
    c.knows(&peer.id(), PresenceState::Online).await;
    let stopping = tokio::spawn(a.server.take().unwrap().shutdown(Duration::from_secs(10)));
    let mut session = session;
    assert_eq!(reason(session.end().await), Reason::Draining);
    c.knows(&peer.id(), PresenceState::Suspect).await;
    let _moved = peer.open(&b, 2).await.unwrap();
    c.knows(&peer.id(), PresenceState::Online).await;
    assert_eq!(c.locate(&peer.id()).await.unwrap().presence.home, Some(b.id));
    drop(session);
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_leaves_a_draining_member_in_time_is_suspect_there_and_not_offline() {
    let key = KeyFile::new();
    let [mut a, b, _c] = three(&key).await;
    let (peer, other) = (Peer::new(), Peer::new());
    let mut session = peer.open(&a, 1).await.unwrap();
    let stays = other.open(&a, 1).await.unwrap();
    b.knows(&other.id(), PresenceState::Online).await;
    b.knows(&peer.id(), PresenceState::Online).await;
    let stopping = tokio::spawn(a.server.take().unwrap().shutdown(Duration::from_secs(10)));
    let Some(Down::Drain(_)) = session.next().await.unwrap() else { panic!("no hint") };
    let (answers, _connection) = session.close();
    b.knows(&peer.id(), PresenceState::Suspect).await;
    assert_eq!(b.links().await, 2, "the member is still there and tells what becomes of its peers");
    drop((answers, stays));
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_draining_member_names_the_others_and_not_always_the_same_one_first() {
    let key = KeyFile::new();
    let [mut a, b, c] = three(&key).await;
    let mut sessions = Vec::new();
    for _ in 0..24 {
        sessions.push(Peer::new().open(&a, 1).await.unwrap());
    }
    let stopping = tokio::spawn(a.server.take().unwrap().shutdown(Duration::from_secs(10)));
    let mut firsts = HashSet::new();
    for session in &mut sessions {
        let Some(Down::Drain(drain)) = session.next().await.unwrap() else { panic!("no hint") };
        let record = |record| Signed::<PeerRecord>::verify(record).unwrap().peer_id();
        let named: Vec<PeerId> = drain.alternatives.into_iter().map(record).collect();
        assert_eq!(HashSet::from_iter(named.iter().copied()), HashSet::from([b.id, c.id]));
        firsts.insert(named[0]);
    }
    assert_eq!(firsts.len(), 2);
    drop(sessions);
    stopping.await.unwrap();
}

#[tokio::test]
async fn members_tell_how_many_sessions_each_of_them_has() {
    let key = KeyFile::new();
    let [a, b, c] = three(&key).await;
    let _sessions = [Peer::new().open(&a, 1).await.unwrap(), Peer::new().open(&a, 1).await.unwrap()];
    let _session = Peer::new().open(&b, 1).await.unwrap();
    for at in [&b, &c] {
        eventually!("every mark has come", {
            let listed = at.client().await.list_rendezvous(wire::ListRendezvousRequest {}).await.unwrap();
            let of = |one: wire::RendezvousInfo| {
                (Signed::<PeerRecord>::verify(one.record.unwrap()).unwrap().peer_id(), one.sessions)
            };
            let said: HashMap<PeerId, u64> = listed.into_inner().rendezvous.into_iter().map(of).collect();
            [a.id, b.id, c.id].map(|id| said[&id]) == [2, 1, 0]
        });
    }
}

#[tokio::test]
async fn a_watch_at_one_member_follows_a_peer_that_is_at_another() {
    let key = KeyFile::new();
    let [a, _b, c] = three(&key).await;
    let peer = Peer::new();
    let mut watch = Watch::open(&c, &[peer.id()]).await.unwrap();
    assert_eq!(watch.beginning().await, [Said::Gone(peer.id(), "PEER_UNKNOWN".into())]);
    let session = peer.open(&a, 1).await.unwrap();
    watch.says(Said::Is(peer.id(), PresenceState::Online)).await;
    let (answers, _connection) = session.close();
    watch.says(Said::Is(peer.id(), PresenceState::Offline)).await;
    drop(answers);
}
