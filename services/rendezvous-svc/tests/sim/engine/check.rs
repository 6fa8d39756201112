//! What must be true, whatever happens.

use std::rc::Rc;

use p2psb_rendezvous_svc::core::presence::MARKS_MISSED;

use super::net::Millis;
use super::store::Store;
use super::world::World;

/// How long after it told something a peer may be with no owner.
const SETTLED: Millis = 3_000;
/// How long what was noticed takes to be known to all.
const SLACK: Millis = 5_000;

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
        let up = self.up();
        let truth = self.truth();
        for askers in 0..2 {
            let Some(asker) = self.rng.choice(up.iter().copied()) else { return };
            let owners = self.owners(asker);
            for n in 0..self.living.len() {
                let peer = self.living[n];
                let one = &self.peers[peer as usize];
                if one.seq == 0 || self.now - one.told < SETTLED && one.before == 0 {
                    continue;
                }
                let is_there = owners[peer as usize].iter().any(|owner| {
                    let owner = &self.members[*owner];
                    owner.is_up && owner.store.valid(peer, owner.wall(truth)).is_some()
                });
                if is_there {
                    if askers == 0 {
                        self.absent.remove(&peer);
                    }
                    continue;
                }
                let since = *self.absent.entry(peer).or_insert(self.now);
                self.report.absent = self.report.absent.max(self.now - since);
                if self.now - since > most {
                    self.fail(&format!("peer {peer} has been with no owner that {asker} sees since {since}"));
                }
            }
        }
    }

    /// Whom a member would ask for each peer. Members see few different rings, and seldom new ones.
    fn owners(&mut self, asker: usize) -> Rc<Vec<Vec<usize>>> {
        let view = self.members[asker].bridge.view().clone();
        let rings = (view.current().digest(), view.before().map(|before| before.digest()));
        if self.rings.len() > 16 {
            self.rings.clear();
        }
        let (ids, numbers) = (&self.ids, &self.numbers);
        let owners = |peer| view.to_tell(ids.key(peer)).map(|owner| numbers[&owner]).collect();
        let all = self.rings.entry(rings);
        Rc::clone(all.or_insert_with(|| Rc::new((0..self.config.peers).map(owners).collect())))
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
