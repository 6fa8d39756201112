//! Unary registration.

use std::time::{Duration, SystemTime};

use p2psb_proto::error::{Reason, fact_of, record_of, retry_after_of};
use p2psb_proto::model::Genesis;
use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_proto::model::proof::ChallengeAction;
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_runtime::Clock;

use crate::harness::{TestServer, reason};
use crate::peer::{Peer, now};

#[tokio::test]
async fn a_registered_peer_is_online_for_its_lease() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let server = TestServer::start_at(clock, |_| ()).await;
    let peer = Peer::new();
    let answer = peer.register(&server, 1).await.unwrap();
    assert_eq!(duration_from_wire(answer.ttl.as_ref()), Duration::from_secs(300));
    let presence = server.locate(&peer.id()).await.unwrap().presence;
    assert_eq!((presence.state, presence.source), (PresenceState::Online, PresenceSource::Registration));
    assert_eq!(presence.home, Some(server.id));
    hand.advance(Duration::from_secs(299));
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));
    hand.advance(Duration::from_secs(1));
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Offline));
}

#[tokio::test]
async fn a_repeated_call_has_no_further_effect_and_a_late_one_is_refused() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let server = TestServer::start_at(clock, |_| ()).await;
    let peer = Peer::new();
    let request = peer.register_request(&server, 1).await;
    let mut client = server.client().await;
    let first = client.register(request.clone()).await.unwrap().into_inner();
    hand.advance(Duration::from_secs(50));
    let second = client.register(request.clone()).await.unwrap().into_inner();
    assert_eq!(second.lease_id, first.lease_id);
    assert_eq!(duration_from_wire(second.ttl.as_ref()), Duration::from_secs(250), "not renewed");
    hand.advance(Duration::from_secs(71));
    assert_eq!(reason(client.register(request).await), Reason::ChallengeExpired);
}

#[tokio::test]
async fn a_challenge_is_for_one_peer_and_an_answer_for_one_record_and_action() {
    let (server, peer, other) = (TestServer::start(|_| ()).await, Peer::new(), Peer::new());
    let connection = server.connection().await;
    let mut client = server.client().await;
    let record = peer.record(1);
    let mut refused = async |record: wire::RegisterRequest| reason(client.register(record).await);

    let no_proof = wire::RegisterRequest { record: Some(record.to_wire()), proof: None };
    assert_eq!(refused(no_proof).await, Reason::ProofInvalid);
    let no_record = wire::RegisterRequest::default();
    assert_eq!(refused(no_record).await, Reason::RecordMalformed);

    let foreign = other.proof(&connection, ChallengeAction::Register, record.digest()).await;
    let request = wire::RegisterRequest { record: Some(record.to_wire()), proof: Some(foreign) };
    assert_eq!(refused(request).await, Reason::ChallengeExpired);

    let unregister = peer.proof(&connection, ChallengeAction::Unregister, record.digest()).await;
    let request = wire::RegisterRequest { record: Some(record.to_wire()), proof: Some(unregister) };
    assert_eq!(refused(request).await, Reason::ProofInvalid);

    let for_another = peer.proof(&connection, ChallengeAction::Register, peer.record(2).digest()).await;
    let request = wire::RegisterRequest { record: Some(record.to_wire()), proof: Some(for_another) };
    assert_eq!(refused(request).await, Reason::ProofInvalid);
    assert_eq!(server.state(&peer.id()).await, None);
}

#[tokio::test]
async fn stale_foreign_and_oversized_records_are_refused_by_name() {
    let server = TestServer::start(|_| ()).await;
    let mut peer = Peer::new();
    peer.register(&server, 9).await.unwrap();
    let stored = server.locate(&peer.id()).await.unwrap().record.to_wire();
    let status = peer.register(&server, 8).await.unwrap_err();
    assert_eq!(record_of(&status), Some(stored));
    assert_eq!(reason(Err::<(), _>(status)), Reason::RecordStale);
    assert_eq!(reason(peer.register(&server, now().0 + 600_000).await), Reason::SeqTooFarAhead);

    let mut request = peer.register_request(&server, 10).await;
    request.record.as_mut().unwrap().payload = vec![1; 100_000].into();
    assert_eq!(reason(server.client().await.register(request).await), Reason::RecordTooLarge);

    peer.services = Peer::offering("chat").services;
    assert_eq!(reason(peer.register(&server, 9).await), Reason::RecordEquivocation);
    peer.network = Genesis::open("other").unwrap().network_id();
    assert_eq!(reason(peer.register(&server, 11).await), Reason::NetworkMismatch);
}

#[tokio::test]
async fn a_record_changes_once_a_second_at_most() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let server = TestServer::start_at(clock, |_| ()).await;
    let peer = Peer::new();
    peer.register(&server, 1).await.unwrap();
    hand.advance(Duration::from_millis(400));
    let status = peer.register(&server, 2).await.unwrap_err();
    assert_eq!(retry_after_of(&status), Some(Duration::from_millis(600)));
    assert_eq!(reason(Err::<(), _>(status)), Reason::LimitExceeded);
    hand.advance(Duration::from_millis(600));
    peer.register(&server, 2).await.unwrap();
}

#[tokio::test]
async fn registrations_from_one_address_are_limited_and_renewing_is_not() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let server = TestServer::start_at(clock, |c| c.limits.registrations_per_ip = 1).await;
    let (one, two) = (Peer::new(), Peer::new());
    one.register(&server, 1).await.unwrap();
    let status = two.register(&server, 1).await.unwrap_err();
    assert_eq!(fact_of(&status, "limit").as_deref(), Some("limits.registrations_per_ip"));
    hand.advance(Duration::from_secs(2));
    one.register(&server, 2).await.unwrap();
    one.unregister(&server, 3).await.unwrap();
    two.register(&server, 1).await.unwrap();
}

#[tokio::test]
async fn an_unregistered_peer_is_offline_and_its_old_record_cannot_come_back() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let (server, peer) = (TestServer::start_at(clock, |_| ()).await, Peer::new());
    peer.register(&server, 1).await.unwrap();
    let withdrawal = peer.withdrawal(2);
    for _ in 0..2 {
        peer.unregister_by(&server, &withdrawal).await.unwrap();
    }
    assert_eq!(reason(server.locate(&peer.id()).await), Reason::PeerOffline);
    assert_eq!(reason(peer.register(&server, 1).await), Reason::RecordStale);
    assert_eq!(reason(peer.unregister(&server, 3).await), Reason::LimitExceeded, "not in the same second");
    hand.advance(Duration::from_secs(1));
    peer.register(&server, 3).await.unwrap();
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));
}
