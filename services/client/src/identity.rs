//! Keys in files: made once, readable by their user only, never overwritten.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use p2psb_proto::model::{PeerId, SecretKey};
use zeroize::Zeroizing;

use crate::files::{self, Existing};

/// Name of the file with a peer's key, in its data folder.
pub const IDENTITY_FILE: &str = "identity.key";

const HEADER: &str = "p2psb-secret-key-ed25519";
const MAX_BYTES: u64 = 4096;

/// Why a key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file can't be read or written.
    #[error("the key file {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "the key file {path} is damaged: it must hold the line \"{HEADER} <64 hexadecimal digits>\"; restore it from a backup"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// Others can read the file.
    #[error("the key file {path} can be read by others (mode {mode:o}); run: chmod 600 {path}")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The operating system gave no randomness.
    #[error("no randomness from the operating system: {0}")]
    Random(getrandom::Error),
}

/// A peer's own key. Clones share it.
#[derive(Clone, Debug)]
pub struct Identity {
    peer_id: PeerId,
    key: Arc<SecretKey>,
}

impl Identity {
    /// The identity of a data folder; it is made if there is none, and the folder with it.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        load_or_create_secret(&dir.join(IDENTITY_FILE)).map(Self::new)
    }

    /// The identity of a data folder; an error if there is none.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        load_secret(&dir.join(IDENTITY_FILE)).map(Self::new)
    }

    /// A new identity that is kept nowhere.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        SecretKey::generate().map(Self::new).map_err(IdentityError::Random)
    }

    /// The identity of a key.
    #[must_use]
    pub fn new(key: SecretKey) -> Self {
        Self { peer_id: PeerId::new(key.public()), key: Arc::new(key) }
    }

    /// The peer's id.
    #[must_use]
    pub const fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &SecretKey {
        &self.key
    }
}

/// Reads a secret key.
pub fn load_secret(path: &Path) -> Result<SecretKey, IdentityError> {
    use std::os::unix::fs::PermissionsExt as _;
    let fail = |source| IdentityError::Io { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(fail)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    let bytes = Zeroizing::new(files::read_bounded(path, MAX_BYTES).map_err(fail)?);
    parse(&bytes).ok_or_else(|| IdentityError::Damaged { path: path.to_owned() })
}

fn parse(bytes: &[u8]) -> Option<SecretKey> {
    let text = std::str::from_utf8(bytes).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(HEADER))?;
    let mut seed = Zeroizing::new([0u8; 32]);
    hex::decode_to_slice(line.trim(), seed.as_mut_slice()).ok()?;
    Some(SecretKey::from_seed(&seed))
}

/// Reads a secret key, or makes one. Two processes that do this at once end up with the same key.
pub fn load_or_create_secret(path: &Path) -> Result<SecretKey, IdentityError> {
    let fail = |source| IdentityError::Io { path: path.to_owned(), source };
    match load_secret(path) {
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    let key = SecretKey::generate().map_err(IdentityError::Random)?;
    let text = Zeroizing::new(format!(
        "# A p2pSB secret key. Whoever has it can act as you: keep it private, keep a backup.\n{HEADER} {}\n",
        Zeroizing::new(hex::encode(key.to_seed().as_slice())).as_str()
    ));
    match files::write_atomically(path, text.as_bytes(), 0o600, Existing::Keep) {
        Ok(()) => Ok(key),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => load_secret(path),
        Err(e) => Err(fail(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_identity_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("deep/data");
        assert!(Identity::load(&home).is_err());
        let made = Identity::load_or_create(&home).unwrap().peer_id();
        assert_eq!(Identity::load_or_create(&home).unwrap().peer_id(), made);
        assert_eq!(Identity::load(&home).unwrap().peer_id(), made);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        let file = dir.path().join(IDENTITY_FILE);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Identity::load(dir.path()), Err(IdentityError::Exposed { mode: 0o644, .. })));
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(IDENTITY_FILE);
        files::write_atomically(&file, b"garbage", 0o600, Existing::Keep).unwrap();
        assert!(matches!(Identity::load_or_create(dir.path()), Err(IdentityError::Damaged { .. })));
        assert_eq!(std::fs::read(file).unwrap(), b"garbage");
    }
}
