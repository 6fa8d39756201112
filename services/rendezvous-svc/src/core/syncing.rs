//! Whether this member has heard, since it started, all that it owns, and how far back what it knows reaches.
//!
//! Until then it may say where a peer is, but not that nobody knows it. It has finished when every linked member of the ring has
//! told it all; those that are alive and not linked yet, and anybody if it is alone, it awaits for as long as a member takes to
//! join.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use super::ring::{Ring, View};

/// See the module.
#[derive(Debug)]
pub struct Syncing {
    started: Instant,
    /// How far back the snapshot reached that this member started with.
    snapshot: Duration,
    /// Who told all, when, and how far back what it knew reached.
    told: BTreeMap<PeerId, (Instant, Duration)>,
    /// The same of the one of those that left whose knowledge reached back least.
    least: Option<(Instant, Duration)>,
    finished: bool,
    alone_after: Duration,
}

impl Syncing {
    /// Just started. `snapshot` is how far back the knowledge reaches that it starts with, if it is complete.
    #[must_use]
    pub const fn new(snapshot: Duration, alone_after: Duration, now: Instant) -> Self {
        Self { started: now, snapshot, told: BTreeMap::new(), least: None, finished: false, alone_after }
    }

    /// The same with what an earlier life knew, which reaches back so far.
    #[must_use]
    pub fn remembering(self, snapshot: Duration) -> Self {
        Self { snapshot, ..self }
    }

    /// The same where nobody is waited for.
    #[must_use]
    pub fn alone(self, now: Instant) -> Self {
        Self::new(self.snapshot, Duration::ZERO, now)
    }

    /// A member has told all that this one owns.
    pub fn told_all(&mut self, by: PeerId, knowledge: Duration, now: Instant) {
        self.told.insert(by, (now, knowledge));
    }

    /// Forgets who told, but those that `stay`. How far back they knew goes on to count.
    pub fn retain(&mut self, stay: impl Fn(&PeerId) -> bool, now: Instant) {
        let reaches = |(at, knowledge): (Instant, Duration)| knowledge + now.saturating_duration_since(at);
        let least = &mut self.least;
        self.told.retain(|peer, told| {
            let stays = stay(peer);
            if !stays {
                // Both grow alike from now on.
                *least = least.iter().copied().chain([*told]).min_by_key(|told| reaches(*told));
            }
            stays
        });
    }

    /// Looks whether that was all. Once finished it stays so.
    pub fn check(&mut self, view: &View, ring: &Ring, now: Instant) {
        if self.finished || !view.current().contains(&view.own()) {
            return;
        }
        let own = view.own();
        let is_young = now.saturating_duration_since(self.started) < self.alone_after;
        let may_tell =
            |peer: &PeerId| ring.are_linked(&own, peer) || is_young && ring.dead_for(peer, now).is_none();
        let mut others = view.current().members().filter(|peer| *peer != own && may_tell(peer));
        self.finished = match others.next() {
            Some(first) => self.told.contains_key(&first) && others.all(|peer| self.told.contains_key(&peer)),
            None => now.saturating_duration_since(self.started) >= self.alone_after,
        };
    }

    /// Whether this member has heard all that it owns.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.finished
    }

    /// How far back what is known reaches: who was heard of in this time is known, if it still counts.
    #[must_use]
    pub fn knowledge(&self, now: Instant) -> Duration {
        let own = now.saturating_duration_since(self.started) + self.snapshot;
        if !self.finished {
            return own;
        }
        // No further than that of anybody who told: one of them may have been the only one to know.
        let told = self.told.values().chain(&self.least);
        let told = told.map(|(at, knowledge)| *knowledge + now.saturating_duration_since(*at));
        told.min().map_or(own, |told| told.max(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::placement::Operator;
    use crate::core::ring::{Claim, Introduction, Timing, Word};
    use crate::core::testing::{Time, peer};

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn stage() -> (Ring, Syncing, Time) {
        let t = Time::start();
        let (timing, now) = (Timing::default(), t.at(0).mono);
        let ring = Ring::new(peer(1), Operator::of(&peer(1), None), timing, now);
        (ring, Syncing::new(Duration::ZERO, timing.join_after, now), t)
    }

    fn link(ring: &mut Ring, n: u8, at: Instant) {
        let operator = Operator::of(&peer(n), None);
        let said = Introduction { operator, boot: 1, up_for: Duration::ZERO, oldest_up_for: Duration::ZERO };
        ring.linked(peer(n), &said, at);
        ring.tick(at);
    }

    #[test]
    fn it_has_finished_when_every_linked_member_of_the_ring_has_told_all() {
        let (mut ring, mut syncing, t) = stage();
        link(&mut ring, 2, t.at(1).mono);
        link(&mut ring, 3, t.at(1).mono);
        syncing.check(&ring.view(), &ring, t.at(1).mono);
        assert!(!syncing.is_finished());
        syncing.told_all(peer(2), seconds(500), t.at(2).mono);
        syncing.check(&ring.view(), &ring, t.at(2).mono);
        assert!(!syncing.is_finished());
        assert_eq!(syncing.knowledge(t.at(2).mono), seconds(2));
        ring.unlinked(&peer(3), Duration::ZERO, t.at(3).mono);
        syncing.check(&ring.view(), &ring, t.at(3).mono);
        assert!(syncing.is_finished(), "who can't be heard is not waited for");
        assert_eq!(syncing.knowledge(t.at(12).mono), seconds(510));
        link(&mut ring, 4, t.at(13).mono);
        syncing.check(&ring.view(), &ring, t.at(13).mono);
        assert!(syncing.is_finished(), "once and for all");
    }

    #[test]
    fn who_is_alive_and_not_linked_yet_is_awaited_for_a_while() {
        let (mut ring, mut syncing, t) = stage();
        link(&mut ring, 2, t.at(1).mono);
        link(&mut ring, 3, t.at(1).mono);
        // The third is cut off from this one, and known to the second.
        let word = Word { about: peer(3), linked: true, age: seconds(1), in_ring: true };
        let claim = Claim { operator: Operator::of(&peer(3), None), is_listed: false };
        ring.told(&peer(2), &word, Some(claim), t.at(1).mono);
        ring.unlinked(&peer(3), Duration::ZERO, t.at(1).mono);
        syncing.told_all(peer(2), seconds(500), t.at(2).mono);
        syncing.check(&ring.view(), &ring, t.at(29).mono);
        assert!(!syncing.is_finished(), "it may tell what nobody else knows");
        syncing.check(&ring.view(), &ring, t.at(30).mono);
        assert!(syncing.is_finished());
    }

    #[test]
    fn knowledge_reaches_no_further_than_that_of_any_who_told() {
        let (mut ring, mut syncing, t) = stage();
        for (n, knowledge) in [(2, 500), (3, 100)] {
            link(&mut ring, n, t.at(1).mono);
            syncing.told_all(peer(n), seconds(knowledge), t.at(1).mono);
        }
        syncing.check(&ring.view(), &ring, t.at(1).mono);
        assert_eq!(syncing.knowledge(t.at(11).mono), seconds(110));
    }

    #[test]
    fn who_is_alone_waits_as_long_as_a_member_takes_to_join() {
        let (ring, mut syncing, t) = stage();
        syncing.check(&ring.view(), &ring, t.at(29).mono);
        assert!(!syncing.is_finished());
        syncing.check(&ring.view(), &ring, t.at(30).mono);
        assert!(syncing.is_finished());
        assert_eq!(syncing.knowledge(t.at(40).mono), seconds(40));
    }

    #[test]
    fn of_those_that_left_only_how_far_back_they_knew_is_kept() {
        let (mut ring, mut syncing, t) = stage();
        (2..=9).for_each(|n| link(&mut ring, n, t.at(1).mono));
        (2..=9).for_each(|n| syncing.told_all(peer(n), seconds(100 * u64::from(n)), t.at(1).mono));
        syncing.check(&ring.view(), &ring, t.at(1).mono);
        assert_eq!(syncing.knowledge(t.at(11).mono), seconds(210));
        syncing.retain(|one| *one == peer(9), t.at(11).mono);
        assert_eq!((syncing.told.len(), syncing.knowledge(t.at(11).mono)), (1, seconds(210)));
        syncing.retain(|_| false, t.at(11).mono);
        assert_eq!((syncing.told.len(), syncing.knowledge(t.at(21).mono)), (0, seconds(220)));
    }
}
