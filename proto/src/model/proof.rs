//! Live proofs: that the other end holds its key now, on this connection; and answers to challenges, for unary calls.

use bytes::Bytes;

use super::digest::{Digest, framed};
use super::id::PeerId;
use super::key::SecretKey;
use super::limits::NONCE_BYTES;
use super::network::NetworkId;
use crate::error::{Failure, Reason};
use crate::wire::common::v1 as wire;
use crate::wire::rendezvous::v1 as rendezvous;

pub use crate::wire::common::v1::ProofRole;
pub use crate::wire::rendezvous::v1::ChallengeAction;

/// Label of the TLS exporter that binds a proof to its connection.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-p2psb-proof-1";

/// The TLS exporter of a connection; `None` on plaintext.
pub type ChannelBinding = Option<[u8; 32]>;

/// 32 random bytes, used once.
pub type Nonce = [u8; NONCE_BYTES];

/// A proof or an answer that is wrong.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProofError {
    /// None given.
    #[error("a proof is needed here")]
    Missing,
    /// A nonce is not 32 bytes.
    #[error("a nonce has 32 bytes, this one {0}")]
    Nonce(usize),
    /// Bound to another connection, or not bound where it must be.
    #[error("the proof is bound to another connection; is something between the ends that ends TLS?")]
    Binding,
    /// The signature is wrong.
    #[error("the proof's signature is wrong: replayed, or for another server, role or session")]
    Signature,
}

impl From<ProofError> for Failure {
    fn from(error: ProofError) -> Self {
        let reason = match error {
            ProofError::Nonce(_) => Reason::InvalidArgument,
            ProofError::Missing | ProofError::Binding | ProofError::Signature => Reason::ProofInvalid,
        };
        Self::new(reason, error.to_string())
    }
}

/// Everything a live proof signs, apart from the role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// The community.
    pub network: NetworkId,
    /// Who opened the stream.
    pub peer: PeerId,
    /// Who answered.
    pub server: PeerId,
    /// Of who opened.
    pub client_nonce: Nonce,
    /// Of who answered.
    pub server_nonce: Nonce,
    /// Rises with every session of the peer.
    pub session_seq: u64,
}

impl Transcript {
    /// What a proof in this role signs: see `p2psb.common.v1.LiveProof`.
    #[must_use]
    pub fn signing_input(&self, role: ProofRole, binding: &[u8]) -> Vec<u8> {
        framed(
            "p2psb/proof/1",
            &[
                self.network.as_bytes(),
                &(role as i32).to_le_bytes(),
                &self.peer.to_bytes(),
                &self.server.to_bytes(),
                &self.client_nonce,
                &self.server_nonce,
                &self.session_seq.to_le_bytes(),
                binding,
            ],
        )
    }

    /// Signs.
    #[must_use]
    pub fn prove(&self, role: ProofRole, binding: &ChannelBinding, key: &SecretKey) -> wire::LiveProof {
        let binding = binding.as_ref().map_or(&[][..], |b| &b[..]);
        wire::LiveProof {
            signature: Bytes::copy_from_slice(&key.sign(&self.signing_input(role, binding))),
            channel_binding: Bytes::copy_from_slice(binding),
        }
    }

    /// Checks the other end's proof on a connection with this binding. An unbound proof passes only if `binding` is `None`.
    pub fn verify(
        &self,
        role: ProofRole,
        binding: &ChannelBinding,
        proof: Option<&wire::LiveProof>,
    ) -> Result<(), ProofError> {
        let proof = proof.ok_or(ProofError::Missing)?;
        if proof.channel_binding.as_ref() != binding.as_ref().map_or(&[][..], |b| &b[..]) {
            return Err(ProofError::Binding);
        }
        self.verify_carried(role, proof)
    }

    /// Checks a proof of another connection, carried by a third party: the binding is taken as it was signed.
    pub fn verify_carried(&self, role: ProofRole, proof: &wire::LiveProof) -> Result<(), ProofError> {
        if !matches!(proof.channel_binding.len(), 0 | 32) {
            return Err(ProofError::Binding);
        }
        let signer = match role {
            ProofRole::SessionPeer | ProofRole::BridgeDialer => self.peer,
            ProofRole::SessionServer | ProofRole::BridgeListener => self.server,
            ProofRole::Unspecified => return Err(ProofError::Signature),
        };
        let message = self.signing_input(role, &proof.channel_binding);
        signer.key().verify(&message, &proof.signature).map_err(|_| ProofError::Signature)
    }
}

/// Parses a nonce.
pub fn nonce(bytes: &[u8]) -> Result<Nonce, ProofError> {
    bytes.try_into().map_err(|_| ProofError::Nonce(bytes.len()))
}

fn challenge_input(server: &PeerId, challenge: &[u8], action: ChallengeAction, record: &Digest) -> Vec<u8> {
    framed(
        "p2psb/challenge/1",
        &[&server.to_bytes(), challenge, &(action as i32).to_le_bytes(), record.as_bytes()],
    )
}

/// Answers a challenge of `server`, for an action with the record of this digest.
#[must_use]
pub fn answer_challenge(
    key: &SecretKey,
    server: &PeerId,
    challenge: &Bytes,
    action: ChallengeAction,
    record: &Digest,
) -> rendezvous::ChallengeProof {
    rendezvous::ChallengeProof {
        challenge: challenge.clone(),
        signature: Bytes::copy_from_slice(&key.sign(&challenge_input(server, challenge, action, record))),
    }
}

/// Checks the answer of `peer`. Whether the challenge was given, and still holds, is for the server to know.
pub fn verify_answer(
    peer: &PeerId,
    server: &PeerId,
    proof: &rendezvous::ChallengeProof,
    action: ChallengeAction,
    record: &Digest,
) -> Result<(), ProofError> {
    let message = challenge_input(server, &proof.challenge, action, record);
    peer.key().verify(&message, &proof.signature).map_err(|_| ProofError::Signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Genesis;

    const BINDING: ChannelBinding = Some([9; 32]);

    fn keys() -> (SecretKey, SecretKey) {
        (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]))
    }

    fn transcript() -> Transcript {
        let (peer, server) = keys();
        Transcript {
            network: Genesis::open("test").unwrap().network_id(),
            peer: PeerId::new(peer.public()),
            server: PeerId::new(server.public()),
            client_nonce: [3; 32],
            server_nonce: [4; 32],
            session_seq: 5,
        }
    }

    #[test]
    fn a_proof_holds_for_its_own_session_only() {
        let (key, server) = keys();
        let t = transcript();
        let proof = t.prove(ProofRole::SessionPeer, &BINDING, &key);
        assert_eq!(t.verify(ProofRole::SessionPeer, &BINDING, Some(&proof)), Ok(()));
        assert_eq!(t.verify_carried(ProofRole::SessionPeer, &proof), Ok(()));

        assert_eq!(t.verify(ProofRole::SessionPeer, &BINDING, None), Err(ProofError::Missing));
        assert_eq!(t.verify(ProofRole::BridgeDialer, &BINDING, Some(&proof)), Err(ProofError::Signature));
        assert_eq!(t.verify(ProofRole::SessionServer, &BINDING, Some(&proof)), Err(ProofError::Signature));
        assert_eq!(t.verify(ProofRole::SessionPeer, &Some([8; 32]), Some(&proof)), Err(ProofError::Binding));
        assert_eq!(t.verify(ProofRole::SessionPeer, &None, Some(&proof)), Err(ProofError::Binding));
        for other in [
            Transcript { client_nonce: [0; 32], ..t.clone() },
            Transcript { server_nonce: [0; 32], ..t.clone() },
            Transcript { session_seq: 6, ..t.clone() },
            Transcript { server: PeerId::new(key.public()), ..t.clone() },
            Transcript { peer: PeerId::new(server.public()), ..t.clone() },
            Transcript { network: Genesis::open("other").unwrap().network_id(), ..t },
        ] {
            let wrong = other.verify(ProofRole::SessionPeer, &BINDING, Some(&proof));
            assert_eq!(wrong, Err(ProofError::Signature));
        }
    }

    #[test]
    fn an_unbound_proof_does_not_pass_on_a_bound_connection() {
        let (key, _) = keys();
        let t = transcript();
        let proof = t.prove(ProofRole::SessionPeer, &None, &key);
        assert_eq!(t.verify(ProofRole::SessionPeer, &None, Some(&proof)), Ok(()));
        assert_eq!(t.verify(ProofRole::SessionPeer, &BINDING, Some(&proof)), Err(ProofError::Binding));
    }

    #[test]
    fn an_answer_holds_for_its_action_and_record_only() {
        let (key, server) = keys();
        let (peer, server) = (PeerId::new(key.public()), PeerId::new(server.public()));
        let (challenge, record) = (Bytes::from_static(&[7; 32]), Digest::of(b"record"));
        let proof = answer_challenge(&key, &server, &challenge, ChallengeAction::Register, &record);
        let check =
            |server, action, record: &[u8]| verify_answer(&peer, server, &proof, action, &Digest::of(record));
        assert_eq!(check(&server, ChallengeAction::Register, b"record"), Ok(()));
        assert_eq!(check(&server, ChallengeAction::Unregister, b"record"), Err(ProofError::Signature));
        assert_eq!(check(&server, ChallengeAction::Register, b"other"), Err(ProofError::Signature));
        assert_eq!(check(&peer, ChallengeAction::Register, b"record"), Err(ProofError::Signature));
    }
}
