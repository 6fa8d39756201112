//! Sessions.

use std::time::{Duration, SystemTime};

use p2psb_client::session::Reachability;
use p2psb_client::{Dialer, SessionConfig, SessionKeeper};
use p2psb_proto::error::{Reason, fact_of, record_of, retry_after_of};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{Address, AddressKind, Genesis, PeerId, Transport};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use p2psb_runtime::{Clock, Service as _};

use crate::harness::{TestServer, Wire, dialer, eventually, reason};
use crate::peer::{Peer, RawSession, network, now};

/// Short enough for tests to see the end of a silence.
fn quick(config: &mut p2psb_rendezvous_svc::Config) {
    config.session.heartbeat = Duration::from_millis(200);
}

#[tokio::test]
async fn a_session_makes_a_peer_online_where_anyone_can_locate_it() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let greeted = peer.greet(server.connection().await, 1).await.unwrap();
    let observed = Address::try_from(greeted.hello.observed_address.clone().unwrap()).unwrap();
    assert_eq!(observed.socket_addr(), Some(greeted.session.connection.local_addr()));
    assert_eq!(observed.kind, AddressKind::Observed);

    let (proof, record) = (greeted.proof.clone(), peer.record(5));
    let session = greeted.authenticate(proof, record.to_wire()).await.unwrap();
    let located = server.locate(&peer.id()).await.unwrap();
    assert_eq!(located.record, record);
    let presence = located.presence;
    assert_eq!((presence.state, presence.source), (PresenceState::Online, PresenceSource::Session));
    assert_eq!(presence.home, Some(server.id));

    let lease = &session.lease;
    assert_eq!(duration_from_wire(lease.heartbeat_interval.as_ref()), Duration::from_secs(30));
    assert_eq!(duration_from_wire(lease.ttl.as_ref()), Duration::from_secs(75));
    let refresh = duration_from_wire(lease.refresh_after.as_ref());
    assert!((Duration::from_secs(235)..Duration::from_secs(361)).contains(&refresh), "{refresh:?}");
    assert_eq!(lease.rendezvous[0].key.as_ref(), server.id.key().as_bytes(), "the server itself first");
}

/// The SDK's sessions of a peer.
fn keeper(peer: &Peer, server: &TestServer) -> SessionKeeper {
    SessionKeeper::start(SessionConfig {
        network: network(),
        dialer: Dialer::new(Some(&peer.identity), None).unwrap(),
        identity: peer.identity.clone(),
        software: "test/1".into(),
        rendezvous: vec![server.pinned()],
        memory: None,
        own_rendezvous: None,
        services: Vec::new(),
        reachability: Reachability {
            listen: None,
            transport: Transport::Tls,
            advertise: Vec::new(),
            confirm: false,
        },
        max_homes: 3,
        record_ttl: Duration::from_secs(600),
    })
}

#[tokio::test]
async fn the_sdk_keeps_a_session_and_says_goodbye() {
    let (server, peer) = (TestServer::start(quick).await, Peer::new());
    let keeper = keeper(&peer, &server);
    server.knows(&peer.id(), PresenceState::Online).await;
    keeper.shutdown().await;
    server.knows(&peer.id(), PresenceState::Offline).await;
}

#[tokio::test]
async fn the_sdk_signs_past_a_withdrawal_that_it_does_not_remember() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    peer.register(&server, 1).await.unwrap();
    let ahead = now().0 + 120_000;
    peer.unregister(&server, ahead).await.unwrap();
    let keeper = keeper(&peer, &server);
    server.knows(&peer.id(), PresenceState::Online).await;
    assert!(server.locate(&peer.id()).await.unwrap().record.value().seq > ahead);
    keeper.shutdown().await;
}

#[tokio::test]
async fn heartbeats_are_answered_and_goodbye_ends_the_session_at_once() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let mut session = peer.open(&server, 1).await.unwrap();
    for number in [1, 2] {
        session.send(Up::Heartbeat(wire::Heartbeat { number })).await;
        let Some(Down::HeartbeatAck(ack)) = session.next().await.unwrap() else { panic!("no answer") };
        assert_eq!(ack.number, number);
        assert!(ack.server_time.is_some());
    }
    session.send(Up::Goodbye(wire::Goodbye::default())).await;
    session.end().await.unwrap();
    server.knows(&peer.id(), PresenceState::Offline).await;
}

#[tokio::test]
async fn a_stream_that_is_closed_cleanly_makes_the_peer_offline_at_once() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let (mut down, _connection) = peer.open(&server, 1).await.unwrap().close();
    while down.message().await.unwrap().is_some() {}
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Offline));
}

#[tokio::test]
async fn a_lost_connection_makes_the_peer_suspect_and_then_offline() {
    let server = TestServer::start(|c| c.session.heartbeat = Duration::from_secs(1)).await;
    let (peer, wire) = (Peer::new(), Wire::to(&server).await);
    let connection = dialer().dial(&wire.endpoint).await.unwrap();
    let _session = peer.open_over(connection, 1, peer.record(1).to_wire()).await.unwrap();
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));
    wire.cut();
    server.knows(&peer.id(), PresenceState::Suspect).await;
    server.knows(&peer.id(), PresenceState::Offline).await;
}

#[tokio::test]
async fn a_silent_peer_loses_its_session() {
    let (server, peer) = (TestServer::start(quick).await, Peer::new());
    let mut session = peer.open(&server, 1).await.unwrap();
    server.knows(&peer.id(), PresenceState::Suspect).await;
    assert_eq!(reason(session.end().await), Reason::SessionLost);
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Offline));
}

#[tokio::test]
async fn the_newer_session_wins_and_the_older_is_told() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let mut old = peer.open(&server, 1).await.unwrap();
    assert!(!old.lease.replaced);
    let new = peer.open(&server, 2).await.unwrap();
    assert!(new.lease.replaced, "the newer one is told, too");
    let status = old.end().await.unwrap_err();
    assert!(retry_after_of(&status).unwrap() >= Duration::from_secs(60));
    assert_eq!(reason(Err::<(), _>(status)), Reason::SessionReplaced);
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));

    let status = peer.open_over(server.connection().await, 2, peer.record(3).to_wire()).await.unwrap_err();
    assert_eq!(fact_of(&status, "session_seq").as_deref(), Some("2"));
    assert_eq!(reason(Err::<(), _>(status)), Reason::SessionReplaced);
}

#[tokio::test]
async fn a_stale_record_is_refused_with_the_stored_one() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let newest = peer.record(9).to_wire();
    let mut session = peer.open_over(server.connection().await, 1, newest.clone()).await.unwrap();
    session.send(Up::Record(peer.record(8).to_wire())).await;
    let result = session.result().await;
    assert_eq!((result.seq, result.reason.as_str()), (8, "RECORD_STALE"));
    assert_eq!(result.stored, Some(newest.clone()));

    let status = peer.open_over(server.connection().await, 2, peer.record(7).to_wire()).await.unwrap_err();
    assert_eq!(record_of(&status), Some(newest));
    assert_eq!(reason(Err::<(), _>(status)), Reason::RecordStale);
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online), "the first session goes on");
}

#[tokio::test]
async fn two_truths_with_one_seq_are_refused() {
    let (server, mut peer) = (TestServer::start(|_| ()).await, Peer::new());
    let mut session = peer.open(&server, 1).await.unwrap();
    peer.services = Peer::offering("chat").services;
    session.send(Up::Record(peer.record(1).to_wire())).await;
    assert_eq!(session.result().await.reason, "RECORD_EQUIVOCATION");
}

#[tokio::test]
async fn of_records_in_one_second_the_newest_counts() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let mut session = peer.open(&server, 1).await.unwrap();
    for seq in [2, 3, 4] {
        session.send(Up::Record(peer.record(seq).to_wire())).await;
    }
    for seq in [2, 3] {
        let result = session.result().await;
        assert_eq!((result.seq, result.reason.as_str()), (seq, "LIMIT_EXCEEDED"));
    }
    let result = session.result().await;
    assert_eq!((result.seq, result.reason.as_str()), (4, ""));
    assert!(result.refresh_after.is_some());
    assert_eq!(server.locate(&peer.id()).await.unwrap().record.value().seq, 4);
}

#[tokio::test]
async fn sessions_that_follow_one_another_change_the_record_once_a_second() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let (server, peer) = (TestServer::start_at(clock, |_| ()).await, Peer::new());
    let seq = async || server.locate(&peer.id()).await.unwrap().record.value().seq;
    let mut sessions = Vec::new();
    for number in 1..=4 {
        sessions.push(peer.open(&server, number).await.unwrap());
        assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));
        assert_eq!(seq().await, 1, "session {number} came in the same second");
    }
    hand.advance(Duration::from_secs(1));
    eventually!("the newest of the records that waited is taken", seq().await == 4);
    hand.advance(Duration::from_secs(1));
    let _next = peer.open(&server, 5).await.unwrap();
    assert_eq!(seq().await, 5, "a second later nothing waits");
}

#[tokio::test]
async fn a_record_that_waits_gives_way_to_a_newer_one_of_its_session() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let (server, peer) = (TestServer::start_at(clock, |_| ()).await, Peer::new());
    let _old = peer.open(&server, 1).await.unwrap();
    let mut session = peer.open(&server, 2).await.unwrap();
    session.send(Up::Record(peer.record(3).to_wire())).await;
    hand.advance(Duration::from_secs(1));
    let result = session.result().await;
    assert_eq!((result.seq, result.reason.as_str()), (3, ""), "of the one before nothing is said");
    assert_eq!(server.locate(&peer.id()).await.unwrap().record.value().seq, 3);
}

#[tokio::test]
async fn a_replayed_proof_is_refused() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let first = peer.greet(server.connection().await, 1).await.unwrap();
    let proof = first.proof.clone();
    let session = first.authenticate(proof.clone(), peer.record(1).to_wire()).await.unwrap();
    // The same bytes in another stream of the same connection, and in another connection.
    let same = session.connection.clone();
    for connection in [same, server.connection().await] {
        let again = peer.greet(connection, 1).await.unwrap();
        let refused = again.authenticate(proof.clone(), peer.record(1).to_wire()).await;
        assert_eq!(reason(refused), Reason::ProofInvalid);
    }
}

#[tokio::test]
async fn another_peers_record_is_refused() {
    let (server, peer, other) = (TestServer::start(|_| ()).await, Peer::new(), Peer::new());
    let refused = peer.open_over(server.connection().await, 1, other.record(1).to_wire()).await;
    assert_eq!(reason(refused), Reason::InvalidArgument);
    let mut session = peer.open(&server, 2).await.unwrap();
    session.send(Up::Record(other.record(1).to_wire())).await;
    assert_eq!(session.result().await.reason, "INVALID_ARGUMENT");
    assert_eq!(server.state(&other.id()).await, None);
}

#[tokio::test]
async fn a_changed_or_oversized_record_is_refused() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let good = peer.record(2).to_wire();
    let forged = SignedRecord { signature: vec![0; 64].into(), ..good.clone() };
    let oversized = SignedRecord { payload: vec![0; 5000].into(), ..good };
    for (record, expected) in [(forged, Reason::SignatureInvalid), (oversized, Reason::RecordTooLarge)] {
        let refused = peer.open_over(server.connection().await, 1, record).await;
        assert_eq!(reason(refused), expected);
    }
    assert_eq!(server.state(&peer.id()).await, None);
}

#[tokio::test]
async fn another_network_or_a_wrong_clock_is_named() {
    let server = TestServer::start(|_| ()).await;
    let mut stranger = Peer::new();
    stranger.network = Genesis::open("other").unwrap().network_id();
    let refused = stranger.greet(server.connection().await, 1).await.map(|_| ());
    assert_eq!(reason(refused), Reason::NetworkMismatch);

    let peer = Peer::new();
    let mut record = peer.record(1).value().clone();
    record.network = stranger.network;
    let foreign = p2psb_proto::model::Signed::sign(&record, peer.identity.key()).unwrap();
    let refused = peer.open_over(server.connection().await, 1, foreign.to_wire()).await;
    assert_eq!(reason(refused), Reason::NetworkMismatch);

    let late = now().plus(Duration::from_secs(600));
    let hello = Hello::own(network(), peer.id(), "test/1", late);
    let hello = wire::SessionHello { hello: Some(hello), client_nonce: vec![1; 32].into(), session_seq: 1 };
    let mut session = RawSession::start(server.connection().await, Up::Hello(hello)).await.unwrap();
    assert_eq!(reason(session.end().await), Reason::ClockSkew);

    let ahead = peer.record(now().0 + 600_000);
    let refused = peer.open_over(server.connection().await, 1, ahead.to_wire()).await;
    assert_eq!(reason(refused), Reason::SeqTooFarAhead);
}

#[tokio::test]
async fn messages_out_of_order_end_the_stream() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let beat = || Up::Heartbeat(wire::Heartbeat { number: 1 });
    let mut session = RawSession::start(server.connection().await, beat()).await.unwrap();
    assert_eq!(reason(session.end().await), Reason::UnexpectedMessage);
    let mut greeted = peer.greet(server.connection().await, 1).await.unwrap();
    greeted.session.send(beat()).await;
    assert_eq!(reason(greeted.session.end().await), Reason::UnexpectedMessage);
    let mut session = peer.open(&server, 1).await.unwrap();
    session.send(Up::Authenticate(wire::Authenticate::default())).await;
    assert_eq!(reason(session.end().await), Reason::UnexpectedMessage);
}

#[tokio::test]
async fn who_does_not_prove_itself_in_time_is_told() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let mut greeted = peer.greet(server.connection().await, 1).await.unwrap();
    assert_eq!(reason(greeted.session.end().await), Reason::HandshakeTimeout);
}

#[tokio::test]
async fn sessions_from_one_address_are_limited_and_a_freed_slot_is_free() {
    let server = TestServer::start(|c| c.limits.sessions_per_ip = 1).await;
    let (one, two) = (Peer::new(), Peer::new());
    let session = one.open(&server, 1).await.unwrap();
    let status = two.open(&server, 1).await.unwrap_err();
    assert_eq!(fact_of(&status, "limit").as_deref(), Some("limits.sessions_per_ip"));
    assert!(retry_after_of(&status).is_some());
    assert_eq!(reason(Err::<(), _>(status)), Reason::LimitExceeded);
    drop(session);
    eventually!("the slot is free", two.open(&server, 2).await.is_ok());
}

#[tokio::test]
async fn a_full_server_takes_back_who_has_a_session_there_and_nobody_else() {
    let server = TestServer::start(|c| c.limits.sessions_per_ip = 2).await;
    let [one, two, three] = [(); 3].map(|()| Peer::new());
    let mut first = one.open(&server, 1).await.unwrap();
    let mut held = two.open(&server, 1).await.unwrap();
    for seq in 2..20 {
        // Its network broke, and nobody has told the server.
        let mut old = std::mem::replace(&mut held, two.open(&server, seq).await.unwrap());
        assert_eq!(reason(old.end().await), Reason::SessionReplaced);
    }
    let refused = async |peer: &Peer, seq| {
        let status = peer.open(&server, seq).await.unwrap_err();
        fact_of(&status, "limit").as_deref() == Some("limits.sessions_per_ip")
    };
    assert!(refused(&three, 1).await);
    // Those who say that they may be one and prove nothing keep each other out only.
    let mut open = Vec::new();
    let status = loop {
        match three.greet(server.connection().await, 1).await {
            Ok(greeted) => open.push(greeted),
            Err(status) => break status,
        }
    };
    assert_eq!(fact_of(&status, "limit").as_deref(), Some("limits.sessions_per_ip"));
    assert_eq!(open.len(), 16);
    drop(open);
    eventually!("they are gone", two.open(&server, now().0).await.is_ok());
    eventually!("its session is gone", server.state(&two.id()).await != Some(PresenceState::Online));
    eventually!("there is room", three.open(&server, now().0).await.is_ok());
    first.send(Up::Heartbeat(wire::Heartbeat { number: 1 })).await;
    assert!(matches!(first.next().await.unwrap(), Some(Down::HeartbeatAck(_))));
}

#[tokio::test]
async fn a_full_table_takes_no_new_peer_but_renews_known_ones() {
    // One place is the server's own.
    let server = TestServer::start(|c| c.limits.records = 2).await;
    let (one, two) = (Peer::new(), Peer::new());
    let mut session = one.open(&server, 1).await.unwrap();
    let status = two.open(&server, 1).await.unwrap_err();
    assert_eq!(fact_of(&status, "limit").as_deref(), Some("limits.records"));
    session.send(Up::Record(one.record(2).to_wire())).await;
    assert_eq!(session.result().await.reason, "");
}

#[tokio::test]
async fn a_withdrawal_with_the_goodbye_says_that_the_peer_is_gone() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let mut session = peer.open(&server, 1).await.unwrap();
    let withdrawal = Some(peer.withdrawal(2).to_wire());
    session.send(Up::Goodbye(wire::Goodbye { withdrawal })).await;
    session.end().await.unwrap();
    assert_eq!(reason(server.locate(&peer.id()).await), Reason::PeerOffline);
    let refused = peer.open_over(server.connection().await, 2, peer.record(1).to_wire()).await;
    assert_eq!(reason(refused), Reason::RecordStale);
}

#[tokio::test]
async fn a_withdrawal_of_what_expired_is_not_kept() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let (server, peer) = (TestServer::start_at(clock, |_| ()).await, Peer::new());
    let record = peer.record_until(1, Duration::from_secs(60)).to_wire();
    let mut session = peer.open_over(server.connection().await, 1, record).await.unwrap();
    hand.advance(Duration::from_secs(61));
    let withdrawal = Some(peer.withdrawal(3).to_wire());
    session.send(Up::Goodbye(wire::Goodbye { withdrawal })).await;
    session.end().await.unwrap();
    peer.register(&server, 2).await.unwrap();
}

#[tokio::test]
async fn a_draining_server_serves_its_peers_until_the_time_it_named_is_over() {
    let (mut server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let mut session = peer.open(&server, 1).await.unwrap();
    let stopping = tokio::spawn(server.server.take().unwrap().shutdown(Duration::from_secs(4)));
    let Some(Down::Drain(drain)) = session.next().await.unwrap() else { panic!("no hint") };
    assert!(duration_from_wire(drain.reconnect_in.as_ref()) <= Duration::from_secs(1));
    session.send(Up::Heartbeat(wire::Heartbeat { number: 1 })).await;
    let Some(Down::HeartbeatAck(ack)) = session.next().await.unwrap() else { panic!("no answer") };
    assert_eq!(duration_from_wire(ack.reconnect_spread.as_ref()), Duration::from_secs(1));
    assert_eq!(reason(session.end().await), Reason::Draining);
    drop(session);
    stopping.await.unwrap();
}

#[tokio::test]
async fn peers_of_a_draining_server_are_told_different_moments() {
    let mut server = TestServer::start(|_| ()).await;
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(Peer::new().open(&server, 1).await.unwrap());
    }
    let stopping = tokio::spawn(server.server.take().unwrap().shutdown(Duration::from_secs(10)));
    let mut moments = Vec::new();
    for session in &mut sessions {
        let Some(Down::Drain(drain)) = session.next().await.unwrap() else { panic!("no hint") };
        moments.push(duration_from_wire(drain.reconnect_in.as_ref()));
    }
    moments.sort_unstable();
    // Eight share a second, each has an eighth of it.
    let slots: Vec<_> = moments.iter().map(|moment| moment.as_millis() / 125).collect();
    assert_eq!(slots, (0..8).collect::<Vec<_>>(), "{moments:?}");
    drop(sessions);
    stopping.await.unwrap();
}

#[tokio::test]
async fn on_plaintext_proofs_are_unbound_and_behind_a_proxy_nobody_is_observed() {
    let server = TestServer::start(|c| {
        c.tls.mode = p2psb_client::TlsMode::Plaintext;
        c.behind_proxy = true;
    })
    .await;
    let peer = Peer::new();
    let connection = dialer().dial(&server.endpoint).await.unwrap();
    assert_eq!(connection.binding(), None);
    let greeted = peer.greet(connection, 1).await.unwrap();
    assert_eq!(greeted.hello.observed_address, None);
    let proof = greeted.proof.clone();
    greeted.authenticate(proof, peer.record(1).to_wire()).await.unwrap();
}

#[tokio::test]
async fn on_tls_an_unbound_proof_is_refused() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let greeted = peer.greet(server.connection().await, 1).await.unwrap();
    let hello = greeted.hello.clone();
    let transcript = p2psb_proto::model::proof::Transcript {
        network: network(),
        peer: peer.id(),
        server: PeerId::from_slice(&hello.hello.unwrap().peer_id).unwrap(),
        client_nonce: [7; 32],
        server_nonce: p2psb_proto::model::proof::nonce(&hello.server_nonce).unwrap(),
        session_seq: 1,
    };
    let role = p2psb_proto::model::proof::ProofRole::SessionPeer;
    let unbound = transcript.prove(role, &None, peer.identity.key());
    let refused = greeted.authenticate(unbound, peer.record(1).to_wire()).await;
    assert_eq!(reason(refused), Reason::ProofInvalid);
}
