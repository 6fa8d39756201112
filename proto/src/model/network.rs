//! Communities. A network is named by the digest of its genesis document.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use super::digest::{Digest, framed};
use super::excerpt;
use super::id::{IdError, decode_text, encode_text};

/// A community. In text `net1…`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(Digest);

impl NetworkId {
    /// How the text form begins.
    pub const PREFIX: &'static str = "net";

    /// Parses 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
        Digest::from_slice(bytes).map(Self).map_err(|_| IdError::Bytes(bytes.len()))
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The bytes for a wire field.
    #[must_use]
    pub fn to_wire(&self) -> Bytes {
        self.0.to_wire()
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        encode_text(Self::PREFIX, self.as_bytes(), f)
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for NetworkId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::from_slice(&decode_text(Self::PREFIX, text.trim())?)
    }
}

/// What a community agrees on at its start. The document of an open network is nothing but its name, so whoever knows the name
/// can join. Closed networks will have documents of their own, in a domain of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    name: String,
}

/// A network name that is none.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a network name has 1 to 63 characters out of a-z, 0-9, '-' and '.'; {0:?} does not")]
pub struct GenesisError(String);

impl Genesis {
    /// An open network.
    pub fn open(name: &str) -> Result<Self, GenesisError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
            return Err(GenesisError(excerpt(name)));
        }
        Ok(Self { name: name.to_owned() })
    }

    /// The network's id.
    #[must_use]
    pub fn network_id(&self) -> NetworkId {
        NetworkId(Digest::of(&framed("p2psb/genesis/open/1", &[self.name.as_bytes()])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_name_is_fixed() {
        let id = Genesis::open("p2psb").unwrap().network_id();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(
            hex::encode(id.as_bytes()),
            "b02eb81a0453678a3c7190307c47ff8199fc88f6f72bb0caf2b8eb1af05c2b3f"
        );
    }

    #[test]
    fn odd_names_are_refused() {
        for name in ["", "A", "a b", &"x".repeat(64)] {
            assert!(Genesis::open(name).is_err(), "{name:?}");
        }
    }
}
