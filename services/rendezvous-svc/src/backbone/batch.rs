//! Batches: what is told, and what is made of what was told.

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_proto::model::proof::{ChallengeAction, ProofError, ProofRole, Transcript, nonce, verify_answer};
use p2psb_proto::model::time::{duration_from_wire, duration_to_wire};
use p2psb_proto::model::{Digest, PeerId, limits};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use prost::Message as _;

use super::hub::Mailbox;
use crate::convert;
use crate::core::Now;
use crate::core::members::LinkTicket;
use crate::core::outbox::Next;
use crate::core::own::SERVICE;
use crate::core::presence::Statement;
use crate::core::session::REMEMBERED;
use crate::core::table::Merged;
use crate::node::Node;

/// A batch is sent when it has so many bytes; what is taken at a step fits between this and the bound of a message.
const ENOUGH_BYTES: usize = 384 * 1024;
/// Peers that are taken from the outbox at a step.
const STEP: usize = 16;
/// Bytes of the records of members in one batch.
const MEMBERS_BYTES: usize = 64 * 1024;

/// The next batch for a member, if there is anything to tell.
pub(super) fn next(node: &Node, mailbox: &Mailbox) -> Option<wire::BridgeBatch> {
    let mut batch = wire::BridgeBatch::default();
    let mut bytes = 0;
    while bytes < ENOUGH_BYTES
        && batch.records.len() + STEP <= limits::BATCH_ITEMS
        && batch.presence.len() + STEP <= limits::BATCH_ITEMS
    {
        let next = mailbox.next(STEP);
        if next.is_empty() {
            break;
        }
        bytes += add(node, &next, &mut batch);
    }
    let is_empty = batch.records.is_empty() && batch.presence.is_empty() && batch.members.is_empty();
    (!is_empty).then_some(batch)
}

fn add(node: &Node, next: &Next, batch: &mut wire::BridgeBatch) -> usize {
    let now = node.now();
    let directory = node.directory.read();
    let before = (batch.records.len(), batch.presence.len());
    let told = next.records.iter().filter_map(|peer| directory.table.telling(peer, now.wall));
    batch.records.extend(told.filter_map(|bytes| convert::signed(bytes).ok()));
    let stated = next.presence.iter().filter_map(|peer| {
        let stated = directory.sessions.stated(peer, now.mono)?;
        let proof = directory.sessions.proof(peer)?;
        Some(wire::HomePresence {
            peer_id: peer.to_wire(),
            session_seq: stated.session_seq,
            state: stated.state as i32,
            source: stated.source as i32,
            last_seen_age: Some(duration_to_wire(now.age(stated.heard))),
            session_proof: wire::SessionProof::decode(proof.clone()).ok(),
            remaining: stated.until.map(|until| duration_to_wire(until.saturating_duration_since(now.mono))),
        })
    });
    batch.presence.extend(stated);
    if next.members {
        let linked = directory.members.all().into_iter().take_while(|member| member.linked);
        let records: Vec<_> = linked
            .filter_map(|member| {
                directory.table.valid(&member.peer, now.wall).map(|entry| entry.bytes().clone())
            })
            .collect();
        batch.members = convert::cut(records.iter(), MEMBERS_BYTES);
    }
    let (records, presence) = before;
    let size = |message: usize| message + 8;
    batch.records.iter().skip(records).map(|record| size(record.encoded_len())).sum::<usize>()
        + batch.presence.iter().skip(presence).map(|one| size(one.encoded_len())).sum::<usize>()
        + batch.members.iter().map(|record| size(record.encoded_len())).sum::<usize>()
}

/// What came of a batch.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Statements that proved nothing.
    pub(super) refused: usize,
    /// The reason of the first of them.
    pub(super) first: Option<Failure>,
    /// Somebody was heard of.
    pub(super) new_members: bool,
}

impl Applied {
    fn count(&mut self, failure: Failure) {
        self.refused += 1;
        self.first.get_or_insert(failure);
    }
}

/// Checks the bounds of a batch.
pub(super) fn check(batch: &wire::BridgeBatch) -> Result<(), Failure> {
    for (what, count, limit) in [
        ("records", batch.records.len(), limits::BATCH_ITEMS),
        ("presence", batch.presence.len(), limits::BATCH_ITEMS),
        ("members", batch.members.len(), limits::MEMBERS),
    ] {
        if count > limit {
            let text = format!("a batch has at most {limit} {what}, this one {count}");
            return Err(Failure::new(Reason::InvalidArgument, text));
        }
    }
    Ok(())
}

/// Takes what a member said over a link. What proves nothing is passed over, the rest counts.
pub(super) fn apply(node: &Node, home: PeerId, link: LinkTicket, batch: wire::BridgeBatch) -> Applied {
    let mut applied = Applied::default();
    for record in batch.records {
        merge(node, home, record, &mut applied);
    }
    for record in batch.members {
        let peer = PeerId::from_slice(&with_algorithm(&record));
        if merge(node, home, record, &mut applied)
            && let Ok(peer) = peer
        {
            let now = node.now();
            let mut directory = node.directory.write();
            if directory.table.provides(&peer, SERVICE, now.wall) {
                applied.new_members |= directory.members.name(peer, now.mono);
            }
        }
    }
    for presence in batch.presence {
        if let Err(failure) = state(node, home, link, presence) {
            applied.count(failure);
        }
    }
    applied
}

/// The id of a record's key. Nothing is believed of it before the record is verified.
fn with_algorithm(record: &SignedRecord) -> Vec<u8> {
    let algorithm = u8::try_from(record.alg).unwrap_or_default();
    std::iter::once(algorithm).chain(record.key.iter().copied()).collect()
}

/// Returns whether the record was good, known before or not.
fn merge(node: &Node, home: PeerId, record: SignedRecord, applied: &mut Applied) -> bool {
    match node.merge(record, home) {
        Ok(Merged::Changed | Merged::Known) => true,
        Err(failure) => {
            applied.count(failure);
            false
        }
    }
}

fn malformed(text: impl std::fmt::Display) -> Failure {
    Failure::new(Reason::InvalidArgument, format!("presence: {text}"))
}

fn state(node: &Node, home: PeerId, link: LinkTicket, said: wire::HomePresence) -> Result<(), Failure> {
    let peer = PeerId::from_slice(&said.peer_id).map_err(malformed)?;
    let source = PresenceSource::try_from(said.source).unwrap_or_default();
    let statement = statement(&said, source, node.now())?;
    let known = node.directory.read().presence.knows(&home, &peer, statement.session_seq, source);
    if !known {
        prove(node, home, peer, &said, source)?;
    }
    let changed = {
        let mut directory = node.directory.write();
        // Presence has no order of its own: of two links only the one that took the other's place may speak.
        directory.members.is_current(&home, link) && directory.presence.state(home, peer, statement)
    };
    if changed {
        node.hub.watching.changed(peer);
    }
    Ok(())
}

fn statement(said: &wire::HomePresence, source: PresenceSource, now: Now) -> Result<Statement, Failure> {
    let state = PresenceState::try_from(said.state).unwrap_or_default();
    let until = match (state, source) {
        (PresenceState::Unspecified, _) => return Err(malformed("no state")),
        (_, PresenceSource::Session) => None,
        (_, PresenceSource::Registration) => {
            Some(now.mono + duration_from_wire(said.remaining.as_ref()).min(limits::RECORD_LIFETIME))
        }
        (_, PresenceSource::Unspecified | PresenceSource::Record) => return Err(malformed("no source")),
    };
    let age = duration_from_wire(said.last_seen_age.as_ref()).min(REMEMBERED);
    let heard = now.mono.checked_sub(age).unwrap_or(now.mono);
    Ok(Statement { session_seq: said.session_seq, state, source, heard, until })
}

/// A home speaks of its own sessions only, and only with the peer's signature.
fn prove(
    node: &Node,
    home: PeerId,
    peer: PeerId,
    said: &wire::HomePresence,
    source: PresenceSource,
) -> Result<(), Failure> {
    let proof = said.session_proof.as_ref().ok_or(ProofError::Missing)?;
    if source == PresenceSource::Registration {
        let digest = Digest::from_slice(&proof.record_digest).map_err(malformed)?;
        let answer = wire::ChallengeProof {
            challenge: proof.challenge.clone(),
            signature: proof.challenge_signature.clone(),
        };
        return Ok(verify_answer(&peer, &home, &answer, ChallengeAction::Register, &digest)?);
    }
    let transcript = Transcript {
        network: node.network,
        peer,
        server: home,
        client_nonce: nonce(&proof.client_nonce)?,
        server_nonce: nonce(&proof.server_nonce)?,
        session_seq: said.session_seq,
    };
    let signed = proof.proof.as_ref().ok_or(ProofError::Missing)?;
    Ok(transcript.verify_carried(ProofRole::SessionPeer, signed)?)
}
