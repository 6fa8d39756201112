//! This server's own record: where it is, that it is a rendezvous, and whom its operator vouches for.

use std::time::Duration;

use p2psb_proto::model::peer::{Endorsement, ServiceOffer};
use p2psb_proto::model::record::next_seq;
use p2psb_proto::model::{Address, NetworkId, PeerRecord, UnixMillis};

/// The service under which rendezvous are found.
pub const SERVICE: &str = "p2psb.rendezvous";
/// How long a record holds.
pub const LIFETIME: Duration = Duration::from_secs(60 * 60);
/// When the next one is signed.
pub const REFRESH: Duration = Duration::from_secs(30 * 60);

/// What stays the same from record to record.
#[derive(Clone, Debug)]
pub struct OwnRecord {
    /// The community.
    pub network: NetworkId,
    /// Where this server can be dialed, best first.
    pub addresses: Vec<Address>,
    /// What it offers.
    pub services: Vec<ServiceOffer>,
}

impl OwnRecord {
    /// The record to be signed now; `last` is the highest `seq` that anybody is known to hold.
    #[must_use]
    pub fn next(&self, endorsements: Vec<Endorsement>, last: u64, now: UnixMillis) -> PeerRecord {
        PeerRecord {
            network: self.network,
            seq: next_seq(last, now),
            issued: now,
            expires: now.plus(LIFETIME),
            addresses: self.addresses.clone(),
            services: self.services.clone(),
            homes: Vec::new(),
            endorsements,
        }
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::limits::CLOCK_SKEW;

    use super::*;
    use crate::core::testing::{T0, network};

    #[test]
    fn a_record_follows_what_others_hold_even_if_the_clock_went_back() {
        let services = vec![ServiceOffer::new(SERVICE.parse().unwrap())];
        let own = OwnRecord { network: network(), addresses: Vec::new(), services };
        assert_eq!(own.next(Vec::new(), 5, T0).seq, T0.0);
        let record = own.next(Vec::new(), T0.0 + 10, T0);
        assert_eq!(record.seq, T0.0 + 11);
        assert_eq!(record.expires.since(record.issued), LIFETIME);
        let skew = T0.plus(CLOCK_SKEW).0;
        assert_eq!(own.next(Vec::new(), skew, T0).seq, skew + 1);
        assert_eq!(own.next(Vec::new(), skew + 1, T0).seq, T0.0, "the clock was wrong and is right again");
        assert!(record.offers(SERVICE));
    }
}
