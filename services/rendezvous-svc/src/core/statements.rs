//! What homes said of peers, found by the peer and by the home.
//!
//! Invariants:
//! - Of each peer and home there is one statement at most; it stands in the chain of its peer and in the row of its home.
//! - `offline` names exactly those that say OFFLINE, by when their peers were heard.
//! - A peer has a place while something is said of it.
//!
//! There may be millions: what stands beside each are numbers.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::Bytes;
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::PresenceState;

use super::places::{Numbered, Places, Slot};
use super::presence::Statement;
use super::row::Row;

/// What a home said.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// In which telling of the home.
    pub(super) telling: u64,
    pub(super) statement: Statement,
    pub(super) revision: u64,
    pub(super) proof: Bytes,
}

impl Heard {
    pub(super) fn is_offline(&self) -> bool {
        self.statement.state == PresenceState::Offline
    }
}

/// The same at its place.
#[derive(Debug)]
pub(super) struct Kept {
    peer: Slot,
    /// The place of the home, wherever homes are kept.
    pub(super) home: Slot,
    pub(super) heard: Heard,
    /// The next one of the same peer.
    next: Option<Slot>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Statements {
    kept: Numbered<Kept>,
    /// The first statement of each peer.
    peers: Places<Slot>,
    /// Under the numbers of homes.
    of_homes: Row,
    offline: BTreeSet<(Instant, Slot)>,
}

impl Statements {
    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.kept.len()
    }

    /// What is there.
    pub(super) fn get(&self, at: Slot) -> Option<&Kept> {
        self.kept.get(at)
    }

    /// Of whom that is said.
    pub(super) fn peer(&self, at: Slot) -> Option<&PeerId> {
        self.peers.peer(self.get(at)?.peer)
    }

    /// What is said of a peer: each home's word once.
    pub(super) fn of_peer<'a>(&'a self, peer: &PeerId) -> impl Iterator<Item = (Slot, &'a Kept)> + use<'a> {
        let first = self.peers.slot(peer).and_then(|place| self.first(place));
        let all = std::iter::successors(first, |at| self.get(*at)?.next);
        all.filter_map(|at| Some((at, self.get(at)?)))
    }

    fn first(&self, peer: Slot) -> Option<Slot> {
        self.peers.get(peer).map(|(_, first)| *first)
    }

    /// What a home said: of each of its peers one statement.
    pub(super) fn of_home(&self, home: Slot) -> impl Iterator<Item = (Slot, &Kept)> {
        self.of_homes.under(home.number().into()).filter_map(|at| Some((at, self.get(at)?)))
    }

    /// What a home said, behind one of its statements; if that is none of them any more, all.
    pub(super) fn of_home_behind(
        &self,
        home: Slot,
        after: Option<Slot>,
    ) -> impl Iterator<Item = (Slot, &Kept)> {
        let after = after.filter(|at| self.get(*at).is_some_and(|kept| kept.home == home));
        let rest = after.into_iter().flat_map(|at| self.of_homes.behind(at));
        let all = after.is_none().then(|| self.of_homes.under(home.number().into()));
        rest.chain(all.into_iter().flatten()).filter_map(|at| Some((at, self.get(at)?)))
    }

    /// All statements behind one, in an order that stays.
    pub(super) fn after(&self, cursor: Option<Slot>) -> impl Iterator<Item = (Slot, &Kept)> {
        self.kept.after(cursor)
    }

    /// The statement of a home about a peer.
    pub(super) fn find(&self, peer: &PeerId, home: Slot) -> Option<(Slot, &Kept)> {
        self.of_peer(peer).find(|(_, kept)| kept.home == home)
    }

    /// Of those that say OFFLINE the one whose peer was heard longest ago.
    pub(super) fn first_offline(&self) -> Option<Slot> {
        self.offline.first().map(|(_, at)| *at)
    }

    /// Keeps the word of a home that has said nothing of this peer.
    pub(super) fn insert(&mut self, peer: PeerId, home: Slot, heard: Heard) {
        let at_peer = self.peers.slot(&peer);
        let next = at_peer.and_then(|place| self.first(place));
        let (is_offline, when) = (heard.is_offline(), heard.statement.heard);
        // The place of the peer follows; nobody looks before.
        let Some(at) = self.kept.insert(Kept { peer: Slot::of(0), home, heard, next }) else { return };
        let place = match at_peer {
            Some(place) => {
                if let Some(first) = self.peers.get_mut(place) {
                    *first = at;
                }
                Some(place)
            }
            None => self.peers.insert(peer, at),
        };
        let Some((place, kept)) = place.zip(self.kept.get_mut(at)) else {
            self.kept.remove(at);
            return;
        };
        kept.peer = place;
        self.of_homes.insert(home.number().into(), at);
        if is_offline {
            self.offline.insert((when, at));
        }
    }

    /// Keeps something else that the same home says of the same peer. Returns what it said before.
    pub(super) fn replace(&mut self, at: Slot, heard: Heard) -> Option<Heard> {
        let kept = self.kept.get_mut(at)?;
        let (is_offline, when) = (heard.is_offline(), heard.statement.heard);
        let before = std::mem::replace(&mut kept.heard, heard);
        self.offline.remove(&(before.statement.heard, at));
        if is_offline {
            self.offline.insert((when, at));
        }
        Some(before)
    }

    /// Forgets one.
    pub(super) fn remove(&mut self, at: Slot) {
        let Some(Kept { peer, home, heard, next }) = self.kept.remove(at) else { return };
        self.of_homes.remove(home.number().into(), at);
        self.offline.remove(&(heard.statement.heard, at));
        match (self.first(peer), next) {
            (Some(first), None) if first == at => drop(self.peers.remove(peer)),
            (Some(first), Some(next)) if first == at => {
                if let Some(first) = self.peers.get_mut(peer) {
                    *first = next;
                }
            }
            (first, next) => {
                let before = std::iter::successors(first, |one| self.get(*one)?.next)
                    .find(|one| self.get(*one).is_some_and(|one| one.next == Some(at)));
                if let Some(before) = before.and_then(|before| self.kept.get_mut(before)) {
                    before.next = next;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use p2psb_proto::model::presence::PresenceSource;

    use super::*;
    use crate::core::testing::{Time, peer};

    fn heard(state: PresenceState, heard: Instant, revision: u64) -> Heard {
        let source = PresenceSource::Session;
        let statement = Statement { session_seq: 1, state, source, heard, until: None };
        Heard { telling: 0, statement, revision, proof: Bytes::new() }
    }

    #[test]
    fn what_was_said_is_found_by_its_peer_and_by_its_home() {
        let (mut all, mut rng, start) = (Statements::default(), fastrand::Rng::with_seed(5), Time::start());
        let peers: Vec<PeerId> = (0..8).map(peer).collect();
        let mut expected = BTreeMap::new();
        for revision in 0..20_000 {
            let (n, home, at) = (rng.usize(0..8), rng.u32(0..6), start.at(rng.u64(0..50)).mono);
            let state = if rng.bool() { PresenceState::Offline } else { PresenceState::Online };
            let known = all.find(&peers[n], Slot::of(home)).map(|(at, _)| at);
            assert_eq!(known.is_some(), expected.contains_key(&(n, home)));
            match known {
                Some(known) if rng.u8(0..3) == 0 => {
                    assert_eq!(all.peer(known), Some(&peers[n]));
                    all.remove(known);
                    expected.remove(&(n, home));
                }
                Some(known) => {
                    let before = all.replace(known, heard(state, at, revision)).unwrap();
                    let last = expected.insert((n, home), (revision, state, at));
                    assert_eq!(last.map(|(revision, ..)| revision), Some(before.revision));
                }
                None => {
                    all.insert(peers[n], Slot::of(home), heard(state, at, revision));
                    expected.insert((n, home), (revision, state, at));
                }
            }
            let found: BTreeMap<_, _> = all
                .of_peer(&peers[n])
                .map(|(_, kept)| ((n, kept.home.number()), kept.heard.revision))
                .collect();
            let of_peer =
                expected.range((n, 0)..=(n, u32::MAX)).map(|(key, (revision, ..))| (*key, *revision));
            assert!(found.into_iter().eq(of_peer));
            let of_home: BTreeSet<u64> =
                all.of_home(Slot::of(home)).map(|(_, kept)| kept.heard.revision).collect();
            let said = expected.iter().filter(|((_, by), _)| *by == home);
            assert_eq!(of_home, said.map(|(_, (revision, ..))| *revision).collect());
            let offline = expected.values().filter(|(_, state, _)| *state == PresenceState::Offline);
            let first = all.first_offline().map(|at| all.get(at).unwrap().heard.statement.heard);
            assert_eq!(first, offline.map(|(.., at)| *at).min());
            assert_eq!(all.len(), expected.len());
        }
        let left: Vec<Slot> = all.after(None).map(|(at, _)| at).collect();
        left.into_iter().for_each(|at| all.remove(at));
        assert!(all.len() == 0 && all.offline.is_empty() && all.peers.after(None).next().is_none());
    }

    #[test]
    fn a_statement_is_small() {
        assert!(size_of::<Option<Kept>>() <= 112, "{}", size_of::<Option<Kept>>());
    }

    #[test]
    fn of_a_home_only_its_own_statements_are_met() {
        let (mut all, now) = (Statements::default(), Time::start().at(0).mono);
        for n in 0..200 {
            let home = Slot::of(u32::from(n >= 3));
            all.insert(peer(n), home, heard(PresenceState::Online, now + Duration::from_secs(n.into()), 1));
        }
        assert_eq!((all.of_home(Slot::of(0)).count(), all.of_home(Slot::of(1)).count()), (3, 197));
        let (mut after, mut met) = (None, 0);
        while let Some((last, _)) = all.of_home_behind(Slot::of(1), after).take(10).last() {
            met += all.of_home_behind(Slot::of(1), after).take(10).count();
            after = Some(last);
        }
        assert_eq!(met, 197);
        let of_other = all.of_home(Slot::of(0)).next().map(|(at, _)| at);
        assert_eq!(all.of_home_behind(Slot::of(1), of_other).count(), 197, "it begins anew");
    }
}
