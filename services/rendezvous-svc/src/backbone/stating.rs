//! What a home says of a peer, on its way between members: with the peer's proof, so that whoever hears it need not believe
//! whoever tells it.

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_proto::model::proof::{ChallengeAction, ProofError, ProofRole, Transcript, nonce, verify_answer};
use p2psb_proto::model::time::{duration_from_wire, duration_to_wire};
use p2psb_proto::model::{Digest, NetworkId, PeerId, limits};
use p2psb_proto::wire::rendezvous::v1 as wire;
use prost::Message as _;

use crate::core::Now;
use crate::core::directory::Directory;
use crate::core::presence::{Said, Statement};
use crate::core::session::REMEMBERED;

/// A proof of a session has about 180 bytes. Batches count on this.
const PROOF_BYTES: usize = 256;

/// What this server says of a peer that is, or was, here.
pub(super) fn own(
    directory: &Directory,
    peer: &PeerId,
    revision: u64,
    now: Now,
) -> Option<wire::HomePresence> {
    let statement = directory.stated(peer, now.mono)?;
    let proof = directory.proof(peer)?;
    let home = directory.own();
    let said = Said { home, peer: *peer, statement, revision, proof, as_of: now.mono, is_direct: true };
    Some(to_wire(&said, now))
}

/// As it is said, or passed on.
pub(super) fn to_wire(said: &Said, now: Now) -> wire::HomePresence {
    let Said { statement, .. } = said;
    let until = statement.until.map(|until| until.saturating_duration_since(now.mono));
    let passed_on = !said.is_direct;
    wire::HomePresence {
        peer_id: said.peer.to_wire(),
        session_seq: statement.session_seq,
        state: statement.state as i32,
        source: statement.source as i32,
        last_seen_age: Some(duration_to_wire(now.age(statement.heard))),
        session_proof: wire::SessionProof::decode(said.proof.clone()).ok(),
        remaining: until.map(duration_to_wire),
        home_id: if passed_on { said.home.to_wire() } else { bytes::Bytes::new() },
        revision: said.revision,
        as_of_age: passed_on.then(|| duration_to_wire(now.age(said.as_of))),
    }
}

fn malformed(text: impl std::fmt::Display) -> Failure {
    Failure::new(Reason::InvalidArgument, format!("presence: {text}"))
}

/// What `from` said, not verified yet.
pub(super) fn read(said: &wire::HomePresence, from: PeerId, now: Now) -> Result<Said, Failure> {
    let peer = PeerId::from_slice(&said.peer_id).map_err(malformed)?;
    let home = match said.home_id.as_ref() {
        [] => from,
        id => PeerId::from_slice(id).map_err(malformed)?,
    };
    let ago = |age: Option<&_>| {
        let age = duration_from_wire(age).min(REMEMBERED);
        now.mono.checked_sub(age).unwrap_or(now.mono)
    };
    let source = PresenceSource::try_from(said.source).unwrap_or_default();
    let state = PresenceState::try_from(said.state).unwrap_or_default();
    let until = match (state, source) {
        (PresenceState::Unspecified, _) => return Err(malformed("no state")),
        (_, PresenceSource::Session) => None,
        (_, PresenceSource::Registration) => {
            Some(now.mono + duration_from_wire(said.remaining.as_ref()).min(limits::RECORD_LIFETIME))
        }
        (_, PresenceSource::Unspecified | PresenceSource::Record) => return Err(malformed("no source")),
    };
    if said.revision > now.wall.plus(limits::CLOCK_SKEW).0 {
        return Err(malformed("a revision from the future"));
    }
    let heard = ago(said.last_seen_age.as_ref());
    let statement = Statement { session_seq: said.session_seq, state, source, heard, until };
    let proof = proof(said.session_proof.clone().unwrap_or_default(), source)?;
    let (as_of, is_direct) = (ago(said.as_of_age.as_ref()), home == from);
    Ok(Said { home, peer, statement, revision: said.revision, proof, as_of, is_direct })
}

/// What is looked at of a proof, and nothing else: whatever is kept is passed on.
fn proof(said: wire::SessionProof, source: PresenceSource) -> Result<bytes::Bytes, Failure> {
    let wire::SessionProof { client_nonce, server_nonce, proof, .. } = said;
    let wire::SessionProof { challenge, record_digest, challenge_signature, .. } = said;
    let nothing = wire::SessionProof::default();
    let proof = match source {
        PresenceSource::Registration => {
            wire::SessionProof { challenge, record_digest, challenge_signature, ..nothing }
        }
        _ => wire::SessionProof { client_nonce, server_nonce, proof, ..nothing },
    };
    let bytes = proof.encode_to_vec();
    if bytes.len() > PROOF_BYTES {
        return Err(malformed(format!("a proof has at most {PROOF_BYTES} bytes, this one {}", bytes.len())));
    }
    Ok(bytes.into())
}

/// That the peer had this session with the home, or registered there: its signature says so.
pub(super) fn verify(said: &Said, network: NetworkId) -> Result<(), Failure> {
    let proof = wire::SessionProof::decode(said.proof.clone()).map_err(malformed)?;
    if said.statement.source == PresenceSource::Registration {
        let digest = Digest::from_slice(&proof.record_digest).map_err(malformed)?;
        let answer =
            wire::ChallengeProof { challenge: proof.challenge, signature: proof.challenge_signature };
        return Ok(verify_answer(&said.peer, &said.home, &answer, ChallengeAction::Register, &digest)?);
    }
    let transcript = Transcript {
        network,
        peer: said.peer,
        server: said.home,
        client_nonce: nonce(&proof.client_nonce)?,
        server_nonce: nonce(&proof.server_nonce)?,
        session_seq: said.statement.session_seq,
    };
    let signed = proof.proof.as_ref().ok_or(ProofError::Missing)?;
    Ok(transcript.verify_carried(ProofRole::SessionPeer, signed)?)
}
