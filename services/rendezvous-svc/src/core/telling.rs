//! Who is told what: changes as they happen, and all that a member owns when it comes to own it.
//!
//! Invariants:
//! - A change of a peer that is here goes to the owners of its id and of its services, and for a while to those that were the
//!   owners a moment ago; a change that came from a member goes on only to owners that this member cannot reach itself. One that
//!   reaches no owner at all tells two others, who pass it on.
//! - A member that restarted, or came into the ring, is told everything it owns, and then that this was all. One whose link only
//!   broke is told what it may have missed.
//! - Nothing is kept for a member that is neither linked nor in the ring, and for an edge that is not linked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use p2psb_proto::model::PeerId;

use super::delivery::Sent;
use super::outbox::{Next, Outbox};
use super::placement::{Key, Placement};
use super::ring::{Ring, View};
use super::walk::{Errand, Held, Holdings, Walk};

/// Whom a member that reaches no owner tells instead.
const MESSENGERS: usize = 2;

/// Where a change comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A peer that is here, or an edge.
    Here,
    /// Another member.
    Member(PeerId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    Not,
    Filling(Errand),
    Done,
}

#[derive(Debug)]
struct Told {
    outbox: Outbox,
    sent: Sent<Next>,
    is_linked: bool,
    filled: Filled,
}

impl Told {
    fn new() -> Self {
        Self { outbox: Outbox::default(), sent: Sent::default(), is_linked: true, filled: Filled::Not }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Telling<C> {
    members: BTreeMap<PeerId, Told>,
    /// Linked edges. They are told only what they asked for, and nobody waits for them.
    edges: BTreeMap<PeerId, Told>,
    walk: Walk<C>,
    /// For whom something waits.
    ready: BTreeSet<PeerId>,
}

impl<C> Default for Telling<C> {
    fn default() -> Self {
        Self {
            members: BTreeMap::new(),
            edges: BTreeMap::new(),
            walk: Walk::default(),
            ready: BTreeSet::new(),
        }
    }
}

impl<C: Clone + Ord> Telling<C> {
    /// A link is up; with a new life of the member nothing of what it was told counts.
    pub fn linked(&mut self, peer: PeerId, is_new_life: bool) {
        if is_new_life {
            self.members.remove(&peer);
        }
        let told = self.members.entry(peer).or_insert_with(Told::new);
        told.is_linked = true;
        for next in told.sent.give_back() {
            told.outbox.put_back(next);
        }
        self.ready.insert(peer);
    }

    /// A link ended.
    pub fn unlinked(&mut self, peer: &PeerId) {
        if let Some(told) = self.members.get_mut(peer) {
            told.is_linked = false;
        }
        self.ready.remove(peer);
    }

    /// A link with an edge is up. What it was told over an earlier one counts no more.
    pub fn edge_linked(&mut self, edge: PeerId) {
        self.edges.insert(edge, Told::new());
    }

    /// The link with an edge ended.
    pub fn edge_unlinked(&mut self, edge: &PeerId) {
        self.edges.remove(edge);
        self.ready.remove(edge);
    }

    /// Whether this is an edge that has a link.
    #[must_use]
    pub fn is_edge(&self, peer: &PeerId) -> bool {
        self.edges.contains_key(peer)
    }

    /// Whether this is a member that has a link, or a place in the ring.
    #[must_use]
    pub fn is_member(&self, peer: &PeerId) -> bool {
        self.members.contains_key(peer)
    }

    fn told_mut(&mut self, peer: &PeerId) -> Option<&mut Told> {
        self.members.get_mut(peer).or_else(|| self.edges.get_mut(peer))
    }

    fn told(&self, peer: &PeerId) -> Option<&Told> {
        self.members.get(peer).or_else(|| self.edges.get(peer))
    }

    /// The ring is not what it was.
    pub fn ring_changed(&mut self, from: &Arc<Placement>, to: &Placement) {
        self.members.retain(|peer, told| told.is_linked || to.contains(peer));
        for (peer, told) in &mut self.members {
            if !to.contains(peer) || !from.contains(peer) {
                told.filled = Filled::Not;
            }
        }
        self.walk.changed(Arc::clone(from));
    }

    /// Goes on telling members of the ring what they own, `most` entries further.
    pub fn walk<H: Holdings<Cursor = C>>(&mut self, holdings: &H, most: usize, view: &View) {
        let ring = view.current();
        for (peer, told) in &mut self.members {
            if told.is_linked && told.filled == Filled::Not && ring.contains(peer) {
                told.filled = Filled::Filling(self.walk.fill(*peer));
                // What it heard before and does not hear again is no longer so.
                told.outbox.tells_all();
            }
        }
        let (members, ready) = (&mut self.members, &mut self.ready);
        let done = self.walk.step(holdings, most, ring, |held: &Held<C>, owner| {
            let Some(told) = members.get_mut(&owner) else { return };
            told.outbox.walked(held.peer, held.is_here);
            ready.insert(owner);
        });
        for (peer, told) in &mut self.members {
            if matches!(told.filled, Filled::Filling(errand) if done.contains(&errand)) {
                told.filled = Filled::Done;
                told.outbox.told_all();
                self.ready.insert(*peer);
            }
        }
    }

    /// Whether everybody was told what it owns.
    #[must_use]
    pub fn is_walk_over(&self) -> bool {
        self.walk.is_over()
    }

    /// The record of a peer changed.
    pub fn record(&mut self, peer: PeerId, services: &[Key], origin: Origin, view: &View, ring: &Ring) {
        for member in self.to_tell(&peer, services, origin, view, ring) {
            self.put(member, |outbox| outbox.record(peer));
        }
    }

    /// The presence of a peer changed.
    pub fn presence(&mut self, peer: PeerId, services: &[Key], origin: Origin, view: &View, ring: &Ring) {
        for member in self.to_tell(&peer, services, origin, view, ring) {
            self.put(member, |outbox| outbox.presence(peer));
        }
    }

    /// Whom a change of `peer` concerns.
    fn to_tell(
        &self,
        peer: &PeerId,
        services: &[Key],
        origin: Origin,
        view: &View,
        ring: &Ring,
    ) -> BTreeSet<PeerId> {
        let keys = std::iter::once(Key::peer(peer)).chain(services.iter().copied());
        match origin {
            Origin::Here => keys.flat_map(|key| self.of_here(key, view)).collect(),
            Origin::Member(home) => keys.flat_map(|key| to_pass_on(key, &home, view, ring)).collect(),
        }
    }

    /// The owners of `key`, and if none of them can be reached, some who may reach them.
    fn of_here(&self, key: Key, view: &View) -> Vec<PeerId> {
        let is_linked = |member: &PeerId| self.members.get(member).is_some_and(|told| told.is_linked);
        let mut owners: Vec<PeerId> = view.to_tell(key).collect();
        // Those of a moment ago hold it for a moment longer only.
        let reached = view.owners(key).iter().any(|owner| owner == view.own() || is_linked(&owner));
        owners.retain(|owner| *owner != view.own());
        if !reached {
            let others = self.members.iter().filter(|(_, told)| told.is_linked).map(|(member, _)| *member);
            owners.extend(others.take(MESSENGERS));
        }
        owners
    }

    /// Puts something into the outbox of a member or edge, if there is one.
    pub fn put(&mut self, member: PeerId, put: impl FnOnce(&mut Outbox)) {
        if let Some(told) = self.told_mut(&member) {
            put(&mut told.outbox);
            self.ready.insert(member);
        }
    }

    /// Puts something into the outbox of every linked member.
    pub fn put_all(&mut self, put: impl Fn(&mut Outbox)) {
        for (member, told) in self.members.iter_mut().filter(|(_, told)| told.is_linked) {
            put(&mut told.outbox);
            self.ready.insert(*member);
        }
    }

    /// Puts something into the outbox of every linked edge.
    pub fn put_edges(&mut self, put: impl Fn(&mut Outbox)) {
        for (edge, told) in &mut self.edges {
            put(&mut told.outbox);
            self.ready.insert(*edge);
        }
    }

    /// For whom something waits. Each is named once, until [`Self::next`] has nothing for it.
    pub fn ready(&mut self) -> BTreeSet<PeerId> {
        std::mem::take(&mut self.ready)
    }

    /// The next batch for a linked member, and its number.
    pub fn next(&mut self, member: &PeerId, most: usize) -> Option<(u64, Next)> {
        let told = self.told_mut(member).filter(|told| told.is_linked && told.sent.has_room())?;
        let next = told.outbox.next(most);
        (!next.is_empty()).then(|| (told.sent.send(next.clone()), next))
    }

    /// The member has everything up to this batch.
    pub fn acknowledged(&mut self, member: &PeerId, number: u64) {
        let Some(told) = self.told_mut(member) else { return };
        told.sent.acknowledged(number);
        if !told.outbox.is_empty() {
            self.ready.insert(*member);
        }
    }

    /// The number of the last batch for a member.
    #[must_use]
    pub fn last_sent(&self, member: &PeerId) -> u64 {
        self.told(member).map(|told| told.sent.last()).unwrap_or_default()
    }

    /// Whether a member has every batch up to this one.
    #[must_use]
    pub fn has_arrived(&self, member: &PeerId, number: u64) -> bool {
        self.members.get(member).is_none_or(|told| told.sent.has_arrived(number))
    }

    /// Whether nothing waits for a member.
    #[must_use]
    pub fn has_told(&self, member: &PeerId) -> bool {
        self.told(member).is_none_or(|told| told.outbox.is_empty())
    }

    /// Whether every linked member has all that it is to know.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let mut linked = self.members.values().filter(|told| told.is_linked);
        self.walk.is_over() && linked.all(|told| told.outbox.is_empty() && told.sent.is_empty())
    }
}

/// Owners of `key` that `home` has no link with, if of those that it has one with this member is the first. Who hears of it
/// without being an owner is a messenger, if `home` reaches none.
fn to_pass_on(key: Key, home: &PeerId, view: &View, ring: &Ring) -> Vec<PeerId> {
    let own = view.own();
    let owners: Vec<PeerId> = view.to_tell(key).filter(|owner| owner != home).collect();
    let reaches = |owner: &PeerId| ring.are_linked(home, owner);
    if owners.iter().find(|owner| reaches(owner)).is_some_and(|first| *first != own) {
        return Vec::new();
    }
    owners.into_iter().filter(|owner| *owner != own && !reaches(owner)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Instant;

    use super::*;
    use crate::core::placement::Operator;
    use crate::core::ring::{Claim, Introduction, Timing, Word};
    use crate::core::testing::{Time, peer};

    const OWN: u8 = 1;

    /// Peers that are held here, in the order of ids.
    struct Shelf(Vec<PeerId>);

    impl Holdings for Shelf {
        type Cursor = PeerId;

        fn page(&self, after: Option<&PeerId>, most: usize) -> Vec<Held<PeerId>> {
            let behind = self.0.iter().filter(|peer| after.is_none_or(|after| *peer > after));
            let held = |peer: &PeerId| Held { at: *peer, peer: *peer, services: Vec::new(), is_here: true };
            behind.take(most).map(held).collect()
        }
    }

    struct Stage {
        ring: Ring,
        telling: Telling<PeerId>,
        shelf: Shelf,
        now: Instant,
    }

    impl Stage {
        /// This member and `others`, which all started at once.
        fn new(others: impl IntoIterator<Item = u8>) -> Self {
            let now = Time::start().at(0).mono;
            let ring = Ring::new(peer(OWN), Operator::of(&peer(OWN), None), Timing::default(), now);
            let mut shelf: Vec<PeerId> = (100..200).map(peer).collect();
            shelf.sort();
            let mut stage = Self { ring, telling: Telling::default(), shelf: Shelf(shelf), now };
            let others: Vec<u8> = others.into_iter().collect();
            others.iter().for_each(|n| stage.link(*n, 1));
            for (by, about) in others.iter().flat_map(|by| others.iter().map(move |about| (*by, *about))) {
                stage.say(by, about, true);
            }
            stage.settle();
            stage
        }

        fn say(&mut self, by: u8, about: u8, linked: bool) {
            let word = Word { about: peer(about), linked, age: Default::default(), in_ring: true };
            let claim = Claim { operator: Operator::of(&peer(about), None), is_listed: false };
            self.ring.told(&peer(by), &word, Some(claim), self.now);
        }

        fn link(&mut self, n: u8, boot: u64) {
            let operator = Operator::of(&peer(n), None);
            let said = Introduction {
                operator,
                boot,
                up_for: Default::default(),
                oldest_up_for: Default::default(),
            };
            let is_new_life = self.ring.linked(peer(n), &said, self.now);
            self.telling.linked(peer(n), is_new_life);
        }

        fn unlink(&mut self, n: u8) {
            self.ring.unlinked(&peer(n), Default::default(), self.now);
            self.telling.unlinked(&peer(n));
        }

        fn settle(&mut self) {
            if let Some(change) = self.ring.tick(self.now) {
                self.telling.ring_changed(&change.from, &change.to);
            }
            let view = self.ring.view();
            for _ in 0..50 {
                self.telling.walk(&self.shelf, 10, &view);
            }
            assert!(self.telling.is_walk_over());
        }

        /// All that waits for a member, without an acknowledgement.
        fn take(&mut self, n: u8) -> Next {
            let mut all = Next::default();
            while let Some((_, next)) = self.telling.next(&peer(n), 10) {
                assert!(!all.told_all, "that was not all");
                all.records.extend(next.records);
                all.presence.extend(next.presence);
                all.told_all |= next.told_all;
            }
            all
        }

        fn acknowledge(&mut self, n: u8) {
            let last = self.telling.last_sent(&peer(n));
            self.telling.acknowledged(&peer(n), last);
        }

        fn owned_by(&self, n: u8) -> Vec<PeerId> {
            let view = self.ring.view();
            let owned = |one: &&PeerId| view.owners(Key::peer(one)).contains(&peer(n));
            self.shelf.0.iter().filter(owned).copied().collect()
        }

        fn record(&mut self, of: PeerId, origin: Origin) {
            let view = self.ring.view();
            self.telling.record(of, &[], origin, &view, &self.ring);
        }
    }

    #[test]
    fn a_change_here_goes_to_the_owners_and_one_from_a_member_nowhere() {
        let mut stage = Stage::new(2..=9);
        (2..=9).for_each(|n| drop(stage.take(n)));
        let one = peer(250);
        stage.record(one, Origin::Here);
        let owners = stage.ring.view().owners(Key::peer(&one));
        for n in 2..=9 {
            let told = stage.take(n).records;
            assert_eq!(told, if owners.contains(&peer(n)) { vec![one] } else { vec![] });
        }
        stage.record(one, Origin::Member(peer(2)));
        assert!((2..=9).all(|n| stage.take(n).records.is_empty()));
    }

    #[test]
    fn the_owners_of_a_service_are_told_as_well() {
        let mut stage = Stage::new(2..=9);
        (2..=9).for_each(|n| drop(stage.take(n)));
        let (one, service) = (peer(250), Key::service("chat"));
        let view = stage.ring.view();
        stage.telling.record(one, &[service], Origin::Here, &view, &stage.ring);
        let owners: BTreeSet<_> =
            view.owners(Key::peer(&one)).iter().chain(view.owners(service).iter()).collect();
        let told: BTreeSet<_> = (1..=9).filter(|n| !stage.take(*n).is_empty()).map(peer).collect();
        assert_eq!(told, owners.into_iter().filter(|owner| *owner != peer(OWN)).collect());
    }

    #[test]
    fn a_member_of_the_ring_is_told_all_it_owns_and_that_this_was_all() {
        let mut stage = Stage::new(2..=9);
        for n in 2..=9 {
            let told = stage.take(n);
            assert_eq!((&told.records, told.told_all), (&stage.owned_by(n), true));
            assert_eq!(told.presence, told.records, "they are all here");
        }
    }

    #[test]
    fn after_a_break_only_what_may_have_been_lost_is_told_again() {
        let mut stage = Stage::new(2..=4);
        let all = stage.take(2).records;
        assert!(all.len() > 20);
        stage.telling.acknowledged(&peer(2), 1);
        stage.unlink(2);
        stage.record(all[0], Origin::Here);
        assert!(stage.telling.next(&peer(2), 10).is_none());
        stage.link(2, 1);
        stage.settle();
        let again = stage.take(2);
        let expected: Vec<_> = [all[0]].into_iter().chain(all[10..].iter().copied()).collect();
        assert_eq!((again.records, again.told_all), (expected, true));
        stage.acknowledge(2);
        stage.unlink(2);
        stage.link(2, 1);
        stage.settle();
        assert!(stage.take(2).is_empty());
    }

    #[test]
    fn after_a_restart_everything_is_told_again() {
        let mut stage = Stage::new(2..=4);
        let all = stage.take(2);
        stage.acknowledge(2);
        stage.unlink(2);
        stage.link(2, 2);
        stage.settle();
        assert_eq!(stage.take(2), all);
    }

    #[test]
    fn who_left_the_ring_is_forgotten_and_told_all_when_it_comes_again() {
        let mut stage = Stage::new(2..=9);
        let all = stage.take(2);
        stage.acknowledge(2);
        stage.unlink(2);
        (3..=9).for_each(|n| stage.say(n, 2, false));
        stage.now += std::time::Duration::from_secs(60);
        stage.settle();
        assert!(!stage.telling.members.contains_key(&peer(2)));
        for n in 3..=9 {
            let gained = stage.take(n).records;
            assert!(gained.iter().all(|one| stage.owned_by(n).contains(one)));
        }
        stage.link(2, 1);
        stage.now += std::time::Duration::from_secs(30);
        stage.settle();
        assert_eq!(stage.take(2), all);
    }

    #[test]
    fn what_comes_from_a_member_goes_on_to_owners_that_it_cannot_reach() {
        let mut stage = Stage::new(2..=5);
        (2..=5).for_each(|n| drop(stage.take(n)));
        stage.say(2, 3, false);
        let view = stage.ring.view();
        let mut passed_on = 0;
        for one in (200..=255).map(peer) {
            let owners: Vec<_> =
                view.owners(Key::peer(&one)).iter().filter(|owner| *owner != peer(2)).collect();
            let first = owners.iter().find(|owner| **owner != peer(3));
            let expected = owners.contains(&peer(3)) && first == Some(&peer(OWN));
            stage.record(one, Origin::Member(peer(2)));
            assert_eq!(stage.take(3).records, if expected { vec![one] } else { vec![] });
            passed_on += usize::from(expected);
            stage.acknowledge(3);
        }
        assert!(passed_on > 0 && (4..=5).all(|n| stage.take(n).is_empty()));
    }

    #[test]
    fn who_reaches_no_owner_tells_others_who_pass_it_on() {
        let mut stage = Stage::new(2..=9);
        (2..=9).for_each(|n| drop(stage.take(n)));
        let one = (200..=255).map(peer).find(|one| !stage.ring.view().owns(Key::peer(one))).unwrap();
        let owners: Vec<_> = stage.ring.view().owners(Key::peer(&one)).iter().collect();
        let is_owner = |n: &u8| owners.contains(&peer(*n));
        (2..=9).filter(is_owner).for_each(|n| stage.unlink(n));
        stage.record(one, Origin::Here);
        let told = (2..=9).filter(|n| !is_owner(n) && stage.take(*n).records == [one]).count();
        assert_eq!(told, MESSENGERS);

        let mut messenger = Stage::new(2..=9);
        (2..=9).for_each(|n| drop(messenger.take(n)));
        let home = (2..=9).find(|n| !is_owner(n)).unwrap();
        (2..=9).filter(is_owner).for_each(|n| messenger.say(home, n, false));
        messenger.record(one, Origin::Member(peer(home)));
        assert!((2..=9).all(|n| messenger.take(n).records == if is_owner(&n) { vec![one] } else { vec![] }));
    }

    #[test]
    fn what_waits_is_named_once_and_the_window_holds() {
        let mut stage = Stage::new(2..=2);
        assert!(stage.telling.ready().contains(&peer(2)));
        assert!(stage.telling.ready().is_empty());
        let mut sent = 0;
        while stage.telling.next(&peer(2), 1).is_some() {
            sent += 1;
        }
        assert_eq!(sent, crate::core::delivery::WINDOW);
        assert!(!stage.telling.is_done());
        stage.telling.acknowledged(&peer(2), 5);
        assert!(stage.telling.ready().contains(&peer(2)));
        while !stage.telling.is_done() {
            stage.take(2);
            stage.acknowledge(2);
        }
    }
}
