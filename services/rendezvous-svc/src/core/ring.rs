//! The ring: which members own, as far as this member knows.
//!
//! A member is *alive* while it has a link with this one, or with a member that has a link with this one and says so: when the
//! way between two is cut, a third that reaches both keeps them in each other's ring. How far such a word is believed,
//! `ring/hearsay.rs` says.
//!
//! Invariants:
//! - Whoever has been alive for [`Timing::join_after`] is in the ring. A younger one is in it only as long as nobody is known
//!   who had been up for that long when it came: so a backbone that starts as a whole owns at once.
//! - Whoever was in the ring leaves it [`Timing::leave_after`] after the last sign of life, not earlier; a member that
//!   restarts within that time keeps its place, though it knows nothing any more.
//! - For [`Timing::overlap`] after a change the view holds the ring of before as well.
//! - An edge is never in the ring. What it sees as the ring are the members that it has links with, while it has them: those are
//!   the ones that it tells and asks.
//! - A member that is new, or was alone, takes over the ring of those that have been up for longer; it does not weigh them anew.
//!
//! Times of others arrive as ages, so that clocks need not agree; all members come to the same ring within the time a word
//! takes, and the overlap bridges that many times over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use super::homes::FOREVER;
use super::placement::{Key, Operator, Owners, Placement};
use super::session::REMEMBERED;
pub use hearsay::Claim;
use hearsay::Slots;

mod hearsay;

/// Rings of the past that are kept: one for each second of the overlap.
const PAST: usize = 64;

/// How long everything takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A member owns after it has been alive for so long.
    pub join_after: Duration,
    /// And ceases to after it has been dead for so long.
    pub leave_after: Duration,
    /// So long after a change the owners of before are told and asked, too.
    pub overlap: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { join_after: seconds(30), leave_after: seconds(60), overlap: seconds(60) }
    }
}

/// A moment that was told as an age.
#[derive(Clone, Copy, Debug)]
struct Since {
    age: Duration,
    at: Instant,
}

impl Since {
    const fn now(at: Instant) -> Self {
        Self { age: Duration::ZERO, at }
    }

    fn age(&self, now: Instant) -> Duration {
        self.age.saturating_add(now.saturating_duration_since(self.at))
    }

    fn is_before(&self, other: &Self, now: Instant) -> bool {
        self.age(now) > other.age(now)
    }
}

/// What a member says of itself when a link with it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// By its own record.
    pub operator: Operator,
    /// Another one after each restart.
    pub boot: u64,
    /// How long it has been up.
    pub up_for: Duration,
    /// How long the oldest member that it knows has been up, itself included.
    pub oldest_up_for: Duration,
}

/// What a member says of another one, or of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Of whom.
    pub about: PeerId,
    /// Whether it has a link with that member, or is it.
    pub linked: bool,
    /// For how long; without a link, how long ago it heard that member itself, and [`FOREVER`] if it never did.
    pub age: Duration,
    /// Whether it counts that member in the ring.
    pub in_ring: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Out,
    /// In the ring because nobody is older; not for good.
    Early,
    In,
}

/// One member's way into the ring and out of it.
#[derive(Clone, Copy, Debug)]
struct Standing {
    alive: Since,
    place: Place,
}

impl Standing {
    fn in_ring(&self) -> bool {
        self.place != Place::Out
    }

    /// `dead_for` if it is not alive; `oldest` is how long the oldest known member has been up.
    fn step(&mut self, dead_for: Option<Duration>, oldest: Duration, timing: &Timing, now: Instant) {
        let alive_for = self.alive.age(now);
        self.place = match (self.place, dead_for) {
            (Place::Out | Place::Early, None) if alive_for >= timing.join_after => Place::In,
            (Place::Out | Place::Early, None) if oldest < alive_for + timing.join_after => Place::Early,
            (Place::Out | Place::Early, None) => Place::Out,
            (_, Some(dead_for)) if dead_for >= timing.leave_after => Place::Out,
            (place, _) => place,
        };
    }
}

#[derive(Debug)]
struct Member {
    slot: usize,
    operator: Operator,
    /// Which life of it was linked last.
    boot: Option<u64>,
    linked: Option<Instant>,
    /// Of itself; counts while it is linked.
    up: Since,
    /// The oldest it knows; counts while it is linked.
    oldest: Since,
    /// What its own record says, if that is known; of one with a link its introduction counts.
    claim: Option<Claim>,
    /// When it was first heard of.
    named: Instant,
    /// Linked members that have a link with it.
    vouched: Slots,
    /// Those, and the ones that heard it themselves not long ago.
    speakers: Slots,
    /// Since when it is not certain that it is a member.
    doubted: Option<Instant>,
    /// The last sign of life of one that is not alive, whoever had it.
    heard: Since,
    /// When this member last heard it itself, if there is no link.
    met: Option<Since>,
    standing: Standing,
}

impl Member {
    fn is_alive(&self) -> bool {
        self.linked.is_some() || self.vouched.any()
    }

    fn dead_for(&self, now: Instant) -> Option<Duration> {
        (!self.is_alive()).then(|| self.heard.age(now))
    }
}

/// The ring became another one.
#[derive(Clone, Debug)]
pub struct Change {
    /// What it was.
    pub from: Arc<Placement>,
    /// What it is.
    pub to: Arc<Placement>,
}

/// See the module.
#[derive(Debug)]
pub struct Ring {
    own: PeerId,
    operator: Operator,
    started: Instant,
    /// This server is none of those that own.
    is_edge: bool,
    standing: Standing,
    members: BTreeMap<PeerId, Member>,
    /// Which slots are taken.
    slots: Slots,
    /// Until then the ring of older members is taken over.
    adopting_until: Instant,
    current: Arc<Placement>,
    /// The rings of before, the oldest first, and when each was replaced.
    past: VecDeque<(Arc<Placement>, Instant)>,
    /// Whether `current` has to be looked at again.
    is_stale: bool,
    /// Members of whom something else is to be said.
    news: BTreeSet<PeerId>,
    timing: Timing,
}

impl Ring {
    /// Just started: this member alone.
    #[must_use]
    pub fn new(own: PeerId, operator: Operator, timing: Timing, now: Instant) -> Self {
        Self {
            own,
            operator,
            started: now,
            is_edge: false,
            standing: Standing { alive: Since::now(now), place: Place::Early },
            members: BTreeMap::new(),
            slots: Slots::default(),
            adopting_until: now + timing.join_after,
            current: Arc::new(Placement::new([(own, operator)])),
            past: VecDeque::new(),
            is_stale: false,
            news: BTreeSet::new(),
            timing,
        }
    }

    /// What an edge sees, just started: nobody yet.
    #[must_use]
    pub fn of_edge(own: PeerId, operator: Operator, now: Instant) -> Self {
        let at_once = Duration::ZERO;
        let timing = Timing { join_after: at_once, leave_after: at_once, overlap: at_once };
        Self {
            is_edge: true,
            standing: Standing { alive: Since::now(now), place: Place::Out },
            current: Arc::new(Placement::new([])),
            ..Self::new(own, operator, timing, now)
        }
    }

    /// A link with `peer` is up. Returns whether it is another life of it than the one that was linked last, so that nothing it
    /// was told is known there.
    pub fn linked(&mut self, peer: PeerId, said: &Introduction, now: Instant) -> bool {
        let alone = self.members.values().all(|member| member.linked.is_none() && !member.standing.in_ring());
        if alone {
            self.adopting_until = self.adopting_until.max(now + self.timing.join_after);
        }
        let Some(member) = self.entry(peer, None, now) else { return true };
        let is_new_life = member.boot != Some(said.boot);
        if !member.standing.in_ring() && (is_new_life || !member.is_alive()) {
            member.standing.alive = Since::now(now);
        }
        (member.boot, member.operator, member.linked) = (Some(said.boot), said.operator, Some(now));
        // Its record came with the link; whether it is listed counts when it has been gone for long.
        let is_listed = member.claim.is_some_and(|claim| claim.is_listed);
        member.claim = Some(Claim { operator: said.operator, is_listed });
        member.up = Since { age: said.up_for, at: now };
        member.oldest = Since { age: said.oldest_up_for.max(said.up_for), at: now };
        self.is_stale = true;
        self.news.insert(peer);
        is_new_life
    }

    /// The link with `peer` ended; it had been silent for so long.
    pub fn unlinked(&mut self, peer: &PeerId, silent_for: Duration, now: Instant) {
        let Some(member) = self.members.get_mut(peer).filter(|member| member.linked.is_some()) else {
            return;
        };
        let (slot, heard) = (member.slot, Since { age: silent_for, at: now });
        (member.linked, member.heard, member.met) = (None, heard, Some(heard));
        self.news.insert(*peer);
        // What it said of others holds no longer.
        for other in self.members.values_mut() {
            other.speakers.set(slot, false);
            if !other.vouched.has(slot) {
                continue;
            }
            other.vouched.set(slot, false);
            if other.heard.is_before(&heard, now) {
                other.heard = heard;
            }
        }
    }

    /// The linked member `by` says something of a member; `claim` is what that one's own record says, if it is known.
    pub fn told(&mut self, by: &PeerId, word: &Word, claim: Option<Claim>, now: Instant) {
        if self.is_edge {
            return;
        }
        let Some(teller) = self.members.get(by).filter(|teller| teller.linked.is_some()) else { return };
        let is_settled = teller.up.age(now) >= self.timing.join_after;
        let adopts = word.in_ring && is_settled && now < self.adopting_until;
        let said = Since { age: word.age, at: now };
        let slot = teller.slot;
        if word.about == self.own {
            if adopts && self.standing.place != Place::In {
                (self.standing.place, self.is_stale) = (Place::In, true);
            }
            return;
        }
        let leave_after = self.timing.leave_after;
        if self.entry(word.about, Some(slot), now).is_none() {
            return;
        }
        self.claimed(&word.about, claim);
        let Some(member) = self.members.get_mut(&word.about) else { return };
        if word.about == *by {
            // Of itself it need not say that it lives.
        } else if word.linked {
            if !member.is_alive() && !member.standing.in_ring() || said.is_before(&member.standing.alive, now)
            {
                member.standing.alive = said;
            }
            member.vouched.set(slot, true);
        } else {
            member.vouched.set(slot, false);
            if member.heard.is_before(&said, now) {
                member.heard = said;
            }
        }
        if word.about != *by {
            member.speakers.set(slot, word.linked || word.age < leave_after);
        }
        let is_dead = member.dead_for(now).is_some_and(|dead_for| dead_for >= leave_after);
        if adopts && !is_dead && member.standing.place != Place::In && self.is_certain(&word.about, now) {
            self.adopt(&word.about);
        }
    }

    fn adopt(&mut self, peer: &PeerId) {
        if let Some(member) = self.members.get_mut(peer) {
            (member.standing.place, self.is_stale) = (Place::In, true);
        }
    }

    /// The entry of a member that is linked, or of which the one with slot `by` speaks.
    fn entry(&mut self, peer: PeerId, by: Option<usize>, now: Instant) -> Option<&mut Member> {
        if peer == self.own {
            return None;
        }
        if !self.members.contains_key(&peer) {
            let slot = self.slots.first_free().or_else(|| self.make_room(by, now))?;
            self.slots.set(slot, true);
            // Nothing was heard of it until somebody says so: the last sign of life is as old as it may be.
            let never = Since { age: REMEMBERED, at: now };
            let member = Member {
                slot,
                operator: Operator::of(&peer, None),
                boot: None,
                linked: None,
                up: Since::now(now),
                oldest: Since::now(now),
                claim: None,
                named: now,
                vouched: Slots::default(),
                speakers: Slots::default(),
                doubted: None,
                heard: never,
                met: None,
                standing: Standing { alive: Since::now(now), place: Place::Out },
            };
            self.members.insert(peer, member);
        }
        self.members.get_mut(&peer)
    }

    fn forget(&mut self, peer: &PeerId) -> Option<usize> {
        self.news.remove(peer);
        let slot = self.members.remove(peer)?.slot;
        self.slots.set(slot, false);
        Some(slot)
    }

    /// Notices what time, and what was said, has changed.
    pub fn tick(&mut self, now: Instant) -> Option<Change> {
        let oldest = self.oldest_up_for(now);
        let before = self.standing.place;
        if !self.is_edge {
            self.standing.step(None, oldest, &self.timing, now);
        }
        if (before, self.standing.place) == (Place::Early, Place::Out) {
            // Older members count from now on, when they see this one first.
            self.standing.alive = Since::now(now);
        }
        if before != self.standing.place {
            self.news.insert(self.own);
            self.is_stale = true;
        }
        self.weigh(now);
        let patience = self.patience();
        for (peer, member) in &mut self.members {
            let (was_in, before) = (member.standing.in_ring(), member.standing.place);
            member.standing.step(member.dead_for(now), oldest, &self.timing, now);
            if let Some(doubted_for) = member.doubted_for(now).filter(|_| member.standing.in_ring()) {
                member.standing.place = before.doubted(doubted_for, patience);
            }
            if was_in != member.standing.in_ring() {
                self.news.insert(*peer);
                self.is_stale = true;
            }
        }
        self.sweep(now);
        self.renew(now)
    }

    fn renew(&mut self, now: Instant) -> Option<Change> {
        if !std::mem::take(&mut self.is_stale) {
            return None;
        }
        let to = self.placement();
        if to == *self.current {
            return None;
        }
        let to = Arc::new(to);
        let from = std::mem::replace(&mut self.current, Arc::clone(&to));
        if self.past.len() >= PAST {
            // The oldest one stays: it is the one that is asked.
            self.past.pop_back();
        }
        if !self.is_edge {
            self.past.push_back((Arc::clone(&from), now));
        }
        Some(Change { from, to })
    }

    fn placement(&self) -> Placement {
        let own = self.standing.in_ring().then_some((self.own, self.operator));
        let others = self.members.iter().filter(|(_, member)| member.standing.in_ring());
        Placement::new(own.into_iter().chain(others.map(|(peer, member)| (*peer, member.operator))))
    }

    fn sweep(&mut self, now: Instant) {
        let overlap = self.timing.overlap;
        while self
            .past
            .front()
            .is_some_and(|(_, replaced)| now.saturating_duration_since(*replaced) >= overlap)
        {
            self.past.pop_front();
        }
        let is_over = |member: &Member| {
            !member.standing.in_ring() && member.dead_for(now).is_some_and(|dead| dead >= 2 * REMEMBERED)
        };
        let over = self.members.iter().filter(|(_, member)| is_over(member)).map(|(peer, _)| *peer);
        for peer in over.collect::<Vec<_>>() {
            self.forget(&peer);
        }
    }

    /// The owners of every key, as this member sees it.
    #[must_use]
    pub fn view(&self) -> View {
        let before = self.past.front().map(|(placement, _)| Arc::clone(placement));
        View::of(self.own, Arc::clone(&self.current), before)
    }

    /// Since when this member has been up, and the oldest that it knows.
    #[must_use]
    pub fn oldest_up_for(&self, now: Instant) -> Duration {
        let linked = self.members.values().filter(|member| member.linked.is_some());
        let own = now.saturating_duration_since(self.started);
        linked.map(|member| member.oldest.age(now)).fold(own, Duration::max)
    }

    /// How long this member has been up.
    #[must_use]
    pub fn up_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Whom something else is to be said of than before.
    pub fn news(&mut self) -> impl Iterator<Item = PeerId> + use<> {
        std::mem::take(&mut self.news).into_iter()
    }

    /// Everybody of whom there is something to say to a member that was just linked.
    #[must_use]
    pub fn known(&self) -> Vec<PeerId> {
        let members =
            self.members.iter().filter(|(_, member)| member.is_alive() || member.standing.in_ring());
        std::iter::once(self.own).chain(members.map(|(peer, _)| *peer)).collect()
    }

    /// What is to be said of a member.
    #[must_use]
    pub fn word(&self, about: &PeerId, now: Instant) -> Option<Word> {
        if *about == self.own {
            let (age, in_ring) = (self.up_for(now), self.standing.in_ring());
            return Some(Word { about: *about, linked: true, age, in_ring });
        }
        let member = self.members.get(about)?;
        // Never at second hand: what members repeat to each other would keep the dead alive.
        let age = match (member.linked, member.met) {
            (Some(since), _) => now.saturating_duration_since(since),
            (None, Some(met)) => met.age(now),
            (None, None) => FOREVER,
        };
        let in_ring = member.standing.in_ring();
        Some(Word { about: *about, linked: member.linked.is_some(), age, in_ring })
    }

    /// Whether there is a link between `a` and `b`, as far as is known: as `a` says, or of this member itself.
    #[must_use]
    pub fn are_linked(&self, a: &PeerId, b: &PeerId) -> bool {
        let linked = |peer| self.members.get(peer).is_some_and(|member: &Member| member.linked.is_some());
        match (*a == self.own, *b == self.own) {
            (true, _) => linked(b),
            (_, true) => linked(a),
            (false, false) => {
                let slot = self.members.get(a).map(|a| a.slot);
                slot.is_some_and(|slot| self.members.get(b).is_some_and(|b| b.vouched.has(slot)))
            }
        }
    }

    /// Members that have a link with `member`, as it says, and none with this one.
    pub fn reached_by(&self, member: &PeerId) -> impl Iterator<Item = PeerId> {
        let slot = self.members.get(member).map(|member| member.slot);
        let reached = slot.into_iter().flat_map(|slot| {
            let others = self.members.iter().filter(|(_, other)| other.linked.is_none());
            others.filter(move |(_, other)| other.vouched.has(slot))
        });
        reached.map(|(peer, _)| *peer)
    }

    /// Whether the last link with a member ended so long ago that it may have counted this one among those that left, and forgotten
    /// what it wanted.
    #[must_use]
    pub fn were_apart(&self, peer: &PeerId, now: Instant) -> bool {
        let met =
            self.members.get(peer).filter(|member| member.linked.is_none()).and_then(|member| member.met);
        met.is_some_and(|met| met.age(now) >= self.timing.leave_after / 2)
    }

    /// How long a member has given no sign of life; `None` if it is alive.
    #[must_use]
    pub fn dead_for(&self, peer: &PeerId, now: Instant) -> Option<Duration> {
        self.members.get(peer).map_or(Some(FOREVER), |member| member.dead_for(now))
    }
}

/// Who owns what, and did a moment ago. A snapshot: cheap to copy, and always the same.
#[derive(Clone, Debug)]
pub struct View {
    own: PeerId,
    current: Arc<Placement>,
    before: Option<Arc<Placement>>,
}

impl View {
    /// What `own` sees.
    #[must_use]
    pub const fn of(own: PeerId, current: Arc<Placement>, before: Option<Arc<Placement>>) -> Self {
        Self { own, current, before }
    }

    /// The ring.
    #[must_use]
    pub const fn current(&self) -> &Arc<Placement> {
        &self.current
    }

    /// The ring that was, while it still counts.
    #[must_use]
    pub const fn before(&self) -> Option<&Arc<Placement>> {
        self.before.as_ref()
    }

    /// This member.
    #[must_use]
    pub const fn own(&self) -> PeerId {
        self.own
    }

    /// The owners of `key`.
    #[must_use]
    pub fn owners(&self, key: Key) -> Owners {
        self.current.owners(key)
    }

    /// Whether this member owns `key`.
    #[must_use]
    pub fn owns(&self, key: Key) -> bool {
        self.owners(key).contains(&self.own)
    }

    /// Who is to be told of `key`: its owners, then those that were a moment ago.
    pub fn to_tell(&self, key: Key) -> impl Iterator<Item = PeerId> + use<> {
        let current = self.current.owners(key);
        let before = self.before.as_ref().map(|before| before.owners(key)).unwrap_or_default();
        current.iter().chain(before.iter().filter(move |owner| !current.contains(owner)))
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::limits::MEMBERS;

    use super::*;
    use crate::core::placement::OWNERS;
    use crate::core::testing::{Time, peer};

    fn operator(n: u8) -> Operator {
        Operator::of(&peer(n), None)
    }

    /// A record of the member is known.
    fn claim(n: u8) -> Option<Claim> {
        Some(Claim { operator: operator(n), is_listed: false })
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ring(n: u8, at: Instant) -> Ring {
        Ring::new(peer(n), operator(n), Timing::default(), at)
    }

    fn said(n: u8, up_for: u64) -> Introduction {
        Introduction {
            operator: operator(n),
            boot: 1,
            up_for: seconds(up_for),
            oldest_up_for: seconds(up_for),
        }
    }

    fn word(about: u8, linked: bool, age: u64, in_ring: bool) -> Word {
        Word { about: peer(about), linked, age: seconds(age), in_ring }
    }

    /// Who is in the ring.
    fn members(ring: &mut Ring, now: Instant) -> Vec<u8> {
        ring.tick(now);
        (0..=255).filter(|n| ring.view().current().contains(&peer(*n))).collect()
    }

    /// A member 1 that has been up for 100 s, and the clock.
    fn old() -> (Ring, Time) {
        let t = Time::start();
        let mut ring = ring(1, t.at(0).mono);
        ring.tick(t.at(100).mono);
        (ring, t)
    }

    #[test]
    fn who_is_alone_owns_everything_at_once() {
        let t = Time::start();
        let mut a = ring(1, t.at(0).mono);
        assert_eq!(members(&mut a, t.at(0).mono), [1]);
        assert!(a.view().owns(Key::service("chat")));
    }

    #[test]
    fn members_that_start_together_own_at_once_and_for_good() {
        let t = Time::start();
        let mut a = ring(1, t.at(0).mono);
        a.linked(peer(2), &said(2, 0), t.at(29).mono);
        for at in [29, 31, 58, 59, 500] {
            assert_eq!(members(&mut a, t.at(at).mono), [1, 2], "at {at}");
        }
    }

    #[test]
    fn a_newcomer_joins_after_thirty_seconds_in_the_eyes_of_both() {
        let (mut a, t) = old();
        a.linked(peer(2), &said(2, 0), t.at(100).mono);
        let mut b = ring(2, t.at(100).mono);
        b.linked(peer(1), &said(1, 100), t.at(100).mono);
        b.told(&peer(1), &word(1, true, 100, true), claim(1), t.at(100).mono);
        b.told(&peer(1), &word(2, true, 0, false), claim(2), t.at(100).mono);
        for ring in [&mut a, &mut b] {
            assert_eq!(members(ring, t.at(100).mono), [1]);
            assert_eq!(members(ring, t.at(129).mono), [1]);
            assert_eq!(members(ring, t.at(130).mono), [1, 2]);
        }
    }

    #[test]
    fn who_was_old_elsewhere_makes_those_who_began_together_wait() {
        let t = Time::start();
        let mut a = ring(1, t.at(0).mono);
        a.linked(peer(2), &said(2, 0), t.at(1).mono);
        assert_eq!(members(&mut a, t.at(1).mono), [1, 2]);
        a.linked(peer(3), &said(3, 1000), t.at(5).mono);
        a.told(&peer(3), &word(3, true, 1000, true), claim(3), t.at(5).mono);
        assert_eq!(members(&mut a, t.at(5).mono), [3]);
        assert_eq!(members(&mut a, t.at(30).mono), [3], "2 is known here only since second 1");
        assert_eq!(members(&mut a, t.at(31).mono), [2, 3]);
        assert_eq!(members(&mut a, t.at(35).mono), [1, 2, 3], "itself the others saw first at 5");
    }

    #[test]
    fn a_member_can_know_of_older_ones_by_hearsay() {
        let (t, mut oldest) = (Time::start(), said(2, 3));
        oldest.oldest_up_for = seconds(40);
        let mut a = ring(1, t.at(0).mono);
        a.linked(peer(2), &oldest, t.at(1).mono);
        assert_eq!(members(&mut a, t.at(1).mono), [0u8; 0], "somebody is older than both");
        assert_eq!(a.oldest_up_for(t.at(11).mono), seconds(50));
        a.unlinked(&peer(2), seconds(0), t.at(12).mono);
        assert_eq!(members(&mut a, t.at(12).mono), [1], "nobody is known that would be");
    }

    #[test]
    fn a_newcomer_takes_over_the_ring_of_the_old() {
        let t = Time::start();
        let mut b = ring(2, t.at(0).mono);
        b.linked(peer(1), &said(1, 100), t.at(1).mono);
        for word in [
            word(1, true, 100, true),
            word(2, true, 0, true),
            word(3, true, 500, true),
            word(4, false, 20, true),
            word(5, true, 3, false),
        ] {
            b.told(&peer(1), &word, claim(9), t.at(1).mono);
        }
        let expected: [(u64, &[u8]); 4] =
            [(1, &[1, 2, 3, 4]), (28, &[1, 2, 3, 4, 5]), (40, &[1, 2, 3, 4, 5]), (41, &[1, 2, 3, 5])];
        for (at, expected) in expected {
            assert_eq!(members(&mut b, t.at(at).mono), expected, "at {at}");
        }
    }

    #[test]
    fn who_is_old_does_not_take_over_what_others_say() {
        let (mut a, t) = old();
        a.linked(peer(2), &said(2, 0), t.at(100).mono);
        a.tick(t.at(130).mono);
        a.linked(peer(3), &said(3, 5000), t.at(140).mono);
        a.told(&peer(3), &word(4, true, 10, true), claim(4), t.at(140).mono);
        a.told(&peer(3), &word(3, true, 5000, true), claim(3), t.at(140).mono);
        assert_eq!(members(&mut a, t.at(159).mono), [1, 2]);
        assert_eq!(members(&mut a, t.at(160).mono), [1, 2, 4], "alive for 30 s, 10 of them before");
        assert_eq!(members(&mut a, t.at(170).mono), [1, 2, 3, 4]);
    }

    #[test]
    fn who_was_alone_takes_over_the_ring_it_comes_to() {
        let (mut a, t) = old();
        a.linked(peer(2), &said(2, 300), t.at(100).mono);
        a.told(&peer(2), &word(2, true, 300, true), claim(2), t.at(100).mono);
        a.told(&peer(2), &word(3, true, 300, true), claim(3), t.at(100).mono);
        assert_eq!(members(&mut a, t.at(100).mono), [1, 2, 3]);
    }

    #[test]
    fn a_dead_member_leaves_after_sixty_seconds_and_not_if_it_restarts_before() {
        let (mut a, t) = old();
        a.linked(peer(2), &said(2, 0), t.at(100).mono);
        a.tick(t.at(130).mono);
        assert!(!a.linked(peer(2), &said(2, 50), t.at(150).mono), "the same life");
        a.unlinked(&peer(2), seconds(15), t.at(215).mono);
        assert_eq!(a.dead_for(&peer(2), t.at(220).mono), Some(seconds(20)));
        assert_eq!(members(&mut a, t.at(259).mono), [1, 2]);
        let again = Introduction { boot: 2, ..said(2, 0) };
        assert!(a.linked(peer(2), &again, t.at(259).mono), "another life");
        assert_eq!(members(&mut a, t.at(261).mono), [1, 2]);
        a.unlinked(&peer(2), seconds(0), t.at(300).mono);
        assert_eq!(members(&mut a, t.at(359).mono), [1, 2]);
        assert_eq!(members(&mut a, t.at(360).mono), [1]);
        a.linked(peer(2), &again, t.at(361).mono);
        assert_eq!(members(&mut a, t.at(390).mono), [1]);
        assert_eq!(members(&mut a, t.at(391).mono), [1, 2]);
    }

    #[test]
    fn who_comes_and_goes_begins_anew_each_time() {
        let (mut a, t) = old();
        a.linked(peer(2), &said(2, 0), t.at(100).mono);
        a.unlinked(&peer(2), seconds(0), t.at(125).mono);
        a.linked(peer(2), &said(2, 26), t.at(126).mono);
        assert_eq!(members(&mut a, t.at(155).mono), [1]);
        a.linked(peer(2), &Introduction { boot: 2, ..said(2, 0) }, t.at(155).mono);
        assert_eq!(members(&mut a, t.at(184).mono), [1]);
        assert_eq!(members(&mut a, t.at(185).mono), [1, 2]);
    }

    #[test]
    fn a_third_that_reaches_both_keeps_them_in_the_ring_of_each_other() {
        let (mut a, t) = old();
        for n in [2, 3] {
            a.linked(peer(n), &said(n, 0), t.at(100).mono);
        }
        a.told(&peer(3), &word(2, true, 50, false), claim(2), t.at(101).mono);
        assert!(a.are_linked(&peer(3), &peer(2)) && !a.are_linked(&peer(2), &peer(3)));
        a.unlinked(&peer(2), seconds(15), t.at(200).mono);
        assert_eq!(a.dead_for(&peer(2), t.at(900).mono), None);
        assert_eq!(members(&mut a, t.at(900).mono), [1, 2, 3]);
        assert!(!a.are_linked(&peer(1), &peer(2)) && a.are_linked(&peer(1), &peer(3)));
        assert!(a.reached_by(&peer(3)).eq([peer(2)]) && a.reached_by(&peer(2)).next().is_none());
        // The third loses it, too, having heard it later than this one.
        a.told(&peer(3), &word(2, false, 5, true), claim(2), t.at(1000).mono);
        assert_eq!(members(&mut a, t.at(1054).mono), [1, 2, 3]);
        assert_eq!(members(&mut a, t.at(1055).mono), [1, 3]);
    }

    #[test]
    fn what_a_member_said_of_others_does_not_outlive_its_link() {
        let (mut a, t) = old();
        a.linked(peer(3), &said(3, 0), t.at(100).mono);
        a.told(&peer(3), &word(2, true, 200, false), claim(2), t.at(100).mono);
        assert_eq!(members(&mut a, t.at(130).mono), [1, 2, 3]);
        a.unlinked(&peer(3), seconds(10), t.at(200).mono);
        assert!(!a.are_linked(&peer(3), &peer(2)));
        assert_eq!(members(&mut a, t.at(249).mono), [1, 2, 3]);
        assert_eq!(members(&mut a, t.at(250).mono), [1]);
        a.told(&peer(3), &word(2, true, 200, false), claim(2), t.at(260).mono);
        assert_eq!(members(&mut a, t.at(400).mono), [1], "who is not linked is not heard");
    }

    #[test]
    fn for_a_minute_the_ring_of_before_counts_too() {
        let (mut a, t) = old();
        for n in 2..=9 {
            a.linked(peer(n), &said(n, 0), t.at(100).mono);
        }
        assert!(a.view().before().is_none());
        let change = a.tick(t.at(130).mono).unwrap();
        assert_eq!((change.from.len(), change.to.len()), (1, 9));
        let key = (100..200).map(|n| Key::peer(&peer(n))).find(|key| !a.view().owns(*key)).unwrap();
        let told = a.view().to_tell(key).collect::<Vec<_>>();
        assert_eq!((told.len(), told.last()), (OWNERS + 1, Some(&peer(1))), "the old owner comes last");
        assert!(a.tick(t.at(189).mono).is_none());
        assert_eq!(a.view().to_tell(key).count(), OWNERS + 1);
        a.tick(t.at(190).mono);
        assert_eq!(a.view().to_tell(key).count(), OWNERS);
    }

    #[test]
    fn of_many_changes_the_ring_of_a_minute_ago_counts() {
        let (mut a, t) = old();
        for n in 2..=4 {
            a.linked(peer(n), &said(n, 0), t.at(100 + 20 * u64::from(n)).mono);
        }
        let before = |ring: &mut Ring, at| {
            ring.tick(t.at(at).mono);
            ring.view().before().map(|before| before.len())
        };
        // The ring grows at 170, 190 and 210.
        assert_eq!(before(&mut a, 169), None);
        let found: Vec<_> =
            [170, 190, 210, 229, 230, 250, 270].into_iter().map(|at| before(&mut a, at)).collect();
        assert_eq!(found, [Some(1), Some(1), Some(1), Some(1), Some(2), Some(3), None]);
    }

    #[test]
    fn the_ring_of_an_edge_is_who_it_has_links_with() {
        let t = Time::start();
        let mut edge = Ring::of_edge(peer(1), operator(1), t.at(0).mono);
        assert_eq!(members(&mut edge, t.at(0).mono), [0u8; 0]);
        assert_eq!(edge.view().owners(Key::service("chat")).iter().count(), 0);
        edge.linked(peer(2), &said(2, 0), t.at(1).mono);
        edge.linked(peer(3), &said(3, 500), t.at(1).mono);
        edge.told(&peer(3), &word(4, true, 500, true), claim(4), t.at(1).mono);
        edge.told(&peer(3), &word(1, true, 500, true), claim(1), t.at(1).mono);
        assert_eq!(members(&mut edge, t.at(1).mono), [2, 3]);
        edge.unlinked(&peer(3), seconds(0), t.at(2).mono);
        assert_eq!(members(&mut edge, t.at(2).mono), [2]);
        assert!(edge.view().before().is_none() && !edge.view().owns(Key::service("chat")));
    }

    #[test]
    fn what_is_said_is_what_is_the_case() {
        let (mut a, t) = old();
        a.linked(peer(2), &said(2, 0), t.at(100).mono);
        a.linked(peer(3), &said(3, 0), t.at(100).mono);
        a.told(&peer(3), &word(4, true, 7, false), claim(4), t.at(100).mono);
        a.told(&peer(3), &word(5, false, 7, false), claim(5), t.at(100).mono);
        a.tick(t.at(100).mono);
        assert_eq!(a.news().collect::<BTreeSet<_>>(), BTreeSet::from([peer(1), peer(2), peer(3)]));
        let now = t.at(110).mono;
        a.unlinked(&peer(2), seconds(4), now);
        let said = |n| a.word(&peer(n), now).unwrap();
        assert_eq!(said(1), Word { in_ring: true, ..word(1, true, 110, true) });
        assert_eq!(said(2), word(2, false, 4, false));
        assert_eq!(said(3), word(3, true, 10, false));
        let never = |n| Word { age: FOREVER, ..word(n, false, 0, false) };
        assert_eq!((said(4), said(5)), (never(4), never(5)), "what others said is theirs to say");
        assert_eq!(
            a.known().into_iter().collect::<BTreeSet<_>>(),
            BTreeSet::from([peer(1), peer(3), peer(4)])
        );
        assert_eq!(a.news().collect::<Vec<_>>(), [peer(2)]);
        assert_eq!(a.dead_for(&peer(77), now), Some(FOREVER));
    }

    #[test]
    fn members_are_bounded_and_the_long_dead_make_room() {
        let t = Time::start();
        let mut a = ring(1, t.at(0).mono);
        let id = |n: u16| {
            let mut bytes = [0; 32];
            bytes[..2].copy_from_slice(&n.to_le_bytes());
            PeerId::new(p2psb_proto::model::PublicKey::from_bytes(bytes))
        };
        a.linked(peer(2), &said(2, 0), t.at(0).mono);
        for n in 0..600 {
            let word = Word { about: id(n), ..word(0, n % 2 == 0, 1, false) };
            a.told(&peer(2), &word, claim(9), t.at(1).mono);
        }
        assert_eq!(a.members.len(), MEMBERS);
        let living = (0..600).filter(|n| n % 2 == 0 && a.word(&id(*n), t.at(1).mono).is_some()).count();
        assert_eq!(living, 300, "none of them had to go");
        a.unlinked(&peer(2), seconds(0), t.at(2).mono);
        a.tick(t.at(2).mono);
        a.tick(t.at(100).mono);
        a.tick(t.at(100).mono + 2 * REMEMBERED);
        assert!(a.members.is_empty() && !a.slots.any());
    }
}
