//! Making keys before anything runs: of one server, or of a whole backbone and the services it endorses.
//!
//! Promises: what is there is never replaced, so every verb may be run again; ids in files are written whole or not at all.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use p2psb_client::files::{Existing, read_bounded, write_atomically};
use p2psb_client::{Identity, IdentityError};
use p2psb_proto::model::{PeerId, ServiceName};

use crate::backbone::trust::{BridgeKey, BridgeKeyError};

/// Ids are no secrets.
const ID_MODE: u32 = 0o644;
const ID_FILE_BYTES: u64 = 1024;
/// In the shared folder: the key of the backbone.
pub const BRIDGE_KEY: &str = "bridge.key";
/// In the shared folder: the endorsed providers.
pub const ENDORSE: &str = "endorse";
/// In the shared folder: the ids of the members.
pub const MEMBERS: &str = "members";

/// Why keys could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// An identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The bridge key.
    #[error(transparent)]
    BridgeKey(#[from] BridgeKeyError),
    /// A file with an id.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds another id than it should.
    #[error(
        "{path} holds another id than {expected}; if its key is gone for good, remove the file and run this again"
    )]
    OtherId {
        /// Which.
        path: PathBuf,
        /// Whose key is there.
        expected: PeerId,
    },
}

/// A name or service, and the data folder of its identity: `NAME=DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<N> {
    /// Who.
    pub name: N,
    /// Where its identity lies.
    pub data_dir: PathBuf,
}

/// The name of a member, usable as a file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberName(String);

impl FromStr for MemberName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if text.is_empty() || text.len() > 64 || !text.chars().all(fits) {
            return Err(format!("{text:?} is no name: 1 to 64 letters, digits, - and _"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<N: FromStr<Err: ToString>> FromStr for Named<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, dir) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not written as NAME=DIR"))?;
        if dir.is_empty() {
            return Err(format!("{text:?} names no folder"));
        }
        Ok(Self { name: name.parse().map_err(|error: N::Err| error.to_string())?, data_dir: dir.into() })
    }
}

/// Makes the identity of one server, and a bridge key if one is wanted. Returns the id.
pub fn server(data_dir: &Path, bridge_key: Option<&Path>) -> Result<PeerId, InitError> {
    if let Some(file) = bridge_key {
        BridgeKey::load_or_create(file)?;
    }
    Ok(Identity::load_or_create(data_dir)?.peer_id())
}

/// Makes all that a backbone shares. Returns who is who.
pub fn backbone(
    shared: &Path,
    members: &[Named<MemberName>],
    providers: &[Named<ServiceName>],
) -> Result<Vec<(String, PeerId)>, InitError> {
    BridgeKey::load_or_create(&shared.join(BRIDGE_KEY))?;
    let mut made = Vec::new();
    for folder in [ENDORSE, MEMBERS] {
        let path = shared.join(folder);
        std::fs::create_dir_all(&path).map_err(|source| InitError::Io { path, source })?;
    }
    for Named { name: MemberName(name), data_dir } in members {
        let id = Identity::load_or_create(data_dir)?.peer_id();
        write_id(&shared.join(MEMBERS).join(name), &id)?;
        made.push((name.clone(), id));
    }
    for Named { name: service, data_dir } in providers {
        let id = Identity::load_or_create(data_dir)?.peer_id();
        // Several providers of one service differ by their ids.
        write_id(&shared.join(ENDORSE).join(format!("{service}@{}", id.short())), &id)?;
        made.push((service.to_string(), id));
    }
    Ok(made)
}

fn write_id(path: &Path, id: &PeerId) -> Result<(), InitError> {
    let fail = |source| InitError::Io { path: path.to_owned(), source };
    match write_atomically(path, format!("{id}\n").as_bytes(), ID_MODE, Existing::Keep) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = read_bounded(path, ID_FILE_BYTES).map_err(fail)?;
            if String::from_utf8_lossy(&text).parse() == Ok(*id) {
                Ok(())
            } else {
                Err(InitError::OtherId { path: path.to_owned(), expected: *id })
            }
        }
        written => written.map_err(fail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backbone_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let members: Vec<Named<MemberName>> =
            ["r1", "r2"].map(|name| format!("{name}={}", at(name)).parse().unwrap()).to_vec();
        let providers = [format!("p2psb.discovery={}", at("discovery")).parse().unwrap()];
        let shared = dir.path().join("shared");
        let made = backbone(&shared, &members, &providers).unwrap();
        let names: Vec<_> = made.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["r1", "r2", "p2psb.discovery"]);
        let key = std::fs::read(shared.join(BRIDGE_KEY)).unwrap();
        assert_eq!(backbone(&shared, &members, &providers).unwrap(), made);
        assert_eq!(std::fs::read(shared.join(BRIDGE_KEY)).unwrap(), key);
        assert_eq!(std::fs::read_to_string(shared.join("members/r2")).unwrap().trim(), made[1].1.to_string());
        let endorsed: Vec<_> = std::fs::read_dir(shared.join(ENDORSE)).unwrap().collect();
        assert_eq!(endorsed.len(), 1);
    }

    #[test]
    fn an_id_that_changed_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let member: Named<MemberName> = format!("r1={}", dir.path().join("r1").display()).parse().unwrap();
        let shared = dir.path().join("shared");
        backbone(&shared, std::slice::from_ref(&member), &[]).unwrap();
        std::fs::remove_dir_all(dir.path().join("r1")).unwrap();
        assert!(matches!(backbone(&shared, &[member], &[]), Err(InitError::OtherId { .. })));
    }

    #[test]
    fn wrong_arguments_are_explained() {
        for (text, why) in [("r1", "NAME=DIR"), ("r1=", "folder"), ("a/b=x", "no name"), ("=x", "no name")] {
            let error = text.parse::<Named<MemberName>>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
