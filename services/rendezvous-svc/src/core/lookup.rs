//! Where is this peer? One question to its owners, at one hop's distance, hedged.
//!
//! Promises:
//! - Only owners are asked, each once, one after the other: the next one when the one before does not know, failed, or let the
//!   hedge pass. Who was an owner before a change and still is comes first, then who was, then who became one: the longer one
//!   has owned a key the surer it knows.
//! - An answer with the word of a home ends it. A record without one is an answer only when two owners have no more.
//! - It ends with "unknown" only when in the ring, and in the one before it while that counts, two owners that have finished
//!   syncing say so; with one owner in a ring, that one. Else what comes out is "not sure".

use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use super::placement::{Key, Placement};
use super::ring::View;

/// So many owners have to say that a peer is unknown, or is known by its record only; so many that have finished syncing have to say
/// who provides a service.
pub const WITNESSES: usize = 2;

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For one owner before the next one is asked, too.
    pub hedge: Duration,
    /// For all.
    pub deadline: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { hedge: Duration::from_millis(50), deadline: Duration::from_millis(800) }
    }
}

/// What an owner says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// It has a record.
    Found {
        /// All it says.
        found: T,
        /// Of the record.
        seq: u64,
        /// Whether a home has told it how the peer is.
        by_home: bool,
    },
    /// It has no valid record.
    Unknown {
        /// Whether it owns the key and has heard all that it owns.
        finished: bool,
        /// How far back its knowledge reaches.
        knowledge: Duration,
    },
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// This.
    Found(T),
    /// Nobody who ought to know it does.
    Unknown {
        /// How far back the knowledge of who said so reaches.
        knowledge: Duration,
    },
    /// Not enough owners could be asked; it may be known to others.
    NotSure {
        /// How far back the knowledge of who answered reaches.
        knowledge: Duration,
    },
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// Ask this member, then look again.
    Ask(PeerId),
    /// Look again when there is an answer, or at this time.
    Wait(Instant),
    /// It is over.
    Done(Outcome<T>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Asked,
    /// Found, by its record only.
    Weak,
    /// Does not know, and ought to.
    Unknown,
    /// Can't tell, or did not answer.
    Useless,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    member: PeerId,
    in_current: bool,
    in_before: bool,
    state: State,
    /// How far back its knowledge reaches.
    knowledge: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Lookup<T> {
    candidates: Vec<Candidate>,
    best: Option<(u64, T)>,
    certain: bool,
    asked_at: Option<Instant>,
    started: Instant,
    patience: Patience,
}

impl<T: Clone> Lookup<T> {
    /// Begins. `own` is what this member knows, if it is an owner or the peer is here; `reach` says of another member whether it
    /// can be asked, and if so, whether it has finished syncing.
    #[must_use]
    pub fn new(
        key: Key,
        view: &View,
        own: Option<Answer<T>>,
        reach: impl Fn(&PeerId) -> Option<bool>,
        timing: (Patience, Instant),
    ) -> Self {
        let owners = |ring: &Placement| ring.owners(key);
        let (current, before) = (owners(view.current()), view.before().map(|before| owners(before)));
        let before_counts = before.is_some();
        let before = before.unwrap_or_default();
        let mut candidates: Vec<Candidate> = view
            .to_tell(key)
            .map(|member| {
                let in_current = current.contains(&member);
                let in_before = if before_counts { before.contains(&member) } else { in_current };
                let can_be_asked = member != view.own() && reach(&member).is_some();
                let state = if can_be_asked { State::Idle } else { State::Useless };
                Candidate { member, in_current, in_before, state, knowledge: Duration::ZERO }
            })
            .collect();
        // Everybody begins with another owner, so that a peer that all look for does not burden one.
        let turn = key.turn(&view.own(), candidates.len());
        candidates.rotate_left(turn);
        candidates.sort_by_key(|one| {
            let finished = reach(&one.member).unwrap_or_default();
            (!finished, !(one.in_current && one.in_before), !one.in_before)
        });
        let (patience, started) = timing;
        let mut lookup = Self { candidates, best: None, certain: false, asked_at: None, started, patience };
        if let Some(answer) = own {
            lookup.take(&view.own(), answer);
        }
        lookup
    }

    /// A member that was asked answers.
    pub fn answered(&mut self, by: &PeerId, answer: Answer<T>) {
        if self.candidates.iter().any(|one| one.member == *by && one.state == State::Asked) {
            self.take(by, answer);
        }
    }

    fn take(&mut self, by: &PeerId, answer: Answer<T>) {
        let (state, known) = match answer {
            Answer::Found { found, seq, by_home } => {
                let is_better = self.best.as_ref().is_none_or(|(best, _)| seq > *best);
                if by_home && !self.certain || is_better && by_home == self.certain {
                    self.best = Some((seq, found));
                }
                self.certain |= by_home;
                (State::Weak, Duration::ZERO)
            }
            Answer::Unknown { finished: true, knowledge } => (State::Unknown, knowledge),
            Answer::Unknown { finished: false, knowledge } => (State::Useless, knowledge),
        };
        if let Some(candidate) = self.candidates.iter_mut().find(|one| one.member == *by) {
            (candidate.state, candidate.knowledge) = (state, known);
        }
    }

    /// A member can't be asked, or its link ended.
    pub fn failed(&mut self, by: &PeerId) {
        let open = self.candidates.iter_mut().find(|one| one.member == *by);
        if let Some(one) = open.filter(|one| matches!(one.state, State::Idle | State::Asked)) {
            one.state = State::Useless;
        }
    }

    /// What to do now.
    pub fn step(&mut self, now: Instant) -> Step<T> {
        if let Some(outcome) = self.outcome(now) {
            return Step::Done(outcome);
        }
        let deadline = self.started + self.patience.deadline;
        let pending = self.candidates.iter().any(|one| one.state == State::Asked);
        let hedge = self.asked_at.map(|at| at + self.patience.hedge).filter(|at| pending && *at > now);
        let Some(next) = self.candidates.iter_mut().find(|one| one.state == State::Idle) else {
            return Step::Wait(deadline);
        };
        match hedge {
            Some(at) => Step::Wait(at.min(deadline)),
            None => {
                next.state = State::Asked;
                self.asked_at = Some(now);
                Step::Ask(next.member)
            }
        }
    }

    fn outcome(&self, now: Instant) -> Option<Outcome<T>> {
        let count = |state| self.candidates.iter().filter(|one| one.state == state).count();
        let open = count(State::Idle) + count(State::Asked);
        let is_over = open == 0 || now >= self.started + self.patience.deadline;
        if let Some((_, best)) = &self.best {
            let is_enough = self.certain || count(State::Weak) >= WITNESSES || is_over;
            return is_enough.then(|| Outcome::Found(best.clone()));
        }
        if self.is_unknown(|one| one.in_current) && self.is_unknown(|one| one.in_before) {
            return Some(Outcome::Unknown { knowledge: self.knowledge(|one| one.state == State::Unknown) });
        }
        is_over.then(|| Outcome::NotSure { knowledge: self.knowledge(|_| true) })
    }

    fn knowledge(&self, of: impl Fn(&Candidate) -> bool) -> Duration {
        let known = self.candidates.iter().filter(|one| of(one)).map(|one| one.knowledge);
        known.max().unwrap_or_default()
    }

    /// Whether enough owners of a ring say that it is unknown.
    fn is_unknown(&self, is_owner: impl Fn(&Candidate) -> bool) -> bool {
        let owners = || self.candidates.iter().filter(|one| is_owner(one));
        let unknown = owners().filter(|one| one.state == State::Unknown).count();
        unknown > 0 && unknown >= WITNESSES.min(owners().count())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::placement::Operator;
    use crate::core::testing::{Time, peer};

    const OWN: u8 = 50;
    const PATIENCE: Patience =
        Patience { hedge: Duration::from_millis(50), deadline: Duration::from_millis(800) };

    fn ring(members: impl IntoIterator<Item = u8>) -> Arc<Placement> {
        Arc::new(Placement::new(members.into_iter().map(|n| (peer(n), Operator::of(&peer(n), None)))))
    }

    fn key() -> Key {
        Key::peer(&peer(200))
    }

    fn view(now: &Arc<Placement>, before: Option<&Arc<Placement>>) -> View {
        View::of(peer(OWN), Arc::clone(now), before.map(Arc::clone))
    }

    fn lookup(view: &View, own: Option<Answer<u8>>, t: Time) -> Lookup<u8> {
        Lookup::new(key(), view, own, |_| Some(true), (PATIENCE, t.at(0).mono))
    }

    fn asked(step: Step<u8>) -> PeerId {
        let Step::Ask(member) = step else { panic!("{step:?}") };
        member
    }

    const UNKNOWN: Answer<u8> = Answer::Unknown { finished: true, knowledge: Duration::from_secs(9) };

    const fn found(found: u8, seq: u64, by_home: bool) -> Answer<u8> {
        Answer::Found { found, seq, by_home }
    }

    #[test]
    fn the_word_of_a_home_ends_it() {
        let t = Time::start();
        let mut l = lookup(&view(&ring(1..=9), None), None, t);
        let first = asked(l.step(t.at(0).mono));
        assert_eq!(l.step(t.at(0).mono), Step::Wait(t.at(0).mono + PATIENCE.hedge));
        l.answered(&first, found(7, 1, true));
        assert_eq!(l.step(t.at(0).mono), Step::Done(Outcome::Found(7)));
    }

    #[test]
    fn the_next_owner_is_asked_when_one_does_not_know_fails_or_is_slow() {
        let (t, ring) = (Time::start(), ring(1..=9));
        let owners = ring.owners(key());
        let mut l = lookup(&view(&ring, None), None, t);
        let start = t.at(0).mono;
        let first = asked(l.step(start));
        l.answered(&first, UNKNOWN);
        let second = asked(l.step(start));
        let third = asked(l.step(start + PATIENCE.hedge));
        let mut all = [first, second, third];
        all.sort();
        let mut expected: Vec<_> = owners.iter().collect();
        expected.sort();
        assert_eq!(all.as_slice(), expected);
        assert_eq!(l.step(start + PATIENCE.hedge), Step::Wait(start + PATIENCE.deadline), "nobody is left");
        l.failed(&second);
        l.answered(&third, found(3, 1, true));
        assert_eq!(l.step(start + PATIENCE.hedge), Step::Done(Outcome::Found(3)));
    }

    #[test]
    fn unknown_needs_two_owners_that_have_finished() {
        let t = Time::start();
        let start = t.at(0).mono;
        let mut l = lookup(&view(&ring(1..=9), None), None, t);
        let first = asked(l.step(start));
        l.answered(&first, Answer::Unknown { finished: false, knowledge: Duration::from_secs(100) });
        let second = asked(l.step(start));
        l.answered(&second, UNKNOWN);
        let third = asked(l.step(start));
        l.answered(&third, UNKNOWN);
        let knowledge = Duration::from_secs(9);
        assert_eq!(l.step(start), Step::Done(Outcome::Unknown { knowledge }));

        let mut l = lookup(&view(&ring(1..=9), None), None, t);
        let first = asked(l.step(start));
        l.answered(&first, UNKNOWN);
        for _ in 0..2 {
            let next = asked(l.step(start));
            l.failed(&next);
        }
        assert_eq!(l.step(start), Step::Done(Outcome::NotSure { knowledge }), "one is not enough");
    }

    #[test]
    fn who_is_alone_is_believed_alone_and_a_pair_together() {
        let t = Time::start();
        let start = t.at(0).mono;
        let knowledge = Duration::from_secs(9);
        let mut alone = lookup(&view(&ring([OWN]), None), Some(UNKNOWN), t);
        assert_eq!(alone.step(start), Step::Done(Outcome::Unknown { knowledge }));
        let mut pair = lookup(&view(&ring([OWN, 1]), None), Some(UNKNOWN), t);
        assert_eq!(asked(pair.step(start)), peer(1));
        pair.answered(&peer(1), UNKNOWN);
        assert_eq!(pair.step(start), Step::Done(Outcome::Unknown { knowledge }));
        let mut empty = lookup(&view(&ring([]), None), None, t);
        assert!(matches!(empty.step(start), Step::Done(Outcome::NotSure { .. })));
    }

    #[test]
    fn a_record_without_a_home_needs_a_second_owner_and_the_newest_counts() {
        let t = Time::start();
        let start = t.at(0).mono;
        let mut l = lookup(&view(&ring(1..=9), None), None, t);
        let first = asked(l.step(start));
        l.answered(&first, found(1, 5, false));
        let second = asked(l.step(start));
        l.answered(&second, found(2, 4, false));
        assert_eq!(l.step(start), Step::Done(Outcome::Found(1)));

        let mut l = lookup(&view(&ring(1..=9), None), None, t);
        let first = asked(l.step(start));
        l.answered(&first, found(1, 5, false));
        let second = asked(l.step(start));
        l.answered(&second, found(2, 4, true));
        assert_eq!(l.step(start), Step::Done(Outcome::Found(2)), "a home knows more than a record says");
    }

    #[test]
    fn a_record_without_a_home_is_better_than_nothing_when_time_is_over() {
        let t = Time::start();
        let start = t.at(0).mono;
        let mut l = lookup(&view(&ring(1..=9), None), None, t);
        let first = asked(l.step(start));
        l.answered(&first, found(1, 5, false));
        asked(l.step(start));
        asked(l.step(start + PATIENCE.hedge));
        assert_eq!(l.step(start + PATIENCE.deadline), Step::Done(Outcome::Found(1)));
        let mut l = lookup(&view(&ring(1..=9), None), None, t);
        asked(l.step(start));
        let outcome = l.step(start + PATIENCE.deadline);
        assert!(matches!(outcome, Step::Done(Outcome::NotSure { .. })));
    }

    #[test]
    fn after_a_change_those_who_owned_before_are_asked_first_and_have_to_agree() {
        let t = Time::start();
        let start = t.at(0).mono;
        // Of the old ring nobody stays: as after a partition.
        let (now, before) = (ring(1..=9), ring(11..=19));
        let mut l = lookup(&view(&now, Some(&before)), None, t);
        let old: Vec<_> = before.owners(key()).iter().collect();
        for _ in 0..2 {
            let member = asked(l.step(start));
            assert!(old.contains(&member));
            l.answered(&member, UNKNOWN);
        }
        let third = asked(l.step(start));
        assert!(old.contains(&third), "two of the old are not enough to end it, and the third may know");
        l.answered(&third, UNKNOWN);
        for _ in 0..2 {
            let member = asked(l.step(start));
            assert!(now.owners(key()).contains(&member));
            l.answered(&member, UNKNOWN);
        }
        assert!(matches!(l.step(start), Step::Done(Outcome::Unknown { .. })));
    }

    #[test]
    fn who_holds_the_session_answers_and_nobody_is_asked() {
        let t = Time::start();
        let mut l = lookup(&view(&ring(1..=9), None), Some(found(9, 1, true)), t);
        assert_eq!(l.step(t.at(0).mono), Step::Done(Outcome::Found(9)));
    }

    #[test]
    fn who_was_not_asked_is_not_heard_and_who_cannot_be_asked_is_not_asked() {
        let (t, ring) = (Time::start(), ring(1..=9));
        let start = t.at(0).mono;
        let owners: Vec<_> = ring.owners(key()).iter().collect();
        let reach = |member: &PeerId| (*member == owners[1]).then_some(false);
        let mut l = Lookup::new(key(), &view(&ring, None), None, reach, (PATIENCE, start));
        l.answered(&owners[0], found(1, 1, true));
        assert_eq!(asked(l.step(start)), owners[1]);
        assert_eq!(l.step(start + PATIENCE.hedge), Step::Wait(start + PATIENCE.deadline));
    }

    #[test]
    fn who_has_finished_syncing_is_asked_before_who_has_not() {
        let (t, ring) = (Time::start(), ring(1..=9));
        let start = t.at(0).mono;
        for one in ring.owners(key()).iter() {
            let reach = |member: &PeerId| Some(*member == one);
            let mut l: Lookup<u8> = Lookup::new(key(), &view(&ring, None), None, reach, (PATIENCE, start));
            assert_eq!(asked(l.step(start)), one);
        }
    }
}
