//! Peers by the million: their keys follow from one seed, so that nobody has to remember them.

use std::net::SocketAddr;
use std::time::Duration;

use p2psb_e2e::peer::{network, now};
use p2psb_e2e::trouble::{Context as _, Result};
use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::{
    Address, AddressKind, NetworkId, PeerId, PeerRecord, SecretKey, ServiceName, Signed, Transport,
};

/// Records live longer than any measurement, and are not swept meanwhile.
const LIFE: Duration = Duration::from_secs(2 * 60 * 60 - 60);

/// Makes peers.
#[derive(Clone, Debug)]
pub(crate) struct Crowd {
    seed: [u8; 32],
    network: NetworkId,
    service: ServiceName,
    homes: [PeerId; 2],
}

impl Crowd {
    /// Peers that nobody has met.
    pub(crate) fn new() -> Result<Self> {
        let home = || SecretKey::generate().map(|key| PeerId::new(key.public())).context("making a key");
        let seed = SecretKey::generate().context("making a seed")?.to_seed();
        Ok(Self {
            seed: *seed,
            network: network()?,
            service: "p2psb.peer".parse().context("the service of agents")?,
            homes: [home()?, home()?],
        })
    }

    /// The peers of a seed that [`Self::seed`] gave: those of another process.
    pub(crate) fn of(seed: &str) -> Result<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(seed, &mut bytes).context("the seed of a crowd")?;
        Ok(Self { seed: bytes, ..Self::new()? })
    }

    /// What another process makes the same peers of.
    pub(crate) fn seed(&self) -> String {
        hex::encode(self.seed)
    }

    /// The key of one.
    pub(crate) fn key(&self, number: u64) -> SecretKey {
        SecretKey::from_seed(blake3::keyed_hash(&self.seed, &number.to_le_bytes()).as_bytes())
    }

    /// What an ordinary peer says of itself: three addresses, the service that every agent offers, two homes. 300 bytes.
    pub(crate) fn record(&self, number: u64, key: &SecretKey) -> Result<Signed<PeerRecord>> {
        let host = 0x0a00_0000 | u32::try_from(number & 0x00ff_ffff).unwrap_or_default();
        let kinds = [AddressKind::Listen, AddressKind::Mapped, AddressKind::Observed];
        let address = |kind| Address::ip(SocketAddr::from((host.to_be_bytes(), 7430)), Transport::Tls, kind);
        let issued = now();
        let record = PeerRecord {
            network: self.network,
            seq: issued.0,
            issued,
            expires: issued.plus(LIFE),
            addresses: kinds.map(address).to_vec(),
            services: vec![ServiceOffer::new(self.service.clone())],
            homes: self.homes.to_vec(),
            endorsements: Vec::new(),
        };
        Signed::sign(&record, key).context("signing a record")
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_record_has_300_bytes_and_a_peer_one_key() {
        let crowd = Crowd::new().unwrap();
        let record = crowd.record(7, &crowd.key(7)).unwrap();
        assert_eq!(record.peer_id(), PeerId::new(crowd.key(7).public()));
        assert_ne!(record.peer_id(), PeerId::new(crowd.key(8).public()));
        let size = record.to_wire().encoded_len();
        assert!((290..=310).contains(&size), "{size}");
    }
}
