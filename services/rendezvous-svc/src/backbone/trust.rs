//! Who may bridge: whoever has the shared key, or an id that is listed.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use p2psb_client::files::{Existing, read_bounded, write_atomically};
use p2psb_proto::model::proof::{ChannelBinding, ProofError, ProofRole, Transcript};
use p2psb_proto::model::{PeerId, SecretKey};
use p2psb_proto::wire::rendezvous::v1 as wire;

/// A key file is no longer than this.
const FILE_BYTES: u64 = 4096;
/// The owner writes it, the group of the services may read it.
const FILE_MODE: u32 = 0o640;

/// The secret that all members of a backbone share.
#[derive(Clone, PartialEq, Eq)]
pub struct BridgeKey([u8; 32]);

/// A key file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BridgeKeyError {
    /// It can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{path} must hold a line of 64 hexadecimal digits; `rendezvous-svc init --bridge-key {path}` makes one, \
         and every member gets a copy of it"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
    },
}

impl BridgeKey {
    /// The key in a file.
    pub fn load(path: &Path) -> Result<Self, BridgeKeyError> {
        let bytes = read_bounded(path, FILE_BYTES)
            .map_err(|source| BridgeKeyError::Io { path: path.to_owned(), source })?;
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let mut key = [0; 32];
        match line.map(|line| hex::decode_to_slice(line, &mut key)) {
            Some(Ok(())) => Ok(Self(key)),
            _ => Err(BridgeKeyError::Damaged { path: path.to_owned() }),
        }
    }

    /// The key in a file; it is made if there is none. Two that do this at once end up with the same key.
    pub fn load_or_create(path: &Path) -> Result<Self, BridgeKeyError> {
        let fail = |source| BridgeKeyError::Io { path: path.to_owned(), source };
        match Self::load(path) {
            Err(BridgeKeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(fail)?;
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| fail(io::Error::other(error)))?;
        let text = format!(
            "# The members of a p2pSB backbone share this key: keep it private.\n{}\n",
            hex::encode(key)
        );
        match write_atomically(path, text.as_bytes(), FILE_MODE, Existing::Keep) {
            Ok(()) => Ok(Self(key)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(error) => Err(fail(error)),
        }
    }

    fn mac(&self, transcript: &Transcript, role: ProofRole, binding: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, &transcript.signing_input(role, binding))
    }
}

impl fmt::Debug for BridgeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BridgeKey(***)")
    }
}

/// Somebody may not bridge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// It did not prove its id.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// It neither has the key nor is listed.
    #[error(
        "{peer} neither has the bridge key of this server nor stands in its bridge.trust; give both the same \
         bridge.key_file, or list the id"
    )]
    Untrusted {
        /// Who.
        peer: PeerId,
    },
}

/// Who may bridge with this server, and how this server shows that it may itself.
#[derive(Clone, Debug)]
pub struct Trust {
    key: Option<BridgeKey>,
    ids: HashSet<PeerId>,
}

impl Trust {
    /// Whoever has `key`, and the `ids`.
    #[must_use]
    pub const fn new(key: Option<BridgeKey>, ids: HashSet<PeerId>) -> Self {
        Self { key, ids }
    }

    /// Nobody may, and this server shows nothing but its id: what is between an edge and a member.
    #[must_use]
    pub fn nobody() -> Self {
        Self::new(None, HashSet::new())
    }

    /// Whether somebody could prove to this server that it may bridge: by the key, or because its id is listed.
    #[must_use]
    pub fn may_bridge(&self, peer: &PeerId) -> bool {
        self.key.is_some() || self.lists(peer)
    }

    /// Whether the id is listed.
    #[must_use]
    pub fn lists(&self, peer: &PeerId) -> bool {
        self.ids.contains(peer)
    }

    /// This server's proof in `role`.
    pub(crate) fn prove(
        &self,
        transcript: &Transcript,
        role: ProofRole,
        binding: &ChannelBinding,
        key: &SecretKey,
    ) -> wire::BridgeProof {
        let proof = transcript.prove(role, binding, key);
        let mac = self.key.as_ref().map(|key| key.mac(transcript, role, &proof.channel_binding));
        let key_mac = mac.map(|mac| Bytes::copy_from_slice(mac.as_bytes())).unwrap_or_default();
        wire::BridgeProof { proof: Some(proof), key_mac }
    }

    /// Checks that the other end is who it says, in `role`, and nothing more.
    pub(crate) fn verify_id(
        transcript: &Transcript,
        role: ProofRole,
        binding: &ChannelBinding,
        proof: Option<&wire::BridgeProof>,
    ) -> Result<(), TrustError> {
        let proof = proof.ok_or(ProofError::Missing)?;
        Ok(transcript.verify(role, binding, proof.proof.as_ref())?)
    }

    /// Checks the proof of `peer`, the other end, in `role`, and its right to bridge.
    pub(crate) fn verify(
        &self,
        peer: &PeerId,
        transcript: &Transcript,
        role: ProofRole,
        binding: &ChannelBinding,
        proof: Option<&wire::BridgeProof>,
    ) -> Result<(), TrustError> {
        Self::verify_id(transcript, role, binding, proof)?;
        let proof = proof.ok_or(ProofError::Missing)?;
        let bound = proof.proof.as_ref().map(|proof| proof.channel_binding.clone()).unwrap_or_default();
        // Equality of hashes takes the same time wherever they differ.
        let has_key =
            self.key.as_ref().is_some_and(|key| key.mac(transcript, role, &bound) == *proof.key_mac.as_ref());
        if has_key || self.lists(peer) { Ok(()) } else { Err(TrustError::Untrusted { peer: *peer }) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::core::testing::{key, network, peer};

    const BINDING: ChannelBinding = Some([9; 32]);
    const ROLE: ProofRole = ProofRole::BridgeDialer;

    fn transcript() -> Transcript {
        Transcript {
            network: network(),
            peer: peer(1),
            server: peer(2),
            client_nonce: [3; 32],
            server_nonce: [4; 32],
            session_seq: 5,
        }
    }

    fn trust(key: Option<u8>, ids: &[u8]) -> Trust {
        Trust::new(key.map(|n| BridgeKey([n; 32])), ids.iter().map(|n| peer(*n)).collect())
    }

    fn check(dialer: &Trust, listener: &Trust) -> Result<(), TrustError> {
        let proof = dialer.prove(&transcript(), ROLE, &BINDING, &key(1));
        listener.verify(&peer(1), &transcript(), ROLE, &BINDING, Some(&proof))
    }

    #[test]
    fn the_shared_key_or_a_listed_id_is_enough() {
        let untrusted = Err(TrustError::Untrusted { peer: peer(1) });
        assert_eq!(check(&trust(Some(7), &[]), &trust(Some(7), &[])), Ok(()));
        assert_eq!(check(&trust(None, &[2]), &trust(None, &[1])), Ok(()));
        assert_eq!(check(&trust(Some(8), &[]), &trust(Some(7), &[1])), Ok(()));
        assert_eq!(check(&trust(Some(8), &[]), &trust(Some(7), &[])), untrusted);
        assert_eq!(check(&trust(None, &[2]), &trust(Some(7), &[])), untrusted);
        assert_eq!(check(&trust(Some(7), &[]), &trust(None, &[3])), untrusted);
    }

    #[test]
    fn a_mac_holds_for_its_connection_and_role_only() {
        let both = trust(Some(7), &[]);
        let proof = both.prove(&transcript(), ROLE, &BINDING, &key(1));
        let check = |t: &Transcript, role, binding| both.verify(&peer(1), t, role, &binding, Some(&proof));
        assert_eq!(check(&transcript(), ROLE, BINDING), Ok(()));
        assert!(check(&transcript(), ProofRole::BridgeListener, BINDING).is_err());
        assert!(check(&transcript(), ROLE, Some([8; 32])).is_err());
        assert!(check(&Transcript { server_nonce: [0; 32], ..transcript() }, ROLE, BINDING).is_err());
        assert_eq!(
            both.verify(&peer(1), &transcript(), ROLE, &BINDING, None),
            Err(TrustError::Proof(ProofError::Missing))
        );
    }

    #[test]
    fn a_key_file_is_made_once_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/bridge.key");
        assert!(matches!(BridgeKey::load(&file), Err(BridgeKeyError::Io { .. })));
        let made = BridgeKey::load_or_create(&file).unwrap();
        assert_eq!(BridgeKey::load_or_create(&file).unwrap(), made);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        std::fs::write(&file, "secret").unwrap();
        assert!(matches!(BridgeKey::load_or_create(&file), Err(BridgeKeyError::Damaged { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"secret");
        assert!(!format!("{made:?}").contains(&hex::encode(made.0)));
    }
}
