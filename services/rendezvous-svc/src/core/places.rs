//! Places with numbers: what is at one is named by four bytes. Those of peers are found by their ids, of which each has 32.
//!
//! Invariant: whatever has a place keeps its number while it has it. A place that was given back is given to somebody else. A peer
//! has one place at most.

use std::hash::{BuildHasher as _, RandomState};

use p2psb_proto::model::PeerId;

use super::arena::Piece;
use super::index::Index;

/// The number of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Slot {
    pub(super) const fn of(number: u32) -> Self {
        Self(number)
    }

    pub(super) const fn number(self) -> u32 {
        self.0
    }

    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Places alone.
#[derive(Debug)]
pub(super) struct Numbered<V> {
    places: Vec<Option<V>>,
    free: Vec<Slot>,
}

impl<V> Default for Numbered<V> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<V> Numbered<V> {
    /// What is there.
    pub(super) fn get(&self, slot: Slot) -> Option<&V> {
        self.places.get(slot.index())?.as_ref()
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut V> {
        self.places.get_mut(slot.index())?.as_mut()
    }

    /// Gives something a place. `None` if there are as many as can be numbered: 4 billion.
    pub(super) fn insert(&mut self, value: V) -> Option<Slot> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = Slot(u32::try_from(self.places.len()).ok().filter(|number| *number != u32::MAX)?);
                self.places.push(None);
                slot
            }
        };
        *self.places.get_mut(slot.index())? = Some(value);
        Some(slot)
    }

    /// Takes a place back.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<V> {
        let value = self.places.get_mut(slot.index())?.take()?;
        self.free.push(slot);
        Some(value)
    }

    /// How many are taken.
    pub(super) const fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The places behind `cursor` in the order of their numbers. Who stays is met once, whoever comes and goes meanwhile.
    pub(super) fn after(&self, cursor: Option<Slot>) -> impl Iterator<Item = (Slot, &V)> {
        let from = cursor.map_or(0, |Slot(number)| number.saturating_add(1));
        let rest = self.places.get(Slot(from).index()..).unwrap_or_default();
        (from..).zip(rest).filter_map(|(number, place)| Some((Slot(number), place.as_ref()?)))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Places<V> {
    index: Index,
    places: Numbered<(PeerId, V)>,
    /// Keyed: nobody can make ids that collide.
    hasher: RandomState,
}

impl<V> Default for Places<V> {
    fn default() -> Self {
        Self { index: Index::default(), places: Numbered::default(), hasher: RandomState::new() }
    }
}

impl<V> Places<V> {
    /// Where a peer is.
    #[must_use]
    pub fn slot(&self, peer: &PeerId) -> Option<Slot> {
        self.index.find(self.hash(peer), |number| self.peer(Slot(number)) == Some(peer)).map(Slot)
    }

    /// Touches what a hash leads to.
    pub(super) fn touch(&self, hash: u32) {
        std::hint::black_box(self.index.touch(hash));
    }

    /// Where the peer of a hash is if it is anywhere, and its piece, found without a look at the place: now and then it is another
    /// peer's.
    pub(super) fn near(&self, hash: u32) -> Option<(Slot, Option<Piece>)> {
        self.index.first(hash).map(|(number, piece)| (Slot(number), piece))
    }

    /// Says which piece is a peer's.
    pub(super) fn set_piece(&mut self, peer: &PeerId, slot: Slot, piece: Option<Piece>) {
        self.index.set(self.hash(peer), slot.0, piece);
    }

    /// Of a peer.
    pub(super) fn hash(&self, peer: &PeerId) -> u32 {
        (self.hasher.hash_one(peer) >> 32) as u32
    }

    /// Who is there.
    #[must_use]
    pub fn peer(&self, slot: Slot) -> Option<&PeerId> {
        self.get(slot).map(|(peer, _)| peer)
    }

    /// Who and what is there.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&(PeerId, V)> {
        self.places.get(slot)
    }

    /// What is there.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut V> {
        self.places.get_mut(slot).map(|(_, value)| value)
    }

    /// Gives a place to a peer that has none. `None` if there are as many as can be numbered: 4 billion.
    pub fn insert(&mut self, peer: PeerId, value: V) -> Option<Slot> {
        let slot = self.places.insert((peer, value))?;
        self.index.insert(self.hash(&peer), slot.0);
        Some(slot)
    }

    /// Takes a place back.
    pub fn remove(&mut self, slot: Slot) -> Option<(PeerId, V)> {
        let place = self.places.remove(slot)?;
        self.index.remove(self.hash(&place.0), slot.0);
        Some(place)
    }

    /// The places behind `cursor` in the order of their numbers. Who stays is met once, whoever comes and goes meanwhile.
    pub fn after(&self, cursor: Option<Slot>) -> impl Iterator<Item = (Slot, &(PeerId, V))> {
        self.places.after(cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    #[test]
    fn a_peer_keeps_its_number_until_its_place_is_given_to_another() {
        let mut places = Places::default();
        let slots: Vec<_> = (1..=9).map(|n| places.insert(peer(n), n).unwrap()).collect();
        for (n, slot) in (1..=9).zip(&slots) {
            assert_eq!((places.slot(&peer(n)), places.get(*slot)), (Some(*slot), Some(&(peer(n), n))));
        }
        assert_eq!(places.remove(slots[3]), Some((peer(4), 4)));
        assert_eq!((places.slot(&peer(4)), places.remove(slots[3])), (None, None));
        assert_eq!(places.insert(peer(10), 10), Some(slots[3]));
        assert_eq!((places.slot(&peer(10)), places.slot(&peer(9))), (Some(slots[3]), Some(slots[8])));
    }

    #[test]
    fn who_stays_is_met_once_on_a_walk_in_steps() {
        let mut places = Places::default();
        for n in 1..=30 {
            places.insert(peer(n), n);
        }
        let (mut met, mut cursor) = (Vec::new(), None);
        for step in 31.. {
            let page: Vec<_> = places.after(cursor).take(4).map(|(slot, (_, n))| (slot, *n)).collect();
            let Some((last, _)) = page.last() else { break };
            cursor = Some(*last);
            met.extend(page.iter().map(|(_, n)| *n).filter(|n| *n <= 15));
            // One goes and another one comes after each step.
            if step <= 45 {
                places.remove(places.slot(&peer(step - 15)).unwrap());
                places.insert(peer(step), step);
            }
        }
        assert_eq!(met, (1..=15).collect::<Vec<_>>());
    }
}
