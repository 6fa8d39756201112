//! Equal queries at the same time are one: the first leads, the others follow. Pure.
//!
//! Invariant: for each key at most one is under way, and at most `most` in all.

use std::collections::HashMap;
use std::hash::Hash;

/// All that may be under way are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Which one it is: another one with the same key may have begun since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flight(u64);

/// See the module. `W` is how one waits for the outcome.
#[derive(Debug)]
pub(crate) struct Flights<K, W> {
    under_way: HashMap<K, (Flight, W)>,
    most: usize,
    next: u64,
}

impl<K: Hash + Eq, W> Flights<K, W> {
    pub(crate) fn new(most: usize) -> Self {
        Self { under_way: HashMap::new(), most, next: 0 }
    }

    /// The one with this key, to follow it.
    pub(crate) fn find(&self, key: &K) -> Option<&W> {
        self.under_way.get(key).map(|(_, waiting)| waiting)
    }

    /// Begins one. One with the same key is followed no more.
    pub(crate) fn lead(&mut self, key: K, waiting: W) -> Result<Flight, Full> {
        if self.under_way.len() >= self.most && !self.under_way.contains_key(&key) {
            return Err(Full);
        }
        self.next += 1;
        let flight = Flight(self.next);
        self.under_way.insert(key, (flight, waiting));
        Ok(flight)
    }

    /// It has ended.
    pub(crate) fn land(&mut self, key: &K, flight: Flight) {
        if self.under_way.get(key).is_some_and(|(current, _)| *current == flight) {
            self.under_way.remove(key);
        }
    }

    /// How many of those that may be are under way, 0 to 1.
    pub(crate) fn load(&self) -> f64 {
        self.under_way.len() as f64 / self.most.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_leads_and_the_others_follow_until_it_has_ended() {
        let mut flights = Flights::new(2);
        assert_eq!(flights.find(&"a"), None);
        let first = flights.lead("a", 1).unwrap();
        assert_eq!(flights.find(&"a"), Some(&1));
        flights.land(&"a", first);
        assert_eq!(flights.find(&"a"), None);
    }

    #[test]
    fn who_was_replaced_ends_nobody_else() {
        let mut flights = Flights::new(2);
        let first = flights.lead("a", 1).unwrap();
        let second = flights.lead("a", 2).unwrap();
        flights.land(&"a", first);
        assert_eq!(flights.find(&"a"), Some(&2));
        flights.land(&"a", second);
        assert_eq!(flights.find(&"a"), None);
    }

    #[test]
    fn there_are_so_many_at_most() {
        let mut flights = Flights::new(2);
        assert!(flights.lead("a", 1).is_ok() && flights.lead("b", 1).is_ok());
        assert_eq!((flights.lead("c", 1), flights.load() >= 1.0), (Err(Full), true));
        assert!(flights.lead("b", 2).is_ok(), "instead of another one there is always room");
    }
}
