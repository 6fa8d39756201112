//! How fresh it is what homes say, and whether they are alive: as their last marks tell.
//!
//! A mark is a sign of life, and says up to when all that changed at the home was told. While more changes than goes over a link the
//! second lags behind; the home is no less alive for that.
//!
//! A home is heard over a link with this server; or else by members that have links with it and pass on what it says. These say
//! whom they hear, and their marks count for all of those.
//!
//! Invariants:
//! - A mark is kept where it came: at the home that made it, or at the *way* over which a member passes on what others say. So it
//!   costs the same however many homes there are, and what follows for a home is found when somebody asks.
//! - A way is one link with a member. When it ends its last mark stays as it was; over the next one the member says anew whom it
//!   hears.
//! - A home with a link here is as fresh as its own marks, whatever others say.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use super::homes::home_loss_grace;
use super::places::{Places, Slot};

/// Ways to one home that count: an edge keeps three links.
const WAYS: usize = 8;

/// What follows from marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Up to when everything was told.
    pub as_of: Instant,
    /// The last sign of life.
    pub alive: Instant,
}

impl Pulse {
    /// Everything was told, up to then.
    #[must_use]
    pub const fn all_at(at: Instant) -> Self {
        Self { as_of: at, alive: at }
    }

    /// The same as somebody tells it who heard it so long before.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        let earlier = |at: Instant| at.checked_sub(by).unwrap_or(at);
        Self { as_of: earlier(self.as_of), alive: earlier(self.alive) }
    }

    fn max(self, other: Self) -> Self {
        Self { as_of: self.as_of.max(other.as_of), alive: self.alive.max(other.alive) }
    }
}

/// Names one link with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way(u64);

/// What comes over one link with a member.
#[derive(Debug)]
struct Passed {
    /// Not known before the first mark.
    up_to: Option<Pulse>,
    /// The link has not ended.
    is_open: bool,
}

/// What is known of a home itself.
#[derive(Debug)]
pub(super) struct Home {
    heard: Pulse,
    /// Counts how often this home began to tell all it knows.
    pub(super) telling: u64,
    /// Its live sessions, as it said last.
    pub(super) sessions: u64,
    /// Of a home that others hear: from then on only what it said again since it restarted counts.
    pub(super) repeated_by: Option<Instant>,
    /// It has a link with this server, over which it has said something.
    is_linked: bool,
    /// Over which others say that they hear it.
    ways: Vec<Way>,
}

impl Home {
    /// Without a mark for so long its peers are OFFLINE.
    pub(super) fn grace(&self) -> Duration {
        home_loss_grace(self.sessions)
    }

    fn was_heard(&mut self, heard: Pulse) {
        self.heard = self.heard.max(heard);
    }

    /// It gave a sign of life, which says nothing of what it has still to tell.
    fn lives(&mut self, now: Instant) {
        self.heard.alive = self.heard.alive.max(now);
    }

    /// A way leads here no longer: what came over it up to then stays true.
    fn leave(&mut self, way: Way, ways: &BTreeMap<Way, Passed>) {
        self.ways.retain(|one| *one != way);
        if let Some(up_to) = ways.get(&way).and_then(|passed| passed.up_to).filter(|_| !self.is_linked) {
            self.was_heard(up_to);
        }
    }

    /// The same of all ways that ended.
    fn leave_ended(&mut self, ways: &BTreeMap<Way, Passed>) {
        let is_open = |way: &Way| ways.get(way).is_some_and(|passed| passed.is_open);
        let ended: Vec<Way> = self.ways.iter().copied().filter(|way| !is_open(way)).collect();
        ended.into_iter().for_each(|way| self.leave(way, ways));
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Marks {
    homes: Places<Home>,
    /// Those that some home may be heard over.
    ways: BTreeMap<Way, Passed>,
    /// Those of members that have a link.
    open: HashMap<PeerId, Way>,
    last: u64,
    /// Those that had ended when the sweep began that is under way.
    ended: Vec<Way>,
}

impl Marks {
    /// Where a home is kept.
    pub(super) fn slot(&self, home: &PeerId) -> Option<Slot> {
        self.homes.slot(home)
    }

    /// Who is there, and what is known of it.
    pub(super) fn get(&self, home: Slot) -> Option<&(PeerId, Home)> {
        self.homes.get(home)
    }

    /// What is known of a home.
    pub(super) fn home(&self, home: &PeerId) -> Option<&Home> {
        self.homes.get(self.slot(home)?).map(|(_, home)| home)
    }

    /// The same, to be changed.
    pub(super) fn home_mut(&mut self, home: &PeerId) -> Option<&mut Home> {
        self.homes.get_mut(self.homes.slot(home)?)
    }

    /// The place of a home; a new one, of a home that was heard so, if it has none.
    pub(super) fn enter(&mut self, home: PeerId, heard: Pulse) -> Option<Slot> {
        let new =
            Home { heard, telling: 0, sessions: 0, repeated_by: None, is_linked: false, ways: Vec::new() };
        self.slot(&home).or_else(|| self.homes.insert(home, new))
    }

    /// How a home was heard last.
    pub(super) fn heard(&self, home: &Home) -> Pulse {
        let ways = home.ways.iter().filter(|_| !home.is_linked);
        ways.filter_map(|way| self.ways.get(way)?.up_to).fold(home.heard, Pulse::max)
    }

    /// Whether the peers of a home are OFFLINE because it has been silent for so long.
    pub(super) fn is_gone(&self, home: &Home, now: Instant) -> bool {
        now.saturating_duration_since(self.heard(home).alive) >= home.grace()
    }

    /// All homes of which that is so.
    pub(super) fn gone(&self, now: Instant) -> impl Iterator<Item = Slot> {
        let gone = self.homes.after(None).filter(move |(_, (_, home))| self.is_gone(home, now));
        gone.map(|(slot, _)| slot)
    }

    /// A link with a member is up: it is a home that is heard here, and a way to others.
    pub(super) fn linked(&mut self, member: PeerId, now: Instant) {
        let slot = self.speaks(member, now);
        if let Some(home) = slot.and_then(|slot| self.homes.get_mut(slot)) {
            home.lives(now);
        }
        self.end_way(&member);
        self.last += 1;
        self.open.insert(member, Way(self.last));
        self.ways.insert(Way(self.last), Passed { up_to: None, is_open: true });
    }

    fn end_way(&mut self, member: &PeerId) {
        let way = self.open.remove(member).and_then(|way| self.ways.get_mut(&way));
        if let Some(passed) = way {
            passed.is_open = false;
        }
    }

    /// A home says something over its link with this server.
    pub(super) fn speaks(&mut self, home: PeerId, now: Instant) -> Option<Slot> {
        let slot = self.enter(home, Pulse::all_at(now))?;
        let up_to = self.homes.get(slot).map(|(_, home)| self.heard(home))?;
        let home = self.homes.get_mut(slot)?;
        // Others count no longer; up to here it was heard by them.
        home.was_heard(up_to);
        home.is_linked = true;
        Some(slot)
    }

    /// The link with a home ended.
    pub(super) fn unlinked(&mut self, home: &PeerId) {
        self.end_way(home);
        if let Some(home) = self.home_mut(home) {
            home.is_linked = false;
        }
    }

    /// The linked member `by` hears a home, or does no longer. Of a home that was not known nothing is fresher than `up_to`.
    pub(super) fn heard_by(&mut self, by: &PeerId, home: PeerId, is_heard: bool, up_to: Instant) {
        let Some(way) = self.open.get(by).copied() else { return };
        let slot = if is_heard { self.enter(home, Pulse::all_at(up_to)) } else { self.slot(&home) };
        let Some(home) = slot.and_then(|slot| self.homes.get_mut(slot)) else { return };
        match (home.ways.contains(&way), is_heard) {
            (true, false) => home.leave(way, &self.ways),
            (false, true) => {
                home.leave_ended(&self.ways);
                if home.ways.len() < WAYS {
                    home.ways.push(way);
                }
            }
            (true, true) | (false, false) => {}
        }
    }

    /// A home made a mark over its link with this server.
    pub(super) fn mark(&mut self, home: &PeerId, sessions: u64, heard: Pulse) {
        if let Some(home) = self.home_mut(home) {
            home.was_heard(heard);
            home.sessions = sessions;
        }
    }

    /// A member made a mark that counts for the homes that it hears.
    pub(super) fn mark_through(&mut self, member: &PeerId, heard: Pulse) {
        let way = self.open.get(member).and_then(|way| self.ways.get_mut(way));
        if let Some(passed) = way {
            passed.up_to = Some(passed.up_to.map_or(heard, |before| before.max(heard)));
        }
    }

    /// Others heard a home so.
    pub(super) fn was_heard(&mut self, home: &PeerId, heard: Pulse) {
        if let Some(home) = self.home_mut(home) {
            home.was_heard(heard);
        }
    }

    /// Forgets homes that have been silent for long, and of which nothing is kept, as `is_spoken` knows; and ways that ended. Looks
    /// at `most` of them behind `after`, and returns from where to go on.
    pub(super) fn sweep(
        &mut self,
        (after, most): (Option<Slot>, usize),
        is_spoken: impl Fn(Slot) -> bool,
        now: Instant,
    ) -> Option<Slot> {
        if after.is_none() {
            let ended = self.ways.iter().filter(|(_, passed)| !passed.is_open);
            self.ended = ended.map(|(way, _)| *way).collect();
        }
        let page: Vec<Slot> = self.homes.after(after).take(most).map(|(slot, _)| slot).collect();
        for slot in &page {
            let slot = *slot;
            let Some(home) = self.homes.get_mut(slot) else { continue };
            home.leave_ended(&self.ways);
            let silent = now.saturating_duration_since(home.heard.alive);
            if home.ways.is_empty() && silent >= home.grace() && !is_spoken(slot) {
                self.homes.remove(slot);
            }
        }
        let last = page.last().copied().filter(|_| page.len() == most);
        if last.is_none() {
            // No home refers to them any more.
            for way in std::mem::take(&mut self.ended) {
                self.ways.remove(&way);
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Time, peer};

    const FAR: u8 = 100;

    fn fresh(marks: &Marks) -> Instant {
        marks.heard(marks.home(&peer(FAR)).unwrap()).as_of
    }

    fn sweep(marks: &mut Marks, now: Instant) {
        let mut after = None;
        while let Some(last) = marks.sweep((after, 1), |_| false, now) {
            after = Some(last);
        }
    }

    #[test]
    fn a_home_that_others_hear_is_as_fresh_as_the_freshest_of_them() {
        let (mut marks, t) = (Marks::default(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        marks.linked(peer(1), at(0));
        marks.linked(peer(2), at(0));
        marks.mark_through(&peer(1), Pulse::all_at(at(50)));
        marks.heard_by(&peer(3), peer(FAR), true, at(9));
        assert!(marks.home(&peer(FAR)).is_none(), "3 has no link");
        marks.heard_by(&peer(2), peer(FAR), true, at(10));
        assert_eq!(fresh(&marks), at(10), "1 does not hear it");
        marks.mark_through(&peer(2), Pulse::all_at(at(20)));
        marks.mark_through(&peer(2), Pulse::all_at(at(19)));
        assert_eq!(fresh(&marks), at(20));
        marks.heard_by(&peer(1), peer(FAR), true, at(20));
        assert_eq!(fresh(&marks), at(50));
        marks.mark_through(&peer(1), Pulse::all_at(at(60)));
        marks.heard_by(&peer(1), peer(FAR), false, at(70));
        marks.mark_through(&peer(1), Pulse::all_at(at(70)));
        assert_eq!(fresh(&marks), at(60), "it was heard up to then");
    }

    #[test]
    fn what_came_over_a_link_stays_as_it_was_when_the_link_ends() {
        let (mut marks, t) = (Marks::default(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        marks.linked(peer(1), at(0));
        marks.heard_by(&peer(1), peer(FAR), true, at(0));
        marks.mark_through(&peer(1), Pulse::all_at(at(10)));
        marks.unlinked(&peer(1));
        marks.mark_through(&peer(1), Pulse::all_at(at(20)));
        assert_eq!(fresh(&marks), at(10));
        marks.linked(peer(1), at(30));
        marks.mark_through(&peer(1), Pulse::all_at(at(40)));
        assert_eq!(fresh(&marks), at(10), "it has not said again that it hears it");
        sweep(&mut marks, at(41));
        assert_eq!((fresh(&marks), marks.ways.len()), (at(10), 1), "the way that ended is forgotten");
        marks.heard_by(&peer(1), peer(FAR), true, at(40));
        assert_eq!(fresh(&marks), at(40));
    }

    #[test]
    fn a_home_whose_link_came_back_lives_at_once_and_is_no_fresher_before_it_says_so() {
        let (mut marks, t) = (Marks::default(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        marks.linked(peer(FAR), at(0));
        marks.mark(&peer(FAR), 1, Pulse::all_at(at(5)));
        marks.unlinked(&peer(FAR));
        marks.linked(peer(FAR), at(60));
        let heard = marks.heard(marks.home(&peer(FAR)).unwrap());
        assert_eq!(heard, Pulse { as_of: at(5), alive: at(60) });
    }

    #[test]
    fn a_home_with_a_link_here_is_as_fresh_as_its_own_marks() {
        let (mut marks, t) = (Marks::default(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        marks.linked(peer(1), at(0));
        marks.speaks(peer(FAR), at(5));
        marks.heard_by(&peer(1), peer(FAR), true, at(5));
        marks.mark_through(&peer(1), Pulse::all_at(at(20)));
        marks.mark(&peer(FAR), 7, Pulse::all_at(at(10)));
        assert_eq!((fresh(&marks), marks.home(&peer(FAR)).unwrap().sessions), (at(10), 7));
        marks.unlinked(&peer(FAR));
        assert_eq!(fresh(&marks), at(20), "now the others count");
        marks.speaks(peer(FAR), at(30));
        assert_eq!(fresh(&marks), at(20), "what they knew stays true");
        marks.mark_through(&peer(1), Pulse::all_at(at(40)));
        marks.heard_by(&peer(1), peer(FAR), false, at(40));
        marks.unlinked(&peer(FAR));
        assert_eq!(fresh(&marks), at(20), "over its link no mark came, and nobody else counted");
    }

    #[test]
    fn a_mark_of_who_hears_many_homes_touches_none_of_them() {
        let (mut marks, t) = (Marks::default(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        marks.linked(peer(1), at(0));
        (2..=250).for_each(|home| marks.heard_by(&peer(1), peer(home), true, at(0)));
        marks.mark_through(&peer(1), Pulse::all_at(at(10)));
        let homes = || marks.homes.after(None).map(|(_, (_, home))| home).filter(|home| !home.is_linked);
        assert!(homes().all(|home| home.heard.as_of == at(0) && marks.heard(home).as_of == at(10)));
        assert_eq!((homes().count(), marks.ways.len()), (249, 1));
    }

    #[test]
    fn ways_to_a_home_are_bounded_and_those_that_ended_make_room() {
        let (mut marks, t) = (Marks::default(), Time::start());
        let now = t.at(0).mono;
        for member in 0..20 {
            marks.linked(peer(member), now);
            marks.heard_by(&peer(member), peer(FAR), true, now);
        }
        assert_eq!(marks.home(&peer(FAR)).unwrap().ways.len(), WAYS);
        (0..19).for_each(|member| marks.unlinked(&peer(member)));
        marks.heard_by(&peer(19), peer(FAR), true, now);
        assert_eq!(marks.home(&peer(FAR)).unwrap().ways, [Way(20)]);
        marks.mark_through(&peer(19), Pulse::all_at(t.at(10).mono));
        assert_eq!(fresh(&marks), t.at(10).mono);
        marks.heard_by(&peer(19), peer(FAR), false, now);
        sweep(&mut marks, t.at(99).mono);
        assert!(marks.home(&peer(FAR)).is_some());
        sweep(&mut marks, t.at(100).mono);
        assert!(marks.home(&peer(FAR)).is_none() && marks.ways.len() == 1);
    }

    #[test]
    fn who_lags_behind_with_its_changes_is_no_less_alive() {
        let (mut marks, t) = (Marks::default(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        marks.linked(peer(1), at(0));
        marks.heard_by(&peer(1), peer(FAR), true, at(0));
        marks.mark_through(&peer(1), Pulse { as_of: at(3), alive: at(100) });
        let heard = |marks: &Marks, n| marks.heard(marks.home(&peer(n)).unwrap());
        assert_eq!(heard(&marks, FAR), Pulse { as_of: at(3), alive: at(100) });
        assert!(!marks.is_gone(marks.home(&peer(FAR)).unwrap(), at(189)));
        assert!(marks.is_gone(marks.home(&peer(FAR)).unwrap(), at(190)));
        marks.mark(&peer(1), 0, Pulse { as_of: at(8), alive: at(90) });
        marks.mark(&peer(1), 0, Pulse { as_of: at(9), alive: at(80) });
        assert_eq!(heard(&marks, 1), Pulse { as_of: at(9), alive: at(90) });
    }
}
