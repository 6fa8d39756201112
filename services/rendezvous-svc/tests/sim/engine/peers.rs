//! Peers: they register, refresh, move, leave, and go elsewhere when a home is lost.

use std::collections::BTreeSet;

use p2psb_proto::model::UnixMillis;
use p2psb_rendezvous_svc::core::homes::reconnect_spread;
use p2psb_rendezvous_svc::core::telling::Origin;

use super::net::{Event, Millis, Said};
use super::store::{LIFE, Statement, Store};
use super::world::World;

/// The least time over which the peers of a lost home come back.
const SPREAD: Millis = 5_000;

/// What is true of a peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    pub(crate) is_living: bool,
    pub(crate) homes: Vec<usize>,
    pub(crate) session: u64,
    pub(crate) seq: u64,
    /// When it told that.
    pub(crate) told: Millis,
    /// The `seq` before that, which is all that others can know for a moment.
    pub(crate) before: u64,
    /// When it was last seen to change between online and not.
    pub(crate) changed: Millis,
}

impl<S: Store> World<S> {
    /// All peers come, spread over the given time.
    pub(crate) fn come(&mut self, within: Millis) {
        let count = self.config.peers;
        self.peers = vec![Peer::default(); count as usize];
        for peer in 0..count {
            let at = self.now + self.rng.u64(0..within.max(1));
            self.queue.put(at, Event::Rehome { peer, lost: usize::MAX });
        }
        self.living = (0..count).collect();
        self.peers.iter_mut().for_each(|peer| peer.is_living = true);
        self.queue.put(self.now + within, Event::Ask);
        self.queue.put(self.now + within, Event::Change);
    }

    fn any_up(&mut self, not: &[usize]) -> Option<usize> {
        let up: Vec<usize> = self.up().into_iter().filter(|n| !not.contains(n)).collect();
        let up = if up.is_empty() { self.up() } else { up };
        self.rng.choice(up)
    }

    /// A peer that lost a home, or has none yet, opens a session at another.
    pub(crate) fn rehome(&mut self, peer: u32, lost: usize) {
        if !self.peers[peer as usize].is_living {
            return;
        }
        if lost == usize::MAX {
            while self.peers[peer as usize].homes.len() < self.config.homes.min(self.members.len()) {
                self.open(peer);
            }
            self.tell(peer, false);
            return;
        }
        self.open(peer);
        self.tell(peer, false);
    }

    fn open(&mut self, peer: u32) {
        let homes = self.peers[peer as usize].homes.clone();
        let Some(home) = self.any_up(&homes) else { return };
        let one = &mut self.peers[peer as usize];
        one.session += 1;
        one.homes.push(home);
        one.changed = self.now;
        let session = one.session;
        self.members[home].sessions.insert(peer);
        self.say(peer, home, Said { session, revision: 0, online: true });
    }

    fn say(&mut self, peer: u32, home: usize, said: Said) {
        if self.config.presence {
            self.members[home].hear(peer, home, said, Origin::Here, &self.ids);
            self.watched(home, peer);
            self.send_all(home);
        }
    }

    fn close(&mut self, peer: u32, home: usize) {
        let one = &mut self.peers[peer as usize];
        one.homes.retain(|other| *other != home);
        one.changed = self.now;
        let there = &mut self.members[home];
        if there.is_up && there.sessions.remove(&peer) {
            let said = there.said.get(&peer).and_then(|homes| homes.get(&home));
            if let Some((said, _)) = said.copied() {
                self.say(peer, home, Said { online: false, revision: said.revision + 1, ..said });
            }
        }
    }

    /// A peer signs what it is, and hands it to its homes.
    pub(crate) fn tell(&mut self, peer: u32, withdrawn: bool) {
        // Clocks of peers are off by up to two minutes, either way.
        let issued = UnixMillis(self.truth().0 + u64::from(peer % 5) * 60_000 - 120_000);
        let one = &mut self.peers[peer as usize];
        one.before = one.seq;
        one.seq = issued.0.max(one.seq + 1);
        one.told = self.now;
        let statement = Statement { peer, seq: one.seq, withdrawn, issued };
        let record = S::record(statement);
        for home in one.homes.clone() {
            let truth = self.truth();
            let there = &mut self.members[home];
            let wall = there.wall(truth);
            if there.is_up && there.store.put(&record, wall) {
                there.bridge.record(self.ids.id(peer), &[], Origin::Here);
                self.send_all(home);
            }
        }
        if !withdrawn {
            let half = LIFE.as_millis() as u64 / 2;
            let after = half * 4 / 5 + self.rng.u64(0..half * 2 / 5);
            self.queue.put(self.now + after, Event::Refresh { peer, seq: statement.seq });
        }
    }

    pub(crate) fn refresh(&mut self, peer: u32, seq: u64) {
        let one = &self.peers[peer as usize];
        if one.is_living && one.seq == seq {
            self.tell(peer, false);
        }
    }

    /// The peers of a home that is gone find another one.
    pub(crate) fn go_elsewhere(&mut self, lost: usize, sessions: BTreeSet<u32>) {
        let spread = reconnect_spread(sessions.len() as u64).as_millis() as u64;
        for peer in sessions {
            self.peers[peer as usize].homes.retain(|home| *home != lost);
            self.peers[peer as usize].changed = self.now;
            let at = self.now + self.rng.u64(0..spread.max(SPREAD));
            self.queue.put(at, Event::Rehome { peer, lost });
        }
    }

    /// Some peer signs anew, moves, goes for good, or comes again.
    pub(crate) fn change_something(&mut self) {
        if self.config.changes == 0 {
            return;
        }
        let peer = self.rng.u32(0..self.config.peers);
        if !self.peers[peer as usize].is_living {
            self.peers[peer as usize].is_living = true;
            self.living.push(peer);
            self.rehome(peer, usize::MAX);
        } else {
            self.change(peer);
        }
        let at = self.now + self.rng.u64(0..2000 / self.config.changes) + 1;
        self.queue.put(at, Event::Change);
    }

    fn change(&mut self, peer: u32) {
        let homes = self.peers[peer as usize].homes.clone();
        let Some(home) = self.rng.choice(homes.iter().copied()) else { return };
        match self.rng.u8(0..10) {
            // Moves.
            0..=3 => {
                self.close(peer, home);
                self.open(peer);
                self.tell(peer, false);
            }
            // Goes for good, or as good.
            4 => {
                self.tell(peer, true);
                homes.into_iter().for_each(|home| self.close(peer, home));
                self.peers[peer as usize].is_living = false;
                self.living.retain(|one| *one != peer);
            }
            _ => self.tell(peer, false),
        }
    }

    /// Somebody here watches a peer from now on.
    pub(crate) fn watch(&mut self, member: usize, peer: u32) {
        if !self.watches.contains_key(&(member, peer)) {
            let id = self.ids.id(peer);
            self.members[member].bridge.watch(id);
            let online = self.members[member].is_online(peer, &self.names, self.instant());
            self.watches.insert((member, peer), online.unwrap_or_default());
            self.send_all(member);
        }
    }

    /// What was heard of a peer may be news for who watches it.
    pub(crate) fn watched(&mut self, member: usize, peer: u32) {
        let online = self.members[member].is_online(peer, &self.names, self.instant()).unwrap_or_default();
        let now = self.now;
        if let Some(seen) = self.watches.get_mut(&(member, peer))
            && *seen != online
        {
            *seen = online;
            let one = &self.peers[peer as usize];
            if online != one.homes.is_empty() {
                self.report.presence.push((now - one.changed) as u32);
            }
        }
    }
}
