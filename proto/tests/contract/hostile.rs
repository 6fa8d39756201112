//! Bytes from anywhere: whatever arrives, parsing and verifying answer with a value or an error, never with a panic.

use super::vectors::{key, values};
use bytes::Bytes;
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::presence::{LocatedPeer, Presence};
use p2psb_proto::model::proof::{ChallengeAction, ProofRole, nonce, verify_answer};
use p2psb_proto::model::publisher::{Delegation, PackageHead, Succession};
use p2psb_proto::model::record::{Payload, Signed};
use p2psb_proto::model::release::parse_version;
use p2psb_proto::model::{
    Address, AddressConfirmation, Digest, HostClaim, HostLease, NetworkId, PackageEntry, PackageName, PeerId,
    PeerRecord, PeerStatement, PeerWithdrawal, PublisherId, ServiceName, UnixMillis,
};
use p2psb_proto::wire::common::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::ChallengeProof;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

const NOW: UnixMillis = values::ISSUED;

fn verify_as_anything(record: &wire::SignedRecord) {
    let verified = PeerStatement::verify(record.clone());
    let again = PeerStatement::verified_before(&record.encode_to_vec().into());
    assert!(verified.is_err() || verified == again, "what was verified is taken again");
    let _ = Signed::<PackageEntry>::verify(record.clone());
    let _ = Signed::<PackageHead>::verify(record.clone());
    let _ = Signed::<HostClaim>::verify(record.clone());
    let _ = Signed::<HostLease>::verify(record.clone());
    let _ = Signed::<Delegation>::verify(record.clone());
    let _ = Signed::<Succession>::verify(record.clone());
    let _ = Signed::<AddressConfirmation>::verify(record.clone());
}

/// Parses a payload as its type would be after the signature was found right, and asks what can be asked of the value.
fn parse<T: Payload>(payload: &[u8]) -> Option<T> {
    let wire = T::Wire::decode(payload).ok()?;
    let value = T::parse(wire, &key(1).public()).ok()?;
    let again = T::parse(value.to_wire(), &key(1).public());
    assert!(again.is_ok(), "what was accepted once is accepted again");
    Some(value)
}

fn parse_as_anything(payload: &[u8]) {
    let network = values::peer().network;
    if let Some(record) = parse::<PeerRecord>(payload) {
        let _ = record.check(&network, NOW);
        for address in &record.addresses {
            let _ = (address.to_string(), address.authority(), address.socket_addr());
            let _ = address.believed(&values::confirmation().peer, &network, NOW, |_| true);
        }
    }
    if let Some(withdrawal) = parse::<PeerWithdrawal>(payload) {
        let _ = withdrawal.check(&network, NOW);
    }
    if let Some(claim) = parse::<HostClaim>(payload) {
        let _ = claim.check(&network, NOW);
    }
    if let Some(lease) = parse::<HostLease>(payload) {
        let _ = lease.check(&network, NOW);
    }
    if let Some(confirmation) = parse::<AddressConfirmation>(payload) {
        let _ = confirmation.check(&network, NOW);
    }
    let _ = parse::<PackageEntry>(payload);
    let _ = parse::<PackageHead>(payload);
    let _ = parse::<Delegation>(payload);
    let _ = parse::<Succession>(payload);
    if let Ok(hello) = wire::Hello::decode(payload) {
        let _ = Hello::accept(Some(hello), &network, NOW);
    }
    if let Ok(located) = wire::LocatedPeer::decode(payload) {
        let _ = LocatedPeer::try_from(located);
    }
    if let Ok(presence) = wire::Presence::decode(payload) {
        let _ = Presence::try_from(presence);
    }
    if let Ok(address) = wire::Address::decode(payload) {
        let _ = Address::try_from(address);
    }
}

/// Real payloads to start from: most random bytes end at the first tag.
fn payloads() -> Vec<Vec<u8>> {
    fn of<T: Payload>(value: &T) -> Vec<u8> {
        value.to_wire().encode_to_vec()
    }
    vec![
        of(&values::peer()),
        of(&values::small_peer()),
        of(&values::confirmed_peer()),
        of(&values::confirmation()),
        of(&values::withdrawal()),
        of(&values::release()),
        of(&values::yank()),
        of(&values::unyank()),
        of(&values::head()),
        of(&values::claim()),
        of(&values::lease()),
        of(&values::delegation()),
        of(&values::succession()),
    ]
}

fn small_bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![vec(any::<u8>(), 0..80), Just(vec![1; 32]), Just(vec![1; 33]), Just(vec![0; 64])]
        .prop_map(Bytes::from)
}

proptest! {
    #[test]
    fn any_signed_record_is_answered(
        format in 0u32..3, kind in -1i32..20, alg in -1i32..3,
        key in small_bytes(), payload in vec(any::<u8>(), 0..300), signature in small_bytes(),
    ) {
        let payload = Bytes::from(payload);
        verify_as_anything(&wire::SignedRecord { format, r#type: kind, alg, key, payload, signature });
    }

    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..600)) {
        parse_as_anything(&bytes);
        if let Ok(record) = wire::SignedRecord::decode(bytes.as_slice()) {
            verify_as_anything(&record);
        }
        let _ = PeerId::from_slice(&bytes);
        let _ = NetworkId::from_slice(&bytes);
        let _ = Digest::from_slice(&bytes);
        let _ = nonce(&bytes);
    }

    #[test]
    fn a_payload_changed_at_random_is_answered(
        which in any::<prop::sample::Index>(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(), shorten in any::<bool>(),
    ) {
        let mut payload = which.get(&payloads()).clone();
        for (at, byte) in edits {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if shorten {
            payload.truncate(cut.index(payload.len() + 1));
        }
        parse_as_anything(&payload);
    }

    #[test]
    fn any_text_is_answered(text in ".{0,120}") {
        let _ = text.parse::<PeerId>();
        let _ = text.parse::<PublisherId>();
        let _ = text.parse::<NetworkId>();
        let _ = text.parse::<Digest>();
        let _ = text.parse::<PackageName>();
        let _ = text.parse::<ServiceName>();
        let _ = parse_version(&text);
    }

    #[test]
    fn any_proof_is_answered(
        signature in small_bytes(), binding in small_bytes(), role in 0i32..5, action in 0i32..3,
    ) {
        let transcript = values::transcript();
        let proof = wire::LiveProof { signature: signature.clone(), channel_binding: binding.clone() };
        let role = ProofRole::try_from(role).unwrap();
        prop_assert!(transcript.verify(role, &Some([9; 32]), Some(&proof)).is_err());
        prop_assert!(transcript.verify(role, &None, Some(&proof)).is_err());
        prop_assert!(transcript.verify_carried(role, &proof).is_err());
        let answer = ChallengeProof { challenge: binding, signature };
        let action = ChallengeAction::try_from(action).unwrap();
        let answered = verify_answer(&transcript.peer, &transcript.server, &answer, action, &Digest::of(b""));
        prop_assert!(answered.is_err());
    }

    #[test]
    fn whatever_is_signed_verifies_and_comes_back_the_same(
        seq in any::<u64>(), issued in 0u64..253_402_300_000_000, lifetime in 1u64..=7_200_000,
    ) {
        let mut record = values::peer();
        record.seq = seq;
        record.issued = UnixMillis(issued);
        record.expires = UnixMillis(issued + lifetime.min(253_402_300_799_999 - issued).max(1));
        let signed = Signed::sign(&record, &key(1)).unwrap();
        let read = Signed::<PeerRecord>::verify(signed.to_wire()).unwrap();
        prop_assert_eq!(read.value(), &record);
        prop_assert_eq!(read.digest(), signed.digest());
    }
}
