//! All of a member's part in the backbone, without its tables and sockets: who is in the ring, who is told what, who is asked, who
//! listens. The server and the simulator drive the same machine.
//!
//! What comes in: links that open and end, what members say on them, changes of peers, time. What goes out is fetched:
//! [`Bridge::ready`] names members for whom something waits, [`Bridge::next`] what it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use super::homes::{HomeEvent, Homes};
use super::interest::{Interest, SUBSCRIPTIONS, Sayings, Subscribers, TooManySubscriptions};
use super::lookup::{Answer, Lookup, Patience};
use super::outbox::{Next, Outbox};
use super::placement::{Key, Operator};
use super::ring::{Introduction, Ring, Timing, View, Word};
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
    operator: Operator,
    boot: u64,
    ring: Ring,
    view: View,
    telling: Telling<C>,
    syncing: Syncing,
    homes: Homes,
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
            operator,
            boot,
            view: ring.view(),
            ring,
            telling: Telling::default(),
            syncing: Syncing::new(Duration::ZERO, timing.join_after, now),
            homes: Homes::default(),
            interest: Interest::default(),
            subscribers: Subscribers::new(SUBSCRIPTIONS),
            others: BTreeMap::new(),
        }
    }

    /// A server that bridges with nobody: it waits for nobody to tell it what it owns.
    #[must_use]
    pub fn alone(self, now: Instant) -> Self {
        Self { syncing: self.syncing.alone(now), ..self }
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
        let is_new_life = self.ring.linked(peer, said, now);
        self.others.insert(peer, Other::default());
        self.telling.linked(peer, is_new_life);
        if is_new_life {
            self.subscribers.forget(&peer);
            let sayings = self.interest.began_anew(&peer);
            self.say(sayings);
        }
        for member in self.ring.known() {
            self.telling.put(peer, |outbox| outbox.word(member));
        }
        self.telling.put(peer, Outbox::members);
    }

    /// A link ended; nothing had come over it for so long.
    pub fn unlinked(&mut self, peer: &PeerId, silent_for: Duration, now: Instant) {
        self.ring.unlinked(peer, silent_for, now);
        self.telling.unlinked(peer);
        self.others.remove(peer);
    }

    /// The members, or the links with them, are not what they were.
    pub fn members_changed(&mut self) {
        self.telling.put_all(Outbox::members);
    }

    /// A linked member says how another one stands, whose own record names `operator`.
    pub fn word(&mut self, by: &PeerId, word: &Word, operator: Operator, now: Instant) {
        self.ring.told(by, word, operator, now);
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
            self.homes.said(by, sessions);
            self.telling.acknowledged(&by, received);
        }
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
        for member in self.subscribers.of(&peer) {
            if origin != Origin::Member(member) {
                self.telling.put(member, |outbox| outbox.record(peer));
            }
        }
    }

    /// The record of a member, or of this one, changed. Every member has to have it: whoever has no link with that member hears it
    /// from those that have.
    pub fn record_of_member(&mut self, member: PeerId) {
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

    /// A member wants to hear of a peer, or does no longer. The answer is the peer's record and presence, whatever they are.
    pub fn subscribed(&mut self, by: PeerId, peer: PeerId, wanted: bool) -> Result<(), TooManySubscriptions> {
        if !wanted {
            self.subscribers.unsubscribe(&by, &peer);
            return Ok(());
        }
        self.subscribers.subscribe(by, peer)?;
        self.telling.put(by, |outbox| {
            outbox.record(peer);
            outbox.presence(peer);
        });
        Ok(())
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
        let sayings = self.interest.answered(by, peer);
        self.say(sayings);
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
        }
        for member in self.ring.news() {
            self.telling.put_all(|outbox| outbox.word(member));
        }
        self.telling.walk(holdings, most, &self.view);
        self.syncing.check(&self.view, &self.ring, now);
        let ring = &self.ring;
        self.homes.tick(|home| ring.dead_for(home, now))
    }

    /// Members for whom something waits, each named once until [`Self::next`] has nothing for it.
    pub fn ready(&mut self) -> impl Iterator<Item = PeerId> + use<C> {
        self.telling.ready().into_iter()
    }

    /// What is to be told to a member next, and the number of that batch.
    pub fn next(&mut self, member: &PeerId, most: usize) -> Option<(u64, Next)> {
        self.telling.next(member, most)
    }

    /// Whether this member's own word about the peer with this key counts: it owns it, or follows it for somebody.
    #[must_use]
    pub fn knows(&self, peer: &PeerId, key: Key) -> bool {
        self.counts_for(key) || self.interest.is_settled(peer)
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
        *home != self.own && self.homes.is_lost(home, self.ring.dead_for(home, now))
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
