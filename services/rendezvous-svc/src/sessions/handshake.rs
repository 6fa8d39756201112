//! The first four messages: hello, hello, authenticate, lease.

use std::sync::Arc;

use bytes::Bytes;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::proof::{self, ProofRole, Transcript};
use p2psb_proto::model::time::duration_to_wire;
use p2psb_proto::model::{PeerRecord, PeerStatement, RecordError, Signed, limits};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use tokio_util::sync::CancellationToken;

use super::live::Session;
use super::{Slot, Stream, gone};
use crate::api::status::full;
use crate::backbone::stating;
use crate::convert;
use crate::core::ledger::Bringer;
use crate::core::reconnect::shuffle;
use crate::core::session::{Freed, Opened};
use crate::core::table::TableError;
use crate::core::telling::Origin;
use crate::node::{Caller, Node, random};
use crate::records::{only_record, refresh_after};

/// Records of rendezvous in a lease or a drain hint.
const NAMED_RENDEZVOUS: usize = 32;
/// Bytes they may take, so that the message stays within its bound.
const NAMED_BYTES: usize = 60 * 1024;

/// Leads a peer to its lease, which the session is to give it: from here on whatever happens ends a session.
pub(super) async fn shake_hands(
    node: &Arc<Node>,
    caller: &Caller,
    stream: &mut Stream,
    slot: &mut Slot,
) -> Result<(Session, wire::Lease), Failure> {
    let Up::Hello(hello) = expect(stream).await? else { return Err(unexpected("hello")) };
    let transcript = greet(node, hello)?;
    let proof = transcript.prove(ProofRole::SessionServer, &caller.binding, node.identity.key());
    stream.send(Down::Hello(wire::ServerHello {
        hello: Some(node.hello()),
        server_nonce: Bytes::copy_from_slice(&transcript.server_nonce),
        proof: Some(proof),
        record: node.own.current(),
        observed_address: caller.observed(),
    }))?;

    let Up::Authenticate(answer) = expect(stream).await? else { return Err(unexpected("authenticate")) };
    transcript.verify(ProofRole::SessionPeer, &caller.binding, answer.proof.as_ref())?;
    let record = own_record(node, &transcript, answer.record)?;
    let session_proof = wire::SessionProof {
        client_nonce: Bytes::copy_from_slice(&transcript.client_nonce),
        server_nonce: Bytes::copy_from_slice(&transcript.server_nonce),
        proof: answer.proof,
        ..wire::SessionProof::default()
    };
    let entering =
        Entering { transcript: &transcript, record: &record, proof: stating::pack(&session_proof) };
    let (session, replaced) = enter(node, caller, &entering, slot)?;
    let lease = lease(node, &record, replaced);
    tracing::debug!(peer = %session.peer, seq = transcript.session_seq, from = ?caller.addr, "session open");
    Ok((session, lease))
}

async fn expect(stream: &mut Stream) -> Result<Up, Failure> {
    match stream.next().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(gone()),
        Err(status) => Err(from_stream(&status)),
    }
}

/// A failure that is known keeps its reason; any other is a broken stream.
pub(super) fn from_stream(status: &tonic::Status) -> Failure {
    match p2psb_proto::error::reason_of(status) {
        Some(reason) => Failure::new(reason, status.message()),
        None => convert::unreadable(status).unwrap_or_else(gone),
    }
}

fn unexpected(wanted: &str) -> Failure {
    Failure::new(Reason::UnexpectedMessage, format!("{wanted} must come now"))
}

fn greet(node: &Node, hello: wire::SessionHello) -> Result<Transcript, Failure> {
    let theirs = Hello::accept(hello.hello, &node.network, node.now().wall)?;
    Ok(Transcript {
        network: node.network,
        peer: theirs.peer,
        server: node.id,
        client_nonce: proof::nonce(&hello.client_nonce)?,
        server_nonce: random()?,
        session_seq: hello.session_seq,
    })
}

fn own_record(
    node: &Node,
    transcript: &Transcript,
    record: Option<SignedRecord>,
) -> Result<Signed<PeerRecord>, Failure> {
    let record = only_record(node.verify(record.ok_or(RecordError::Missing)?)?)?;
    if record.peer_id() != transcript.peer {
        let text =
            format!("the record of {} is needed, this one is of {}", transcript.peer, record.peer_id());
        return Err(Failure::new(Reason::InvalidArgument, text));
    }
    Ok(record)
}

/// A peer that has proven itself.
struct Entering<'a> {
    transcript: &'a Transcript,
    record: &'a Signed<PeerRecord>,
    /// What convinces others.
    proof: Bytes,
}

/// Puts the peer into the directory: its record and its session, or neither. A record that comes too soon after the last, as
/// it does from a peer whose address has just changed, keeps no session from being opened: it waits there. Says whether an older
/// session had to end for it.
fn enter(
    node: &Arc<Node>,
    caller: &Caller,
    Entering { transcript, record, proof }: &Entering<'_>,
    slot: &mut Slot,
) -> Result<(Session, bool), Failure> {
    let (peer, seq, now) = (transcript.peer, transcript.session_seq, node.now());
    let statement = PeerStatement::Record((*record).clone());
    let item = convert::item(&statement);
    let replaced = CancellationToken::new();
    let (before, merged, opened) = {
        let mut directory = node.directory.write();
        directory.may_open(&peer, seq, now.mono)?;
        slot.prove(directory.has_session(&peer)).map_err(full)?;
        let before = directory.table.service_keys(&peer);
        let merged = directory.table.offer(item, Bringer::Peer(caller.ip()), now.wall);
        let opened = match &merged {
            Ok(_) | Err(TableError::TooOften { .. }) => directory.open(peer, seq, proof, now.mono)?,
            Err(_) => None,
        };
        if let Some(Opened { ticket, replaced: old, .. }) = opened {
            let mut streams = node.streams.lock();
            streams.insert(ticket, replaced.clone());
            if let Some(old) = old.and_then(|old| streams.remove(&old)) {
                old.cancel();
            }
        }
        (before, merged, opened)
    };
    node.account(&peer, before, Origin::Here, &merged);
    let waiting = match merged {
        Ok(_) => None,
        Err(TableError::TooOften { wait }) => Some((statement, wait)),
        Err(error) => return Err(error.into()),
    };
    let Some(Opened { ticket, freed, replaced: old }) = opened else { return Err(gone()) };
    if let Some(Freed(from)) = freed {
        node.registrations.lock().leave(from);
    }
    node.presence(peer, Origin::Here);
    let session = Session::new(Arc::clone(node), peer, caller.addr, ticket, replaced);
    let session = match waiting {
        Some((statement, wait)) => session.waiting(statement, wait),
        None => session,
    };
    Ok((session, old.is_some()))
}

fn lease(node: &Node, record: &Signed<PeerRecord>, replaced: bool) -> wire::Lease {
    let timing = *node.directory.read().sessions.timing();
    let left = record.value().expires.since(node.now().wall);
    wire::Lease {
        lease_id: uuid::Uuid::new_v4().to_string(),
        ttl: Some(duration_to_wire(timing.suspect_after())),
        heartbeat_interval: Some(duration_to_wire(timing.heartbeat)),
        refresh_after: Some(duration_to_wire(refresh_after(left, fastrand::f64()))),
        rendezvous: named_rendezvous(node, true),
        reconnect_spread: Some(duration_to_wire(node.reconnect_spread())),
        replaced,
    }
}

/// The rendezvous of this backbone that live, this one first or not at all, the others in another order each time.
pub(super) fn named_rendezvous(node: &Node, with_own: bool) -> Vec<SignedRecord> {
    let now = node.now();
    let mut known = node.directory.read().rendezvous(0, now);
    known.retain(|one| one.connected);
    if let [_own, others @ ..] = known.as_mut_slice() {
        shuffle(others, |one| one.sessions, fastrand::f64);
    }
    let named = known.iter().skip(usize::from(!with_own)).take(NAMED_RENDEZVOUS);
    convert::cut(named.map(|one| &one.bytes), NAMED_BYTES.min(limits::CONTROL_MESSAGE_BYTES))
}
