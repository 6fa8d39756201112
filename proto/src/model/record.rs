//! Signed records: verify before decoding, keep the exact bytes.
//!
//! Invariant: a [`Signed<T>`] was verified against its key, its type and its size, and its payload keeps the bounds of `T`; its
//! wire form is byte for byte what the signer signed. Whether it counts *now* (expiry, `seq`, network) is asked of the value.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use prost::{Message, encoding};

use super::digest::{Digest, framed};
use super::key::{PublicKey, SecretKey, SignatureError};
use super::network::NetworkId;
use crate::error::{Failure, Reason};
use crate::wire::common::v1 as wire;
pub use crate::wire::common::v1::RecordType;

const FORMAT: u32 = 1;
const DOMAIN: &str = "p2psb/record/1";

/// Why a record is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// No record where one is needed.
    #[error("a signed record is needed here, and none was given")]
    Missing,
    /// Larger than its type allows.
    #[error("the record has {size} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Encoded bytes.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Another type than wanted, or an unknown one.
    #[error("a record of type {expected} is needed here, this one has type {found}")]
    Type {
        /// What was wanted.
        expected: &'static str,
        /// Number that was found.
        found: i32,
    },
    /// Signing rule or algorithm unknown.
    #[error(
        "the record is signed by format {format}, algorithm {alg}; only format 1, algorithm 1 (Ed25519) is known"
    )]
    Scheme {
        /// Signing rule.
        format: u32,
        /// Algorithm.
        alg: i32,
    },
    /// The signature is wrong.
    #[error("the record's signature is wrong: it was changed, or signed by another key")]
    Signature,
    /// The payload breaks a rule.
    #[error("the record is malformed: {0}")]
    Malformed(String),
    /// Its time is over.
    #[error("the record expired at {expired}; it is {now}")]
    Expired {
        /// When.
        expired: super::time::UnixMillis,
        /// Clock of who checks.
        now: super::time::UnixMillis,
    },
    /// `seq` lies more than 5 min ahead.
    #[error("the record's seq {seq} is more than 5 min ahead of {now}; is the signer's clock right?")]
    SeqAhead {
        /// Of the record.
        seq: u64,
        /// Clock of who checks.
        now: super::time::UnixMillis,
    },
    /// Signed more than 5 min in the future.
    #[error("the record was signed at {issued}, more than 5 min ahead of {now}; set the clock")]
    ClockSkew {
        /// When it says it was signed.
        issued: super::time::UnixMillis,
        /// Clock of who checks.
        now: super::time::UnixMillis,
    },
    /// Another community.
    #[error("the record belongs to network {found}, this is {expected}")]
    Network {
        /// Here.
        expected: super::network::NetworkId,
        /// In the record.
        found: super::network::NetworkId,
    },
}

impl RecordError {
    /// A rule of the payload is broken.
    pub fn malformed(what: impl fmt::Display) -> Self {
        Self::Malformed(what.to_string())
    }

    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Missing | Self::Scheme { .. } | Self::Malformed(_) => Reason::RecordMalformed,
            Self::TooLarge { .. } => Reason::RecordTooLarge,
            Self::Type { .. } => Reason::RecordTypeUnexpected,
            Self::Signature => Reason::SignatureInvalid,
            Self::Expired { .. } => Reason::RecordExpired,
            Self::SeqAhead { .. } => Reason::SeqTooFarAhead,
            Self::ClockSkew { .. } => Reason::ClockSkew,
            Self::Network { .. } => Reason::NetworkMismatch,
        }
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        let failure = Self::new(error.reason(), error.to_string());
        match error {
            RecordError::ClockSkew { now, .. } | RecordError::SeqAhead { now, .. } => {
                failure.with("server_time", now)
            }
            _ => failure,
        }
    }
}

/// What can be signed: one type of record.
pub trait Payload: Sized {
    /// Its number.
    const TYPE: RecordType;
    /// Largest encoded record, in bytes.
    const MAX_BYTES: usize;
    /// Its wire form.
    type Wire: Message + Default;

    /// Checks every bound that needs no clock.
    fn parse(wire: Self::Wire, signer: &PublicKey) -> Result<Self, RecordError>;

    /// The wire form.
    fn to_wire(&self) -> Self::Wire;
}

/// A verified record.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed<T> {
    value: T,
    signer: PublicKey,
    payload: Bytes,
    signature: [u8; 64],
    digest: Digest,
}

impl<T: Payload> Signed<T> {
    /// Signs. Fails only if the value breaks its own bounds, so what is signed here is accepted elsewhere.
    pub fn sign(value: &T, key: &SecretKey) -> Result<Self, RecordError> {
        let payload = Bytes::from(value.to_wire().encode_to_vec());
        let signer = key.public();
        let message = signing_input(T::TYPE, &signer, &payload);
        let signature = key.sign(&message);
        let value = decode::<T>(&payload, &signer)?;
        let signed = Self { value, signer, payload, signature, digest: Digest::of(&message) };
        check_size(&signed.to_wire(), T::MAX_BYTES)?;
        Ok(signed)
    }

    /// Verifies, then decodes.
    pub fn verify(record: wire::SignedRecord) -> Result<Self, RecordError> {
        Self::open(record, PublicKey::verify)
    }

    /// Takes a record that this program verified before, and kept where nobody else can have changed it. Everything but the
    /// signature is checked again.
    pub fn verified_before(record: wire::SignedRecord) -> Result<Self, RecordError> {
        Self::open(record, |_, _, _| Ok(()))
    }

    fn open(
        record: wire::SignedRecord,
        verify: impl FnOnce(&PublicKey, &[u8], &[u8]) -> Result<(), SignatureError>,
    ) -> Result<Self, RecordError> {
        check_size(&record, T::MAX_BYTES)?;
        if record.r#type != T::TYPE as i32 {
            return Err(RecordError::Type { expected: T::TYPE.as_str_name(), found: record.r#type });
        }
        if record.format != FORMAT || record.alg != PublicKey::ALGORITHM as i32 {
            return Err(RecordError::Scheme { format: record.format, alg: record.alg });
        }
        let key: [u8; 32] = record.key.as_ref().try_into().map_err(|_| RecordError::Signature)?;
        let signature: [u8; 64] = record.signature.as_ref().try_into().map_err(|_| RecordError::Signature)?;
        let signer = PublicKey::from_bytes(key);
        let message = signing_input(T::TYPE, &signer, &record.payload);
        verify(&signer, &message, &signature).map_err(|_| RecordError::Signature)?;
        let value = decode::<T>(&record.payload, &signer)?;
        Ok(Self { value, signer, payload: record.payload, signature, digest: Digest::of(&message) })
    }

    /// Verifies a record in an optional wire field.
    pub fn verify_field(record: Option<wire::SignedRecord>) -> Result<Self, RecordError> {
        Self::verify(record.ok_or(RecordError::Missing)?)
    }

    /// The wire form: the exact bytes that were signed.
    #[must_use]
    pub fn to_wire(&self) -> wire::SignedRecord {
        wire::SignedRecord {
            format: FORMAT,
            r#type: T::TYPE as i32,
            alg: PublicKey::ALGORITHM as i32,
            key: Bytes::copy_from_slice(self.signer.as_bytes()),
            payload: self.payload.clone(),
            signature: Bytes::copy_from_slice(&self.signature),
        }
    }
}

impl<T> Signed<T> {
    /// What was signed.
    pub const fn value(&self) -> &T {
        &self.value
    }

    /// By whom.
    pub const fn signer(&self) -> &PublicKey {
        &self.signer
    }

    /// The digest of everything that was signed. The signature is not part of it.
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

/// A signed record without what is known anyway where those of many peers of one network are kept: 79 bytes less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed<B = Box<[u8]>> {
    /// The type with [`HAS_NETWORK`], the payload behind the network, the signature.
    bytes: B,
}

/// The payload began with the id of the network, which was left out.
const HAS_NETWORK: u8 = 0x80;
const SIGNATURE_BYTES: usize = 64;
/// The field with the network: tag, length, id.
const NETWORK_FIELD: usize = 2 + 32;
/// What an encoded record has beside its payload and the length of that: fields 1 to 3, key and signature, all tags.
const BESIDE_PAYLOAD: usize = 6 + 34 + 1 + 2 + SIGNATURE_BYTES;

impl Packed {
    pub(crate) fn of<T: Payload>(signed: &Signed<T>, network: &NetworkId) -> Self {
        let (begins, rest) = match signed.payload.strip_prefix(&network_field(network)) {
            Some(rest) => (HAS_NETWORK, rest),
            None => (0, &*signed.payload),
        };
        // Types are few: the cast fits.
        let first = T::TYPE as i32 as u8 | begins;
        Self { bytes: [[first].as_slice(), rest, &signed.signature].concat().into() }
    }
}

impl<B: AsRef<[u8]>> Packed<B> {
    /// Out of what [`Self::bytes`] gave.
    pub const fn from_bytes(bytes: B) -> Self {
        Self { bytes }
    }

    /// As it is kept.
    pub const fn bytes(&self) -> &B {
        &self.bytes
    }

    /// The encoded record, byte for byte.
    #[must_use]
    pub fn encoded(&self, key: &PublicKey, network: &NetworkId) -> Bytes {
        let mut to = BytesMut::with_capacity(self.encoded_len());
        self.encode(key, network, &mut to);
        to.freeze()
    }

    /// How long the encoded record is.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let (_, payload, _) = self.parts(&[0; NETWORK_FIELD]);
        let payload: usize = payload.iter().map(|part| part.len()).sum();
        BESIDE_PAYLOAD + encoding::encoded_len_varint(payload as u64) + payload
    }

    /// Appends the encoded record, byte for byte.
    pub fn encode(&self, key: &PublicKey, network: &NetworkId, to: &mut impl BufMut) {
        let field = network_field(network);
        let (kind, payload, signature) = self.parts(&field);
        encoding::uint32::encode(1, &FORMAT, to);
        encoding::int32::encode(2, &kind, to);
        encoding::int32::encode(3, &(PublicKey::ALGORITHM as i32), to);
        for (tag, parts) in [(4, [key.as_bytes().as_slice(), &[]]), (5, payload), (6, [signature, &[]])] {
            encoding::encode_key(tag, encoding::WireType::LengthDelimited, to);
            encoding::encode_varint(parts.iter().map(|part| part.len() as u64).sum(), to);
            parts.iter().for_each(|part| to.put_slice(part));
        }
    }

    /// The digest of everything that was signed.
    #[must_use]
    pub fn digest(&self, key: &PublicKey, network: &NetworkId) -> Digest {
        let field = network_field(network);
        let (kind, payload, _) = self.parts(&field);
        let kind = RecordType::try_from(kind).unwrap_or_default();
        Digest::of(&signing_input(kind, key, &payload.concat()))
    }

    /// The type, the payload in two parts, the signature.
    fn parts<'a>(&'a self, network: &'a [u8]) -> (i32, [&'a [u8]; 2], &'a [u8]) {
        let (first, rest) = self.bytes.as_ref().split_first().unwrap_or((&0, &[]));
        let (rest, signature) = rest.split_at(rest.len().saturating_sub(SIGNATURE_BYTES));
        let begin = if first & HAS_NETWORK == 0 { [].as_slice() } else { network };
        (i32::from(first & !HAS_NETWORK), [begin, rest], signature)
    }
}

/// How the payload of a record begins that names its network first.
fn network_field(network: &NetworkId) -> [u8; NETWORK_FIELD] {
    let mut field = [0x0a; NETWORK_FIELD];
    let [_, length, id @ ..] = &mut field;
    *length = 32;
    id.copy_from_slice(network.as_bytes());
    field
}

impl<T: fmt::Debug> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("by", &self.signer).field("value", &self.value).finish()
    }
}

fn decode<T: Payload>(payload: &Bytes, signer: &PublicKey) -> Result<T, RecordError> {
    let wire = T::Wire::decode(payload.clone()).map_err(RecordError::malformed)?;
    T::parse(wire, signer)
}

fn check_size(record: &wire::SignedRecord, limit: usize) -> Result<(), RecordError> {
    let size = record.encoded_len();
    if size > limit { Err(RecordError::TooLarge { size, limit }) } else { Ok(()) }
}

/// What is signed; see `p2psb.common.v1.SignedRecord`.
fn signing_input(kind: RecordType, signer: &PublicKey, payload: &[u8]) -> Vec<u8> {
    framed(
        DOMAIN,
        &[
            &FORMAT.to_le_bytes(),
            &(kind as i32).to_le_bytes(),
            &(PublicKey::ALGORITHM as i32).to_le_bytes(),
            signer.as_bytes(),
            payload,
        ],
    )
}

/// A text within its bound.
pub(crate) fn bounded(text: String, limit: usize, what: &str) -> Result<String, RecordError> {
    if text.len() > limit {
        return Err(RecordError::malformed(format!(
            "{what} has {} bytes, at most {limit} are allowed",
            text.len()
        )));
    }
    Ok(text)
}

/// A list within its bound.
pub(crate) fn bounded_list<T>(list: Vec<T>, limit: usize, what: &str) -> Result<Vec<T>, RecordError> {
    if list.len() > limit {
        return Err(RecordError::malformed(format!("{} {what}, at most {limit} are allowed", list.len())));
    }
    Ok(list)
}

/// A required time.
pub(crate) fn time(
    wire: Option<&prost_types::Timestamp>,
    what: &str,
) -> Result<super::UnixMillis, RecordError> {
    wire.and_then(super::UnixMillis::from_wire)
        .ok_or_else(|| RecordError::malformed(format!("{what} is missing or no time between 1970 and 9999")))
}

/// The rules of `seq` and of clocks, at `now`.
pub(crate) fn check_clock(
    seq: u64,
    issued: super::UnixMillis,
    now: super::UnixMillis,
) -> Result<(), RecordError> {
    let horizon = now.plus(super::limits::CLOCK_SKEW);
    if issued > horizon {
        return Err(RecordError::ClockSkew { issued, now });
    }
    if seq > horizon.0 {
        return Err(RecordError::SeqAhead { seq, now });
    }
    Ok(())
}

/// A lifetime within `limits::RECORD_LIFETIME`.
pub(crate) fn check_lifetime(
    issued: super::UnixMillis,
    expires: super::UnixMillis,
) -> Result<(), RecordError> {
    if expires <= issued {
        return Err(RecordError::malformed("expire_time is not after issue_time"));
    }
    if expires.since(issued) > super::limits::RECORD_LIFETIME {
        return Err(RecordError::malformed("expire_time is more than 2 h after issue_time"));
    }
    Ok(())
}

/// The `seq` of a new record: `max(last + 1, Unix milliseconds)`. A `last` that lies further ahead than clocks may differ was
/// signed with a wrong clock: nobody accepts it, so it does not count, and the sequence begins anew from the clock.
#[must_use]
pub fn next_seq(last: u64, now: super::UnixMillis) -> u64 {
    let believable = last <= now.plus(super::limits::CLOCK_SKEW).0;
    let last = if believable { last } else { 0 };
    last.saturating_add(1).max(now.0)
}

#[cfg(test)]
mod tests {
    use super::super::{UnixMillis, limits};
    use super::*;

    #[test]
    fn seq_follows_what_was_signed_unless_the_clock_was_wrong_then() {
        let now = UnixMillis(1_000_000);
        let ahead = now.plus(limits::CLOCK_SKEW).0;
        for (last, next) in [(0, now.0), (now.0, now.0 + 1), (ahead, ahead + 1), (ahead + 1, now.0)] {
            assert_eq!(next_seq(last, now), next, "after {last}");
        }
        assert_eq!(next_seq(u64::MAX, now), now.0);
    }
}
