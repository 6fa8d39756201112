//! Builders for the tests of the core.

use std::time::{Duration, Instant};

use bytes::Bytes;
use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::{
    Genesis, NetworkId, PeerId, PeerRecord, PeerStatement, PeerWithdrawal, SecretKey, Signed, UnixMillis,
};
use prost::Message as _;

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

pub(crate) fn peer(n: u8) -> PeerId {
    PeerId::new(key(n).public())
}

/// A record of peer `n` that lives for an hour from [`T0`].
pub(crate) fn record(n: u8, seq: u64, services: &[&str]) -> PeerStatement {
    let record = PeerRecord {
        network: network(),
        seq,
        issued: T0,
        expires: T0.plus(Duration::from_secs(3600)),
        addresses: Vec::new(),
        services: services.iter().map(|s| ServiceOffer::new(s.parse().unwrap())).collect(),
        homes: Vec::new(),
        endorsements: Vec::new(),
    };
    PeerStatement::Record(Signed::sign(&record, &key(n)).unwrap())
}

pub(crate) fn withdrawal(n: u8, seq: u64) -> PeerStatement {
    let withdrawal = PeerWithdrawal { network: network(), seq, issued: T0 };
    PeerStatement::Withdrawal(Signed::sign(&withdrawal, &key(n)).unwrap())
}

pub(crate) fn item(statement: &PeerStatement) -> Item {
    Item::new(statement, Bytes::from(statement.to_wire().encode_to_vec()))
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
