//! A map whose entries have deadlines, with room for a stated number of them.
//!
//! Invariant: each entry has exactly one deadline in the ordered index, so the next entry to expire
//! is known at once and one sweeper can sleep until [`ExpiringMap::next_deadline`]. An entry whose
//! deadline has passed is never returned, swept or not. Pure: `now` is an argument.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Instant;

/// A bounded map with ordered deadlines.
#[derive(Debug)]
pub struct ExpiringMap<K, V> {
    entries: HashMap<K, Entry<V>>,
    deadlines: BTreeMap<(Instant, u64), K>,
    capacity: usize,
    next_ticket: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    deadline: Instant,
    /// Tells entries with the same deadline apart.
    ticket: u64,
}

/// The map holds as many living entries as it may; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} entries are taken")]
pub struct Full {
    /// How many entries there may be.
    pub capacity: usize,
}

impl<K: Hash + Eq + Clone, V> ExpiringMap<K, V> {
    /// An empty map for at most `capacity` entries.
    pub fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), deadlines: BTreeMap::new(), capacity, next_ticket: 0 }
    }

    /// Puts an entry in, or replaces it, and returns the living value that was there. When full,
    /// entries that expired make room; replacing never needs any.
    pub fn insert(&mut self, key: K, value: V, deadline: Instant, now: Instant) -> Result<Option<V>, Full> {
        if !self.entries.contains_key(&key) && self.entries.len() >= self.capacity {
            self.pop_expired(now).ok_or(Full { capacity: self.capacity })?;
        }
        let ticket = self.next_ticket;
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.deadlines.insert((deadline, ticket), key.clone());
        let old = self.entries.insert(key, Entry { value, deadline, ticket });
        Ok(old.and_then(|entry| {
            self.deadlines.remove(&(entry.deadline, entry.ticket));
            (entry.deadline > now).then_some(entry.value)
        }))
    }

    /// The living value of `key`.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q, now: Instant) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).filter(|entry| entry.deadline > now).map(|entry| &entry.value)
    }

    /// The living value of `key`, to be changed in place.
    pub fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, now: Instant) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.entries.get_mut(key).filter(|entry| entry.deadline > now).map(|entry| &mut entry.value)
    }

    /// The deadline of `key`, passed or not.
    pub fn deadline<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<Instant>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).map(|entry| entry.deadline)
    }

    /// Moves the deadline of a living entry; `false` if there is none.
    pub fn renew<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, deadline: Instant, now: Instant) -> bool
    where
        K: Borrow<Q>,
    {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.deadline > now) else {
            return false;
        };
        if let Some(key) = self.deadlines.remove(&(entry.deadline, entry.ticket)) {
            self.deadlines.insert((deadline, entry.ticket), key);
        }
        entry.deadline = deadline;
        true
    }

    /// Takes an entry out, and returns its value if it was still living.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, now: Instant) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entry = self.entries.remove(key)?;
        self.deadlines.remove(&(entry.deadline, entry.ticket));
        (entry.deadline > now).then_some(entry.value)
    }

    /// Takes out one entry whose deadline has passed, earliest first. Callers bound their own loop.
    pub fn pop_expired(&mut self, now: Instant) -> Option<(K, V)> {
        let first = self.deadlines.first_entry().filter(|first| first.key().0 <= now)?;
        let key = first.remove();
        self.entries.remove(&key).map(|entry| (key, entry.value))
    }

    /// When the sweeper has work next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Living entries, in no order.
    pub fn iter(&self, now: Instant) -> impl Iterator<Item = (&K, &V)> {
        self.entries
            .iter()
            .filter(move |(_, entry)| entry.deadline > now)
            .map(|(key, entry)| (key, &entry.value))
    }

    /// How many entries are held, expired ones that were not swept yet included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many entries there may be.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_entry_is_gone_at_its_deadline_even_if_nobody_swept() {
        let t = Instant::now();
        let mut map = ExpiringMap::new(4);
        map.insert("a", 1, at(t, 10), t).unwrap();
        assert_eq!(map.get("a", at(t, 9)), Some(&1));
        assert_eq!(map.get("a", at(t, 10)), None);
        assert_eq!(map.remove("a", at(t, 11)), None);
        assert!(map.is_empty() && map.next_deadline().is_none());
    }

    #[test]
    fn entries_expire_in_the_order_of_their_deadlines() {
        let t = Instant::now();
        let mut map = ExpiringMap::new(8);
        for (key, seconds) in [("late", 30), ("soon", 5), ("same", 5), ("middle", 20)] {
            map.insert(key, (), at(t, seconds), t).unwrap();
        }
        assert_eq!(map.next_deadline(), Some(at(t, 5)));
        let gone: Vec<_> = std::iter::from_fn(|| map.pop_expired(at(t, 20))).map(|(key, ())| key).collect();
        assert_eq!(gone, ["soon", "same", "middle"]);
        assert_eq!((map.len(), map.next_deadline()), (1, Some(at(t, 30))));
    }

    #[test]
    fn renewing_moves_a_living_entry_and_does_not_revive_a_dead_one() {
        let t = Instant::now();
        let mut map = ExpiringMap::new(4);
        map.insert(1, "x", at(t, 10), t).unwrap();
        assert!(map.renew(&1, at(t, 100), at(t, 5)));
        assert_eq!(map.pop_expired(at(t, 50)), None);
        assert_eq!(map.deadline(&1), Some(at(t, 100)));
        assert!(!map.renew(&1, at(t, 500), at(t, 100)));
        assert_eq!(map.pop_expired(at(t, 100)), Some((1, "x")));
    }

    #[test]
    fn a_full_map_refuses_newcomers_but_replaces_and_reuses() {
        let t = Instant::now();
        let mut map = ExpiringMap::new(2);
        map.insert(1, "a", at(t, 10), t).unwrap();
        map.insert(2, "b", at(t, 20), t).unwrap();
        assert_eq!(map.insert(3, "c", at(t, 30), t), Err(Full { capacity: 2 }));
        assert_eq!(map.insert(2, "B", at(t, 40), t), Ok(Some("b")));
        assert_eq!(map.insert(3, "c", at(t, 30), at(t, 10)), Ok(None), "the expired entry made room");
        assert_eq!((map.get(&1, t), map.len(), map.deadlines.len()), (None, 2, 2));
    }

    #[test]
    fn index_and_entries_agree_after_any_history() {
        let t = Instant::now();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut map = ExpiringMap::new(50);
        for step in 0..20_000_u64 {
            let now = at(t, step / 10);
            let key = rng.u32(0..80);
            match rng.u8(0..4) {
                0 | 1 => drop(map.insert(key, step, at(now, rng.u64(0..40)), now)),
                2 => drop(map.renew(&key, at(now, rng.u64(0..40)), now)),
                _ => drop(map.remove(&key, now)),
            }
            if step % 7 == 0 {
                while let Some((key, _)) = map.pop_expired(now) {
                    assert!(map.get(&key, t).is_none());
                }
                assert!(map.next_deadline().is_none_or(|next| next > now));
            }
            assert_eq!(map.entries.len(), map.deadlines.len());
            assert!(map.len() <= map.capacity());
        }
    }
}
