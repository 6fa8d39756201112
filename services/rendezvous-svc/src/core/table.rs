//! The newest statement of each peer: its record, or its withdrawal.
//!
//! Invariants:
//! - A statement is only ever replaced by one of a higher `(seq, digest)`, so merging is a maximum: in any order, any number
//!   of times, the same statements lead to the same table. Only [`Table::put_own`] may go back.
//! - An entry is remembered until every statement of its peer that was seen has expired, so that no older one can come back;
//!   it is *valid* only until its own expiry, and a withdrawal never is.
//! - The index of services holds exactly the offers of the entries.
//! - Replacing a statement never needs room, and neither do this server's own and those of members.
//!
//! A statement is kept as the bytes it came in, ready to be sent: 300 bytes for an ordinary peer, and as little as possible
//! beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use p2psb_proto::model::limits::{CLOCK_SKEW, RECORD_LIFETIME, WITHDRAWAL_GRACE};
use p2psb_proto::model::{Digest, PeerId, PeerStatement, UnixMillis};

/// A peer changes what it says at most this often.
pub const CHANGE_INTERVAL: Duration = Duration::from_secs(1);

/// A verified statement on its way into the table. That it belongs to this network and its clocks are sane was checked before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    peer: PeerId,
    seq: u64,
    digest: Digest,
    issued: UnixMillis,
    /// When it stops counting; zero for a withdrawal.
    expires: UnixMillis,
    /// Until when older statements of the peer might count.
    keep: UnixMillis,
    services: Box<[Box<str>]>,
    bytes: Bytes,
}

impl Item {
    /// A statement and its wire form.
    #[must_use]
    pub fn new(statement: &PeerStatement, bytes: Bytes) -> Self {
        let (seq, digest) = statement.rank();
        let (issued, expires, keep, services) = match statement {
            PeerStatement::Record(record) => {
                let r = record.value();
                let mut services: Vec<Box<str>> = r.services.iter().map(|s| s.name.as_str().into()).collect();
                services.sort_unstable();
                services.dedup();
                (r.issued, r.expires, r.expires, services.into())
            }
            PeerStatement::Withdrawal(withdrawal) => {
                let issued = withdrawal.value().issued;
                let keep = issued.plus(RECORD_LIFETIME + WITHDRAWAL_GRACE);
                (issued, UnixMillis::default(), keep, Box::default())
            }
        };
        Self { peer: statement.peer_id(), seq, digest, issued, expires, keep, services, bytes }
    }

    /// Whose it is.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Its place in the peer's sequence.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// When it stops counting.
    #[must_use]
    pub const fn expires(&self) -> UnixMillis {
        self.expires
    }

    fn is_withdrawal(&self) -> bool {
        self.expires == UnixMillis::default()
    }
}

/// What became of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It is the newest now.
    Changed,
    /// It, or one that wins over it, was there.
    Known,
}

/// Why a statement is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Older than what is known.
    #[error("seq {seq} is older than {stored_seq}, which is known; sign the next one with a higher seq")]
    Stale {
        /// Offered.
        seq: u64,
        /// Known.
        stored_seq: u64,
        /// The wire form of what is known.
        stored: Bytes,
    },
    /// The key signed two statements with one `seq`.
    #[error("another record with seq {seq} is known: is the key used on two machines?")]
    Equivocation {
        /// Of both.
        seq: u64,
        /// The wire form of what is known.
        stored: Bytes,
    },
    /// Its time is over.
    #[error("the statement expired at {expired}")]
    Expired {
        /// When.
        expired: UnixMillis,
    },
    /// The peer changed what it says less than a second ago.
    #[error("a peer may change its record once a second; try again in {wait:?}")]
    TooOften {
        /// How long it has to wait.
        wait: Duration,
    },
    /// No room for one more peer.
    #[error("this rendezvous knows {limit} peers, as many as it may; try another one")]
    Full {
        /// How many there may be.
        limit: usize,
    },
}

/// What is known of one peer.
#[derive(Clone, Debug)]
pub struct Entry {
    seq: u64,
    digest: Digest,
    issued: UnixMillis,
    expires: UnixMillis,
    keep: UnixMillis,
    changed: UnixMillis,
    services: Box<[Box<str>]>,
    bytes: Bytes,
}

impl Entry {
    /// The statement's wire form.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// When it was signed.
    #[must_use]
    pub const fn issued(&self) -> UnixMillis {
        self.issued
    }

    /// Whether it is a record that counts at `now`.
    #[must_use]
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        self.expires > now
    }

    /// A statement that is newest but neither counts nor voids another one is of no use to anybody.
    fn is_worth_telling(&self, now: UnixMillis) -> bool {
        self.is_valid(now) || (self.expires == UnixMillis::default() && self.keep > now)
    }
}

/// Peers that signed two statements with one `seq`, as far as it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Equivocations {
    /// How often.
    pub count: u64,
    /// The last of them.
    pub last: Option<PeerId>,
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    entries: HashMap<PeerId, Entry>,
    providers: BTreeMap<Box<str>, BTreeSet<PeerId>>,
    /// When entries are forgotten, earliest first.
    forgotten: BTreeSet<(UnixMillis, PeerId)>,
    limit: usize,
    equivocations: Equivocations,
}

impl Table {
    /// An empty table for `limit` peers.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            providers: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            limit,
            equivocations: Equivocations::default(),
        }
    }

    /// Takes a statement from its peer. The same one again changes nothing, and neither does a withdrawal of what is not here;
    /// an older or contradicting one is refused, and one that comes too soon after the last.
    pub fn offer(&mut self, item: Item, now: UnixMillis) -> Result<Merged, TableError> {
        let stored = self.entries.get(&item.peer);
        if item.is_withdrawal() && stored.is_none_or(|stored| stored.keep <= now) {
            return Ok(Merged::Known);
        }
        let Some(stored) = stored else { return self.merge(item, now) };
        let (seq, stored_seq, stored_bytes) = (item.seq, stored.seq, stored.bytes.clone());
        if seq < stored_seq {
            self.remember_longer(&item.peer, item.keep);
            return Err(TableError::Stale { seq, stored_seq, stored: stored_bytes });
        }
        if seq == stored_seq && item.digest != stored.digest {
            self.remember_longer(&item.peer, item.keep);
            self.equivocated(item.peer);
            return Err(TableError::Equivocation { seq, stored: stored_bytes });
        }
        if let Some(wait) = wait(stored, &item, now) {
            return Err(TableError::TooOften { wait });
        }
        self.merge(item, now)
    }

    /// Takes a statement from another rendezvous: the higher `(seq, digest)` wins.
    pub fn merge(&mut self, item: Item, now: UnixMillis) -> Result<Merged, TableError> {
        self.merge_within(item, self.limit, now)
    }

    /// The same for the statement of a member, of whom there are few: it needs no room.
    pub fn merge_member(&mut self, item: Item, now: UnixMillis) -> Result<Merged, TableError> {
        self.merge_within(item, usize::MAX, now)
    }

    /// Takes this server's own record. It needs no room, and takes the place of one with a `seq` out of the future, which
    /// was signed while the clock was wrong.
    pub fn put_own(&mut self, item: Item, now: UnixMillis) -> Result<Merged, TableError> {
        let latest = now.plus(CLOCK_SKEW).0;
        if self.entries.get(&item.peer).is_some_and(|stored| stored.seq > latest && item.seq < stored.seq) {
            self.take_out(&item.peer);
        }
        self.merge_within(item, usize::MAX, now)
    }

    fn merge_within(&mut self, item: Item, limit: usize, now: UnixMillis) -> Result<Merged, TableError> {
        let mut keep = item.keep;
        match self.entries.get(&item.peer) {
            Some(stored) => {
                let (stored_rank, stored_keep) = ((stored.seq, stored.digest), stored.keep);
                if item.seq == stored_rank.0 && item.digest != stored_rank.1 {
                    self.equivocated(item.peer);
                }
                if (item.seq, item.digest) <= stored_rank {
                    self.remember_longer(&item.peer, item.keep);
                    return Ok(Merged::Known);
                }
                keep = keep.max(stored_keep);
            }
            None if item.keep <= now => return Err(TableError::Expired { expired: item.keep }),
            None if self.entries.len() >= limit => return Err(TableError::Full { limit }),
            None => {}
        }
        self.take_out(&item.peer);
        self.put_in(item, keep, now);
        Ok(Merged::Changed)
    }

    fn equivocated(&mut self, peer: PeerId) {
        self.equivocations.count += 1;
        self.equivocations.last = Some(peer);
    }

    /// An older statement that expires later: what is known must outlive it.
    fn remember_longer(&mut self, peer: &PeerId, keep: UnixMillis) {
        if let Some(entry) = self.entries.get_mut(peer).filter(|entry| entry.keep < keep) {
            self.forgotten.remove(&(entry.keep, *peer));
            self.forgotten.insert((keep, *peer));
            entry.keep = keep;
        }
    }

    fn put_in(&mut self, item: Item, keep: UnixMillis, changed: UnixMillis) {
        for service in &item.services {
            match self.providers.get_mut(service) {
                Some(peers) => peers.insert(item.peer),
                None => self.providers.entry(service.clone()).or_default().insert(item.peer),
            };
        }
        self.forgotten.insert((keep, item.peer));
        let Item { peer, seq, digest, issued, expires, services, bytes, .. } = item;
        self.entries.insert(peer, Entry { seq, digest, issued, expires, keep, changed, services, bytes });
    }

    fn take_out(&mut self, peer: &PeerId) {
        let Some(entry) = self.entries.remove(peer) else { return };
        self.forgotten.remove(&(entry.keep, *peer));
        for service in &entry.services {
            if let Some(peers) = self.providers.get_mut(service) {
                peers.remove(peer);
                if peers.is_empty() {
                    self.providers.remove(service);
                }
            }
        }
    }

    /// The valid record of a peer.
    #[must_use]
    pub fn valid(&self, peer: &PeerId, now: UnixMillis) -> Option<&Entry> {
        self.entries.get(peer).filter(|entry| entry.is_valid(now))
    }

    /// What other rendezvous should know of a peer: its record or its withdrawal.
    #[must_use]
    pub fn telling(&self, peer: &PeerId, now: UnixMillis) -> Option<&Bytes> {
        self.entries.get(peer).filter(|entry| entry.is_worth_telling(now)).map(Entry::bytes)
    }

    /// Whether exactly this statement of the peer is the newest known: then there is nothing to verify.
    #[must_use]
    pub fn holds(&self, peer: &PeerId, bytes: &[u8]) -> bool {
        self.entries.get(peer).is_some_and(|entry| entry.bytes == bytes)
    }

    /// The highest `seq` known of a peer.
    #[must_use]
    pub fn seq(&self, peer: &PeerId) -> Option<u64> {
        self.entries.get(peer).map(|entry| entry.seq)
    }

    /// Whether the newest statement of a peer is a valid record that offers a service.
    #[must_use]
    pub fn provides(&self, peer: &PeerId, service: &str, now: UnixMillis) -> bool {
        self.valid(peer, now).is_some_and(|entry| entry.services.iter().any(|one| **one == *service))
    }

    /// Valid providers of a service behind `after`, in the order of their ids.
    pub fn providers(
        &self,
        service: &str,
        after: Option<PeerId>,
        now: UnixMillis,
    ) -> impl Iterator<Item = (PeerId, &Entry)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let peers = self.providers.get(service).into_iter();
        peers
            .flat_map(move |peers| peers.range((from, Bound::Unbounded)))
            .filter_map(move |peer| Some((*peer, self.valid(peer, now)?)))
    }

    /// Everybody of whom something is known.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.entries.keys().copied()
    }

    /// Forgets at most `most` peers whose time is over; returns how many.
    pub fn sweep(&mut self, now: UnixMillis, most: usize) -> usize {
        let due: Vec<PeerId> = self
            .forgotten
            .iter()
            .take_while(|(keep, _)| *keep <= now)
            .take(most)
            .map(|(_, peer)| *peer)
            .collect();
        for peer in &due {
            self.take_out(peer);
        }
        due.len()
    }

    /// How many peers are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Peers that signed two truths.
    #[must_use]
    pub const fn equivocations(&self) -> Equivocations {
        self.equivocations
    }
}

/// How long a peer must wait before `item` may take the place of what it said last. A record may be withdrawn at once.
fn wait(stored: &Entry, item: &Item, now: UnixMillis) -> Option<Duration> {
    let is_newer = stored.seq < item.seq;
    let withdraws = item.is_withdrawal() && stored.is_valid(now);
    // After the clock was set back nobody waits for it.
    let since = (stored.changed <= now).then(|| now.since(stored.changed))?;
    CHANGE_INTERVAL.checked_sub(since).filter(|wait| is_newer && !withdraws && !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::testing::{T0, item, peer, record, withdrawal};

    const HOUR: Duration = Duration::from_secs(3600);

    fn table() -> Table {
        Table::new(100)
    }

    /// So much later that the peer may say something else.
    fn later() -> UnixMillis {
        T0.plus(CHANGE_INTERVAL)
    }

    #[test]
    fn a_newer_record_replaces_an_older_one() {
        let mut table = table();
        assert_eq!(table.offer(item(&record(1, 10, &[])), T0), Ok(Merged::Changed));
        assert_eq!(table.offer(item(&record(1, 11, &[])), later()), Ok(Merged::Changed));
        assert_eq!(table.seq(&peer(1)), Some(11));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_stale_record_is_refused_with_the_stored_one() {
        let mut table = table();
        let newest = item(&record(1, 11, &[]));
        let stored = newest.bytes.clone();
        table.offer(newest, T0).unwrap();
        let error = table.offer(item(&record(1, 10, &[])), T0).unwrap_err();
        assert_eq!(error, TableError::Stale { seq: 10, stored_seq: 11, stored });
    }

    #[test]
    fn two_truths_with_one_seq_are_refused_and_counted() {
        let mut table = table();
        table.offer(item(&record(1, 10, &[])), T0).unwrap();
        assert_eq!(table.offer(item(&record(1, 10, &[])), T0), Ok(Merged::Known));
        let error = table.offer(item(&record(1, 10, &["chat"])), T0).unwrap_err();
        assert!(matches!(error, TableError::Equivocation { seq: 10, .. }));
        assert_eq!(table.equivocations(), Equivocations { count: 1, last: Some(peer(1)) });
    }

    #[test]
    fn a_record_counts_until_it_expires() {
        let mut table = table();
        table.offer(item(&record(1, 10, &["chat"])), T0).unwrap();
        let before = T0.plus(HOUR).minus(Duration::from_millis(1));
        assert!(table.valid(&peer(1), before).is_some());
        assert_eq!(table.providers("chat", None, before).count(), 1);
        assert!(table.valid(&peer(1), T0.plus(HOUR)).is_none());
        assert_eq!(table.providers("chat", None, T0.plus(HOUR)).count(), 0);
        assert_eq!(table.sweep(T0.plus(HOUR), 10), 1);
        assert!(table.is_empty() && table.providers.is_empty() && table.forgotten.is_empty());
    }

    #[test]
    fn a_withdrawn_record_cannot_come_back() {
        let mut table = table();
        let old = item(&record(1, 10, &["chat"]));
        table.offer(old.clone(), T0).unwrap();
        table.offer(item(&withdrawal(1, 11)), T0).unwrap();
        assert!(table.valid(&peer(1), T0).is_none());
        assert!(table.telling(&peer(1), T0).is_some(), "others are to hear of it");
        assert_eq!(table.providers("chat", None, T0).count(), 0);
        assert_eq!(table.merge(old.clone(), T0), Ok(Merged::Known));
        // Still so when the record would have expired, with the grace.
        let expired = T0.plus(HOUR);
        assert_eq!(table.sweep(expired, 10), 0);
        assert!(matches!(table.offer(old, expired), Err(TableError::Stale { .. })));
        assert_eq!(table.sweep(T0.plus(RECORD_LIFETIME + WITHDRAWAL_GRACE), 10), 1);
    }

    #[test]
    fn an_older_record_with_a_longer_life_cannot_come_back() {
        let mut table = table();
        let mut short = item(&record(1, 11, &[]));
        short.expires = T0.plus(Duration::from_secs(60));
        short.keep = short.expires;
        let long = item(&record(1, 10, &[]));
        table.merge(long.clone(), T0).unwrap();
        table.merge(short, T0).unwrap();
        let later = T0.plus(Duration::from_secs(120));
        table.sweep(later, 10);
        assert!(matches!(table.offer(long, later), Err(TableError::Stale { .. })));
        assert!(table.valid(&peer(1), later).is_none());
    }

    #[test]
    fn a_full_table_refuses_newcomers_but_replaces() {
        let mut table = Table::new(2);
        table.offer(item(&record(1, 1, &[])), T0).unwrap();
        table.offer(item(&record(2, 1, &[])), T0).unwrap();
        assert_eq!(table.offer(item(&record(3, 1, &[])), T0), Err(TableError::Full { limit: 2 }));
        assert_eq!(table.offer(item(&record(2, 2, &[])), later()), Ok(Merged::Changed));
    }

    #[test]
    fn a_peers_own_withdrawal_of_what_is_not_here_takes_no_room() {
        let mut table = table();
        assert_eq!(table.offer(item(&withdrawal(1, 2)), T0), Ok(Merged::Known));
        assert!(table.is_empty());
        table.offer(item(&record(1, 1, &[])), T0).unwrap();
        let expired = T0.plus(HOUR);
        assert_eq!(table.offer(item(&withdrawal(1, 2)), expired), Ok(Merged::Known));
        assert_eq!(table.sweep(expired, 10), 1);
    }

    #[test]
    fn the_own_record_and_those_of_members_need_no_room() {
        let mut table = Table::new(1);
        table.offer(item(&record(1, 1, &[])), T0).unwrap();
        assert_eq!(table.merge_member(item(&record(2, 1, &["chat"])), T0), Ok(Merged::Changed));
        assert_eq!(table.put_own(item(&record(3, 1, &[])), T0), Ok(Merged::Changed));
        assert!(table.provides(&peer(2), "chat", T0) && !table.provides(&peer(3), "chat", T0));
        table.merge(item(&withdrawal(2, 2)), T0).unwrap();
        assert!(!table.provides(&peer(2), "chat", T0));
    }

    #[test]
    fn an_own_record_out_of_the_future_is_replaced_when_the_clock_is_right_again() {
        let mut table = table();
        let ahead = T0.plus(CLOCK_SKEW + Duration::from_millis(1)).0;
        table.put_own(item(&record(1, ahead, &[])), T0).unwrap();
        assert_eq!(table.put_own(item(&record(1, T0.0, &[])), T0), Ok(Merged::Changed));
        assert_eq!(table.seq(&peer(1)), Some(T0.0));
        assert_eq!(table.put_own(item(&record(1, T0.0 - 1, &[])), T0), Ok(Merged::Known));
    }

    #[test]
    fn what_is_known_outlives_a_stale_statement_that_was_refused() {
        let mut table = table();
        let mut short = item(&record(1, 11, &[]));
        short.expires = T0.plus(Duration::from_secs(60));
        short.keep = short.expires;
        let long = item(&record(1, 10, &[]));
        table.offer(short, T0).unwrap();
        assert!(matches!(table.offer(long.clone(), T0), Err(TableError::Stale { .. })));
        let later = T0.plus(Duration::from_secs(120));
        assert_eq!(table.sweep(later, 10), 0);
        assert!(matches!(table.offer(long, later), Err(TableError::Stale { .. })));
    }

    #[test]
    fn a_peer_changes_what_it_says_once_a_second_but_may_withdraw_at_once() {
        let mut table = table();
        let at = |millis| T0.plus(Duration::from_millis(millis));
        let wait = |table: &Table, statement: &PeerStatement, millis| {
            let item = item(statement);
            table.entries.get(&item.peer).and_then(|stored| super::wait(stored, &item, at(millis)))
        };
        assert_eq!(wait(&table, &record(1, 1, &[]), 0), None, "the first one");
        table.offer(item(&record(1, 1, &[])), T0).unwrap();
        assert_eq!(wait(&table, &record(1, 1, &[]), 0), None, "nothing would change");
        assert_eq!(wait(&table, &record(1, 2, &[]), 300), Some(Duration::from_millis(700)));
        let too_often = Err(TableError::TooOften { wait: Duration::from_millis(700) });
        assert_eq!(table.offer(item(&record(1, 2, &[])), at(300)), too_often);
        assert_eq!(wait(&table, &record(1, 2, &[]), 1000), None);
        assert_eq!(wait(&table, &withdrawal(1, 2), 300), None);
        table.offer(item(&withdrawal(1, 2)), at(300)).unwrap();
        for next in [&withdrawal(1, 3), &record(1, 3, &[])] {
            assert_eq!(wait(&table, next, 301), Some(Duration::from_millis(999)));
            assert_eq!(wait(&table, next, 0), None, "the clock was set back");
        }
    }

    #[test]
    fn an_expired_statement_does_not_enter() {
        let mut table = table();
        let late = T0.plus(HOUR);
        assert!(matches!(table.merge(item(&record(1, 1, &[])), late), Err(TableError::Expired { .. })));
        let late = T0.plus(RECORD_LIFETIME + WITHDRAWAL_GRACE);
        assert!(matches!(table.merge(item(&withdrawal(1, 1)), late), Err(TableError::Expired { .. })));
        assert!(table.is_empty());
    }

    #[test]
    fn providers_come_in_the_order_of_their_ids_and_continue_behind_one() {
        let mut table = table();
        for n in 1..=5 {
            table.offer(item(&record(n, 1, &["chat", "chat"])), T0).unwrap();
        }
        table.offer(item(&record(6, 1, &["other"])), T0).unwrap();
        let all: Vec<_> = table.providers("chat", None, T0).map(|(peer, _)| peer).collect();
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert_eq!((all.len(), &all), (5, &sorted));
        let rest: Vec<_> = table.providers("chat", Some(all[2]), T0).map(|(peer, _)| peer).collect();
        assert_eq!(rest, all[3..]);
        // A record without the service takes the peer out of the index.
        table.offer(item(&record(1, 2, &[])), later()).unwrap();
        assert_eq!(table.providers("chat", None, T0).count(), 4);
    }

    fn statements() -> Vec<Item> {
        let mut items = Vec::new();
        for n in 1..=3 {
            for seq in 1..=3 {
                items.push(item(&record(n, seq, &[])));
                items.push(item(&record(n, seq, &["chat"])));
                items.push(item(&withdrawal(n, seq)));
            }
        }
        items
    }

    fn shown(table: &Table) -> Vec<(PeerId, u64, Digest, UnixMillis)> {
        let mut all: Vec<_> = table.entries.iter().map(|(p, e)| (*p, e.seq, e.digest, e.keep)).collect();
        all.sort_unstable();
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn merging_is_a_maximum_in_any_order_any_number_of_times(
            picks in proptest::collection::vec(0usize..27, 0..40),
            seed: u64,
        ) {
            let items = statements();
            let mut other = picks.clone();
            let mut rng = fastrand::Rng::with_seed(seed);
            rng.shuffle(&mut other);
            other.extend(picks.iter().take(5));
            let merge_all = |picks: &[usize]| {
                let mut table = table();
                for pick in picks {
                    table.merge(items[*pick].clone(), T0).unwrap();
                }
                table
            };
            let (one, two) = (merge_all(&picks), merge_all(&other));
            prop_assert_eq!(shown(&one), shown(&two));
            prop_assert_eq!(&one.providers, &two.providers);
            prop_assert_eq!(&one.forgotten, &two.forgotten);
        }
    }
}
