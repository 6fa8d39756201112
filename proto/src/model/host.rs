//! What a host says of the content it holds: a claim for each manifest, and one lease for all of them.

use super::digest::Digest;
use super::id::PeerId;
use super::key::PublicKey;
use super::limits;
use super::network::NetworkId;
use super::record::{Payload, RecordError, RecordType, Signed, check_clock, check_lifetime, time};
use super::time::UnixMillis;
use crate::wire::package_index::v1 as wire;

/// The signer holds (part of) a manifest, or no longer does. It counts while the signer's lease runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostClaim {
    /// The community.
    pub network: NetworkId,
    /// The content.
    pub manifest: Digest,
    /// Rises with every claim for this manifest.
    pub seq: u64,
    /// When it was signed.
    pub issued: UnixMillis,
    /// It is no longer held.
    pub withdrawn: bool,
}

/// The signer is there and hosts what it claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLease {
    /// The community.
    pub network: NetworkId,
    /// Rises with every lease.
    pub seq: u64,
    /// When it was signed.
    pub issued: UnixMillis,
    /// When it ends; at most 2 h later.
    pub expires: UnixMillis,
}

fn check(network: &NetworkId, found: &NetworkId) -> Result<(), RecordError> {
    if network == found { Ok(()) } else { Err(RecordError::Network { expected: *network, found: *found }) }
}

impl HostClaim {
    /// Whether it counts in `network` at `now`.
    pub fn check(&self, network: &NetworkId, now: UnixMillis) -> Result<(), RecordError> {
        check(network, &self.network)?;
        check_clock(self.seq, self.issued, now)
    }
}

impl HostLease {
    /// Whether it counts in `network` at `now`.
    pub fn check(&self, network: &NetworkId, now: UnixMillis) -> Result<(), RecordError> {
        check(network, &self.network)?;
        check_clock(self.seq, self.issued, now)?;
        if self.expires <= now {
            return Err(RecordError::Expired { expired: self.expires, now });
        }
        Ok(())
    }
}

impl Signed<HostClaim> {
    /// Who claims.
    #[must_use]
    pub const fn host(&self) -> PeerId {
        PeerId::new(*self.signer())
    }
}

impl Signed<HostLease> {
    /// Whose lease it is.
    #[must_use]
    pub const fn host(&self) -> PeerId {
        PeerId::new(*self.signer())
    }
}

impl Payload for HostClaim {
    const TYPE: RecordType = RecordType::HostClaim;
    const MAX_BYTES: usize = limits::RECORD_BYTES;
    type Wire = wire::HostClaim;

    fn parse(wire: wire::HostClaim, _: &PublicKey) -> Result<Self, RecordError> {
        Ok(Self {
            network: NetworkId::from_slice(&wire.network_id).map_err(RecordError::malformed)?,
            manifest: Digest::from_slice(&wire.manifest_digest).map_err(RecordError::malformed)?,
            seq: wire.seq,
            issued: time(wire.issue_time.as_ref(), "issue_time")?,
            withdrawn: wire.withdrawn,
        })
    }

    fn to_wire(&self) -> wire::HostClaim {
        wire::HostClaim {
            network_id: self.network.to_wire(),
            manifest_digest: self.manifest.to_wire(),
            seq: self.seq,
            issue_time: Some(self.issued.to_wire()),
            withdrawn: self.withdrawn,
        }
    }
}

impl Payload for HostLease {
    const TYPE: RecordType = RecordType::HostLease;
    const MAX_BYTES: usize = limits::RECORD_BYTES;
    type Wire = wire::HostLease;

    fn parse(wire: wire::HostLease, _: &PublicKey) -> Result<Self, RecordError> {
        let issued = time(wire.issue_time.as_ref(), "issue_time")?;
        let expires = time(wire.expire_time.as_ref(), "expire_time")?;
        check_lifetime(issued, expires)?;
        let network = NetworkId::from_slice(&wire.network_id).map_err(RecordError::malformed)?;
        Ok(Self { network, seq: wire.seq, issued, expires })
    }

    fn to_wire(&self) -> wire::HostLease {
        wire::HostLease {
            network_id: self.network.to_wire(),
            seq: self.seq,
            issue_time: Some(self.issued.to_wire()),
            expire_time: Some(self.expires.to_wire()),
        }
    }
}
