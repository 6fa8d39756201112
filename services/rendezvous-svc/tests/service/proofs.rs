//! Proofs and calls that are taken from one place to another, or from one time to another.

use std::time::{Duration, SystemTime};

use p2psb_client::TlsMode;
use p2psb_proto::error::{Reason, record_of};
use p2psb_proto::model::presence::PresenceState;
use p2psb_proto::model::proof::{ChallengeAction, ProofRole, Transcript, answer_challenge, nonce};
use p2psb_proto::model::{Genesis, PeerId};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_runtime::Clock;

use crate::harness::{TestServer, dialer, reason};
use crate::peer::{Greeted, Peer, network};

/// What a peer signs that believes to speak to `server`, though the nonce is another's.
fn transcript(peer: &Peer, server: PeerId, greeted: &Greeted) -> Transcript {
    Transcript {
        network: network(),
        peer: peer.id(),
        server,
        client_nonce: [7; 32],
        server_nonce: nonce(&greeted.hello.server_nonce).unwrap(),
        session_seq: 1,
    }
}

#[tokio::test]
async fn a_session_proof_for_one_rendezvous_is_refused_by_another() {
    for tls in [true, false] {
        let mode = |c: &mut p2psb_rendezvous_svc::Config| {
            if !tls {
                c.tls.mode = TlsMode::Plaintext;
            }
        };
        let (one, two, peer) = (TestServer::start(mode).await, TestServer::start(mode).await, Peer::new());
        let connect = async |server: &TestServer| dialer().dial(&server.endpoint).await.unwrap();
        let role = ProofRole::SessionPeer;

        // As it was given to the first: with that one's nonce.
        let first = peer.greet(connect(&one).await, 1).await.unwrap();
        let taken = first.proof.clone();
        let second = peer.greet(connect(&two).await, 1).await.unwrap();
        let refused = second.authenticate(taken, peer.record(1).to_wire()).await;
        assert_eq!(reason(refused), Reason::ProofInvalid, "tls: {tls}");

        // By a rendezvous in between, which passes the nonce of the second on as its own.
        let second = peer.greet(connect(&two).await, 1).await.unwrap();
        let binding = second.session.connection.binding();
        let proof = transcript(&peer, one.id, &second).prove(role, &binding, peer.identity.key());
        let refused = second.authenticate(proof, peer.record(1).to_wire()).await;
        assert_eq!(reason(refused), Reason::ProofInvalid, "tls: {tls}");
        assert_eq!(two.state(&peer.id()).await, None);

        // Made for the second it holds.
        let second = peer.greet(connect(&two).await, 1).await.unwrap();
        let binding = second.session.connection.binding();
        let proof = transcript(&peer, two.id, &second).prove(role, &binding, peer.identity.key());
        second.authenticate(proof, peer.record(1).to_wire()).await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_for_one_rendezvous_is_refused_by_another() {
    let (one, two, peer) = (TestServer::start(|_| ()).await, TestServer::start(|_| ()).await, Peer::new());
    let taken = peer.register_request(&one, 1).await;
    assert_eq!(reason(two.client().await.register(taken).await), Reason::ChallengeExpired);

    // By a rendezvous in between, which gives the challenge of the second as its own.
    let request = wire::GetChallengeRequest { peer_id: peer.id().to_wire() };
    let given = two.client().await.get_challenge(request).await.unwrap().into_inner();
    let record = peer.record(1);
    let answer = |server: &PeerId| {
        let (action, digest) = (ChallengeAction::Register, record.digest());
        let proof = answer_challenge(peer.identity.key(), server, &given.challenge, action, &digest);
        wire::RegisterRequest { record: Some(record.to_wire()), proof: Some(proof) }
    };
    assert_eq!(reason(two.client().await.register(answer(&one.id)).await), Reason::ProofInvalid);
    assert_eq!(two.state(&peer.id()).await, None);
    two.client().await.register(answer(&two.id)).await.unwrap();
}

#[tokio::test]
async fn replayed_calls_do_not_undo_what_came_after_them() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let (server, peer) = (TestServer::start_at(clock, |_| ()).await, Peer::new());
    let mut client = server.client().await;
    let registered = peer.register_request(&server, 1).await;
    client.register(registered.clone()).await.unwrap();

    // The proof with another record of the same peer is for nothing.
    let other = wire::RegisterRequest { record: Some(peer.record(2).to_wire()), ..registered.clone() };
    assert_eq!(reason(client.register(other).await), Reason::ProofInvalid);

    hand.advance(Duration::from_secs(2));
    let withdrawal = peer.withdrawal(3);
    let proof =
        peer.proof(&server.connection().await, ChallengeAction::Unregister, withdrawal.digest()).await;
    let withdrawn = wire::UnregisterRequest { withdrawal: Some(withdrawal.to_wire()), proof: Some(proof) };
    client.unregister(withdrawn.clone()).await.unwrap();
    let status = client.register(registered.clone()).await.unwrap_err();
    assert_eq!(record_of(&status), Some(withdrawal.to_wire()), "what is stored is the withdrawal");
    assert_eq!(reason(Err::<(), _>(status)), Reason::RecordStale);
    assert_eq!(reason(server.locate(&peer.id()).await), Reason::PeerOffline);

    hand.advance(Duration::from_secs(2));
    peer.register(&server, 4).await.unwrap();
    let stored = server.locate(&peer.id()).await.unwrap().record.to_wire();
    let status = client.unregister(withdrawn.clone()).await.unwrap_err();
    assert_eq!(record_of(&status), Some(stored.clone()));
    assert_eq!(reason(Err::<(), _>(status)), Reason::RecordStale);
    let status = client.register(registered.clone()).await.unwrap_err();
    assert_eq!(record_of(&status), Some(stored));
    assert_eq!(reason(Err::<(), _>(status)), Reason::RecordStale);
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));

    // Once the challenge is over, they are not even looked at.
    hand.advance(Duration::from_secs(120));
    assert_eq!(reason(client.register(registered).await), Reason::ChallengeExpired);
    assert_eq!(reason(client.unregister(withdrawn).await), Reason::ChallengeExpired);
}

#[tokio::test]
async fn one_seq_for_two_records_is_refused_with_the_stored_one() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let (server, mut peer) = (TestServer::start_at(clock, |_| ()).await, Peer::new());
    peer.register(&server, 5).await.unwrap();
    let stored = server.locate(&peer.id()).await.unwrap().record.to_wire();
    hand.advance(Duration::from_secs(2));
    peer.services = Peer::offering("chat").services;
    let status = peer.register(&server, 5).await.unwrap_err();
    assert_eq!(record_of(&status), Some(stored.clone()));
    assert_eq!(reason(Err::<(), _>(status)), Reason::RecordEquivocation);
    // A withdrawal is a statement like any other.
    let status = peer.unregister(&server, 5).await.unwrap_err();
    assert_eq!(reason(Err::<(), _>(status)), Reason::RecordEquivocation);
    assert_eq!(server.locate(&peer.id()).await.unwrap().record.to_wire(), stored);
}

#[tokio::test]
async fn what_is_wrong_with_a_withdrawal_is_named() {
    let (server, other) = (TestServer::start(|_| ()).await, Peer::new());
    let mut peer = Peer::new();
    peer.register(&server, 1).await.unwrap();
    let mut client = server.client().await;
    let withdrawal = peer.withdrawal(2);
    let action = ChallengeAction::Unregister;
    let proof = peer.proof(&server.connection().await, action, withdrawal.digest()).await;
    let good = withdrawal.to_wire();
    let mut refused = async |withdrawal: SignedRecord| {
        let request = wire::UnregisterRequest { withdrawal: Some(withdrawal), proof: Some(proof.clone()) };
        reason(client.unregister(request).await)
    };
    let forged = SignedRecord { signature: vec![0; 64].into(), ..good.clone() };
    assert_eq!(refused(forged).await, Reason::SignatureInvalid);
    let padded = SignedRecord { payload: vec![1; 100_000].into(), ..good.clone() };
    assert_eq!(refused(padded).await, Reason::RecordTooLarge);
    // Nobody can withdraw another's record: not with one's own answer, nor with one's own signature.
    let theirs = refused(other.withdrawal(2).to_wire()).await;
    assert!(matches!(theirs, Reason::ChallengeExpired | Reason::ProofInvalid), "{theirs}");

    // A record where a withdrawal belongs.
    let record = peer.record(2);
    let proof = peer.proof(&server.connection().await, action, record.digest()).await;
    let request = wire::UnregisterRequest { withdrawal: Some(record.to_wire()), proof: Some(proof) };
    assert_eq!(reason(server.client().await.unregister(request).await), Reason::RecordTypeUnexpected);

    peer.network = Genesis::open("other").unwrap().network_id();
    assert_eq!(reason(peer.unregister(&server, 2).await), Reason::NetworkMismatch);
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));
}

#[tokio::test]
async fn a_record_whose_time_is_over_is_refused() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let (server, peer) = (TestServer::start_at(clock, |_| ()).await, Peer::new());
    let record = peer.record_until(1, Duration::from_secs(60));
    hand.advance(Duration::from_secs(61));
    let proof = peer.proof(&server.connection().await, ChallengeAction::Register, record.digest()).await;
    let request = wire::RegisterRequest { record: Some(record.to_wire()), proof: Some(proof) };
    assert_eq!(reason(server.client().await.register(request).await), Reason::RecordExpired);
    assert_eq!(server.state(&peer.id()).await, None);
}
