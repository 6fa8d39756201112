//! Digests: BLAKE3, 32 bytes, in text 64 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

/// The BLAKE3 digest of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A text or byte string that is no digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a digest is 32 bytes, in text 64 hexadecimal digits")]
pub struct DigestError;

impl Digest {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest that these bytes are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Parses 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, DigestError> {
        bytes.try_into().map(Self).map_err(|_| DigestError)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The bytes for a wire field.
    #[must_use]
    pub fn to_wire(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestError)?;
        Ok(Self(bytes))
    }
}

/// A hash over several parts that can't be shifted into one another: each part, the domain first, is preceded by its length as
/// 8 bytes little endian.
pub(crate) fn framed(domain: &str, parts: &[&[u8]]) -> Vec<u8> {
    let size = parts.iter().map(|p| p.len() + 8).sum::<usize>() + domain.len() + 8;
    let mut out = Vec::with_capacity(size);
    for part in std::iter::once(&domain.as_bytes()).chain(parts) {
        out.extend_from_slice(&(part.len() as u64).to_le_bytes());
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text_form() {
        let d = Digest::of(b"p2psb");
        assert_eq!(d.to_string().parse(), Ok(d));
        assert_eq!("ab".parse::<Digest>(), Err(DigestError));
    }

    #[test]
    fn framing_keeps_parts_apart() {
        assert_ne!(framed("d", &[b"ab", b"c"]), framed("d", &[b"a", b"bc"]));
        assert_ne!(framed("d", &[b"a"]), framed("da", &[]));
    }
}
