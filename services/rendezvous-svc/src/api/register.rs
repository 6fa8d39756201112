//! Registering without a session: a challenge, and a record with its answer.

use bytes::Bytes;
use p2psb_proto::error::Failure;
use p2psb_proto::model::proof::{ChallengeAction, ProofError, verify_answer};
use p2psb_proto::model::time::duration_to_wire;
use p2psb_proto::model::{Digest, PeerId, PeerStatement, RecordError};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;

use super::status::{draining, full, not_an_id};
use crate::backbone::stating;
use crate::convert;
use crate::core::ledger::Bringer;
use crate::core::session::Freed;
use crate::core::table::{Item, Merged};
use crate::core::telling::Origin;
use crate::node::{Caller, Node};
use crate::records::{only_record, only_withdrawal};

/// Gives a challenge.
pub(super) fn challenge(
    node: &Node,
    caller: &Caller,
    request: &wire::GetChallengeRequest,
) -> Result<wire::GetChallengeResponse, Failure> {
    let peer = PeerId::from_slice(&request.peer_id).map_err(|error| not_an_id("peer_id", &error))?;
    let now = node.now().wall;
    let (challenge, ttl) = node.challenges.give(&peer, caller.ip(), now);
    Ok(wire::GetChallengeResponse {
        challenge: Bytes::copy_from_slice(&challenge),
        server_id: node.id.to_wire(),
        ttl: Some(duration_to_wire(ttl)),
        server_time: Some(now.to_wire()),
        observed_address: caller.observed(),
    })
}

/// Verifies a statement and the answer to the challenge that comes with it.
fn verify(
    node: &Node,
    caller: &Caller,
    record: Option<SignedRecord>,
    proof: Option<&wire::ChallengeProof>,
    action: ChallengeAction,
) -> Result<(PeerStatement, Digest), Failure> {
    let statement = PeerStatement::verify(record.ok_or(RecordError::Missing)?)?;
    let (peer, (_, digest)) = (statement.peer_id(), statement.rank());
    let proof = proof.ok_or(ProofError::Missing)?;
    let now = node.now().wall;
    node.challenges.check(&proof.challenge, &peer, caller.ip(), now)?;
    verify_answer(&peer, &node.id, proof, action, &digest)?;
    statement.check(&node.network, now)?;
    Ok((statement, digest))
}

/// Registers a peer.
pub(super) fn register(
    node: &Node,
    caller: &Caller,
    request: wire::RegisterRequest,
) -> Result<wire::RegisterResponse, Failure> {
    if node.drain.has_begun() {
        return Err(draining());
    }
    let action = ChallengeAction::Register;
    let (statement, digest) = verify(node, caller, request.record, request.proof.as_ref(), action)?;
    let record = only_record(statement)?;
    let proof = request.proof.unwrap_or_default();
    let lease_id = lease_id(&proof);
    let session_proof = wire::SessionProof {
        challenge: proof.challenge,
        record_digest: digest.to_wire(),
        challenge_signature: proof.signature,
        ..wire::SessionProof::default()
    };
    let item = convert::item(&PeerStatement::Record(record));
    let ttl = enter(node, caller, item, stating::pack(&session_proof))?;
    Ok(wire::RegisterResponse { lease_id, ttl: Some(duration_to_wire(ttl)) })
}

/// Puts a verified registration into the directory. Returns how long it counts.
fn enter(node: &Node, caller: &Caller, item: Item, proof: Bytes) -> Result<std::time::Duration, Failure> {
    let (peer, seq, now) = (item.peer(), item.seq(), node.now());
    let mut directory = node.directory.write();
    let registered = directory.stated(&peer, now.mono).and_then(|stated| stated.until);
    if let Some(until) = registered.filter(|_| directory.proof(&peer).as_ref() == Some(&proof)) {
        // The same call again: nothing happens twice.
        return Ok(until.saturating_duration_since(now.mono));
    }
    let anew = directory.registers_anew(&peer);
    if anew {
        node.registrations.lock().enter(caller.ip()).map_err(full)?;
    }
    let before = directory.table.service_keys(&peer);
    let merged = directory.table.offer(item, Bringer::Peer(caller.ip()), now.wall);
    if merged.is_ok() {
        directory.register(peer, seq, &proof, caller.ip(), now.mono);
    } else if anew {
        node.registrations.lock().leave(caller.ip());
    }
    let ttl = directory.sessions.timing().registration;
    drop(directory);
    node.account(&peer, before, Origin::Here, &merged);
    merged?;
    node.presence(peer, Origin::Here);
    Ok(ttl)
}

/// Ends a registration for good.
pub(super) fn unregister(
    node: &Node,
    caller: &Caller,
    request: wire::UnregisterRequest,
) -> Result<wire::UnregisterResponse, Failure> {
    let action = ChallengeAction::Unregister;
    let (statement, _) = verify(node, caller, request.withdrawal, request.proof.as_ref(), action)?;
    let statement = only_withdrawal(statement)?;
    let peer = statement.peer_id();
    if node.offer(&statement, caller.ip())? == Merged::Changed {
        let freed = node.directory.write().unregister(&peer, node.now().mono);
        if let Some(Freed(from)) = freed {
            node.registrations.lock().leave(from);
        }
        node.presence(peer, Origin::Here);
    }
    Ok(wire::UnregisterResponse {})
}

/// The same for the same call.
fn lease_id(proof: &wire::ChallengeProof) -> String {
    let digest = Digest::of(&proof.signature);
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(digest.as_bytes()) {
        *to = *from;
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}
