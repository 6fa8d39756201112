//! Peers of an edge whose records were not taken, though they may be later: they changed too soon after the last time, or found no
//! room. The edge is asked for them again, and says how they are then: so of many changes the newest is taken, and none is kept here.
//!
//! Invariant: each peer waits once, and for each of the two reasons as many as [`MOST`]. Whoever finds no place is told of again by its
//! edge when it signs its next record.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use super::admission::LimitReached;

/// Peers of one edge that wait for one reason: about 100 bytes each.
pub const MOST: usize = 4096;
/// So many are asked for at once,
pub const STEP: usize = 64;
/// and so long is waited before others are.
pub const PAUSE: Duration = Duration::from_millis(250);
/// After so long it is looked again whether there is room.
pub const ROOM_PAUSE: Duration = Duration::from_secs(5);

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The peer has to wait for so long.
    TooSoon(Duration),
    /// Who brings it has no room, by this limit.
    NoRoom(LimitReached),
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    due: Instant,
    needs_room: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Again {
    peers: HashMap<PeerId, Waiting>,
    due: BTreeSet<(Instant, PeerId)>,
    /// How many wait for room.
    need_room: usize,
    /// Nobody is asked for before.
    not_before: Option<Instant>,
}

impl Again {
    /// The record of a peer was not taken.
    pub fn put_off(&mut self, peer: PeerId, why: Why, now: Instant) {
        let (wait, needs_room) = match why {
            Why::TooSoon(wait) => (wait, false),
            Why::NoRoom(_) => (ROOM_PAUSE, true),
        };
        let others = if needs_room { self.need_room } else { self.peers.len() - self.need_room };
        if others < MOST && !self.peers.contains_key(&peer) {
            self.wait(peer, Waiting { due: now + wait, needs_room });
        }
    }

    fn wait(&mut self, peer: PeerId, waiting: Waiting) {
        self.need_room += usize::from(waiting.needs_room);
        self.peers.insert(peer, waiting);
        self.due.insert((waiting.due, peer));
    }

    /// When somebody has to be asked for; `None` if nobody waits.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let first = self.due.first().map(|(due, _)| *due);
        first.map(|due| self.not_before.map_or(due, |not_before| due.max(not_before)))
    }

    /// Whom to ask for now; whoever needs room waits on if there is none.
    pub fn take(&mut self, has_room: bool, now: Instant) -> Vec<PeerId> {
        let mut taken = Vec::new();
        if self.not_before.is_some_and(|not_before| now < not_before) {
            return taken;
        }
        while taken.len() < STEP
            && let Some((due, peer)) = self.due.first().copied().filter(|(due, _)| *due <= now)
        {
            self.due.remove(&(due, peer));
            let needs_room = self.peers.remove(&peer).is_some_and(|waiting| waiting.needs_room);
            self.need_room -= usize::from(needs_room);
            if needs_room && !has_room {
                self.wait(peer, Waiting { due: now + ROOM_PAUSE, needs_room });
            } else {
                taken.push(peer);
            }
        }
        self.not_before = Some(now + PAUSE);
        taken
    }

    /// How many wait for room.
    #[must_use]
    pub const fn without_room(&self) -> usize {
        self.need_room
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::PublicKey;

    use super::*;
    use crate::core::testing::{Time, peer};

    const NO_ROOM: Why = Why::NoRoom(LimitReached { limit: "limits.records_per_ip", most: 1 });

    fn id(n: usize) -> PeerId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        PeerId::new(PublicKey::from_bytes(bytes))
    }

    #[test]
    fn who_came_too_soon_is_asked_for_once_when_its_time_has_come() {
        let (mut again, now) = (Again::default(), Time::start().at(0).mono);
        let millis = Duration::from_millis;
        assert_eq!(again.next(), None);
        for wait in [700, 500, 900] {
            again.put_off(peer(1), Why::TooSoon(millis(wait)), now);
        }
        again.put_off(peer(2), Why::TooSoon(millis(800)), now);
        assert_eq!(again.next(), Some(now + millis(700)));
        assert_eq!(again.take(false, now + millis(699)), []);
        assert_eq!(again.next(), Some(now + millis(949)), "who looks too often is held up");
        assert_eq!(again.take(false, now + millis(900)), []);
        assert_eq!(again.take(false, now + millis(949)), [peer(1), peer(2)]);
        assert_eq!(again.next(), None);
        again.put_off(peer(1), Why::TooSoon(millis(1)), now + millis(950));
        assert_eq!(again.next(), Some(now + millis(1199)));
    }

    #[test]
    fn who_found_no_room_is_asked_for_when_there_is_some() {
        let (mut again, t) = (Again::default(), Time::start());
        let at = |seconds| t.at(seconds).mono;
        again.put_off(peer(1), NO_ROOM, at(0));
        again.put_off(peer(2), Why::TooSoon(Duration::from_secs(1)), at(0));
        assert_eq!(again.without_room(), 1);
        assert_eq!(again.take(false, at(10)), [peer(2)]);
        assert_eq!((again.next(), again.without_room()), (Some(at(15)), 1));
        assert_eq!(again.take(true, at(15)), [peer(1)]);
        assert_eq!((again.next(), again.without_room()), (None, 0));
    }

    #[test]
    fn as_many_wait_as_may_and_are_asked_for_step_by_step() {
        let (mut again, t) = (Again::default(), Time::start());
        for n in 0..MOST + 100 {
            again.put_off(id(n), NO_ROOM, t.at(0).mono);
        }
        assert_eq!((again.peers.len(), again.due.len(), again.without_room()), (MOST, MOST, MOST));
        let (mut now, mut asked) = (t.at(10).mono, 0);
        while let Some(next) = again.next() {
            now = now.max(next);
            let taken = again.take(true, now).len();
            assert!(taken <= STEP);
            asked += taken;
        }
        assert_eq!(asked, MOST);
        assert_eq!(now, t.at(10).mono + PAUSE * u32::try_from(MOST / STEP - 1).unwrap());
    }
}
