//! Who watches whom, and what each watch still has to be told: *whose* state may have changed, not what it is. So a slow
//! watcher holds up nobody, and what changes twice before it is read is told once.
//!
//! Invariants:
//! - Every change of a watched peer after a watch began is waiting in it, or was taken from it after the change.
//! - A watch that goes on from a revision has waiting all its peers that changed since, and all others to be looked at: what
//!   time and lost homes did to those meanwhile nobody has noted. Where the log no longer reaches back so far, all wait.
//! - What only time changes comes due: a watched peer has one place at most in the row of deadlines, the one that was named
//!   when it was looked at last.
//! - What all watches hold together is bounded by the number of watched peers, for which [`super::watched`] has limits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Instant;

use p2psb_proto::model::PeerId;

use super::outbox::Waiting;
use super::resume::{Left, Told};

/// Peers that one watch may follow.
pub const WATCH_PEERS: usize = 1000;
/// Changes that are remembered for those who come back: at 2,000 changes a second those of half a minute.
const LOG: usize = 65_536;

/// Names a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(u64);

/// How a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With all its peers.
    Whole,
    /// With those that changed since it was left, and those that are found to be something else.
    Resumed,
}

/// What a watch takes at a step.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whose state to tell.
    pub peers: Vec<PeerId>,
    /// Whom to look at, and to tell of if this is no longer so.
    pub unsure: Vec<(PeerId, Told)>,
    /// If nothing waits any more: with these told, every change up to this revision was.
    pub complete: Option<u64>,
}

#[derive(Debug)]
struct Watched {
    by: Vec<WatchId>,
    /// The home that its state rested on when it was looked at last.
    home: Option<PeerId>,
    due: Option<Instant>,
}

#[derive(Debug)]
struct Watch<W> {
    peers: Box<[PeerId]>,
    waiting: Waiting,
    /// What was told before the watch was left, of those of whom no change is known since, until they are looked at.
    unsure: BTreeMap<PeerId, Told>,
    wake: W,
}

impl<W> Watch<W> {
    /// A peer changed between the two watches, if it is one of this.
    fn changed_before(&mut self, peer: &PeerId) {
        if self.unsure.remove(peer).is_some() {
            self.waiting.push(*peer);
        }
    }

    /// A peer of this watch changed.
    fn changed(&mut self, peer: PeerId) {
        self.unsure.remove(&peer);
        self.waiting.push(peer);
    }
}

/// See the module. `W` wakes whoever tells a watch.
#[derive(Debug)]
pub struct Watches<W> {
    watched: HashMap<PeerId, Watched>,
    /// The watched peers whose state rests on each home.
    of_homes: HashMap<PeerId, HashSet<PeerId>>,
    watches: HashMap<WatchId, Watch<W>>,
    /// The peers that changed last, whether watched or not, the newest at the end.
    log: VecDeque<PeerId>,
    /// Of the newest change.
    revision: u64,
    deadlines: BTreeSet<(Instant, PeerId)>,
    next_id: u64,
}

impl<W> Default for Watches<W> {
    fn default() -> Self {
        Self {
            watched: HashMap::new(),
            of_homes: HashMap::new(),
            watches: HashMap::new(),
            log: VecDeque::new(),
            revision: 0,
            deadlines: BTreeSet::new(),
            next_id: 0,
        }
    }
}

impl<W: Clone> Watches<W> {
    /// Begins a watch of `peers`, none of them twice, from the beginning or from where an earlier one of the same was left.
    pub fn open(&mut self, peers: Box<[PeerId]>, from: Option<&Left>, wake: W) -> (WatchId, Begin) {
        self.next_id += 1;
        let id = WatchId(self.next_id);
        for peer in &peers {
            let watched = self.watched.entry(*peer);
            watched.or_insert(Watched { by: Vec::new(), home: None, due: None }).by.push(id);
        }
        let mut watch = Watch { peers, waiting: Waiting::default(), unsure: BTreeMap::new(), wake };
        let begin = match from.and_then(|from| Some((from, self.since(from.revision)?))) {
            Some((from, changed)) => {
                watch.unsure.extend(from.told.iter().copied());
                changed.for_each(|peer| watch.changed_before(peer));
                Begin::Resumed
            }
            None => {
                watch.peers.iter().for_each(|peer| watch.waiting.push(*peer));
                Begin::Whole
            }
        };
        self.watches.insert(id, watch);
        (id, begin)
    }

    /// What changed after `revision`; `None` if that is not known any more, or was never reached.
    fn since(&self, revision: u64) -> Option<impl Iterator<Item = &PeerId>> {
        let missed = usize::try_from(self.revision.checked_sub(revision)?).ok()?;
        let known = self.log.len().checked_sub(missed)?;
        Some(self.log.iter().skip(known))
    }

    /// Ends a watch.
    pub fn close(&mut self, id: WatchId) {
        let Some(watch) = self.watches.remove(&id) else { return };
        for peer in &watch.peers {
            let Some(watched) = self.watched.get_mut(peer) else { continue };
            watched.by.retain(|by| *by != id);
            if watched.by.is_empty() {
                if let Some(due) = watched.due {
                    self.deadlines.remove(&(due, *peer));
                }
                let home = watched.home;
                self.watched.remove(peer);
                self.leave_home(home, peer);
            }
        }
    }

    /// The record or presence of a peer changed. Names those to be woken.
    pub fn changed(&mut self, peer: PeerId) -> Vec<W> {
        self.revision += 1;
        if self.log.len() >= LOG {
            self.log.pop_front();
        }
        self.log.push_back(peer);
        let Some(watched) = self.watched.get(&peer) else { return Vec::new() };
        let watches = &mut self.watches;
        let woken = watched.by.iter().filter_map(|id| {
            let watch = watches.get_mut(id)?;
            watch.changed(peer);
            Some(watch.wake.clone())
        });
        woken.collect()
    }

    /// What is believed of a home changed for all its peers at once: it is out of reach, or back.
    pub fn home_changed(&mut self, home: &PeerId) -> Vec<W> {
        let theirs: Vec<PeerId> = self.of_homes.get(home).into_iter().flatten().copied().collect();
        theirs.into_iter().flat_map(|peer| self.changed(peer)).collect()
    }

    /// Takes the next peers to tell of, `most` at most; `None` once the watch has ended.
    pub fn take(&mut self, id: WatchId, most: usize) -> Option<Taken> {
        let watch = self.watches.get_mut(&id)?;
        let peers = watch.waiting.take(most);
        let room = most.saturating_sub(peers.len());
        let unsure = std::iter::from_fn(|| watch.unsure.pop_first()).take(room).collect();
        let is_complete = watch.waiting.is_empty() && watch.unsure.is_empty();
        Some(Taken { peers, unsure, complete: is_complete.then_some(self.revision) })
    }

    /// A watched peer was looked at: its state rests on this home's word, and may change at `due` by time alone.
    pub fn looked(&mut self, peer: &PeerId, home: Option<PeerId>, due: Option<Instant>) {
        let Some(watched) = self.watched.get_mut(peer) else { return };
        let (before_home, before) =
            (std::mem::replace(&mut watched.home, home), std::mem::replace(&mut watched.due, due));
        if before_home != home {
            self.leave_home(before_home, peer);
            if let Some(home) = home {
                self.of_homes.entry(home).or_default().insert(*peer);
            }
        }
        if before == due {
            return;
        }
        if let Some(before) = before {
            self.deadlines.remove(&(before, *peer));
        }
        if let Some(due) = due {
            self.deadlines.insert((due, *peer));
        }
    }

    fn leave_home(&mut self, home: Option<PeerId>, peer: &PeerId) {
        let Some((home, peers)) = home.and_then(|home| Some((home, self.of_homes.get_mut(&home)?))) else {
            return;
        };
        peers.remove(peer);
        if peers.is_empty() {
            self.of_homes.remove(&home);
        }
    }

    /// Lets time pass: peers whose deadline has come, `most` at most, have changed.
    pub fn pass(&mut self, now: Instant, most: usize) -> Vec<W> {
        let mut woken = Vec::new();
        for _ in 0..most {
            let Some(&(due, peer)) = self.deadlines.first().filter(|(due, _)| *due <= now) else { break };
            self.deadlines.remove(&(due, peer));
            if let Some(watched) = self.watched.get_mut(&peer) {
                watched.due = None;
            }
            woken.extend(self.changed(peer));
        }
        woken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::testing::{Time, peer};

    fn peers(numbers: &[u8]) -> Box<[PeerId]> {
        numbers.iter().map(|n| peer(*n)).collect()
    }

    fn all(watches: &mut Watches<u8>, id: WatchId) -> Vec<PeerId> {
        watches.take(id, 100).unwrap().peers
    }

    #[test]
    fn a_watch_begins_with_everybody_and_goes_on_with_what_changes_each_once() {
        let mut watches = Watches::default();
        let (one, begin) = watches.open(peers(&[1, 2, 3]), None, 1);
        assert_eq!(begin, Begin::Whole);
        let first = watches.take(one, 2).unwrap();
        assert_eq!((first.peers, first.complete), (vec![peer(1), peer(2)], None));
        assert_eq!(watches.changed(peer(1)), [1]);
        assert_eq!(watches.changed(peer(1)), [1]);
        assert!(watches.changed(peer(9)).is_empty(), "nobody watches it");
        let rest = watches.take(one, 9).unwrap();
        assert_eq!((rest.peers, rest.complete), (vec![peer(3), peer(1)], Some(3)));
        let nothing = Taken { peers: vec![], unsure: vec![], complete: Some(3) };
        assert_eq!(watches.take(one, 9), Some(nothing));
    }

    /// Left at a revision, with all told to be online.
    fn left(numbers: &[u8], revision: u64) -> Left {
        Left { revision, told: peers(numbers).iter().map(|peer| (*peer, Told::Online)).collect() }
    }

    #[test]
    fn a_watch_that_comes_back_hears_what_it_missed_and_looks_at_all_others_once() {
        let mut watches = Watches::default();
        let (one, _) = watches.open(peers(&[1, 2, 3, 4]), None, 1);
        watches.changed(peer(1));
        let revision = watches.take(one, 9).unwrap().complete.unwrap();
        watches.close(one);
        for n in [2, 9, 2] {
            watches.changed(peer(n));
        }
        let left = left(&[1, 2, 3, 4], revision);
        let (again, begin) = watches.open(peers(&[1, 2, 3, 4]), Some(&left), 1);
        assert_eq!(begin, Begin::Resumed);
        let first = watches.take(again, 2).unwrap();
        assert_eq!((&first.peers[..], first.unsure.len(), first.complete), (&[peer(2)][..], 1, None));
        // What changes before it is looked at is told in any case.
        let looked_at = first.unsure[0].0;
        let not_yet = [1, 3, 4].map(peer).into_iter().filter(|one| *one != looked_at).collect::<Vec<_>>();
        watches.changed(not_yet[0]);
        let rest = watches.take(again, 9).unwrap();
        assert_eq!((rest.peers, rest.unsure), (vec![not_yet[0]], vec![(not_yet[1], Told::Online)]));
        assert_eq!(rest.complete, Some(watches.revision));
    }

    #[test]
    fn a_revision_that_is_too_old_or_was_never_reached_begins_anew() {
        let mut watches = Watches::default();
        for _ in 0..=LOG {
            watches.changed(peer(9));
        }
        for (from, begin) in [(0, Begin::Whole), (1, Begin::Resumed), (LOG as u64 + 2, Begin::Whole)] {
            let (id, found) = watches.open(peers(&[1]), Some(&left(&[1], from)), 1);
            assert_eq!(found, begin, "from {from}");
            let taken = watches.take(id, 9).unwrap();
            let whole = usize::from(begin == Begin::Whole);
            assert_eq!((taken.peers.len(), taken.unsure.len()), (whole, 1 - whole));
        }
    }

    #[test]
    fn what_time_changes_comes_due_once() {
        let (mut watches, t) = (Watches::default(), Time::start());
        let (one, _) = watches.open(peers(&[1, 2]), None, 1);
        all(&mut watches, one);
        watches.looked(&peer(1), None, Some(t.at(10).mono));
        watches.looked(&peer(1), None, Some(t.at(20).mono));
        watches.looked(&peer(2), None, Some(t.at(15).mono));
        assert!(watches.pass(t.at(14).mono, 9).is_empty());
        assert_eq!(watches.pass(t.at(30).mono, 1), [1], "one at a time");
        assert_eq!(all(&mut watches, one), [peer(2)]);
        assert_eq!(watches.pass(t.at(30).mono, 9), [1]);
        assert_eq!(all(&mut watches, one), [peer(1)]);
        assert!(watches.pass(t.at(30).mono + Duration::from_secs(9999), 9).is_empty());
    }

    #[test]
    fn a_home_that_is_lost_changes_its_peers_only() {
        let mut watches = Watches::default();
        let (one, _) = watches.open(peers(&[1, 2, 3]), None, 1);
        all(&mut watches, one);
        for n in [1, 3] {
            watches.looked(&peer(n), Some(peer(200)), None);
        }
        watches.looked(&peer(2), Some(peer(201)), None);
        assert_eq!(watches.home_changed(&peer(200)).len(), 2);
        let mut told = all(&mut watches, one);
        told.sort_unstable();
        assert_eq!(told, {
            let mut both = vec![peer(1), peer(3)];
            both.sort_unstable();
            both
        });
    }

    #[test]
    fn watches_that_end_leave_nothing_behind() {
        let (mut watches, t) = (Watches::default(), Time::start());
        let (one, _) = watches.open(peers(&[1, 2, 3]), None, 1);
        let (two, _) = watches.open(peers(&[1]), None, 2);
        assert_eq!(watches.changed(peer(1)), [1, 2]);
        watches.looked(&peer(2), None, Some(t.at(1).mono));
        watches.close(one);
        watches.close(one);
        assert_eq!(watches.take(one, 1), None);
        assert_eq!(watches.changed(peer(1)), [2]);
        watches.close(two);
        assert!(watches.watched.is_empty() && watches.deadlines.is_empty() && watches.watches.is_empty());
    }

    #[test]
    fn a_home_that_changes_is_looked_at_with_its_own_peers_alone() {
        let mut watches = Watches::default();
        let (id, _) = watches.open(peers(&[1, 2, 3]), None, 1);
        all(&mut watches, id);
        for (n, home) in [(1, Some(50)), (2, Some(51)), (3, None), (2, Some(50)), (1, None)] {
            watches.looked(&peer(n), home.map(peer), None);
        }
        assert_eq!(watches.of_homes.keys().collect::<Vec<_>>(), [&peer(50)]);
        assert!(watches.home_changed(&peer(51)).is_empty());
        assert_eq!(watches.home_changed(&peer(50)), [1]);
        assert_eq!(all(&mut watches, id), [peer(2)]);
        watches.close(id);
        assert!(watches.of_homes.is_empty() && watches.home_changed(&peer(50)).is_empty());
    }
}
