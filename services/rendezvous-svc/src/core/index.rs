//! Numbers by the hashes of what they stand for: one look at one place of memory finds one.
//!
//! An entry has a number and 32 bits of its hash. The upper ones say where it belongs, so that a table grows without asking for any
//! hash again; all of them tell it from others, so that who asks seldom has to look at anything else to know that it is the one.
//! Collisions lie behind one another (linear probing, with deletion by moving back: Knuth, *The Art of Computer Programming* 3, 6.4,
//! algorithm R). Invariant: at most three quarters are in use, so a search is short.

/// In the upper half the hash, in the lower the number plus one; zero where nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    fn new(hash: u32, number: u32) -> Self {
        Self(u64::from(hash) << 32 | (u64::from(number) + 1))
    }

    const fn hash(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn number(self) -> Option<u32> {
        (self.0 as u32).checked_sub(1)
    }
}

/// See the module. `u32::MAX` is not a number.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// A power of two of them, or none.
    entries: Vec<Entry>,
    count: usize,
}

impl Index {
    const LEAST: usize = 16;

    /// The first number of this hash of which `is_it` is true.
    pub(super) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = self.home(hash);
        loop {
            let entry = self.entries.get(at)?;
            let number = entry.number()?;
            if entry.hash() == hash && is_it(number) {
                return Some(number);
            }
            at = self.next(at);
        }
    }

    /// Adds a number.
    pub(super) fn insert(&mut self, hash: u32, number: u32) {
        if (self.count + 1) * 4 > self.entries.len() * 3 {
            let entries = vec![Entry::default(); (self.entries.len() * 2).max(Self::LEAST)];
            for entry in std::mem::replace(&mut self.entries, entries) {
                self.put(entry);
            }
        }
        self.put(Entry::new(hash, number));
        self.count += 1;
    }

    /// Takes a number out that was added with this hash.
    pub(super) fn remove(&mut self, hash: u32, number: u32) {
        let gone = Entry::new(hash, number);
        let mut hole = self.home(hash);
        loop {
            match self.entries.get(hole) {
                Some(entry) if *entry == gone => break,
                Some(entry) if entry.number().is_some() => hole = self.next(hole),
                _ => return,
            }
        }
        self.count -= 1;
        let mut at = hole;
        loop {
            at = self.next(at);
            let entry = self.entries.get(at).copied().unwrap_or_default();
            let is_last = entry.number().is_none();
            // Whoever belongs behind the hole stays.
            if !is_last && self.distance(self.home(entry.hash()), at) < self.distance(hole, at) {
                continue;
            }
            if let Some(place) = self.entries.get_mut(hole) {
                *place = if is_last { Entry::default() } else { entry };
            }
            if is_last {
                return;
            }
            hole = at;
        }
    }

    fn put(&mut self, entry: Entry) {
        if entry.number().is_none() {
            return;
        }
        let mut at = self.home(entry.hash());
        while self.entries.get(at).is_some_and(|entry| entry.number().is_some()) {
            at = self.next(at);
        }
        if let Some(place) = self.entries.get_mut(at) {
            *place = entry;
        }
    }

    /// Where a hash belongs.
    fn home(&self, hash: u32) -> usize {
        // The share of the hash in all hashes, of the table.
        ((u64::from(hash) * self.entries.len() as u64) >> 32) as usize
    }

    const fn next(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len().wrapping_sub(1))
    }

    const fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.entries.len().wrapping_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_one_finds_nothing_and_loses_nothing() {
        let mut index = Index::default();
        assert_eq!(index.find(7, |_| true), None);
        index.remove(7, 7);
        index.insert(u32::MAX, 0);
        assert_eq!((index.find(u32::MAX, |_| true), index.find(u32::MAX, |_| false)), (Some(0), None));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        /// Few hashes, close to each other and at both ends: many collide.
        #[test]
        fn it_knows_what_a_map_knows(steps in proptest::collection::vec((any::<bool>(), 0..12_u32, 0..40_u32), 1..300)) {
            let (mut index, mut map) = (Index::default(), HashMap::new());
            for (adds, hash, number) in steps {
                let hash = hash.wrapping_sub(6).wrapping_mul(1 << 26);
                match map.get(&number).copied() {
                    None if adds => {
                        map.insert(number, hash);
                        index.insert(hash, number);
                    }
                    Some(hash) if !adds => {
                        map.remove(&number);
                        index.remove(hash, number);
                    }
                    _ => {}
                }
                prop_assert_eq!(index.count, map.len());
                for n in 0..40 {
                    let found = map.get(&n).and_then(|hash| index.find(*hash, |number| number == n));
                    prop_assert_eq!(found, map.contains_key(&n).then_some(n));
                }
            }
        }
    }
}
