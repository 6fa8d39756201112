//! What the tests of the walk share: peers, records, a moment.

use std::time::Duration;

use p2psb_proto::model::presence::{LocatedPeer, Presence, PresenceSource, PresenceState};
use p2psb_proto::model::{Genesis, NetworkId, PeerId, PeerRecord, SecretKey, Signed, UnixMillis};

use super::{Located, Whom};
use crate::endpoint::Endpoint;

pub(crate) const NOW: UnixMillis = UnixMillis(1_800_000_000_123);

pub(crate) fn network() -> NetworkId {
    Genesis::open("test").unwrap().network_id()
}

pub(crate) fn key(n: u32) -> SecretKey {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&n.to_le_bytes());
    SecretKey::from_seed(&seed)
}

pub(crate) fn peer(n: u32) -> PeerId {
    PeerId::new(key(n).public())
}

pub(crate) fn endpoint(port: u16) -> Endpoint {
    format!("http://127.0.0.1:{port}").parse().unwrap()
}

/// The peer's record, valid for `life` from `issued` on.
pub(crate) fn located(n: u32, seq: u64, issued: UnixMillis, life: Duration) -> LocatedPeer {
    let record = PeerRecord {
        network: network(),
        seq,
        issued,
        expires: issued.plus(life),
        addresses: Vec::new(),
        services: Vec::new(),
        homes: Vec::new(),
        endorsements: Vec::new(),
    };
    let presence = Presence {
        state: PresenceState::Online,
        last_seen: issued,
        as_of: issued,
        source: PresenceSource::Session,
        home: None,
    };
    LocatedPeer { record: Signed::sign(&record, &key(n)).unwrap(), presence }
}

/// The same as an answer of the rendezvous at `port`.
pub(crate) fn answer(n: u32, seq: u64, issued: UnixMillis, life: Duration, port: u16) -> Located {
    Located { peer: located(n, seq, issued, life), answered_by: Whom::Rendezvous(endpoint(port)) }
}
