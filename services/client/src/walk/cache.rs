//! What was found lately, and what was not. Pure.
//!
//! Invariant: a record is never given out when its time is over; that a peer was not found is said again for [`NOT_FOUND`] at most; there
//! are at most twice `most` entries of each kind, and the youngest `most` are among them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use p2psb_proto::model::presence::PresenceState;
use p2psb_proto::model::{PeerId, UnixMillis};

use super::answer::version;
use super::{LocateError, Located};

/// For so long an answer is given again without asking anybody: as often as a home says that a peer is still there.
const FRESH: Duration = Duration::from_secs(5);
/// The same for a peer that may be back any moment.
const FRESH_AWAY: Duration = Duration::from_secs(1);
/// For so long at most it is said again that a peer was not found.
pub(crate) const NOT_FOUND: Duration = Duration::from_secs(30);
/// How many peers of each kind an entry is kept of.
pub(crate) const ENTRIES: usize = 4096;

/// A moment by both clocks: one that measures, and the one that records are dated by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) at: Instant,
    pub(crate) wall: UnixMillis,
}

/// What there is of a peer.
#[derive(Debug, PartialEq)]
pub(crate) enum Look {
    /// An answer that is to be given.
    Found { located: Located, age: Duration },
    /// It was not found a moment ago, and is to be looked for again after `left`.
    NotFound { error: LocateError, age: Duration, left: Duration },
    /// Only an old answer, whose record is valid still.
    Old { located: Located, age: Duration },
    /// Nothing.
    Nothing,
}

#[derive(Debug)]
struct Found {
    located: Located,
    at: Instant,
    /// It led nowhere.
    doubted: bool,
}

#[derive(Debug)]
struct Missing {
    error: LocateError,
    at: Instant,
    until: Instant,
    /// Whether peers were asked as well.
    wide: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cache {
    found: Generations<Found>,
    missing: Generations<Missing>,
}

impl Cache {
    pub(crate) fn new(most: usize) -> Self {
        Self { found: Generations::new(most), missing: Generations::new(most) }
    }

    /// What there is. For a `wide` query, that asks peers too, it does not count that one that did not has found nothing.
    pub(crate) fn look(&mut self, peer: &PeerId, wide: bool, now: Now) -> Look {
        if let Some(missing) = self.missing.get(peer).filter(|m| now.at < m.until && (m.wide || !wide)) {
            let (age, left) = (now.at.duration_since(missing.at), missing.until.duration_since(now.at));
            return Look::NotFound { error: missing.error.clone(), age, left };
        }
        let Some(found) = self.found.get(peer) else { return Look::Nothing };
        if found.located.peer.record.value().expires <= now.wall {
            self.found.remove(peer);
            return Look::Nothing;
        }
        let (located, age) = (found.located.clone(), now.at.duration_since(found.at));
        let online = located.peer.presence.state == PresenceState::Online;
        if !found.doubted && age < if online { FRESH } else { FRESH_AWAY } {
            Look::Found { located, age }
        } else {
            Look::Old { located, age }
        }
    }

    /// The peer was found. Of two records the newer one stays; of one the last that was heard counts.
    pub(crate) fn found(&mut self, located: Located, now: Now) {
        let peer = located.peer.peer_id();
        self.missing.remove(&peer);
        if self.found.get(&peer).is_none_or(|known| version(&known.located.peer) <= version(&located.peer)) {
            self.found.put(peer, Found { located, at: now.at, doubted: false });
        }
    }

    /// The peer was not found by a query that began at `begun` and was `wide` or not; whoever was asked says to come back after `after`.
    /// What another query has found meanwhile counts more.
    pub(crate) fn not_found(
        &mut self,
        (peer, wide): (PeerId, bool),
        error: LocateError,
        after: Duration,
        begun: Instant,
        now: Instant,
    ) {
        if self.found.get(&peer).is_some_and(|found| found.at >= begun) {
            return;
        }
        self.found.remove(&peer);
        let until = now + after.min(NOT_FOUND);
        self.missing.put(peer, Missing { error, at: now, until, wide });
    }

    /// What is known of the peer led nowhere: it is asked for anew.
    pub(crate) fn doubt(&mut self, peer: &PeerId) {
        if let Some(mut found) = self.found.remove(peer) {
            found.doubted = true;
            self.found.put(*peer, found);
        }
    }
}

/// A bounded map that forgets the oldest half at once.
#[derive(Debug)]
struct Generations<V> {
    young: HashMap<PeerId, V>,
    old: HashMap<PeerId, V>,
    most: usize,
}

impl<V> Generations<V> {
    fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), most }
    }

    fn get(&self, peer: &PeerId) -> Option<&V> {
        self.young.get(peer).or_else(|| self.old.get(peer))
    }

    fn put(&mut self, peer: PeerId, value: V) {
        self.old.remove(&peer);
        if self.young.len() >= self.most && !self.young.contains_key(&peer) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(peer, value);
    }

    fn remove(&mut self, peer: &PeerId) -> Option<V> {
        self.young.remove(peer).or_else(|| self.old.remove(peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::walk::testing::{NOW, answer, peer};

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> Now {
        Now { at: Instant::now(), wall: NOW }
    }

    fn after(now: Now, by: Duration) -> Now {
        Now { at: now.at + by, wall: now.wall.plus(by) }
    }

    fn unknown(n: u32) -> LocateError {
        LocateError::Unknown { peer: peer(n), asked: 2, retry_after: NOT_FOUND }
    }

    #[test]
    fn an_answer_is_given_while_it_is_fresh_then_kept_until_its_record_ends() {
        let (mut cache, t) = (Cache::new(8), now());
        let located = answer(1, 7, NOW, HOUR, 1);
        cache.found(located.clone(), t);
        let look = |cache: &mut Cache, age| cache.look(&peer(1), true, after(t, age));
        let age = FRESH - Duration::from_millis(1);
        assert_eq!(look(&mut cache, age), Look::Found { located: located.clone(), age });
        assert_eq!(look(&mut cache, FRESH), Look::Old { located: located.clone(), age: FRESH });
        let age = HOUR - Duration::from_millis(1);
        assert_eq!(look(&mut cache, age), Look::Old { located, age });
        assert_eq!(look(&mut cache, HOUR), Look::Nothing);
        assert_eq!(cache.look(&peer(2), true, t), Look::Nothing);
    }

    #[test]
    fn a_record_is_not_given_beyond_its_end_even_by_a_clock_that_slept() {
        let (mut cache, t) = (Cache::new(8), now());
        cache.found(answer(1, 7, NOW, HOUR, 1), t);
        assert_eq!(cache.look(&peer(1), true, Now { wall: NOW.plus(HOUR), ..t }), Look::Nothing);
    }

    #[test]
    fn one_who_may_be_back_any_moment_is_soon_asked_for_again() {
        let (mut cache, t) = (Cache::new(8), now());
        let mut located = answer(1, 7, NOW, HOUR, 1);
        located.peer.presence.state = PresenceState::Suspect;
        cache.found(located.clone(), t);
        let old = cache.look(&peer(1), true, after(t, FRESH_AWAY));
        assert_eq!(old, Look::Old { located, age: FRESH_AWAY });
    }

    #[test]
    fn an_older_record_replaces_no_newer_one() {
        let (mut cache, t) = (Cache::new(8), now());
        let newer = answer(1, 8, NOW, HOUR, 1);
        cache.found(newer.clone(), t);
        cache.found(answer(1, 7, NOW, HOUR, 2), t);
        assert_eq!(cache.look(&peer(1), true, t), Look::Found { located: newer, age: Duration::ZERO });
    }

    #[test]
    fn what_led_nowhere_is_asked_for_anew() {
        let (mut cache, t) = (Cache::new(8), now());
        let located = answer(1, 7, NOW, HOUR, 1);
        cache.found(located.clone(), t);
        cache.doubt(&peer(1));
        let old = Look::Old { located: located.clone(), age: Duration::ZERO };
        assert_eq!(cache.look(&peer(1), true, t), old);
        cache.found(located.clone(), t);
        assert_eq!(cache.look(&peer(1), true, t), Look::Found { located, age: Duration::ZERO });
    }

    #[test]
    fn not_found_is_said_again_for_half_a_minute_at_most() {
        let (mut cache, t) = (Cache::new(8), now());
        cache.not_found((peer(1), true), unknown(1), HOUR, t.at, t.at);
        cache.not_found((peer(2), true), unknown(2), Duration::from_secs(10), t.at, t.at);
        let mut is_known = |n, by| matches!(cache.look(&peer(n), true, after(t, by)), Look::NotFound { .. });
        assert!(is_known(1, NOT_FOUND - Duration::from_millis(1)) && !is_known(1, NOT_FOUND));
        assert!(is_known(2, Duration::from_secs(9)) && !is_known(2, Duration::from_secs(10)));
        cache.found(answer(2, 7, NOW, HOUR, 1), t);
        assert!(matches!(cache.look(&peer(2), true, t), Look::Found { .. }), "it has come");
    }

    #[test]
    fn who_wants_peers_to_be_asked_is_not_told_what_others_did_not_find_without() {
        let (mut cache, t) = (Cache::new(8), now());
        cache.not_found((peer(1), false), unknown(1), NOT_FOUND, t.at, t.at);
        assert!(matches!(cache.look(&peer(1), false, t), Look::NotFound { .. }));
        assert_eq!(cache.look(&peer(1), true, t), Look::Nothing);
    }

    #[test]
    fn what_was_found_meanwhile_outlives_a_search_that_found_nothing() {
        let (mut cache, t) = (Cache::new(8), now());
        let located = answer(1, 7, NOW, HOUR, 1);
        cache.found(located.clone(), after(t, FRESH_AWAY));
        cache.not_found((peer(1), false), unknown(1), NOT_FOUND, t.at, after(t, FRESH_AWAY).at);
        let found = Look::Found { located, age: Duration::ZERO };
        assert_eq!(cache.look(&peer(1), false, after(t, FRESH_AWAY)), found);
        let later = after(t, FRESH);
        cache.not_found((peer(1), false), unknown(1), NOT_FOUND, later.at, later.at);
        assert!(matches!(cache.look(&peer(1), false, later), Look::NotFound { .. }));
    }

    #[test]
    fn the_last_word_on_a_record_counts_whatever_its_clock_says() {
        let (mut cache, t) = (Cache::new(8), now());
        let first = answer(1, 7, NOW, HOUR, 1);
        let mut second = first.clone();
        second.peer.presence.as_of = NOW.minus(Duration::from_secs(1));
        cache.found(first, t);
        cache.found(second.clone(), after(t, FRESH));
        let found = Look::Found { located: second, age: Duration::ZERO };
        assert_eq!(cache.look(&peer(1), true, after(t, FRESH)), found);
    }

    #[test]
    fn it_is_bounded_and_the_youngest_stay() {
        let (mut cache, t) = (Cache::new(4), now());
        for n in 0..100 {
            cache.not_found((peer(n), true), unknown(n), NOT_FOUND, t.at, t.at);
            assert!(cache.missing.young.len() + cache.missing.old.len() <= 8);
        }
        for n in 96..100 {
            assert!(matches!(cache.look(&peer(n), true, t), Look::NotFound { .. }), "{n}");
        }
        assert_eq!(cache.look(&peer(0), true, t), Look::Nothing);
        cache.found(answer(1, 7, NOW, HOUR, 1), t);
        assert!(matches!(cache.look(&peer(1), true, t), Look::Found { .. }), "strangers crowd nobody out");
    }
}
