//! Which change of each peer is to be told to who watches it, since when, and how long those took that were told.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use p2psb_proto::model::{PeerId, PublicKey};

/// What a peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Signs its record anew.
    Record,
    /// Ends its session.
    Close,
    /// Opens another one.
    Open,
}

impl Kind {
    /// What each peer does, again and again.
    const COURSE: [Self; 4] = [Self::Record, Self::Record, Self::Close, Self::Open];

    /// What a peer does in its turn number `pass`. Peers are at different places of the course, so that every kind of change is
    /// made all the time; none of them begins by opening what is open.
    pub(super) fn of(pass: usize, number: usize) -> Self {
        let place = (pass + number % 3) % Self::COURSE.len();
        Self::COURSE.get(place).copied().unwrap_or(Self::Record)
    }
}

/// What a watcher was told of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Of its record.
    pub(super) seq: u64,
    pub(super) online: bool,
}

struct Entry {
    told: Told,
    expected: Option<(Kind, Instant)>,
}

/// See the module.
pub(super) struct Ledger {
    ids: Vec<PeerId>,
    numbers: HashMap<PeerId, usize>,
    entries: Vec<Entry>,
    waits: Vec<Duration>,
    open: usize,
}

impl Ledger {
    /// Of peers that nobody has been told of.
    pub(super) fn new(keys: impl Iterator<Item = PublicKey>) -> Self {
        let ids: Vec<PeerId> = keys.map(PeerId::new).collect();
        let entry = |_: &PeerId| Entry { told: Told { seq: 0, online: false }, expected: None };
        Self {
            numbers: ids.iter().copied().zip(0..).collect(),
            entries: ids.iter().map(entry).collect(),
            waits: Vec::new(),
            open: 0,
            ids,
        }
    }

    /// All peers, in their order.
    pub(super) fn ids(&self) -> &[PeerId] {
        &self.ids
    }

    /// A peer does something now. What it did before and nobody was told counts with the time it has waited.
    pub(super) fn expect(&mut self, number: usize, kind: Kind, now: Instant) {
        let Some(entry) = self.entries.get_mut(number) else { return };
        match entry.expected.replace((kind, now)) {
            Some((_, since)) => self.waits.push(now - since),
            None => self.open += 1,
        }
    }

    /// A watcher was told something.
    pub(super) fn told(&mut self, peer: &PeerId, told: Told, now: Instant) {
        let number = self.numbers.get(peer).copied();
        let Some(entry) = number.and_then(|number| self.entries.get_mut(number)) else { return };
        let before = std::mem::replace(&mut entry.told, told);
        let Some((kind, since)) = entry.expected else { return };
        let is_it = match kind {
            Kind::Record => told.seq > before.seq,
            Kind::Close => !told.online,
            Kind::Open => told.online,
        };
        if is_it {
            entry.expected = None;
            self.open -= 1;
            self.waits.push(now - since);
        }
    }

    /// Whether all was told.
    pub(super) const fn is_settled(&self) -> bool {
        self.open == 0
    }

    /// How long everything took, sorted; what was not told yet is given up, and counts with the time it has waited.
    pub(super) fn take_waits(&mut self, now: Instant) -> Vec<Duration> {
        let given_up = self.entries.iter_mut().filter_map(|entry| entry.expected.take());
        self.waits.extend(given_up.map(|(_, since)| now - since));
        self.open = 0;
        let mut waits = std::mem::take(&mut self.waits);
        waits.sort_unstable();
        waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(peers: u8) -> Ledger {
        Ledger::new((0..peers).map(|n| PublicKey::from_bytes([n; 32])))
    }

    #[test]
    fn a_peer_closes_what_is_open_and_opens_what_is_closed() {
        for number in 0..9 {
            let mut is_open = true;
            for pass in 0..20 {
                match Kind::of(pass, number) {
                    Kind::Record => assert!(is_open),
                    Kind::Close => assert!(std::mem::replace(&mut is_open, false)),
                    Kind::Open => assert!(!std::mem::replace(&mut is_open, true)),
                }
            }
        }
    }

    #[test]
    fn a_change_counts_when_a_watcher_is_told_of_it_and_not_before() {
        let (mut ledger, now) = (ledger(1), Instant::now());
        let (peer, after) = (ledger.ids()[0], |millis| now + Duration::from_millis(millis));
        ledger.told(&peer, Told { seq: 5, online: true }, now);
        ledger.expect(0, Kind::Record, now);
        ledger.told(&peer, Told { seq: 5, online: true }, after(1));
        assert!(!ledger.is_settled());
        ledger.told(&peer, Told { seq: 6, online: true }, after(3));
        ledger.expect(0, Kind::Close, after(10));
        ledger.told(&peer, Told { seq: 6, online: false }, after(14));
        assert!(ledger.is_settled());
        assert_eq!(ledger.take_waits(after(20)), [3, 4].map(Duration::from_millis));
    }

    #[test]
    fn what_nobody_was_told_counts_with_the_time_it_waited() {
        let (mut ledger, now) = (ledger(2), Instant::now());
        let after = |millis| now + Duration::from_millis(millis);
        ledger.expect(0, Kind::Record, now);
        ledger.expect(0, Kind::Record, after(50));
        ledger.expect(1, Kind::Close, after(60));
        assert_eq!(ledger.take_waits(after(100)), [40, 50, 50].map(Duration::from_millis));
        assert!(ledger.is_settled());
    }
}
