//! What a publisher says beside its releases: how far a chain reaches, who else may sign, which key follows.

use super::digest::Digest;
use super::id::PublisherId;
use super::key::PublicKey;
use super::limits;
use super::name::PackageName;
use super::record::{Payload, RecordError, RecordType, bounded_list, time};
use super::time::UnixMillis;
use crate::wire::package_index::v1 as wire;

/// How far a chain reached when it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageHead {
    /// The owner.
    pub publisher: PublisherId,
    /// The package's name.
    pub name: PackageName,
    /// Of the newest entry.
    pub seq: u64,
    /// Of the newest entry.
    pub digest: Digest,
    /// When it was signed.
    pub issued: UnixMillis,
}

/// The signer lets another key sign entries for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegation {
    /// Who may.
    pub delegate: PublisherId,
    /// For which packages; empty means all.
    pub names: Vec<PackageName>,
    /// Rises with every change.
    pub seq: u64,
    /// When it was signed.
    pub issued: UnixMillis,
    /// When it stops counting, if ever.
    pub expires: Option<UnixMillis>,
    /// Taken back.
    pub revoked: bool,
}

/// The signer hands over to another key, for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The new key.
    pub successor: PublisherId,
    /// When it was signed.
    pub issued: UnixMillis,
}

fn publisher(bytes: &[u8]) -> Result<PublisherId, RecordError> {
    PublisherId::from_slice(bytes).map_err(RecordError::malformed)
}

impl Payload for PackageHead {
    const TYPE: RecordType = RecordType::PackageHead;
    const MAX_BYTES: usize = limits::RECORD_BYTES;
    type Wire = wire::PackageHead;

    fn parse(wire: wire::PackageHead, _: &PublicKey) -> Result<Self, RecordError> {
        if wire.seq == 0 {
            return Err(RecordError::malformed("seq begins with 1"));
        }
        Ok(Self {
            publisher: publisher(&wire.publisher_id)?,
            name: wire.name.parse().map_err(RecordError::malformed)?,
            seq: wire.seq,
            digest: Digest::from_slice(&wire.digest).map_err(RecordError::malformed)?,
            issued: time(wire.issue_time.as_ref(), "issue_time")?,
        })
    }

    fn to_wire(&self) -> wire::PackageHead {
        wire::PackageHead {
            publisher_id: self.publisher.to_wire(),
            name: self.name.to_string(),
            seq: self.seq,
            digest: self.digest.to_wire(),
            issue_time: Some(self.issued.to_wire()),
        }
    }
}

impl Payload for Delegation {
    const TYPE: RecordType = RecordType::Delegation;
    const MAX_BYTES: usize = limits::RECORD_BYTES;
    type Wire = wire::Delegation;

    fn parse(wire: wire::Delegation, signer: &PublicKey) -> Result<Self, RecordError> {
        let delegate = publisher(&wire.delegate_id)?;
        if delegate.key() == signer {
            return Err(RecordError::malformed("a key needs no delegation to itself"));
        }
        let names = bounded_list(wire.names, limits::DELEGATION_NAMES, "names")?;
        Ok(Self {
            delegate,
            names: names
                .iter()
                .map(|n| n.parse().map_err(RecordError::malformed))
                .collect::<Result<_, _>>()?,
            seq: wire.seq,
            issued: time(wire.issue_time.as_ref(), "issue_time")?,
            expires: wire.expire_time.as_ref().map(|t| time(Some(t), "expire_time")).transpose()?,
            revoked: wire.revoked,
        })
    }

    fn to_wire(&self) -> wire::Delegation {
        wire::Delegation {
            delegate_id: self.delegate.to_wire(),
            names: self.names.iter().map(ToString::to_string).collect(),
            seq: self.seq,
            issue_time: Some(self.issued.to_wire()),
            expire_time: self.expires.map(UnixMillis::to_wire),
            revoked: self.revoked,
        }
    }
}

impl Payload for Succession {
    const TYPE: RecordType = RecordType::Succession;
    const MAX_BYTES: usize = limits::RECORD_BYTES;
    type Wire = wire::Succession;

    fn parse(wire: wire::Succession, signer: &PublicKey) -> Result<Self, RecordError> {
        let successor = publisher(&wire.successor_id)?;
        if successor.key() == signer {
            return Err(RecordError::malformed("a key can't succeed itself"));
        }
        Ok(Self { successor, issued: time(wire.issue_time.as_ref(), "issue_time")? })
    }

    fn to_wire(&self) -> wire::Succession {
        wire::Succession { successor_id: self.successor.to_wire(), issue_time: Some(self.issued.to_wire()) }
    }
}
