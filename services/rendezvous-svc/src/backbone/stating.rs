//! What a home says of a peer, on its way between members: with the peer's proof, so that whoever hears it need not believe
//! whoever tells it.

use bytes::Bytes;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::limits::NONCE_BYTES;
use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_proto::model::proof::{ChallengeAction, ProofError, ProofRole, Transcript, nonce, verify_answer};
use p2psb_proto::model::time::{duration_from_wire, duration_to_wire};
use p2psb_proto::model::{Digest, NetworkId, PeerId, limits};
use p2psb_proto::wire::common::v1::LiveProof;
use p2psb_proto::wire::rendezvous::v1 as wire;
use prost::Message as _;

use crate::core::Now;
use crate::core::directory::Directory;
use crate::core::presence::{Said, Statement};
use crate::core::session::REMEMBERED;

/// A proof of a session has about 180 bytes. Batches count on this.
const PROOF_BYTES: usize = 256;

/// Of Ed25519. Challenges and digests are as long as nonces.
const SIGNATURE_BYTES: usize = 64;

const SESSION: &[u8] = &[1];

/// What this server says of a peer that is, or was, here.
pub(super) fn own(
    directory: &Directory,
    peer: &PeerId,
    revision: u64,
    now: Now,
) -> Option<wire::HomePresence> {
    let statement = directory.stated(peer, now.mono)?;
    let proof = unpack(directory.proof(peer)?)?.encode_to_vec().into();
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

/// A proof as it is kept: what was signed and the signature, without tags. Before that of a session stands a byte more, so that it
/// is never as long as that of a registration.
pub(crate) fn pack(proof: &wire::SessionProof) -> Bytes {
    let live = proof.proof.clone().unwrap_or_default();
    let fields: &[&[u8]] = if proof.proof.is_some() {
        &[SESSION, &proof.client_nonce, &proof.server_nonce, &live.signature, &live.channel_binding]
    } else {
        &[&proof.challenge, &proof.record_digest, &proof.challenge_signature]
    };
    fields.concat().into()
}

/// What [`pack`] has made, if it is that.
fn unpack(mut rest: Bytes) -> Option<wire::SessionProof> {
    let is_registration = rest.len() == 2 * NONCE_BYTES + SIGNATURE_BYTES;
    let mut cut = |count: usize| (rest.len() >= count).then(|| rest.split_to(count));
    if !is_registration {
        cut(SESSION.len())?;
    }
    let (first, second, signature) = (cut(NONCE_BYTES)?, cut(NONCE_BYTES)?, cut(SIGNATURE_BYTES)?);
    Some(if is_registration {
        wire::SessionProof {
            challenge: first,
            record_digest: second,
            challenge_signature: signature,
            ..wire::SessionProof::default()
        }
    } else {
        wire::SessionProof {
            client_nonce: first,
            server_nonce: second,
            proof: Some(LiveProof { signature, channel_binding: rest }),
            ..wire::SessionProof::default()
        }
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn field(byte: u8, count: usize) -> Bytes {
        vec![byte; count].into()
    }

    #[test]
    fn a_proof_is_kept_without_loss_and_a_short_one_is_none() {
        let session = |binding| wire::SessionProof {
            client_nonce: field(1, 32),
            server_nonce: field(2, 32),
            proof: Some(LiveProof { signature: field(3, 64), channel_binding: field(4, binding) }),
            ..wire::SessionProof::default()
        };
        let registration = wire::SessionProof {
            challenge: field(1, 32),
            record_digest: field(2, 32),
            challenge_signature: field(3, 64),
            ..wire::SessionProof::default()
        };
        for (proof, size) in [(session(32), 161), (session(0), 129), (registration, 128)] {
            let packed = pack(&proof);
            assert_eq!((packed.len(), unpack(packed.clone())), (size, Some(proof)));
            assert_eq!((unpack(packed.slice(..127)), unpack(Bytes::new())), (None, None));
        }
    }
}
