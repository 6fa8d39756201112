//! Golden vectors: what is signed or hashed today must be signed and hashed so for ever, by every implementation.
//!
//! `golden.txt` holds them, one a line. A vector that changes breaks every record in the world: never change one, only
//! add. What the contract's comments say of the bytes that are signed is written out here a second time, independently.

use super::vectors::{Golden, key, values};
use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use p2psb_proto::error::Reason;
use p2psb_proto::model::proof::{ChallengeAction, ProofRole, Transcript, answer_challenge, verify_answer};
use p2psb_proto::model::publisher::{Delegation, PackageHead, Succession};
use p2psb_proto::model::record::{Payload, RecordType, Signed};
use p2psb_proto::model::{
    Digest, Genesis, HostClaim, HostLease, PackageEntry, PeerId, PeerRecord, PeerStatement, PeerWithdrawal,
    PublisherId, RecordError, SecretKey,
};
use p2psb_proto::wire::common::v1::SignedRecord;
use prost::Message as _;

/// What the contract says is signed: each part preceded by its length as 8 bytes little endian.
fn framed(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|p| [&(p.len() as u64).to_le_bytes()[..], p].concat()).collect()
}

/// The signing input of a record, from its wire form alone.
fn record_input(record: &SignedRecord) -> Vec<u8> {
    framed(&[
        b"p2psb/record/1",
        &record.format.to_le_bytes(),
        &record.r#type.to_le_bytes(),
        &record.alg.to_le_bytes(),
        &record.key,
        &record.payload,
    ])
}

fn verifies(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let key = VerifyingKey::from_bytes(key.try_into().unwrap()).unwrap();
    key.verify_strict(message, &Signature::from_slice(signature).unwrap()).is_ok()
}

/// A record as anyone could sign it, by the contract's words alone.
fn sign_by_hand(kind: RecordType, payload: Vec<u8>, key: &SecretKey) -> SignedRecord {
    let mut record = SignedRecord {
        format: 1,
        r#type: kind as i32,
        alg: 1,
        key: Bytes::copy_from_slice(key.public().as_bytes()),
        payload: payload.into(),
        signature: Bytes::new(),
    };
    record.signature = Bytes::copy_from_slice(&key.sign(&record_input(&record)));
    record
}

fn check_record<T: Payload + PartialEq + std::fmt::Debug>(
    golden: &mut Golden,
    name: &str,
    value: &T,
    signer: u8,
) {
    let signed = Signed::sign(value, &key(signer)).unwrap();
    let wire = signed.to_wire();
    golden.check(&format!("record/{name}"), &wire.encode_to_vec());
    golden.check(&format!("digest/{name}"), signed.digest().as_bytes());

    let input = record_input(&wire);
    assert!(
        verifies(&wire.key, &input, &wire.signature),
        "{name}: the contract says something else is signed"
    );
    assert_eq!(*blake3::hash(&input).as_bytes(), *signed.digest().as_bytes(), "{name}");
    assert_eq!(sign_by_hand(T::TYPE, wire.payload.to_vec(), &key(signer)), wire, "{name}");

    let stored = SignedRecord::decode(golden.get(&format!("record/{name}")).as_slice()).unwrap();
    let read = Signed::<T>::verify(stored).unwrap();
    assert_eq!(read.value(), value, "{name}");
}

#[test]
fn every_record_type_is_signed_as_ever() {
    let mut golden = Golden::open();
    check_record(&mut golden, "peer", &values::peer(), 1);
    check_record(&mut golden, "peer-small", &values::small_peer(), 1);
    check_record(&mut golden, "peer-confirmed", &values::confirmed_peer(), 1);
    check_record(&mut golden, "address-confirmation", &values::confirmation(), 4);
    check_record(&mut golden, "peer-withdrawal", &values::withdrawal(), 1);
    check_record(&mut golden, "package-entry-release", &values::release(), 2);
    check_record(&mut golden, "package-entry-yank", &values::yank(), 2);
    check_record(&mut golden, "package-entry-unyank", &values::unyank(), 2);
    check_record(&mut golden, "package-head", &values::head(), 2);
    check_record(&mut golden, "host-claim", &values::claim(), 1);
    check_record(&mut golden, "host-lease", &values::lease(), 1);
    check_record(&mut golden, "delegation", &values::delegation(), 2);
    check_record(&mut golden, "succession", &values::succession(), 2);
    golden.finish();
}

#[test]
fn ids_and_networks_are_named_as_ever() {
    let mut golden = Golden::open();
    for seed in [0, 1, 2, 255] {
        let public = key(seed).public();
        golden.check(&format!("key/public-of-seed-{seed}"), public.as_bytes());
        golden.check(&format!("text/peer-of-seed-{seed}"), PeerId::new(public).to_string().as_bytes());
        golden.check(
            &format!("text/publisher-of-seed-{seed}"),
            PublisherId::new(public).to_string().as_bytes(),
        );
    }
    for name in ["open", "p2psb", "a-b.c9"] {
        let id = Genesis::open(name).unwrap().network_id();
        golden.check(&format!("network/{name}"), id.as_bytes());
        golden.check(&format!("text/network-{name}"), id.to_string().as_bytes());
        let document = framed(&[b"p2psb/genesis/open/1", name.as_bytes()]);
        assert_eq!(id.as_bytes(), blake3::hash(&document).as_bytes());
    }
    golden.check("hash/nothing", Digest::of(b"").as_bytes());
    golden.check("hash/p2psb", Digest::of(b"p2psb").as_bytes());
    golden.finish();
}

#[test]
fn live_proofs_are_signed_as_ever() {
    let mut golden = Golden::open();
    let transcript = values::transcript();
    let roles = [
        ("session-peer", ProofRole::SessionPeer, 1),
        ("session-server", ProofRole::SessionServer, 3),
        ("bridge-dialer", ProofRole::BridgeDialer, 1),
        ("bridge-listener", ProofRole::BridgeListener, 3),
    ];
    for (name, role, signer) in roles {
        for (bound, binding) in [("bound", Some([9; 32])), ("plaintext", None)] {
            let proof = transcript.prove(role, &binding, &key(signer));
            golden.check(&format!("proof/{name}-{bound}"), &proof.encode_to_vec());
            assert_eq!(transcript.verify(role, &binding, Some(&proof)), Ok(()));
            let input = framed(&[
                b"p2psb/proof/1",
                transcript.network.as_bytes(),
                &(role as i32).to_le_bytes(),
                &transcript.peer.to_bytes(),
                &transcript.server.to_bytes(),
                &transcript.client_nonce,
                &transcript.server_nonce,
                &transcript.session_seq.to_le_bytes(),
                &proof.channel_binding,
            ]);
            assert!(verifies(key(signer).public().as_bytes(), &input, &proof.signature), "{name} {bound}");
        }
    }
    golden.finish();
}

#[test]
fn challenges_are_answered_as_ever() {
    let mut golden = Golden::open();
    let Transcript { peer, server, .. } = values::transcript();
    let (challenge, record) = (Bytes::from_static(&[7; 32]), Digest::of(b"a record"));
    for (name, action) in
        [("register", ChallengeAction::Register), ("unregister", ChallengeAction::Unregister)]
    {
        let answer = answer_challenge(&key(1), &server, &challenge, action, &record);
        golden.check(&format!("challenge/{name}"), &answer.encode_to_vec());
        assert_eq!(verify_answer(&peer, &server, &answer, action, &record), Ok(()));
        let input = framed(&[
            b"p2psb/challenge/1",
            &server.to_bytes(),
            &challenge,
            &(action as i32).to_le_bytes(),
            record.as_bytes(),
        ]);
        assert!(verifies(peer.key().as_bytes(), &input, &answer.signature), "{name}");
    }
    golden.finish();
}

#[test]
fn unknown_fields_survive_verbatim_and_are_part_of_the_digest() {
    let known = Signed::sign(&values::peer(), &key(1)).unwrap();
    // Field 40, a string: what a later version may add.
    let mut payload = known.to_wire().payload.to_vec();
    payload.extend_from_slice(&[0xc2, 0x02, 5]);
    payload.extend_from_slice(b"later");
    let record = sign_by_hand(RecordType::Peer, payload, &key(1));
    let read = Signed::<PeerRecord>::verify(record.clone()).unwrap();
    assert_eq!(read.value(), known.value());
    assert_eq!(read.to_wire(), record, "passed on byte for byte");
    assert_ne!(read.digest(), known.digest());

    let mut cut = record;
    cut.payload = known.to_wire().payload;
    assert_eq!(Signed::<PeerRecord>::verify(cut), Err(RecordError::Signature), "and can't be taken out");
}

#[test]
fn a_record_changed_anywhere_is_refused() {
    let wire = Signed::sign(&values::small_peer(), &key(1)).unwrap().to_wire();
    let flip = |bytes: &Bytes, i: usize| {
        let mut changed = bytes.to_vec();
        changed[i] ^= 1;
        Bytes::from(changed)
    };
    let refused = |record| assert_eq!(Signed::<PeerRecord>::verify(record), Err(RecordError::Signature));
    for i in 0..wire.payload.len() {
        refused(SignedRecord { payload: flip(&wire.payload, i), ..wire.clone() });
    }
    for i in 0..wire.signature.len() {
        refused(SignedRecord { signature: flip(&wire.signature, i), ..wire.clone() });
    }
    for i in 0..wire.key.len() {
        refused(SignedRecord { key: flip(&wire.key, i), ..wire.clone() });
    }
    for length in [0, 31, 33, 63, 65] {
        refused(SignedRecord { key: Bytes::from(vec![1; length]), ..wire.clone() });
        refused(SignedRecord { signature: Bytes::from(vec![1; length]), ..wire.clone() });
    }
    // By another key: a signature that is right, but not the claimed signer's.
    let other = Signed::sign(&values::small_peer(), &key(9)).unwrap().to_wire();
    refused(SignedRecord { signature: other.signature.clone(), ..wire.clone() });
    refused(SignedRecord { key: other.key, ..wire });
}

#[test]
fn the_signature_is_checked_before_the_payload_is_looked_at() {
    let garbage = SignedRecord {
        payload: Bytes::from_static(b"\xff\xff\xff no message at all"),
        ..Signed::sign(&values::small_peer(), &key(1)).unwrap().to_wire()
    };
    assert_eq!(Signed::<PeerRecord>::verify(garbage), Err(RecordError::Signature));
}

#[test]
fn a_record_can_not_be_passed_off_as_another_type() {
    // A withdrawal and a lease have the same first fields: only the signed type keeps them apart.
    let withdrawal = Signed::sign(&values::withdrawal(), &key(1)).unwrap().to_wire();
    let as_is = Signed::<HostLease>::verify(withdrawal.clone()).unwrap_err();
    assert_eq!(as_is.reason(), Reason::RecordTypeUnexpected);
    let renamed = SignedRecord { r#type: RecordType::HostLease as i32, ..withdrawal };
    assert_eq!(Signed::<HostLease>::verify(renamed), Err(RecordError::Signature));
}

#[test]
fn unknown_types_formats_and_algorithms_are_refused() {
    let wire = Signed::sign(&values::small_peer(), &key(1)).unwrap().to_wire();
    for kind in [0, 9, 15, 99, -1, i32::MAX] {
        let error = PeerStatement::verify(SignedRecord { r#type: kind, ..wire.clone() }).unwrap_err();
        assert_eq!(error.reason(), Reason::RecordTypeUnexpected, "type {kind}");
    }
    for (format, alg) in [(0, 1), (2, 1), (u32::MAX, 1), (1, 0), (1, 2), (1, -1)] {
        let error = PeerStatement::verify(SignedRecord { format, alg, ..wire.clone() }).unwrap_err();
        assert_eq!(error, RecordError::Scheme { format, alg });
    }
}

#[test]
fn oversized_records_are_refused_before_anything_else() {
    fn refused<T: Payload>(limit: usize) {
        let record = SignedRecord { payload: Bytes::from(vec![0; limit]), ..SignedRecord::default() };
        let error = Signed::<T>::verify(record).map(|_| ()).unwrap_err();
        assert_eq!(error.reason(), Reason::RecordTooLarge);
    }
    refused::<PeerRecord>(4 * 1024);
    refused::<PeerWithdrawal>(4 * 1024);
    refused::<PackageEntry>(64 * 1024);
    refused::<PackageHead>(64 * 1024);
    refused::<HostClaim>(64 * 1024);
    refused::<HostLease>(64 * 1024);
    refused::<Delegation>(64 * 1024);
    refused::<Succession>(64 * 1024);

    let mut large = values::peer();
    for i in 0..32 {
        let mut offer = large.services[0].clone();
        offer.name = format!("service-{i}").parse().unwrap();
        offer.attributes = vec![("key".into(), "x".repeat(200))];
        large.services.push(offer);
    }
    large.services.truncate(32);
    let error = Signed::sign(&large, &key(1)).unwrap_err();
    assert_eq!(error.reason(), Reason::RecordTooLarge, "not even its own key signs it");
}

#[test]
fn a_record_outside_its_bounds_is_refused_though_its_signature_is_right() {
    use p2psb_proto::wire::common::v1 as wire;
    let good =
        wire::PeerRecord::decode(Signed::sign(&values::peer(), &key(1)).unwrap().to_wire().payload).unwrap();
    let address = good.addresses[0].clone();
    let offer = wire::ServiceOffer { name: "s".into(), attributes: vec![] };
    let attribute = wire::Attribute { key: "k".into(), value: String::new() };
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let late = good.issue_time.as_ref().unwrap().seconds + 2 * 60 * 60 + 1;
    let cases: Vec<(&str, wire::PeerRecord)> = vec![
        ("no network", wire::PeerRecord { network_id: Bytes::new(), ..good.clone() }),
        ("no issue_time", wire::PeerRecord { issue_time: None, ..good.clone() }),
        ("no expire_time", wire::PeerRecord { expire_time: None, ..good.clone() }),
        ("expires before it begins", wire::PeerRecord { expire_time: time(5), ..good.clone() }),
        ("lives too long", wire::PeerRecord { expire_time: time(late), ..good.clone() }),
        ("before 1970", wire::PeerRecord { issue_time: time(-1), ..good.clone() }),
        ("too many addresses", wire::PeerRecord { addresses: vec![address; 17], ..good.clone() }),
        ("too many services", wire::PeerRecord { services: vec![offer.clone(); 33], ..good.clone() }),
        ("too many homes", wire::PeerRecord { homes: vec![Bytes::from(vec![1; 33]); 17], ..good.clone() }),
        ("a home that is no id", wire::PeerRecord { homes: vec![Bytes::from(vec![2; 33])], ..good.clone() }),
        (
            "too many attributes",
            wire::PeerRecord {
                services: vec![wire::ServiceOffer { attributes: vec![attribute; 17], ..offer.clone() }],
                ..good.clone()
            },
        ),
        (
            "a service name in capitals",
            wire::PeerRecord { services: vec![wire::ServiceOffer { name: "A".into(), ..offer }], ..good },
        ),
    ];
    for (what, payload) in cases {
        let record = sign_by_hand(RecordType::Peer, payload.encode_to_vec(), &key(1));
        let error = Signed::<PeerRecord>::verify(record).map(|_| ()).unwrap_err();
        assert_eq!(error.reason(), Reason::RecordMalformed, "{what}: {error}");
    }
}
