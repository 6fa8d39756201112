//! Ids: an algorithm byte and a public key, 33 bytes; in text bech32m, so that a typo is noticed.

use std::fmt;
use std::str::FromStr;

use bech32::{Bech32m, Hrp};
use bytes::Bytes;

use super::excerpt;
use super::key::PublicKey;
use crate::wire::common::v1::KeyAlgorithm;

/// A text or byte string that is no id.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Wrong length or algorithm byte.
    #[error("an id is 33 bytes, the first of them 1 (Ed25519); these are {0}")]
    Bytes(usize),
    /// No bech32m, or its checksum is wrong.
    #[error("{text:?} is no id: {reason}; was it copied whole?")]
    Text {
        /// What was given, cut after 80 characters.
        text: String,
        /// What the decoder said.
        reason: String,
    },
    /// A valid text, of another kind.
    #[error("this is a {found}… id, a {expected}… id is needed")]
    Kind {
        /// Prefix that was wanted.
        expected: &'static str,
        /// Prefix that was found.
        found: String,
    },
}

pub(crate) const ENCODED: usize = 33;

/// Checks the algorithm byte and cuts out the key.
fn decode(bytes: &[u8]) -> Result<PublicKey, IdError> {
    match bytes {
        [alg, key @ ..] if i32::from(*alg) == KeyAlgorithm::Ed25519 as i32 => {
            key.try_into().map(PublicKey::from_bytes).map_err(|_| IdError::Bytes(bytes.len()))
        }
        _ => Err(IdError::Bytes(bytes.len())),
    }
}

pub(crate) fn encode_text(prefix: &'static str, bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let hrp = Hrp::parse(prefix).map_err(|_| fmt::Error)?;
    f.write_str(&bech32::encode::<Bech32m>(hrp, bytes).map_err(|_| fmt::Error)?)
}

pub(crate) fn decode_text(prefix: &'static str, text: &str) -> Result<Vec<u8>, IdError> {
    let fail = |reason: String| IdError::Text { text: excerpt(text), reason };
    let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32m>(text)
        .map_err(|e| fail(e.to_string()))?;
    let found = checked.hrp().to_lowercase();
    if found != prefix {
        return Err(IdError::Kind { expected: prefix, found });
    }
    Ok(checked.byte_iter().collect())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(PublicKey);

        impl $name {
            /// How the text form begins.
            pub const PREFIX: &'static str = $prefix;

            /// The id of a key.
            #[must_use]
            pub const fn new(key: PublicKey) -> Self {
                Self(key)
            }

            /// The key.
            #[must_use]
            pub const fn key(&self) -> &PublicKey {
                &self.0
            }

            /// Parses algorithm byte and key.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
                decode(bytes).map(Self)
            }

            /// Algorithm byte and key.
            #[must_use]
            pub fn to_bytes(&self) -> [u8; ENCODED] {
                let mut bytes = [KeyAlgorithm::Ed25519 as u8; ENCODED];
                if let Some(key) = bytes.get_mut(1..) {
                    key.copy_from_slice(self.0.as_bytes());
                }
                bytes
            }

            /// The bytes for a wire field.
            #[must_use]
            pub fn to_wire(&self) -> Bytes {
                Bytes::copy_from_slice(&self.to_bytes())
            }

            /// A short form for people, not unique: prefix and the first characters.
            #[must_use]
            pub fn short(&self) -> String {
                self.to_string().chars().take($prefix.len() + 11).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                encode_text($prefix, &self.to_bytes(), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::from_slice(&decode_text($prefix, text.trim())?)
            }
        }
    };
}

id! {
    /// A participant: the key of a peer or a server.
    PeerId, "peer"
}
id! {
    /// A key that signs releases; apart from any peer's, so that a dead laptop does not kill a package.
    PublisherId, "pub"
}

#[cfg(test)]
mod tests {
    use super::super::key::SecretKey;
    use super::*;

    fn peer() -> PeerId {
        PeerId::new(SecretKey::from_seed(&[1; 32]).public())
    }

    #[test]
    fn the_text_form_is_fixed() {
        assert_eq!(peer().to_string(), "peer1qx9g3c7awsylr90a2tdj6096t4ev5ecfhuwegysm7d6gsqd5pah4cguszjn");
    }

    #[test]
    fn an_id_survives_text_and_bytes() {
        let id = peer();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(PeerId::from_slice(&id.to_bytes()), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
    }

    #[test]
    fn a_typo_is_noticed() {
        let text = peer().to_string();
        for i in 5..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[i] = if wrong[i] == b'q' { b'p' } else { b'q' };
            assert!(String::from_utf8(wrong).unwrap().parse::<PeerId>().is_err(), "at {i}");
        }
    }

    #[test]
    fn a_publisher_is_no_peer() {
        let text = PublisherId::new(*peer().key()).to_string();
        assert!(text.starts_with("pub1"));
        assert_eq!(text.parse::<PeerId>(), Err(IdError::Kind { expected: "peer", found: "pub".into() }));
    }

    #[test]
    fn other_lengths_and_algorithms_are_refused() {
        assert_eq!(PeerId::from_slice(&[1; 32]), Err(IdError::Bytes(32)));
        assert_eq!(PeerId::from_slice(&[2; 33]), Err(IdError::Bytes(33)));
        assert_eq!(PeerId::from_slice(&[]), Err(IdError::Bytes(0)));
    }
}
