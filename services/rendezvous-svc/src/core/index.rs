//! Numbers by the hashes of what they stand for: one look at one place of memory finds one.
//!
//! An entry has a number, 32 bits of its hash, and where more is to be found of it. The upper bits of the hash say where the entry
//! belongs, so that a table grows without asking for any hash again; all of them tell it from others, so that who asks seldom has to
//! look at anything else to know that it is the one. Collisions lie behind one another (linear probing, with deletion by moving
//! back: Knuth, *The Art of Computer Programming* 3, 6.4, algorithm R). Invariant: at most three quarters are in use, so a search
//! is short.

use super::arena::Piece;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    hash: u32,
    /// The number plus one; zero where nothing is.
    number: u32,
    piece: Option<Piece>,
}

impl Entry {
    fn number(&self) -> Option<u32> {
        self.number.checked_sub(1)
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
    pub(super) fn find(&self, hash: u32, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.entries.get(self.place(hash, is_it)?)?.number()
    }

    /// Touches where a hash belongs.
    pub(super) fn touch(&self, hash: u32) -> u32 {
        self.entries.get(self.home(hash)).map(|entry| entry.number).unwrap_or_default()
    }

    /// The first number of this hash, and its piece.
    pub(super) fn first(&self, hash: u32) -> Option<(u32, Option<Piece>)> {
        let entry = self.entries.get(self.place(hash, |_| true)?)?;
        Some((entry.number()?, entry.piece))
    }

    /// Says where more is to be found of a number.
    pub(super) fn set(&mut self, hash: u32, number: u32, piece: Option<Piece>) {
        let place = self.place(hash, |found| found == number);
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            entry.piece = piece;
        }
    }

    fn place(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<usize> {
        let mut at = self.home(hash);
        loop {
            let entry = self.entries.get(at)?;
            let number = entry.number()?;
            if entry.hash == hash && is_it(number) {
                return Some(at);
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
        self.put(Entry { hash, number: number + 1, piece: None });
        self.count += 1;
    }

    /// Takes a number out that was added with this hash.
    pub(super) fn remove(&mut self, hash: u32, number: u32) {
        let Some(mut hole) = self.place(hash, |found| found == number) else { return };
        self.count -= 1;
        let mut at = hole;
        loop {
            at = self.next(at);
            let entry = self.entries.get(at).copied().unwrap_or_default();
            let is_last = entry.number().is_none();
            // Whoever belongs behind the hole stays.
            if !is_last && self.distance(self.home(entry.hash), at) < self.distance(hole, at) {
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
        let mut at = self.home(entry.hash);
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
