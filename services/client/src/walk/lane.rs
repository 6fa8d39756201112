//! One backbone: its rendezvous are asked one after the other, each with a head start of its own, so that who is slow, dead or ignorant
//! holds nobody up. Pure.
//!
//! Invariant: nobody is asked twice, and at most [`MOST`] are asked.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;

/// So many of a backbone are asked before the search grows wider.
pub(crate) const MOST: usize = 8;
/// How many rendezvous of a backbone must not know a peer before that is believed: one may be cut off, or lie.
const UNKNOWN_BY: usize = 2;
/// The same where those that do not know began a moment ago, and may have to learn it still.
const UNSURE_BY: usize = 5;

/// Whom to ask, and how long to wait before the next is asked as well.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) endpoint: Endpoint,
    pub(crate) patience: Duration,
    /// It failed, lied or was overtaken lately.
    pub(crate) doubtful: bool,
}

/// What an answer means for the backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It has the peer.
    Found,
    /// It has not, and would know.
    Unknown,
    /// It has not, but knows little yet.
    Unsure,
    /// It says nothing of use.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    rest: VecDeque<Choice>,
    size: usize,
    asked: usize,
    open: usize,
    unknown: usize,
    unsure: usize,
    found: bool,
    /// When the next one is asked beside those before.
    next_at: Instant,
    sound: bool,
}

impl Lane {
    /// The backbone of these, to be asked in this order from `now` on.
    pub(crate) fn new(members: Vec<Choice>, now: Instant) -> Self {
        let sound = members.iter().any(|one| !one.doubtful);
        let (size, rest) = (members.len(), VecDeque::from(members));
        let (asked, open, unknown, unsure, found) = (0, 0, 0, 0, false);
        Self { rest, size, asked, open, unknown, unsure, found, next_at: now, sound }
    }

    /// Whom to ask now.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Choice> {
        if self.is_over() || self.asked >= MOST || now < self.next_at {
            return None;
        }
        let next = self.rest.pop_front()?;
        self.asked += 1;
        self.open += 1;
        self.next_at = now + next.patience;
        Some(next)
    }

    /// When it asks again by itself.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let goes_on = !self.is_over() && self.asked < MOST && !self.rest.is_empty();
        goes_on.then_some(self.next_at)
    }

    /// One that was asked here has answered, or has nothing to say any more. The next one is due.
    pub(crate) fn heard(&mut self, effect: Effect, now: Instant) {
        self.open = self.open.saturating_sub(1);
        self.next_at = now;
        self.judge(effect);
    }

    /// The same from one that was taken out of [`Self::take_rest`].
    pub(crate) fn judge(&mut self, effect: Effect) {
        match effect {
            Effect::Found => self.found = true,
            Effect::Unknown => self.unknown += 1,
            Effect::Unsure => self.unsure += 1,
            Effect::Nothing => {}
        }
    }

    /// Whether it needs no further answer, or can expect none.
    pub(crate) fn is_over(&self) -> bool {
        let exhausted = self.open == 0 && (self.rest.is_empty() || self.asked >= MOST);
        self.found || exhausted || self.unknown >= UNKNOWN_BY || self.unknown + self.unsure >= UNSURE_BY
    }

    /// Whether it does not know the peer, for sure.
    pub(crate) fn is_settled(&self) -> bool {
        self.unknown >= UNKNOWN_BY.min(self.size)
    }

    /// Whether an answer of it can be expected soon.
    pub(crate) fn is_sound(&self) -> bool {
        self.sound
    }

    /// How many were not asked.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Those who were not asked.
    pub(crate) fn take_rest(&mut self) -> VecDeque<Choice> {
        std::mem::take(&mut self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    fn lane(members: u16, now: Instant) -> Lane {
        let endpoint = |port| format!("http://127.0.0.1:{port}").parse().unwrap();
        let choice = |port| Choice { endpoint: endpoint(port), patience: PATIENCE, doubtful: false };
        Lane::new((1..=members).map(choice).collect(), now)
    }

    fn asked(lane: &mut Lane, now: Instant) -> Option<u16> {
        lane.due(now).map(|one| one.endpoint.port())
    }

    #[test]
    fn a_slow_one_is_hedged_and_a_failing_one_is_followed_at_once() {
        let t = Instant::now();
        let mut lane = lane(3, t);
        assert_eq!((asked(&mut lane, t), asked(&mut lane, t)), (Some(1), None));
        assert_eq!(lane.wake(), Some(t + PATIENCE));
        assert_eq!(asked(&mut lane, t + PATIENCE), Some(2));
        lane.heard(Effect::Nothing, t + PATIENCE);
        assert_eq!(asked(&mut lane, t + PATIENCE), Some(3));
        assert_eq!(lane.wake(), None, "there is nobody else");
        assert!(!lane.is_over(), "two have still to answer");
        lane.heard(Effect::Found, t + PATIENCE);
        assert!(lane.is_over());
    }

    #[test]
    fn one_that_does_not_know_is_not_the_last_word() {
        let t = Instant::now();
        let mut three = lane(3, t);
        for goes_on in [true, false] {
            assert!(asked(&mut three, t).is_some());
            three.heard(Effect::Unknown, t);
            assert_eq!((three.is_over(), three.is_settled()), (!goes_on, !goes_on));
        }
        assert_eq!(three.take_rest().len(), 1);
        let mut alone = lane(1, t);
        asked(&mut alone, t);
        alone.heard(Effect::Unknown, t);
        assert!(alone.is_over() && alone.is_settled());
    }

    #[test]
    fn those_that_began_a_moment_ago_do_not_end_a_search_together() {
        let t = Instant::now();
        let mut lane = lane(9, t);
        let mut count = 0;
        while asked(&mut lane, t).is_some() {
            lane.heard(Effect::Unsure, t);
            count += 1;
        }
        assert_eq!((count, lane.is_over(), lane.is_settled()), (UNSURE_BY, true, false));
    }

    #[test]
    fn not_all_of_hundreds_are_asked() {
        let t = Instant::now();
        let mut lane = lane(300, t);
        let mut count = 0;
        while asked(&mut lane, t).is_some() {
            lane.heard(Effect::Nothing, t);
            count += 1;
        }
        assert_eq!((count, lane.is_over(), lane.wake()), (MOST, true, None));
        assert!(super::Lane::new(Vec::new(), t).is_over(), "and nobody is an answer");
    }
}
