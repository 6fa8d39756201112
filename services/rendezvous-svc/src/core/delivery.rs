//! What was sent over a link and has not been acknowledged, and what arrived.
//!
//! A link delivers in order or breaks. When it breaks nobody knows what of the last things arrived: so they are kept until the
//! other end says that it has them, and go out again over the next link; nothing else has to. Numbers count the batches of one
//! link from 1.
//!
//! Invariants: what was sent is either acknowledged or given back; what arrived is handed on in the order of its numbers, each
//! once. A number that stays out shows that the link lost something: it must be cut, and the next one brings it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Batches that may be under way.
pub const WINDOW: usize = 32;
/// After so many of them the other end hears that they arrived, without waiting for its mark.
pub const ACKNOWLEDGE_AFTER: u64 = 8;
/// So long a number may stay out.
pub const GAP: Duration = Duration::from_secs(2);

/// One direction of a link, at the end that sends.
#[derive(Debug)]
pub struct Sent<T> {
    last: u64,
    under_way: VecDeque<(u64, T)>,
}

impl<T> Default for Sent<T> {
    fn default() -> Self {
        Self { last: 0, under_way: VecDeque::new() }
    }
}

impl<T> Sent<T> {
    /// Whether one more may be sent.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.under_way.len() < WINDOW
    }

    /// Something is sent. Returns its number.
    pub fn send(&mut self, what: T) -> u64 {
        self.last += 1;
        self.under_way.push_back((self.last, what));
        self.last
    }

    /// The number of the last one.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// The other end has everything up to `number`.
    pub fn acknowledged(&mut self, number: u64) {
        while self.under_way.front().is_some_and(|(sent, _)| *sent <= number) {
            self.under_way.pop_front();
        }
    }

    /// Whether the other end has everything up to `number`.
    #[must_use]
    pub fn has_arrived(&self, number: u64) -> bool {
        self.under_way.front().is_none_or(|(sent, _)| *sent > number)
    }

    /// The link broke: what may not have arrived, in order. Numbers begin anew.
    pub fn give_back(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.last = 0;
        std::mem::take(&mut self.under_way).into_iter().map(|(_, what)| what)
    }

    /// Whether everything arrived.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }
}

/// The link lost something, or the other end does not keep to the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("batch {number} came while {expected} was expected")]
pub struct OutOfWindow {
    /// What came.
    pub number: u64,
    /// What should have.
    pub expected: u64,
}

/// One direction of a link, at the end that receives.
#[derive(Debug)]
pub struct Arrived<B> {
    received: u64,
    acknowledged: u64,
    /// The highest number that was sent, as far as is known.
    sent: u64,
    early: BTreeMap<u64, B>,
    /// Since when something is missing.
    gap: Option<Instant>,
}

impl<B> Default for Arrived<B> {
    fn default() -> Self {
        Self { received: 0, acknowledged: 0, sent: 0, early: BTreeMap::new(), gap: None }
    }
}

impl<B> Arrived<B> {
    /// Takes what came, and hands on what is next.
    pub fn take(&mut self, number: u64, batch: B, now: Instant) -> Result<Vec<B>, OutOfWindow> {
        let expected = self.received + 1;
        if number >= expected + u64::try_from(WINDOW).unwrap_or(u64::MAX) {
            return Err(OutOfWindow { number, expected });
        }
        if number >= expected {
            self.early.insert(number, batch);
        }
        let mut next = Vec::new();
        while let Some(batch) = self.early.remove(&(self.received + 1)) {
            self.received += 1;
            next.push(batch);
            self.gap = None;
        }
        self.was_sent(number, now);
        Ok(next)
    }

    /// The other end says which number it sent last.
    pub fn was_sent(&mut self, number: u64, now: Instant) {
        self.sent = self.sent.max(number);
        if self.received < self.sent {
            self.gap.get_or_insert(now);
        }
    }

    /// Everything up to this number is here; to be told to the other end.
    pub const fn acknowledge(&mut self) -> u64 {
        self.acknowledged = self.received;
        self.received
    }

    /// How many batches the other end does not know to be here.
    #[must_use]
    pub const fn unacknowledged(&self) -> u64 {
        self.received - self.acknowledged
    }

    /// Whether something was lost, and the link must be cut.
    #[must_use]
    pub fn has_lost(&self, now: Instant) -> bool {
        self.gap.is_some_and(|since| now.saturating_duration_since(since) >= GAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::Time;

    #[test]
    fn what_was_not_acknowledged_is_given_back_in_order() {
        let mut sent = Sent::default();
        let numbers: Vec<u64> = ["a", "b", "c", "d"].into_iter().map(|what| sent.send(what)).collect();
        assert_eq!((numbers, sent.last()), (vec![1, 2, 3, 4], 4));
        sent.acknowledged(2);
        assert!(!sent.is_empty());
        assert_eq!(sent.give_back().collect::<Vec<_>>(), ["c", "d"]);
        assert!(sent.is_empty());
        assert_eq!(sent.send("c"), 1, "the next link counts anew");
        sent.acknowledged(1);
        assert!(sent.is_empty());
    }

    #[test]
    fn no_more_than_the_window_is_under_way() {
        let mut sent = Sent::default();
        while sent.has_room() {
            sent.send(());
        }
        assert_eq!(sent.last(), WINDOW as u64);
        sent.acknowledged(1);
        assert!(sent.has_room());
    }

    #[test]
    fn what_arrives_twice_or_too_early_is_handed_on_once_and_in_order() {
        let now = Time::start().at(0).mono;
        let mut arrived = Arrived::default();
        assert_eq!(arrived.take(2, "b", now), Ok(vec![]));
        assert_eq!(arrived.take(3, "c", now), Ok(vec![]));
        assert_eq!(arrived.take(1, "a", now), Ok(vec!["a", "b", "c"]));
        assert_eq!(arrived.take(2, "b", now), Ok(vec![]));
        assert_eq!(arrived.unacknowledged(), 3);
        assert_eq!((arrived.acknowledge(), arrived.unacknowledged()), (3, 0));
    }

    #[test]
    fn a_number_that_stays_out_shows_that_the_link_lost_something() {
        let t = Time::start();
        let mut arrived = Arrived::default();
        arrived.take(1, (), t.at(0).mono).unwrap();
        assert!(!arrived.has_lost(t.at(100).mono));
        arrived.take(3, (), t.at(100).mono).unwrap();
        assert!(!arrived.has_lost(t.at(101).mono));
        assert!(arrived.has_lost(t.at(102).mono));
        arrived.take(2, (), t.at(102).mono).unwrap();
        assert!(!arrived.has_lost(t.at(103).mono), "it was only late");
        // The last one of all: nothing comes behind it but the mark.
        arrived.was_sent(4, t.at(103).mono);
        assert!(arrived.has_lost(t.at(105).mono));
    }

    #[test]
    fn who_does_not_keep_to_the_window_is_not_listened_to() {
        let now = Time::start().at(0).mono;
        let mut arrived = Arrived::default();
        assert!(arrived.take(WINDOW as u64, (), now).is_ok());
        let number = WINDOW as u64 + 1;
        assert_eq!(arrived.take(number, (), now), Err(OutOfWindow { number, expected: 1 }));
    }
}
