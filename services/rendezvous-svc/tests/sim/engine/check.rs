//! What must be true, whatever happens.

use std::rc::Rc;

use p2psb_rendezvous_svc::core::placement::Placement;
use p2psb_rendezvous_svc::core::presence::MARKS_MISSED;

use super::net::Millis;
use super::store::Store;
use super::world::{Few, World};

/// How long after it told something a peer may be with no owner.
const SETTLED: Millis = 3_000;
/// How long what was noticed takes to be known to all.
const SLACK: Millis = 5_000;
/// Who is asked for peers.
#[derive(Clone, Copy)]
struct Asker {
    member: usize,
    is_first: bool,
}

/// Rings whose owners are remembered.
const RINGS: usize = 16;

impl<S: Store> World<S> {
    /// Lets time pass and looks every second: no living peer is with no owner for longer than `most`, and the dead own nothing.
    pub(crate) fn run_checked(&mut self, for_millis: Millis, most: Millis) {
        let until = self.now + for_millis;
        while self.now < until {
            self.run((until - self.now).min(1000));
            self.check_present(most);
            self.check_dead();
        }
    }

    /// Looks for every living peer at the owners that some members would ask.
    pub(crate) fn check_present(&mut self, most: Millis) {
        for asker in self.askers() {
            let rings = self.rings_of(asker.member);
            for n in 0..self.living.len() {
                let peer = self.living[n];
                let owners = rings.iter().flat_map(|ring| ring[peer as usize]).flatten();
                self.look_for(peer, asker, owners.map(usize::from), most);
            }
        }
    }

    /// The same for some peers of very many.
    pub(crate) fn check_some(&mut self, peers: &[u32], most: Millis) {
        for asker in self.askers() {
            let view = self.members[asker.member].bridge.view().clone();
            for peer in peers {
                let owners: Vec<_> = view.to_tell(self.ids.key(*peer)).map(|id| self.numbers[&id]).collect();
                self.look_for(*peer, asker, owners.into_iter(), most);
            }
        }
    }

    /// Two members, as different ones may see different rings.
    fn askers(&mut self) -> Vec<Asker> {
        let up = self.up();
        let members: Vec<_> = (0..2).filter_map(|_| self.rng.choice(up.iter().copied())).collect();
        members.into_iter().zip([true, false]).map(|(member, is_first)| Asker { member, is_first }).collect()
    }

    fn look_for(&mut self, peer: u32, asker: Asker, mut owners: impl Iterator<Item = usize>, most: Millis) {
        let one = &self.peers[peer as usize];
        if !one.is_living || one.seq == 0 || self.now - one.told < SETTLED && one.before == 0 {
            return;
        }
        let truth = self.truth();
        let is_there = owners.any(|owner| {
            let owner = &self.members[owner];
            owner.is_up && owner.store.valid(peer, owner.wall(truth)).is_some()
        });
        if is_there {
            if asker.is_first {
                self.absent.remove(&peer);
            }
            return;
        }
        let since = *self.absent.entry(peer).or_insert(self.now);
        self.report.absent = self.report.absent.max(self.now - since);
        if self.now - since > most {
            let asker = asker.member;
            self.fail(&format!("peer {peer} has been with no owner that {asker} sees since {since}"));
        }
    }

    /// Peers of whom a member holds something that others may need: those whom it owns, and those whose home it is.
    pub(crate) fn depend_on(&self, member: usize) -> Vec<u32> {
        let (id, ring) = (self.names[member], self.members[member].bridge.view().current());
        let owns = |peer: u32| ring.owners(self.ids.key(peer)).contains(&id);
        let is_home = |peer: &u32| self.members[member].sessions.contains(peer);
        self.living.iter().copied().filter(|peer| is_home(peer) || owns(*peer)).collect()
    }

    /// Whom a member would ask for each peer: the owners in its ring, and in the one before while that still counts.
    fn rings_of(&mut self, asker: usize) -> Vec<Rc<[Few]>> {
        let view = self.members[asker].bridge.view().clone();
        std::iter::once(view.current()).chain(view.before()).map(|ring| self.owners_in(ring)).collect()
    }

    /// Members see few different rings, and seldom new ones.
    fn owners_in(&mut self, ring: &Placement) -> Rc<[Few]> {
        if self.rings.len() > RINGS {
            self.rings.clear();
        }
        let (ids, numbers) = (&self.ids, &self.numbers);
        let owners = |peer| -> Few {
            let mut owners = ring.owners(ids.key(peer)).iter().map(|owner| numbers[&owner] as u16);
            std::array::from_fn(|_| owners.next())
        };
        let all = self.rings.entry(ring.digest());
        Rc::clone(all.or_insert_with(|| (0..self.config.peers).map(owners).collect()))
    }

    /// Who has been dead for longer than its grace is in nobody's ring, and after the overlap in nobody's past.
    pub(crate) fn check_dead(&self) {
        let timing = self.config.timing;
        // Whoever vouched for it may have died itself before it noticed the silence.
        let leave = timing.leave_after.as_millis() as u64 + MARKS_MISSED.as_millis() as u64 + SLACK;
        let overlap = timing.overlap.as_millis() as u64;
        for dead in self.members.iter().filter(|one| !one.is_up) {
            let dead_for = self.now - dead.down_since;
            for one in self.members.iter().filter(|one| one.is_up && !one.is_paused) {
                let view = one.bridge.view();
                if dead_for > leave && view.current().contains(&dead.id) {
                    self.fail(&format!("{} is dead and owns in the eyes of {}", dead.number, one.number));
                }
                if dead_for > leave + overlap && view.before().is_some_and(|ring| ring.contains(&dead.id)) {
                    self.fail(&format!("{} is long dead and still asked by {}", dead.number, one.number));
                }
            }
        }
    }

    /// Everybody sees the same ring, the living and nobody else.
    pub(crate) fn check_rings(&self) {
        let up: Vec<_> = self.members.iter().filter(|one| one.is_up).collect();
        let mut living: Vec<_> = up.iter().map(|one| one.id).collect();
        living.sort();
        for one in &up {
            let ring: Vec<_> = one.bridge.view().current().members().collect();
            if ring != living {
                self.fail(&format!("{} sees {} members, {} live", one.number, ring.len(), living.len()));
            }
        }
    }

    /// After all has come to rest: everybody sees the same ring, the living and nobody else; every owner holds the newest word
    /// of its peers, and nothing is left to be told.
    pub(crate) fn check_settled(&self) {
        self.check_rings();
        let up: Vec<_> = self.members.iter().filter(|one| one.is_up).collect();
        for one in &up {
            if !one.bridge.is_done() || !one.bridge.is_finished() || one.bridge.disagreeing() > 0 {
                let (done, finished) = (one.bridge.is_done(), one.bridge.is_finished());
                self.fail(&format!("{}: done {done}, finished {finished}", one.number));
            }
        }
        let Some(view) = up.first().map(|one| one.bridge.view()) else { return };
        for peer in &self.living {
            let truth = &self.peers[*peer as usize];
            for owner in view.owners(self.ids.key(*peer)).iter() {
                let owner = &self.members[self.numbers[&owner]];
                let newest = owner.store.newest(*peer).map(|record| S::statement(&record));
                if newest.is_none_or(|newest| newest.seq != truth.seq || newest.withdrawn) {
                    self.fail(&format!("{} owns {peer} and holds {newest:?} of {truth:?}", owner.number));
                }
                if self.config.presence {
                    self.check_presence(owner.number, *peer);
                }
            }
        }
        for (member, peer) in self.watches.keys() {
            self.check_presence(*member, *peer);
        }
    }

    fn check_presence(&self, member: usize, peer: u32) {
        let truth = &self.peers[peer as usize];
        let seen = self.members[member].is_online(peer, &self.names, self.instant()).unwrap_or_default();
        if seen == truth.homes.is_empty() {
            let said = self.members[member].said.get(&peer);
            self.fail(&format!("to {member} peer {peer} is online: {seen}, by {said:?}; {truth:?}"));
        }
    }
}
