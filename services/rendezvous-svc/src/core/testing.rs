//! Builders for the tests of the core.

use std::time::{Duration, Instant};

use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::{
    Genesis, NetworkId, PeerId, PeerRecord, PeerStatement, PeerWithdrawal, SecretKey, ServiceName,
    ServiceQuery, Signed, UnixMillis,
};

use super::Now;
use super::admission::Limits;
use super::ledger::Shares;
use super::table::Item;

/// The wall at the start of a test.
pub(crate) const T0: UnixMillis = UnixMillis(1_800_000_000_000);

pub(crate) fn network() -> NetworkId {
    Genesis::open("test").unwrap().network_id()
}

pub(crate) fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

/// More keys than [`key`] has.
pub(crate) fn key_of(n: u64) -> SecretKey {
    let mut seed = [0; 32];
    seed.iter_mut().zip(n.to_le_bytes()).for_each(|(to, from)| *to = from);
    seed[31] = 1;
    SecretKey::from_seed(&seed)
}

pub(crate) fn peer(n: u8) -> PeerId {
    PeerId::new(key(n).public())
}

/// A record of peer `n` that lives for an hour from [`T0`].
pub(crate) fn record(n: u8, seq: u64, services: &[&str]) -> PeerStatement {
    signed_by(&key(n), seq, services.iter().map(|name| offer(name, &[])).collect())
}

/// The same with an offer that has attributes.
pub(crate) fn offering(n: u8, seq: u64, service: &str, attributes: &[(&str, &str)]) -> PeerStatement {
    signed_by(&key(n), seq, vec![offer(service, attributes)])
}

pub(crate) fn offer(service: &str, attributes: &[(&str, &str)]) -> ServiceOffer {
    let attributes = attributes.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    ServiceOffer { name: service.parse().unwrap(), attributes }
}

pub(crate) fn signed_by(key: &SecretKey, seq: u64, services: Vec<ServiceOffer>) -> PeerStatement {
    signed_for(key, seq, services, Duration::from_secs(3600))
}

/// A record of peer `n` with another life.
pub(crate) fn record_for(n: u8, seq: u64, life: Duration) -> PeerStatement {
    signed_for(&key(n), seq, Vec::new(), life)
}

fn signed_for(key: &SecretKey, seq: u64, services: Vec<ServiceOffer>, life: Duration) -> PeerStatement {
    let record = PeerRecord {
        network: network(),
        seq,
        issued: T0,
        expires: T0.plus(life),
        addresses: Vec::new(),
        services,
        homes: Vec::new(),
        endorsements: Vec::new(),
    };
    PeerStatement::Record(Signed::sign(&record, key).unwrap())
}

/// A query for all providers of a service.
pub(crate) fn query(service: &str) -> ServiceQuery {
    service.parse::<ServiceName>().unwrap().into()
}

pub(crate) fn withdrawal(n: u8, seq: u64) -> PeerStatement {
    let withdrawal = PeerWithdrawal { network: network(), seq, issued: T0 };
    PeerStatement::Withdrawal(Signed::sign(&withdrawal, &key(n)).unwrap())
}

pub(crate) fn item(statement: &PeerStatement) -> Item {
    Item::new(statement)
}

/// Room for `most`, whoever brings them.
pub(crate) fn shares(most: usize) -> Shares {
    let peers = Limits { total: (most, "total"), per_ip: (most, "ip"), per_prefix: (most, "prefix") };
    Shares { peers, per_member: (most, "member") }
}

/// A clock for tests: the moment `seconds` after the start.
#[derive(Clone, Copy)]
pub(crate) struct Time(Instant);

impl Time {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn at(self, seconds: u64) -> Now {
        let by = Duration::from_secs(seconds);
        Now { mono: self.0 + by, wall: T0.plus(by) }
    }
}
