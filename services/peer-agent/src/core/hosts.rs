//! Which host to fetch from next, and which of its addresses to try first.
//!
//! Invariant: a host that lied is banned for the whole download; one that failed is tried again only after a pause that grows; the
//! host in use is left only when it failed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use p2psb_proto::model::{Address, AddressKind, PeerId};

/// Hosts of one download that are remembered.
pub const MAX_HOSTS: usize = 1000;

/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
struct Host {
    failures: u32,
    not_before: Option<Instant>,
    banned: bool,
}

/// The hosts of one download.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    known: BTreeMap<PeerId, Host>,
    /// Best first.
    order: Vec<PeerId>,
}

impl Hosts {
    /// What the indexes say now, best first. What happened with a host before is kept.
    pub fn found(&mut self, hosts: &[PeerId]) {
        self.order = hosts.iter().take(MAX_HOSTS).copied().collect();
        for host in &self.order {
            if self.known.len() < MAX_HOSTS * 4 {
                self.known.entry(*host).or_insert(Host { failures: 0, not_before: None, banned: false });
            }
        }
    }

    /// The best host that may be tried now: those that never failed first.
    #[must_use]
    pub fn next(&self, now: Instant) -> Option<PeerId> {
        let ready = |host: &&PeerId| {
            self.known
                .get(host)
                .is_some_and(|known| !known.banned && known.not_before.is_none_or(|at| at <= now))
        };
        self.order
            .iter()
            .filter(ready)
            .min_by_key(|host| self.known.get(host).map_or(0, |known| known.failures))
            .copied()
    }

    /// The host could not be reached, or stopped; `chance` from 0 to 1 spreads the pause.
    pub fn failed(&mut self, host: PeerId, now: Instant, chance: f64) {
        if let Some(known) = self.known.get_mut(&host) {
            let pause = FIRST_PAUSE.saturating_mul(1 << known.failures.min(16)).min(LONGEST_PAUSE);
            known.failures = known.failures.saturating_add(1);
            known.not_before = Some(now + pause.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0)));
        }
    }

    /// The host gave a chunk that was asked for.
    pub fn delivered(&mut self, host: PeerId) {
        if let Some(known) = self.known.get_mut(&host) {
            known.failures = 0;
            known.not_before = None;
        }
    }

    /// The host sent wrong bytes.
    pub fn ban(&mut self, host: PeerId) {
        let banned = Host { failures: 0, not_before: None, banned: true };
        self.known.insert(host, banned);
    }

    /// How many hosts are known, and how many of those are banned.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let banned = |host: &&PeerId| self.known.get(host).is_some_and(|known| known.banned);
        (self.order.len(), self.order.iter().filter(banned).count())
    }
}

/// Addresses of one peer that are tried although no rendezvous has reached them: it can claim whatever it likes.
pub const MAX_UNCONFIRMED: usize = 4;

/// A peer's addresses that are tried, in this order: confirmed ones, and the first few others.
#[must_use]
pub fn to_dial(addresses: &[Address]) -> Vec<&Address> {
    let (mut ordered, mut unconfirmed) = (dial_order(addresses), 0);
    ordered.retain(|address| {
        unconfirmed += usize::from(address.kind != AddressKind::Confirmed);
        address.kind == AddressKind::Confirmed || unconfirmed <= MAX_UNCONFIRMED
    });
    ordered
}

/// A peer's addresses, the best first: those that a rendezvous reached, that others saw, mapped ones, claimed ones.
#[must_use]
pub fn dial_order(addresses: &[Address]) -> Vec<&Address> {
    let rank = |address: &Address| match address.kind {
        AddressKind::Confirmed => 0,
        AddressKind::Observed => 1,
        AddressKind::Mapped => 2,
        AddressKind::Listen => 3,
        AddressKind::Unspecified => 4,
    };
    let mut ordered: Vec<&Address> = addresses.iter().collect();
    ordered.sort_by_key(|address| (rank(address), address.priority));
    ordered
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::{SecretKey, Transport};

    use super::*;

    fn peer(seed: u8) -> PeerId {
        PeerId::new(SecretKey::from_seed(&[seed; 32]).public())
    }

    #[test]
    fn a_host_that_failed_rests_and_one_that_lied_never_comes_back() {
        let now = Instant::now();
        let mut hosts = Hosts::default();
        assert_eq!(hosts.next(now), None);
        hosts.found(&[peer(1), peer(2)]);
        assert_eq!(hosts.next(now), Some(peer(1)));
        hosts.failed(peer(1), now, 1.0);
        assert_eq!(hosts.next(now), Some(peer(2)));
        hosts.ban(peer(2));
        assert_eq!((hosts.next(now), hosts.count()), (None, (2, 1)));
        hosts.found(&[peer(2), peer(1)]);
        assert_eq!(hosts.next(now), None);
        assert_eq!(hosts.next(now + FIRST_PAUSE), Some(peer(1)));
    }

    #[test]
    fn pauses_grow_to_a_bound_and_a_delivery_ends_them() {
        let now = Instant::now();
        let mut hosts = Hosts::default();
        hosts.found(&[peer(1)]);
        for _ in 0..40 {
            hosts.failed(peer(1), now, 1.0);
        }
        assert_eq!(hosts.next(now + LONGEST_PAUSE - Duration::from_secs(1)), None);
        assert_eq!(hosts.next(now + LONGEST_PAUSE), Some(peer(1)));
        hosts.delivered(peer(1));
        assert_eq!(hosts.next(now), Some(peer(1)));
    }

    #[test]
    fn a_fresh_host_goes_before_one_that_failed_before() {
        let now = Instant::now();
        let mut hosts = Hosts::default();
        hosts.found(&[peer(1), peer(2)]);
        hosts.failed(peer(1), now, 0.0);
        assert_eq!(hosts.next(now + LONGEST_PAUSE), Some(peer(2)));
    }

    #[test]
    fn confirmed_addresses_are_tried_first_and_of_the_others_a_few() {
        let address = |port: u16, kind, priority| Address {
            priority,
            ..Address::ip(([127, 0, 0, 1], port).into(), Transport::Tls, kind)
        };
        let addresses = [
            address(1, AddressKind::Listen, 0),
            address(2, AddressKind::Mapped, 0),
            address(3, AddressKind::Observed, 5),
            address(4, AddressKind::Observed, 1),
            address(5, AddressKind::Listen, 7),
            address(6, AddressKind::Confirmed, 9),
        ];
        let ports = |ordered: Vec<&Address>| ordered.iter().map(|address| address.port).collect::<Vec<_>>();
        assert_eq!(ports(dial_order(&addresses)), [6, 4, 3, 2, 1, 5]);
        assert_eq!(ports(to_dial(&addresses)), [6, 4, 3, 2, 1]);
    }
}
