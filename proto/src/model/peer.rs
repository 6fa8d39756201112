//! What a peer says of itself: its record, and its withdrawal.

use bytes::Bytes;
use prost::Message as _;

use super::address::Address;
use super::id::PeerId;
use super::key::PublicKey;
use super::limits;
use super::name::ServiceName;
use super::network::NetworkId;
use super::record::{
    Packed, Payload, RecordError, RecordType, Signed, bounded, bounded_list, check_clock, check_lifetime,
    time,
};
use super::time::UnixMillis;
use crate::wire::common::v1 as wire;

/// A service that a peer provides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOffer {
    /// Its name.
    pub name: ServiceName,
    /// What a search can filter by: keys and values.
    pub attributes: Vec<(String, String)>,
}

/// A provider that the operator of a rendezvous vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endorsement {
    /// A reserved service.
    pub service: ServiceName,
    /// Its provider.
    pub peer: PeerId,
}

/// A peer's addresses, services and homes. The peer is the signer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// The community.
    pub network: NetworkId,
    /// Rises with every record of the peer.
    pub seq: u64,
    /// When it was signed.
    pub issued: UnixMillis,
    /// When it stops counting; at most 2 h later.
    pub expires: UnixMillis,
    /// Where the peer can be dialed.
    pub addresses: Vec<Address>,
    /// What it provides.
    pub services: Vec<ServiceOffer>,
    /// Rendezvous that hold a session of it.
    pub homes: Vec<PeerId>,
    /// Only of a rendezvous: whom its operator vouches for.
    pub endorsements: Vec<Endorsement>,
}

impl PeerRecord {
    /// Whether the record counts in `network` at `now`.
    pub fn check(&self, network: &NetworkId, now: UnixMillis) -> Result<(), RecordError> {
        if self.network != *network {
            return Err(RecordError::Network { expected: *network, found: self.network });
        }
        check_clock(self.seq, self.issued, now)?;
        if self.expires <= now {
            return Err(RecordError::Expired { expired: self.expires, now });
        }
        Ok(())
    }

    /// Whether the peer says it provides `service`.
    #[must_use]
    pub fn offers(&self, service: &str) -> bool {
        self.services.iter().any(|s| s.name.as_str() == service)
    }

    /// Whether this record, of a rendezvous, vouches for `peer` as provider of `service`.
    #[must_use]
    pub fn endorses(&self, service: &str, peer: &PeerId) -> bool {
        self.endorsements.iter().any(|e| e.peer == *peer && e.service.as_str() == service)
    }
}

impl Signed<PeerRecord> {
    /// Whose record it is.
    #[must_use]
    pub const fn peer_id(&self) -> PeerId {
        PeerId::new(*self.signer())
    }
}

impl Payload for PeerRecord {
    const TYPE: RecordType = RecordType::Peer;
    const MAX_BYTES: usize = limits::PEER_RECORD_BYTES;
    type Wire = wire::PeerRecord;

    fn parse(wire: wire::PeerRecord, _: &PublicKey) -> Result<Self, RecordError> {
        let issued = time(wire.issue_time.as_ref(), "issue_time")?;
        let expires = time(wire.expire_time.as_ref(), "expire_time")?;
        check_lifetime(issued, expires)?;
        let peer = |bytes: &[u8]| PeerId::from_slice(bytes).map_err(RecordError::malformed);
        let addresses: Vec<_> = bounded_list(wire.addresses, limits::ADDRESSES, "addresses")?
            .into_iter()
            .map(Address::try_from)
            .collect::<Result<_, _>>()?;
        if addresses.iter().filter(|one| one.confirmation.is_some()).count() > limits::CONFIRMATIONS {
            return Err(RecordError::malformed("at most 2 addresses can be confirmed ones"));
        }
        Ok(Self {
            network: NetworkId::from_slice(&wire.network_id).map_err(RecordError::malformed)?,
            seq: wire.seq,
            issued,
            expires,
            addresses,
            services: bounded_list(wire.services, limits::SERVICES, "services")?
                .into_iter()
                .map(ServiceOffer::try_from)
                .collect::<Result<_, _>>()?,
            homes: bounded_list(wire.homes, limits::HOMES, "homes")?
                .iter()
                .map(|h| peer(h))
                .collect::<Result<_, _>>()?,
            endorsements: bounded_list(wire.endorsements, limits::ENDORSEMENTS, "endorsements")?
                .into_iter()
                .map(|e| Ok(Endorsement { service: service(&e.service)?, peer: peer(&e.peer_id)? }))
                .collect::<Result<_, RecordError>>()?,
        })
    }

    fn to_wire(&self) -> wire::PeerRecord {
        wire::PeerRecord {
            network_id: self.network.to_wire(),
            seq: self.seq,
            issue_time: Some(self.issued.to_wire()),
            expire_time: Some(self.expires.to_wire()),
            addresses: self.addresses.iter().map(Address::to_wire).collect(),
            services: self.services.iter().map(ServiceOffer::to_wire).collect(),
            homes: self.homes.iter().map(PeerId::to_wire).collect(),
            endorsements: self
                .endorsements
                .iter()
                .map(|e| wire::Endorsement { service: e.service.to_string(), peer_id: e.peer.to_wire() })
                .collect(),
        }
    }
}

fn service(name: &str) -> Result<ServiceName, RecordError> {
    name.parse().map_err(RecordError::malformed)
}

impl ServiceOffer {
    /// An offer without attributes.
    #[must_use]
    pub const fn new(name: ServiceName) -> Self {
        Self { name, attributes: Vec::new() }
    }

    fn to_wire(&self) -> wire::ServiceOffer {
        let attribute =
            |(key, value): &(String, String)| wire::Attribute { key: key.clone(), value: value.clone() };
        wire::ServiceOffer {
            name: self.name.to_string(),
            attributes: self.attributes.iter().map(attribute).collect(),
        }
    }
}

impl TryFrom<wire::ServiceOffer> for ServiceOffer {
    type Error = RecordError;

    fn try_from(wire: wire::ServiceOffer) -> Result<Self, RecordError> {
        let attribute = |a: wire::Attribute| {
            if a.key.is_empty() {
                return Err(RecordError::malformed("an attribute without a key"));
            }
            Ok((
                bounded(a.key, limits::ATTRIBUTE_KEY_BYTES, "an attribute's key")?,
                bounded(a.value, limits::ATTRIBUTE_VALUE_BYTES, "an attribute's value")?,
            ))
        };
        Ok(Self {
            name: service(&wire.name)?,
            attributes: bounded_list(wire.attributes, limits::ATTRIBUTES, "attributes")?
                .into_iter()
                .map(attribute)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The peer's record is void, for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerWithdrawal {
    /// The community.
    pub network: NetworkId,
    /// In the sequence of the peer's records.
    pub seq: u64,
    /// When it was signed.
    pub issued: UnixMillis,
}

impl PeerWithdrawal {
    /// Whether it counts in `network` at `now`.
    pub fn check(&self, network: &NetworkId, now: UnixMillis) -> Result<(), RecordError> {
        if self.network != *network {
            return Err(RecordError::Network { expected: *network, found: self.network });
        }
        check_clock(self.seq, self.issued, now)
    }
}

impl Payload for PeerWithdrawal {
    const TYPE: RecordType = RecordType::PeerWithdrawal;
    const MAX_BYTES: usize = limits::PEER_RECORD_BYTES;
    type Wire = wire::PeerWithdrawal;

    fn parse(wire: wire::PeerWithdrawal, _: &PublicKey) -> Result<Self, RecordError> {
        Ok(Self {
            network: NetworkId::from_slice(&wire.network_id).map_err(RecordError::malformed)?,
            seq: wire.seq,
            issued: time(wire.issue_time.as_ref(), "issue_time")?,
        })
    }

    fn to_wire(&self) -> wire::PeerWithdrawal {
        wire::PeerWithdrawal {
            network_id: self.network.to_wire(),
            seq: self.seq,
            issue_time: Some(self.issued.to_wire()),
        }
    }
}

/// Either statement; both are in one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerStatement {
    /// The peer is there.
    Record(Signed<PeerRecord>),
    /// The peer has left for good.
    Withdrawal(Signed<PeerWithdrawal>),
}

impl PeerStatement {
    /// Verifies a record of either type.
    pub fn verify(record: wire::SignedRecord) -> Result<Self, RecordError> {
        if record.r#type == RecordType::PeerWithdrawal as i32 {
            Signed::verify(record).map(Self::Withdrawal)
        } else {
            Signed::verify(record).map(Self::Record)
        }
    }

    /// Takes the wire form of a statement that this program verified before, and kept where nobody else can have changed it.
    pub fn verified_before(bytes: &Bytes) -> Result<Self, RecordError> {
        let record = wire::SignedRecord::decode(bytes.clone()).map_err(RecordError::malformed)?;
        if record.r#type == RecordType::PeerWithdrawal as i32 {
            Signed::verified_before(record).map(Self::Withdrawal)
        } else {
            Signed::verified_before(record).map(Self::Record)
        }
    }

    /// Whose it is.
    #[must_use]
    pub const fn peer_id(&self) -> PeerId {
        match self {
            Self::Record(r) => PeerId::new(*r.signer()),
            Self::Withdrawal(w) => PeerId::new(*w.signer()),
        }
    }

    /// Its place in the sequence: higher `seq`, then larger digest, wins.
    #[must_use]
    pub const fn rank(&self) -> (u64, super::Digest) {
        match self {
            Self::Record(r) => (r.value().seq, r.digest()),
            Self::Withdrawal(w) => (w.value().seq, w.digest()),
        }
    }

    /// Whether it counts in `network` at `now`.
    pub fn check(&self, network: &NetworkId, now: UnixMillis) -> Result<(), RecordError> {
        match self {
            Self::Record(r) => r.value().check(network, now),
            Self::Withdrawal(w) => w.value().check(network, now),
        }
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> wire::SignedRecord {
        match self {
            Self::Record(r) => r.to_wire(),
            Self::Withdrawal(w) => w.to_wire(),
        }
    }

    /// The network it is of.
    #[must_use]
    pub const fn network(&self) -> NetworkId {
        match self {
            Self::Record(r) => r.value().network,
            Self::Withdrawal(w) => w.value().network,
        }
    }

    /// The wire form without what is known where many are kept.
    #[must_use]
    pub fn pack(&self) -> Packed {
        match self {
            Self::Record(r) => Packed::of(r, &self.network()),
            Self::Withdrawal(w) => Packed::of(w, &self.network()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message as _;

    use super::super::{Genesis, SecretKey};
    use super::*;

    #[test]
    fn a_packed_statement_unpacks_to_the_very_same_bytes() {
        let (network, key) = (Genesis::open("test").unwrap().network_id(), SecretKey::from_seed(&[1; 32]));
        let issued = UnixMillis(1_800_000_000_000);
        for services in [0, 1, 32] {
            let record = PeerRecord {
                network,
                seq: 7,
                issued,
                expires: issued.plus(Duration::from_secs(60)),
                addresses: Vec::new(),
                services: vec![ServiceOffer::new("chat".parse().unwrap()); services],
                homes: Vec::new(),
                endorsements: Vec::new(),
            };
            let withdrawal = PeerWithdrawal { network, seq: 8, issued };
            for statement in [
                PeerStatement::Record(Signed::sign(&record, &key).unwrap()),
                PeerStatement::Withdrawal(Signed::sign(&withdrawal, &key).unwrap()),
            ] {
                let (packed, encoded) = (statement.pack(), statement.to_wire().encode_to_vec());
                assert_eq!(packed.encoded(&key.public(), &network), encoded);
                assert_eq!(packed.digest(&key.public(), &network), statement.rank().1);
            }
        }
    }
}
