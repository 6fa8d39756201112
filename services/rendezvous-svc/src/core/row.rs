//! Deadlines of many, earliest first, in 8 bytes for each.
//!
//! Invariant: whoever stands in the row stands there once, under the tick that was given; whoever takes something out says
//! the same tick again.

use std::collections::BTreeMap;

use super::places::Slot;

/// Nobody.
const END: u32 = u32::MAX;

/// Neighbours among those with one tick.
#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    behind: u32,
}

/// See the module. Who stands under one tick stands in no order.
#[derive(Debug, Default)]
pub struct Row {
    firsts: BTreeMap<u64, u32>,
    links: Vec<Link>,
}

impl Row {
    /// Puts one in who is not in the row.
    pub fn insert(&mut self, tick: u64, slot: Slot) {
        let (at, own) = (slot.index(), slot.number());
        let behind = self.firsts.insert(tick, own).unwrap_or(END);
        if self.links.len() <= at {
            self.links.resize(at + 1, Link { before: END, behind: END });
        }
        if let Some(link) = self.link(own) {
            *link = Link { before: END, behind };
        }
        if let Some(link) = self.link(behind) {
            link.before = own;
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, tick: u64, slot: Slot) {
        let Some(Link { before, behind }) = self.links.get(slot.index()).copied() else { return };
        match (before, behind) {
            (END, END) => drop(self.firsts.remove(&tick)),
            (END, _) => drop(self.firsts.insert(tick, behind)),
            _ => {}
        }
        if let Some(link) = self.link(before) {
            link.behind = behind;
        }
        if let Some(link) = self.link(behind) {
            link.before = before;
        }
    }

    /// One with the lowest tick.
    #[must_use]
    pub fn first(&self) -> Option<(u64, Slot)> {
        self.firsts.first_key_value().map(|(tick, first)| (*tick, Slot::of(*first)))
    }

    /// Who stands under a tick.
    pub fn under(&self, tick: u64) -> impl Iterator<Item = Slot> {
        let first = self.firsts.get(&tick).copied().map(Slot::of);
        std::iter::successors(first, |slot| self.next(*slot))
    }

    /// Who stands behind somebody under the same tick.
    pub fn behind(&self, slot: Slot) -> impl Iterator<Item = Slot> {
        std::iter::successors(self.next(slot), |slot| self.next(*slot))
    }

    fn next(&self, slot: Slot) -> Option<Slot> {
        let behind = self.links.get(slot.index()).map(|link| link.behind);
        behind.filter(|number| *number != END).map(Slot::of)
    }

    fn link(&mut self, number: u32) -> Option<&mut Link> {
        self.links.get_mut(Slot::of(number).index())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn a_row_holds_what_was_put_in_and_not_taken_out() {
        let (mut row, mut rng) = (Row::default(), fastrand::Rng::with_seed(11));
        let (mut ticks, mut expected) = (BTreeMap::new(), BTreeSet::new());
        for _ in 0..20_000 {
            let (slot, tick) = (rng.u32(0..40), rng.u64(0..10));
            match ticks.remove(&slot) {
                Some(tick) => {
                    row.remove(tick, Slot::of(slot));
                    expected.remove(&(tick, slot));
                }
                None => {
                    row.insert(tick, Slot::of(slot));
                    ticks.insert(slot, tick);
                    expected.insert((tick, slot));
                }
            }
            let first = row.first();
            assert_eq!(first.map(|(tick, _)| tick), expected.first().map(|(tick, _)| *tick));
            assert!(first.is_none_or(|(tick, slot)| expected.contains(&(tick, slot.number()))));
            let under: BTreeSet<_> = row.under(tick).map(|slot| (tick, slot.number())).collect();
            assert!(under.iter().eq(expected.range((tick, 0)..=(tick, u32::MAX))));
        }
        for left in (0..expected.len()).rev() {
            let (tick, slot) = row.first().unwrap();
            assert!(expected.remove(&(tick, slot.number())));
            row.remove(tick, slot);
            assert_eq!(expected.len(), left);
        }
        assert!(row.first().is_none() && row.firsts.is_empty());
    }
}
