//! Unary registration: challenge, answer, and every way in which that can be wrong.

use p2psb_client::register::{register_once, unregister};
use p2psb_client::{Connection, Dialer, Endpoint, Identity};
use p2psb_e2e::peer::{client, locate, network, now, record, sign};
use p2psb_proto::error::{Reason, reason_of, record_of};
use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_proto::model::proof::{ChallengeAction, answer_challenge};
use p2psb_proto::model::{Digest, Genesis, PeerId, PeerRecord, PeerWithdrawal, Signed};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use p2psb_proto::wire::rendezvous::v1::{
    ChallengeProof, GetChallengeRequest, RegisterRequest, UnregisterRequest,
};
use tonic::Status;

use super::stage::{Backbone, bridged};

/// A client that registers by unary calls.
struct Unary {
    identity: Identity,
    client: RendezvousServiceClient<Connection>,
    server: PeerId,
    challenge: bytes::Bytes,
}

impl Unary {
    async fn new(at: &Endpoint) -> Self {
        let identity = Identity::ephemeral().unwrap();
        let mut client = client(at).await.unwrap();
        let request = GetChallengeRequest { peer_id: identity.peer_id().to_wire() };
        let answer = client.get_challenge(request).await.unwrap().into_inner();
        let server = PeerId::from_slice(&answer.server_id).unwrap();
        Self { identity, client, server, challenge: answer.challenge }
    }

    fn answer(&self, action: ChallengeAction, record: &Digest) -> ChallengeProof {
        answer_challenge(self.identity.key(), &self.server, &self.challenge, action, record)
    }

    async fn send(&mut self, record: SignedRecord, proof: ChallengeProof) -> Result<(), Status> {
        let request = RegisterRequest { record: Some(record), proof: Some(proof) };
        self.client.register(request).await.map(|_| ())
    }

    async fn register(&mut self, record: &Signed<PeerRecord>) -> Result<(), Status> {
        let proof = self.answer(ChallengeAction::Register, &record.digest());
        self.send(record.to_wire(), proof).await
    }
}

fn refused(result: Result<(), Status>) -> Reason {
    let status = result.expect_err("it should have been refused");
    reason_of(&status).unwrap_or_else(|| panic!("a refusal without a reason: {status}"))
}

async fn stage() -> (Backbone, Unary) {
    let backbone = bridged(1).await;
    let unary = Unary::new(&backbone.endpoints[0]).await;
    (backbone, unary)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_holds_repeats_harmlessly_and_can_be_withdrawn() {
    let (backbone, mut unary) = stage().await;
    let (at, id) = (&backbone.endpoints[0], unary.identity.peer_id());
    let first = record(&unary.identity, 0).unwrap();
    unary.register(&first).await.unwrap();
    unary.register(&first).await.unwrap();
    let located = locate(at, &id).await.unwrap();
    assert_eq!(located.record, first);
    assert_eq!(
        (located.presence.state, located.presence.source),
        (PresenceState::Online, PresenceSource::Registration)
    );

    let seq = first.value().seq + 1;
    let withdrawal = PeerWithdrawal { network: network().unwrap(), seq, issued: now() };
    let withdrawal = sign(&withdrawal, &unary.identity).unwrap();
    let proof = unary.answer(ChallengeAction::Unregister, &withdrawal.digest());
    let request = UnregisterRequest { withdrawal: Some(withdrawal.to_wire()), proof: Some(proof) };
    unary.client.unregister(request).await.unwrap();
    let gone = locate(at, &id).await;
    assert!(gone.is_err() || gone.is_ok_and(|l| l.presence.state == PresenceState::Offline));
    assert_eq!(refused(unary.register(&first).await), Reason::RecordStale, "the old record can't come back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_registers_and_unregisters_call_by_call() {
    let backbone = bridged(1).await;
    let (at, identity) = (&backbone.endpoints[0], Identity::ephemeral().unwrap());
    let connection = Dialer::new(None, None).unwrap().dial(at).await.unwrap();
    let first = record(&identity, 0).unwrap();
    let lease = register_once(&connection, &identity, &first).await.unwrap();
    assert!(!lease.lease_id.is_empty() && lease.ttl > std::time::Duration::from_secs(60), "{lease:?}");
    let located = locate(at, &identity.peer_id()).await.unwrap();
    assert_eq!((located.record, located.presence.source), (first.clone(), PresenceSource::Registration));

    // A backup was restored: what is known there says where to go on.
    let old = PeerRecord { seq: first.value().seq - 1, ..first.value().clone() };
    let status = register_once(&connection, &identity, &sign(&old, &identity).unwrap()).await.unwrap_err();
    assert_eq!((reason_of(&status), record_of(&status)), (Some(Reason::RecordStale), Some(first.to_wire())));
    let stranger = Identity::ephemeral().unwrap();
    let status = register_once(&connection, &stranger, &first).await.unwrap_err();
    assert!(matches!(reason_of(&status), Some(Reason::ChallengeExpired | Reason::ProofInvalid)), "{status}");

    let seq = first.value().seq + 1;
    let withdrawal = PeerWithdrawal { network: network().unwrap(), seq, issued: now() };
    let withdrawal = sign(&withdrawal, &identity).unwrap();
    for _ in 0..2 {
        unregister(&connection, &identity, &withdrawal).await.unwrap();
    }
    let status = locate(at, &identity.peer_id()).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::PeerOffline));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_record_is_refused_with_the_stored_one_attached() {
    let (_backbone, mut unary) = stage().await;
    let old = record(&unary.identity, 0).unwrap();
    let new = record(&unary.identity, old.value().seq).unwrap();
    unary.register(&new).await.unwrap();
    let proof = unary.answer(ChallengeAction::Register, &old.digest());
    let status = unary.send(old.to_wire(), proof).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::RecordStale));
    assert_eq!(record_of(&status), Some(new.to_wire()), "so that a restored backup can sign past it");

    let twin = PeerRecord { expires: now().plus(std::time::Duration::from_secs(60)), ..new.value().clone() };
    let twin = sign(&twin, &unary.identity).unwrap();
    assert_eq!(refused(unary.register(&twin).await), Reason::RecordEquivocation);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_registration_is_named() {
    let (_backbone, mut unary) = stage().await;
    let good = record(&unary.identity, 0).unwrap();
    let right = |u: &Unary, r: &Signed<PeerRecord>| u.answer(ChallengeAction::Register, &r.digest());

    let proof = right(&unary, &good);
    let mut broken = good.to_wire();
    broken.payload = [&broken.payload[..], &[0]].concat().into();
    assert_eq!(refused(unary.send(broken, proof.clone()).await), Reason::SignatureInvalid);

    let mut padded = good.to_wire();
    padded.payload = vec![0; 5000].into();
    assert_eq!(refused(unary.send(padded, proof.clone()).await), Reason::RecordTooLarge);

    let mut other_type = good.to_wire();
    other_type.r#type = 99;
    assert_eq!(refused(unary.send(other_type, proof.clone()).await), Reason::RecordTypeUnexpected);

    let wrong = unary.answer(ChallengeAction::Unregister, &good.digest());
    assert_eq!(refused(unary.send(good.to_wire(), wrong).await), Reason::ProofInvalid);

    let invented = ChallengeProof { challenge: vec![1; 32].into(), ..proof.clone() };
    let reason = refused(unary.send(good.to_wire(), invented).await);
    assert!(matches!(reason, Reason::ChallengeExpired | Reason::ProofInvalid), "{reason}");

    let ahead = PeerRecord { seq: now().0 + 10 * 60 * 1000, ..good.value().clone() };
    let ahead = sign(&ahead, &unary.identity).unwrap();
    assert_eq!(refused(unary.register(&ahead).await), Reason::SeqTooFarAhead);

    let network = Genesis::open("other").unwrap().network_id();
    let foreign = sign(&PeerRecord { network, ..good.value().clone() }, &unary.identity).unwrap();
    assert_eq!(refused(unary.register(&foreign).await), Reason::NetworkMismatch);

    // Somebody else's record, with one's own answer.
    let stranger = Identity::ephemeral().unwrap();
    let theirs = record(&stranger, 0).unwrap();
    let proof = right(&unary, &theirs);
    let reason = refused(unary.send(theirs.to_wire(), proof).await);
    assert!(matches!(reason, Reason::ChallengeExpired | Reason::ProofInvalid), "{reason}");

    // None of that left anything behind.
    unary.register(&good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_challenge_of_one_server_is_worth_nothing_at_another() {
    let backbone = bridged(2).await;
    let first = Unary::new(&backbone.endpoints[0]).await;
    let mut second = client(&backbone.endpoints[1]).await.unwrap();
    let record = record(&first.identity, 0).unwrap();
    let proof = first.answer(ChallengeAction::Register, &record.digest());
    let request = RegisterRequest { record: Some(record.to_wire()), proof: Some(proof) };
    let reason = refused(second.register(request).await.map(|_| ()));
    assert!(matches!(reason, Reason::ChallengeExpired | Reason::ProofInvalid), "{reason}");
}
