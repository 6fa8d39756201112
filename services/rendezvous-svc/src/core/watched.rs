//! How many peers may be watched: in all, from one address, from one network, and by one watcher. A peer is charged as often as
//! it is watched, for as long as the watch lasts.
//!
//! Invariant: every count is the number of peers of the watches that were charged there and have not ended; a watch that is
//! refused is charged nowhere.

use std::collections::HashMap;
use std::net::IpAddr;

use p2psb_proto::model::PeerId;

use super::admission::{Admission, LimitReached, Limits, have_room};

/// The limits, with the names of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedLimits {
    /// In all, and from one address or network.
    pub sources: Limits,
    /// By one watcher, who has proven its id.
    pub per_watcher: (usize, &'static str),
}

/// Who is charged for a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watcher {
    /// Its id.
    pub id: PeerId,
    /// Where from; behind a proxy that does not tell, nobody knows.
    pub from: Option<IpAddr>,
}

/// See the module.
#[derive(Debug)]
pub struct WatchedLedger {
    sources: Admission,
    watchers: HashMap<PeerId, usize>,
    per_watcher: (usize, &'static str),
}

impl WatchedLedger {
    /// Nobody watches.
    #[must_use]
    pub fn new(limits: WatchedLimits) -> Self {
        let sources = Admission::new(limits.sources);
        Self { sources, watchers: HashMap::new(), per_watcher: limits.per_watcher }
    }

    /// Charges a watch of so many peers.
    pub fn enter(&mut self, watcher: Watcher, peers: usize) -> Result<(), LimitReached> {
        let already = self.watchers.get(&watcher.id).copied().unwrap_or_default();
        have_room(already, peers, self.per_watcher)?;
        self.sources.enter_many(watcher.from, peers)?;
        self.watchers.insert(watcher.id, already + peers);
        Ok(())
    }

    /// A watch of so many peers that was charged ended.
    pub fn leave(&mut self, watcher: Watcher, peers: usize) {
        self.sources.leave_many(watcher.from, peers);
        match self.watchers.get_mut(&watcher.id) {
            Some(count) if *count > peers => *count -= peers,
            _ => drop(self.watchers.remove(&watcher.id)),
        }
    }

    /// How many peers are watched, each counted as often as it is watched.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.sources.total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    fn ledger() -> WatchedLedger {
        let sources = Limits { total: (10, "total"), per_ip: (5, "ip"), per_prefix: (8, "prefix") };
        WatchedLedger::new(WatchedLimits { sources, per_watcher: (4, "watcher") })
    }

    fn watcher(id: u8, ip: &str) -> Watcher {
        Watcher { id: peer(id), from: Some(ip.parse().unwrap()) }
    }

    fn refused(result: Result<(), LimitReached>) -> &'static str {
        result.unwrap_err().limit
    }

    #[test]
    fn watchers_addresses_networks_and_the_whole_have_their_limits() {
        let mut ledger = ledger();
        let (one, two) = (watcher(1, "192.0.2.1"), watcher(2, "192.0.2.1"));
        ledger.enter(one, 3).unwrap();
        assert_eq!(refused(ledger.enter(one, 2)), "watcher");
        assert_eq!(refused(ledger.enter(two, 3)), "ip");
        ledger.enter(two, 2).unwrap();
        assert_eq!(refused(ledger.enter(watcher(3, "192.0.2.2"), 4)), "prefix");
        ledger.enter(watcher(3, "192.0.2.2"), 3).unwrap();
        assert_eq!(refused(ledger.enter(watcher(4, "198.51.100.1"), 3)), "total");
        ledger.enter(watcher(4, "198.51.100.1"), 2).unwrap();
        // The same one from elsewhere is the same one.
        ledger.leave(watcher(3, "192.0.2.2"), 3);
        assert_eq!(refused(ledger.enter(watcher(1, "198.51.100.7"), 2)), "watcher");
        assert_eq!(ledger.total(), 7);
    }

    #[test]
    fn who_leaves_or_is_refused_leaves_nothing_behind() {
        let mut ledger = ledger();
        let all = [watcher(1, "192.0.2.1"), watcher(2, "192.0.2.2"), Watcher { id: peer(3), from: None }];
        all.iter().for_each(|one| ledger.enter(*one, 3).unwrap());
        ledger.enter(watcher(9, "192.0.2.9"), 3).unwrap_err();
        all.iter().for_each(|one| ledger.leave(*one, 3));
        assert_eq!((ledger.total(), ledger.watchers.len()), (0, 0));
        ledger.enter(watcher(9, "192.0.2.9"), 4).unwrap();
    }
}
