//! All of a member's part in the backbone, without its tables and sockets: who is in the ring, who is told what, who is asked, who
//! listens. The server and the simulator drive the same machine.
//!
//! What comes in: links that open and end, what members say on them, changes of peers, time. What goes out is fetched:
//! [`Bridge::ready`] names members for whom something waits, [`Bridge::next`] what it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use super::far::{FarHomes, News};
use super::homes::{HomeEvent, Homes};
use super::interest::{
    Interest, SUBSCRIPTIONS, SUBSCRIPTIONS_OF_EDGE, Sayings, Subscribers, TooManySubscriptions,
};
use super::lookup::{Answer, Lookup, Patience};
use super::members::Role;
use super::outbox::{Next, Outbox};
use super::placement::{Key, Operator};
use super::ring::{Claim, Introduction, Ring, Timing, View, Word};
use super::syncing::Syncing;
use super::telling::{Origin, Telling};
use super::walk::Holdings;

/// What a member says every few seconds, and when something arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The number of the last batch that it sent.
    pub sent: u64,
    /// All batches up to this one arrived.
    pub received: u64,
    /// How many sessions it holds.
    pub sessions: u64,
    /// Whether it has heard all that it owns.
    pub finished: bool,
    /// Of the ring as it sees it.
    pub ring_digest: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Other {
    finished: bool,
    ring_digest: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Bridge<C> {
    own: PeerId,
    role: Role,
    operator: Operator,
    boot: u64,
    ring: Ring,
    view: View,
    telling: Telling<C>,
    syncing: Syncing,
    homes: Homes,
    far: FarHomes,
    /// Linked edges, and in which life each is.
    edges: BTreeMap<PeerId, u64>,
    /// An edge went: what was held for it may have to be forgotten.
    is_forsaken: bool,
    interest: Interest,
    subscribers: Subscribers,
    /// Of linked members, what their last mark said.
    others: BTreeMap<PeerId, Other>,
}

impl<C: Clone + Ord> Bridge<C> {
    /// Just started. `boot` is another number in each life.
    #[must_use]
    pub fn new(own: PeerId, operator: Operator, boot: u64, timing: Timing, now: Instant) -> Self {
        let ring = Ring::new(own, operator, timing, now);
        Self {
            own,
            role: Role::Member,
            operator,
            boot,
            view: ring.view(),
            ring,
            telling: Telling::default(),
            syncing: Syncing::new(Duration::ZERO, timing.join_after, now),
            homes: Homes::default(),
            far: FarHomes::default(),
            edges: BTreeMap::new(),
            is_forsaken: false,
            interest: Interest::default(),
            subscribers: Subscribers::default(),
            others: BTreeMap::new(),
        }
    }

    /// A server that bridges with nobody: it waits for nobody to tell it what it owns.
    #[must_use]
    pub fn alone(self, now: Instant) -> Self {
        Self { syncing: self.syncing.alone(now), ..self }
    }

    /// The same as an edge: it owns nothing, and tells and asks the members that it has links with.
    #[must_use]
    pub fn edge(self, now: Instant) -> Self {
        let ring = Ring::of_edge(self.own, self.operator, now);
        Self { role: Role::Edge, view: ring.view(), ring, ..self }
    }

    /// The same with the knowledge of an earlier life, which reaches back so far.
    #[must_use]
    pub fn remembering(self, knowledge: Duration) -> Self {
        Self { syncing: self.syncing.remembering(knowledge), ..self }
    }

    /// This member.
    #[must_use]
    pub const fn own(&self) -> PeerId {
        self.own
    }

    /// What to say when a link opens.
    #[must_use]
    pub fn introduction(&self, now: Instant) -> Introduction {
        let (up_for, oldest_up_for) = (self.ring.up_for(now), self.ring.oldest_up_for(now));
        Introduction { operator: self.operator, boot: self.boot, up_for, oldest_up_for }
    }

    /// A link with a member is up.
    pub fn linked(&mut self, peer: PeerId, said: &Introduction, now: Instant) {
        if self.telling.is_edge(&peer) {
            // It was one, and its old link has not ended yet.
            self.edge_unlinked(&peer, Duration::ZERO, now);
        }
        // What an edge was told and asked for its members forget with the link.
        let were_apart = self.ring.were_apart(&peer, now);
        let is_new_life = self.ring.linked(peer, said, now) || self.role == Role::Edge;
        self.others.insert(peer, Other::default());
        self.telling.linked(peer, is_new_life);
        if is_new_life {
            self.subscribers.forget(&peer);
        }
        if is_new_life || were_apart {
            let sayings = self.interest.began_anew(&peer);
            self.say(sayings);
        }
        if self.role == Role::Edge {
            return;
        }
        for member in self.ring.known() {
            self.telling.put(peer, |outbox| outbox.word(member));
        }
        for edge in self.far.all_linked() {
            self.telling.put(peer, |outbox| outbox.home(edge));
        }
        self.telling.put(peer, Outbox::members);
    }

    /// A link ended; nothing had come over it for so long.
    pub fn unlinked(&mut self, peer: &PeerId, silent_for: Duration, now: Instant) {
        self.ring.unlinked(peer, silent_for, now);
        self.far.member_unlinked(peer, now.checked_sub(silent_for).unwrap_or(now));
        self.telling.unlinked(peer);
        self.others.remove(peer);
    }

    /// Whether this is a member that has a link, or a place in the ring.
    #[must_use]
    pub fn is_member(&self, peer: &PeerId) -> bool {
        self.telling.is_member(peer)
    }

    /// A link with an edge is up; `boot` is another number in each of its lives. It is told of all homes, since it hears none of them
    /// itself. The others hear of it when it has something to say.
    pub fn edge_linked(&mut self, edge: PeerId, boot: u64) {
        self.forget_subscriptions(&edge);
        self.edges.insert(edge, boot);
        self.telling.edge_linked(edge);
        for home in self.ring.known().into_iter().chain(self.far.all()) {
            self.telling.put(edge, |outbox| outbox.home(home));
        }
        self.telling.put(edge, Outbox::members);
    }

    /// An edge said something of a peer of which others are to be told: so they have to know the edge. Returns whether they did not.
    pub fn edge_speaks(&mut self, edge: PeerId, now: Instant) -> bool {
        let Some(boot) = self.edges.get(&edge).copied() else { return false };
        let is_news = !self.far.is_linked(&edge) || self.far.boot(&edge) != boot;
        if is_news {
            self.far.linked(edge, boot, now);
            self.home_changed(edge);
        }
        is_news
    }

    /// The link with an edge ended; nothing had come over it for so long.
    pub fn edge_unlinked(&mut self, edge: &PeerId, silent_for: Duration, now: Instant) {
        self.edges.remove(edge);
        self.forget_subscriptions(edge);
        self.telling.edge_unlinked(edge);
        if self.far.is_linked(edge) {
            self.far.unlinked(edge, now.checked_sub(silent_for).unwrap_or(now));
            self.home_changed(*edge);
            self.is_forsaken = true;
        }
    }

    /// Whether an edge went since this was asked last.
    pub fn take_forsaken(&mut self) -> bool {
        std::mem::take(&mut self.is_forsaken)
    }

    /// A linked edge is to say once more how peers are: what it said of them was not taken.
    pub fn ask_again(&mut self, edge: PeerId, peers: impl IntoIterator<Item = PeerId>) {
        let peers = peers.into_iter();
        self.telling.put(edge, |outbox| peers.for_each(|peer| outbox.again(peer)));
    }

    fn forget_subscriptions(&mut self, edge: &PeerId) {
        for peer in self.subscribers.forget(edge) {
            self.unwatch(&peer);
        }
    }

    /// A home outside the ring went, or came: members hear it from those that have a link with it, edges from everybody.
    fn home_changed(&mut self, home: PeerId) {
        self.telling.put_all(|outbox| outbox.home(home));
        self.telling.put_edges(|outbox| outbox.home(home));
    }

    /// The linked member `by` says whether a home outside the ring is alive, in which life, and if not, how long ago it gave a sign of
    /// life.
    pub fn home_word(
        &mut self,
        by: PeerId,
        home: PeerId,
        how: (bool, u64),
        age: Duration,
        now: Instant,
    ) -> News {
        if home == self.own || !self.others.contains_key(&by) {
            return News::Nothing;
        }
        let news = self.far.told(by, home, how, now.checked_sub(age).unwrap_or(now));
        if news != News::Nothing {
            self.telling.put_edges(|outbox| outbox.home(home));
        }
        news
    }

    /// The members, or the links with them, are not what they were.
    pub fn members_changed(&mut self) {
        if self.role == Role::Member {
            self.telling.put_all(Outbox::members);
            self.telling.put_edges(Outbox::members);
        }
    }

    /// A linked member says how another one stands; `claim` is what that one's own record says, if it is known.
    pub fn word(&mut self, by: &PeerId, word: &Word, claim: Option<Claim>, now: Instant) {
        self.ring.told(by, word, claim, now);
    }

    /// The own record of a member that has not proven itself to this one says this now, or nothing any more.
    pub fn claimed(&mut self, peer: &PeerId, claim: Option<Claim>) {
        self.ring.claimed(peer, claim);
    }

    /// A linked member has told all that this one owns; its knowledge reaches back so far.
    pub fn told_all(&mut self, by: PeerId, knowledge: Duration, now: Instant) {
        self.syncing.told_all(by, knowledge, now);
    }

    /// A linked member made its mark.
    pub fn marked(&mut self, by: PeerId, mark: &Mark) {
        let Mark { received, sessions, finished, ring_digest, .. } = *mark;
        if let Some(other) = self.others.get_mut(&by) {
            *other = Other { finished, ring_digest };
        } else if !self.telling.is_edge(&by) {
            return;
        }
        self.homes.said(by, sessions);
        self.telling.acknowledged(&by, received);
    }

    /// This member's mark for another one, from whom everything up to batch `received` arrived.
    #[must_use]
    pub fn mark(&self, to: &PeerId, received: u64, sessions: u64) -> Mark {
        Mark {
            sent: self.telling.last_sent(to),
            received,
            sessions,
            finished: self.syncing.is_finished(),
            ring_digest: self.view.current().digest(),
        }
    }

    /// The record of a peer changed, which offers these services, or did.
    pub fn record(&mut self, peer: PeerId, services: &[Key], origin: Origin) {
        self.telling.record(peer, services, origin, &self.view, &self.ring);
        if self.role == Role::Edge && origin == Origin::Here {
            // A member takes an edge's word for a peer only when it knows the record.
            self.telling.presence(peer, services, origin, &self.view, &self.ring);
        }
        for member in self.subscribers.of(&peer) {
            if origin != Origin::Member(member) {
                self.telling.put(member, |outbox| outbox.record(peer));
            }
        }
    }

    /// The record of a member, or of this one, changed. Every member has to have it: whoever has no link with that member hears it
    /// from those that have.
    pub fn record_of_member(&mut self, member: PeerId) {
        if self.role == Role::Edge {
            return;
        }
        let others: Vec<PeerId> = self.others.keys().filter(|other| **other != member).copied().collect();
        for other in others {
            if member == self.own || !self.ring.are_linked(&other, &member) {
                self.telling.put(other, |outbox| outbox.record(member));
            }
        }
    }

    /// The presence of a peer changed.
    pub fn presence(&mut self, peer: PeerId, services: &[Key], origin: Origin) {
        self.telling.presence(peer, services, origin, &self.view, &self.ring);
        for member in self.subscribers.of(&peer) {
            if origin != Origin::Member(member) {
                self.telling.put(member, |outbox| outbox.presence(peer));
            }
        }
    }

    /// A member or an edge wants to hear of a peer, or does no longer. The answer is the peer's record and presence, whatever they
    /// are. For an edge this member subscribes at the owners itself, and answers when one of them has.
    pub fn subscribed(&mut self, by: PeerId, peer: PeerId, wanted: bool) -> Result<(), TooManySubscriptions> {
        let is_edge = self.telling.is_edge(&by);
        if !is_edge && !self.others.contains_key(&by) {
            // Its link has ended.
            return Ok(());
        }
        if !wanted {
            if self.subscribers.unsubscribe(&by, &peer) && is_edge {
                self.unwatch(&peer);
            }
            return Ok(());
        }
        let limit = if is_edge { SUBSCRIPTIONS_OF_EDGE } else { SUBSCRIPTIONS };
        let is_new = self.subscribers.subscribe(by, peer, limit)?;
        if is_edge && is_new {
            self.watch(peer);
        }
        if !is_edge || self.knows(&peer, Key::peer(&peer)) {
            self.tell_how_it_is(by, peer);
        }
        Ok(())
    }

    fn tell_how_it_is(&mut self, to: PeerId, peer: PeerId) {
        self.telling.put(to, |outbox| {
            outbox.record(peer);
            outbox.presence(peer);
        });
    }

    /// Somebody here watches a peer.
    pub fn watch(&mut self, peer: PeerId) {
        let sayings = self.interest.watch(peer, &self.view);
        self.say(sayings);
    }

    /// Somebody here watches it no longer.
    pub fn unwatch(&mut self, peer: &PeerId) {
        let sayings = self.interest.unwatch(peer);
        self.say(sayings);
    }

    /// A member said how a peer is.
    pub fn answered(&mut self, by: &PeerId, peer: &PeerId) {
        let was_settled = self.interest.is_settled(peer);
        let sayings = self.interest.answered(by, peer);
        self.say(sayings);
        if !was_settled && self.interest.is_settled(peer) {
            let edges: Vec<PeerId> =
                self.subscribers.of(peer).filter(|one| self.telling.is_edge(one)).collect();
            edges.into_iter().for_each(|edge| self.tell_how_it_is(edge, *peer));
        }
    }

    fn say(&mut self, sayings: Sayings) {
        for (member, peer) in sayings {
            self.telling.put(member, |outbox| outbox.interest(peer));
        }
    }

    /// Notices what time has changed, and goes `most` entries further in what others have to be told.
    pub fn tick<H: Holdings<Cursor = C>>(
        &mut self,
        holdings: &H,
        most: usize,
        now: Instant,
    ) -> Vec<HomeEvent> {
        let change = self.ring.tick(now);
        self.view = self.ring.view();
        if let Some(change) = change {
            self.telling.ring_changed(&change.from, &change.to);
            let sayings = self.interest.ring_changed(&self.view);
            self.say(sayings);
            // Who left for good comes again as somebody new, if ever.
            let stays = |peer: &PeerId| self.telling.is_member(peer) || self.telling.is_edge(peer);
            self.subscribers.retain(stays);
            self.syncing.retain(stays, now);
        }
        for member in self.ring.news().filter(|_| self.role == Role::Member) {
            self.telling.put_all(|outbox| outbox.word(member));
            self.telling.put_edges(|outbox| outbox.home(member));
        }
        self.telling.walk(holdings, most, &self.view);
        self.syncing.check(&self.view, &self.ring, now);
        let (ring, far) = (&self.ring, &self.far);
        self.homes.tick(|home| dead_for(ring, far, home, now))
    }

    /// Forgets homes outside the ring that went long ago.
    pub fn sweep(&mut self, now: Instant) {
        self.far.sweep(now);
    }

    /// Whether a home is alive, in the eyes of this server, and if not, how long it has given no sign of life.
    #[must_use]
    pub fn dead_for(&self, home: &PeerId, now: Instant) -> Option<Duration> {
        if *home == self.own { None } else { dead_for(&self.ring, &self.far, home, now) }
    }

    /// Homes outside the ring.
    #[must_use]
    pub const fn far(&self) -> &FarHomes {
        &self.far
    }

    /// Whether a home has a link with a member, or is heard by it in another way, as that member says, or this one itself knows.
    #[must_use]
    pub fn hears(&self, member: &PeerId, home: &PeerId) -> bool {
        let far =
            if *member == self.own { self.far.is_linked(home) } else { self.far.is_heard_by(member, home) };
        far || self.ring.are_linked(member, home)
    }

    /// What this server is.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Members for whom something waits, each named once until [`Self::next`] has nothing for it.
    pub fn ready(&mut self) -> impl Iterator<Item = PeerId> + use<C> {
        self.telling.ready().into_iter()
    }

    /// What is to be told to a member next, and the number of that batch.
    pub fn next(&mut self, member: &PeerId, most: usize) -> Option<(u64, Next)> {
        self.telling.next(member, most)
    }

    /// Whether this member's own word about the peer with this key counts: it owns it, or follows it for somebody. Who owned it a
    /// moment ago may be told no more: others may have seen another ring then.
    #[must_use]
    pub fn knows(&self, peer: &PeerId, key: Key) -> bool {
        self.view.owns(key) || self.interest.is_settled(peer)
    }

    /// Whether this member owns a peer.
    #[must_use]
    pub fn owns(&self, peer: &PeerId) -> bool {
        self.view.owns(Key::peer(peer))
    }

    /// Whether this member has to hold what is known of a peer that offers these services: it owns one of the keys, did so a moment
    /// ago, or follows the peer for somebody.
    #[must_use]
    pub fn has_to_hold(&self, peer: &PeerId, services: &[Key]) -> bool {
        let mut keys = std::iter::once(Key::peer(peer)).chain(services.iter().copied());
        self.interest.is_watched(peer) || keys.any(|key| self.counts_for(key))
    }

    /// Whether all that is to be known of a key is known here: this member owns it, did so a moment ago, and has finished syncing.
    #[must_use]
    pub fn knows_all(&self, key: Key) -> bool {
        let owned = self.view.before().is_none_or(|before| before.owners(key).contains(&self.own));
        self.syncing.is_finished() && owned && self.view.owns(key)
    }

    /// Whether it owns a key, or did a moment ago.
    fn counts_for(&self, key: Key) -> bool {
        self.view.to_tell(key).any(|owner| owner == self.own)
    }

    /// Where is the peer with this key? `found` is what this member itself would answer for it; it counts if `knows`.
    #[must_use]
    pub fn lookup<T: Clone>(
        &self,
        key: Key,
        (found, knows): (Option<Answer<T>>, bool),
        timing: (Patience, Instant),
    ) -> Lookup<T> {
        let (finished, knowledge) = (self.syncing.is_finished(), self.syncing.knowledge(timing.1));
        let own = match found {
            Some(found) if knows => Some(found),
            // What is left from when this member owned it may be old.
            Some(_) => None,
            None => self.counts_for(key).then_some(Answer::Unknown { finished, knowledge }),
        };
        let reach = |member: &PeerId| self.others.get(member).map(|other| other.finished);
        Lookup::new(key, &self.view, own, reach, timing)
    }

    /// Whether what this member does not know of `key` counts as unknown, and how far back its knowledge reaches.
    #[must_use]
    pub fn ignorance(&self, key: Key, now: Instant) -> (bool, Duration) {
        (self.counts_for(key) && self.syncing.is_finished(), self.syncing.knowledge(now))
    }

    /// The ring as this member sees it.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// Who is alive, and linked with whom.
    #[must_use]
    pub const fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Whether the peers of a home are OFFLINE because it is lost.
    #[must_use]
    pub fn is_home_lost(&self, home: &PeerId, now: Instant) -> bool {
        self.homes.is_lost(home, self.dead_for(home, now))
    }

    /// How far back this member's knowledge reaches.
    #[must_use]
    pub fn knowledge(&self, now: Instant) -> Duration {
        self.syncing.knowledge(now)
    }

    /// What this member watches.
    #[must_use]
    pub const fn interest(&self) -> &Interest {
        &self.interest
    }

    /// Whether this member has heard, since it started, all that it owns.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.syncing.is_finished()
    }

    /// Whether a linked member has heard all that it owns, as it says; of this one, whether it has.
    #[must_use]
    pub fn has_finished(&self, member: &PeerId) -> bool {
        let other = || self.others.get(member).is_some_and(|other| other.finished);
        if *member == self.own { self.syncing.is_finished() } else { other() }
    }

    /// Whether a member hears of this peer because it asked for that, whoever owns it.
    #[must_use]
    pub fn is_subscribed(&self, member: &PeerId, peer: &PeerId) -> bool {
        self.subscribers.has(member, peer)
    }

    /// Whether everybody was told what it owns.
    #[must_use]
    pub fn is_walk_over(&self) -> bool {
        self.telling.is_walk_over()
    }

    /// Whether nothing waits for a member.
    #[must_use]
    pub fn has_told(&self, member: &PeerId) -> bool {
        self.telling.has_told(member)
    }

    /// If nothing waits for a member, the number of the batch with which it will have everything that was put in so far.
    #[must_use]
    pub fn told_up_to(&self, member: &PeerId) -> Option<u64> {
        self.has_told(member).then(|| self.telling.last_sent(member))
    }

    /// Whether a member has every batch up to this one.
    #[must_use]
    pub fn has_arrived(&self, member: &PeerId, number: u64) -> bool {
        self.telling.has_arrived(member, number)
    }

    /// Whether every linked member has all that it is to know.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.telling.is_done()
    }

    /// How many linked members see another ring.
    #[must_use]
    pub fn disagreeing(&self) -> usize {
        let own = self.view.current().digest();
        self.others.values().filter(|other| other.ring_digest != own).count()
    }
}

/// How long a home, in the ring or not, has given no sign of life; `None` if it is alive.
fn dead_for(ring: &Ring, far: &FarHomes, home: &PeerId, now: Instant) -> Option<Duration> {
    let (in_ring, outside) = (ring.dead_for(home, now)?, far.dead_for(home, now)?);
    Some(in_ring.min(outside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Time, peer};
    use crate::core::walk::Held;

    const OWN: u8 = 1;
    const EDGE: u8 = 90;

    struct Nothing;

    impl Holdings for Nothing {
        type Cursor = PeerId;

        fn page(&self, _: Option<&PeerId>, _: usize) -> Vec<Held<PeerId>> {
            Vec::new()
        }
    }

    fn said(n: u8) -> Introduction {
        let (up_for, operator) = (Duration::ZERO, Operator::of(&peer(n), None));
        Introduction { operator, boot: 1, up_for, oldest_up_for: up_for }
    }

    /// A member of a ring of nine, or an edge that has links with three.
    fn bridge(role: Role, t: Time) -> Bridge<PeerId> {
        let now = t.at(0).mono;
        let bridge = Bridge::new(peer(OWN), Operator::of(&peer(OWN), None), 1, Timing::default(), now);
        let (mut bridge, others) = match role {
            Role::Member => (bridge, 2..=9),
            Role::Edge => (bridge.edge(now), 2..=4),
        };
        others.for_each(|n| bridge.linked(peer(n), &said(n), now));
        bridge.tick(&Nothing, 10, now);
        // The ring of before counts no more.
        bridge.tick(&Nothing, 10, now + 2 * Timing::default().overlap);
        bridge
    }

    /// All that waits for a member or edge.
    fn told(bridge: &mut Bridge<PeerId>, to: PeerId) -> Next {
        let mut all = Next::default();
        while let Some((number, next)) = bridge.next(&to, 64) {
            bridge.telling.acknowledged(&to, number);
            all.homes.extend(next.homes);
            all.words.extend(next.words);
            all.presence.extend(next.presence);
            all.interest.extend(next.interest);
            all.members |= next.members;
        }
        all
    }

    /// A peer that this member does not own.
    fn stranger(bridge: &Bridge<PeerId>) -> PeerId {
        (100..200).map(peer).find(|peer| !bridge.owns(peer)).unwrap()
    }

    #[test]
    fn whom_an_edge_asks_for_a_member_asks_owners_and_answers_when_one_has_spoken() {
        let t = Time::start();
        let mut bridge = bridge(Role::Member, t);
        let stranger = stranger(&bridge);
        let owners: Vec<PeerId> = bridge.view().owners(Key::peer(&stranger)).iter().collect();
        bridge.edge_linked(peer(EDGE), 1);
        assert!(
            bridge.edge_speaks(peer(EDGE), t.at(1).mono) && !bridge.edge_speaks(peer(EDGE), t.at(1).mono)
        );
        let first = told(&mut bridge, peer(EDGE));
        assert!(first.members && first.words.is_empty(), "the ring is nothing that an edge reckons with");
        assert!((1..=9).all(|n| first.homes.contains(&peer(n))), "homes are: it hears none of them itself");
        for owner in &owners {
            assert!(told(&mut bridge, *owner).homes.contains(&peer(EDGE)), "every member knows of the edge");
        }
        bridge.subscribed(peer(EDGE), stranger, true).unwrap();
        assert!(told(&mut bridge, peer(EDGE)).is_empty());
        assert!(owners.iter().all(|owner| told(&mut bridge, *owner).interest == [stranger]));
        bridge.answered(&owners[1], &stranger);
        assert_eq!(told(&mut bridge, peer(EDGE)).presence, [stranger]);
        bridge.presence(stranger, &[], Origin::Member(owners[0]));
        assert_eq!(told(&mut bridge, peer(EDGE)).presence, [stranger]);
        bridge.edge_unlinked(&peer(EDGE), Duration::ZERO, t.at(2).mono);
        assert!(owners.iter().all(|owner| told(&mut bridge, *owner).interest == [stranger]));
        assert!(!bridge.interest().is_watched(&stranger), "nobody asks any more");
        assert!(bridge.next(&peer(EDGE), 64).is_none());
    }

    #[test]
    fn of_a_member_that_left_the_ring_nothing_is_kept() {
        let t = Time::start();
        let mut bridge = bridge(Role::Member, t);
        let (timing, since) = (Timing::default(), t.at(200).mono);
        bridge.subscribed(peer(2), peer(100), true).unwrap();
        bridge.subscribed(peer(3), peer(100), true).unwrap();
        bridge.unlinked(&peer(2), Duration::ZERO, since);
        bridge.tick(&Nothing, 10, since + timing.leave_after / 2);
        assert!(bridge.is_subscribed(&peer(2), &peer(100)), "it may come back, and counts on it");
        bridge.tick(&Nothing, 10, since + timing.leave_after);
        assert!(!bridge.view().current().contains(&peer(2)));
        assert!(!bridge.is_subscribed(&peer(2), &peer(100)) && bridge.is_subscribed(&peer(3), &peer(100)));
    }

    #[test]
    fn who_was_apart_from_a_member_says_again_whom_it_watches() {
        let t = Time::start();
        let mut bridge = bridge(Role::Member, t);
        let stranger = stranger(&bridge);
        let owner = bridge.view().owners(Key::peer(&stranger)).iter().next().unwrap();
        let n = (2..=9).find(|n| peer(*n) == owner).unwrap();
        bridge.watch(stranger);
        assert_eq!(told(&mut bridge, owner).interest, [stranger]);
        let leave_after = Timing::default().leave_after;
        for (silent, again) in [(leave_after / 4, false), (leave_after, true)] {
            let now = t.at(1000).mono;
            bridge.unlinked(&owner, silent, now);
            bridge.linked(owner, &said(n), now);
            assert_eq!(told(&mut bridge, owner).interest.contains(&stranger), again, "after {silent:?}");
        }
    }

    #[test]
    fn an_edge_that_asks_again_or_asks_too_much_leaves_nothing_behind() {
        let t = Time::start();
        let mut bridge = bridge(Role::Member, t);
        bridge.edge_linked(peer(EDGE), 1);
        for wanted in [true, true, false, false] {
            bridge.subscribed(peer(EDGE), peer(100), wanted).unwrap();
        }
        assert!(!bridge.interest().is_watched(&peer(100)));
        let id = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            PeerId::new(p2psb_proto::model::PublicKey::from_bytes(bytes))
        };
        let results: Vec<_> = (0..=SUBSCRIPTIONS_OF_EDGE)
            .map(|n| bridge.subscribed(peer(EDGE), id(n), true))
            .filter(Result::is_err)
            .collect();
        assert_eq!(results, [Err(TooManySubscriptions { limit: SUBSCRIPTIONS_OF_EDGE })]);
        bridge.edge_linked(peer(EDGE), 1);
        assert!((0..=SUBSCRIPTIONS_OF_EDGE).all(|n| !bridge.interest().is_watched(&id(n))));
    }

    #[test]
    fn an_edge_tells_and_asks_its_members_and_says_nothing_of_the_ring() {
        let t = Time::start();
        let mut edge = bridge(Role::Edge, t);
        for n in 2..=4 {
            let first = told(&mut edge, peer(n));
            assert!(!first.members && first.words.is_empty() && first.homes.is_empty());
        }
        edge.members_changed();
        edge.record_of_member(peer(2));
        edge.record(peer(100), &[], Origin::Here);
        edge.watch(peer(101));
        for n in 2..=4 {
            let (_, next) = edge.next(&peer(n), 64).unwrap();
            assert_eq!((next.records, next.interest), (vec![peer(100)], vec![peer(101)]));
            assert!(!next.members);
        }
        assert!(!edge.owns(&peer(100)) && !edge.knows_all(Key::service("chat")));
        // After a break the member has forgotten what the edge asked for.
        edge.unlinked(&peer(2), Duration::ZERO, t.at(5).mono);
        edge.tick(&Nothing, 10, t.at(5).mono);
        edge.linked(peer(2), &said(2), t.at(6).mono);
        edge.tick(&Nothing, 10, t.at(6).mono);
        assert_eq!(told(&mut edge, peer(2)).interest, [peer(101)]);
    }

    #[test]
    fn homes_outside_the_ring_live_while_a_member_says_so() {
        let t = Time::start();
        let mut bridge = bridge(Role::Member, t);
        let (far, at) = (peer(EDGE), |seconds| t.at(seconds).mono);
        assert_eq!(bridge.dead_for(&far, at(0)), Some(super::super::homes::FOREVER));
        let word = |bridge: &mut Bridge<_>, by, boot| {
            bridge.home_word(peer(by), far, (true, boot), Duration::ZERO, at(1))
        };
        assert_eq!(
            [1, 1, 2].map(|boot| word(&mut bridge, 2, boot)),
            [News::Changed, News::Nothing, News::Restarted]
        );
        assert!(
            bridge.hears(&peer(2), &far) && !bridge.hears(&peer(3), &far) && !bridge.hears(&peer(OWN), &far)
        );
        assert_eq!(bridge.dead_for(&far, at(50)), None);
        assert_eq!(word(&mut bridge, 77, 3), News::Nothing);
        bridge.unlinked(&peer(2), Duration::from_secs(5), at(60));
        assert_eq!(bridge.dead_for(&far, at(65)), Some(Duration::from_secs(10)), "77 is no member");
        bridge.edge_linked(far, 7);
        assert_eq!(bridge.dead_for(&far, at(65)), Some(Duration::from_secs(10)), "it has said nothing yet");
        assert!(bridge.edge_speaks(far, at(70)));
        assert!(bridge.hears(&peer(OWN), &far));
        assert_eq!(bridge.dead_for(&far, at(70)), None);
    }
}
