//! A member: the machine of the server, with tables and links that are only numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use p2psb_proto::model::{PeerId, UnixMillis};
use p2psb_rendezvous_svc::core::bridge::Bridge;
use p2psb_rendezvous_svc::core::delivery::{ACKNOWLEDGE_AFTER, Arrived};
use p2psb_rendezvous_svc::core::lookup::{Answer, Lookup};
use p2psb_rendezvous_svc::core::outbox::Next;
use p2psb_rendezvous_svc::core::placement::Operator;
use p2psb_rendezvous_svc::core::ring::Timing;
use p2psb_rendezvous_svc::core::telling::Origin;
use p2psb_rendezvous_svc::core::walk::{Held, Holdings};

use super::ids::Ids;
use super::net::{Batch, Millis, Said};
use super::store::Store;

/// Silence that ends a link.
pub(crate) const SILENCE: Duration = Duration::from_secs(15);

/// What a question finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) seq: u64,
    pub(crate) online: bool,
}

/// This end of a link.
pub(crate) struct End<R> {
    pub(crate) link: u64,
    pub(crate) arrived: Arrived<Batch<R>>,
    pub(crate) heard: Millis,
}

/// A question on its way.
pub(crate) struct Question {
    pub(crate) lookup: Lookup<Found>,
    /// Nobody, if it is about one that never was.
    pub(crate) about: Option<u32>,
    pub(crate) since: Millis,
    /// What has to be found at least.
    pub(crate) seq: u64,
}

/// One of the backbone.
pub(crate) struct Member<S: Store> {
    pub(crate) number: usize,
    pub(crate) id: PeerId,
    pub(crate) operator: Operator,
    /// Counts its restarts.
    pub(crate) life: u64,
    pub(crate) is_up: bool,
    pub(crate) is_paused: bool,
    pub(crate) down_since: Millis,
    pub(crate) bridge: Bridge<u32>,
    pub(crate) store: S,
    pub(crate) links: BTreeMap<usize, End<S::Record>>,
    /// Live sessions.
    pub(crate) sessions: BTreeSet<u32>,
    /// What each home says of a peer, this one included, and in which telling of all.
    pub(crate) said: BTreeMap<u32, BTreeMap<usize, (Said, u64)>>,
    /// How often each home began to tell all.
    pub(crate) tellings: BTreeMap<usize, u64>,
    pub(crate) questions: BTreeMap<u64, Question>,
    /// Links over which something is to be acknowledged.
    pub(crate) owes: BTreeSet<usize>,
    /// Members that are being dialed.
    pub(crate) dialing: BTreeSet<usize>,
    pub(crate) skew: i64,
}

/// What a member holds, for the walk.
struct Kept<'a, S: Store> {
    store: &'a S,
    sessions: &'a BTreeSet<u32>,
    ids: &'a Ids,
}

impl<S: Store> Holdings for Kept<'_, S> {
    type Cursor = u32;

    fn page(&self, after: Option<&u32>, most: usize) -> Vec<Held<u32>> {
        let held = |at: u32| Held {
            at,
            peer: self.ids.id(at),
            services: Vec::new(),
            is_here: self.sessions.contains(&at),
        };
        self.store.after(after.copied(), most).into_iter().map(held).collect()
    }
}

impl<S: Store> Member<S> {
    pub(crate) fn new(number: usize, id: PeerId, operator: Operator, timing: Timing, now: Instant) -> Self {
        Self {
            number,
            id,
            operator,
            life: 1,
            is_up: true,
            is_paused: false,
            down_since: 0,
            bridge: Bridge::new(id, operator, 1, timing, now),
            store: S::new(),
            links: BTreeMap::new(),
            sessions: BTreeSet::new(),
            said: BTreeMap::new(),
            tellings: BTreeMap::new(),
            questions: BTreeMap::new(),
            owes: BTreeSet::new(),
            dialing: BTreeSet::new(),
            skew: 0,
        }
    }

    /// It starts again, and knows nothing.
    pub(crate) fn restart(&mut self, timing: Timing, now: Instant) {
        let (life, skew) = (self.life + 1, self.skew);
        *self = Self::new(self.number, self.id, self.operator, timing, now);
        (self.life, self.skew) = (life, skew);
        self.bridge = Bridge::new(self.id, self.operator, life, timing, now);
    }

    pub(crate) fn wall(&self, truth: UnixMillis) -> UnixMillis {
        UnixMillis(truth.0.saturating_add_signed(self.skew))
    }

    pub(crate) fn tick(&mut self, ids: &Ids, walk: usize, now: Instant) {
        let kept = Kept { store: &self.store, sessions: &self.sessions, ids };
        self.bridge.tick(&kept, walk, now);
    }

    /// A home says how a peer is. Returns whether that is news.
    pub(crate) fn hear(&mut self, peer: u32, home: usize, said: Said, from: Origin, ids: &Ids) -> bool {
        let telling = self.tellings.get(&home).copied().unwrap_or_default();
        let homes = self.said.entry(peer).or_default();
        if let Some((known, when)) = homes.get_mut(&home).filter(|(known, _)| *known >= said) {
            if *known == said {
                *when = telling;
            }
            return false;
        }
        homes.insert(home, (said, telling));
        self.bridge.presence(ids.id(peer), &[], from);
        true
    }

    /// Whether a peer is online, as far as is known here; `None` if no home has said anything.
    pub(crate) fn is_online(&self, peer: u32, members: &[PeerId], now: Instant) -> Option<bool> {
        let homes = self.said.get(&peer)?;
        let counts = |home: usize| home == self.number || !self.bridge.is_home_lost(&members[home], now);
        Some(homes.iter().any(|(home, (said, _))| said.online && counts(*home)))
    }

    /// What this member answers.
    pub(crate) fn answer(
        &self,
        about: u32,
        ids: &Ids,
        members: &[PeerId],
        (now, truth): (Instant, UnixMillis),
    ) -> Answer<Found> {
        match self.store.valid(about, self.wall(truth)) {
            Some(seq) => {
                let online = self.is_online(about, members, now);
                let found = Found { seq, online: online.unwrap_or_default() };
                Answer::Found { found, seq, by_home: online.is_some() }
            }
            None => {
                let (finished, knowledge) = self.bridge.ignorance(ids.key(about), now);
                Answer::Unknown { finished, knowledge }
            }
        }
    }

    /// Fills a batch with what it speaks of.
    pub(crate) fn batch(
        &self,
        to: &PeerId,
        next: &Next,
        ids: &Ids,
        operators: impl Fn(&PeerId) -> Operator,
        now: Instant,
    ) -> Batch<S::Record> {
        let words = next.words.iter().filter_map(|about| self.bridge.ring().word(about, now));
        let presence = next.presence.iter().flat_map(|peer| {
            let peer = ids.number(peer);
            let homes = self.said.get(&peer).into_iter().flatten();
            let mut said: Vec<_> = homes.map(|(home, (said, _))| (peer, Some((*home, *said)))).collect();
            if said.is_empty() {
                said.push((peer, None));
            }
            said
        });
        Batch {
            words: words.map(|word| (word, operators(&word.about))).collect(),
            records: next.records.iter().filter_map(|peer| self.store.newest(ids.number(peer))).collect(),
            presence: presence.collect(),
            interest: next
                .interest
                .iter()
                .map(|peer| (ids.number(peer), self.bridge.interest().wants(to, peer)))
                .collect(),
            tells_all: next.tells_all,
            told_all: next.told_all.then(|| self.bridge.knowledge(now)),
        }
    }

    /// A home has told all that it says of peers whom this member owns: what it did not say again is over.
    pub(crate) fn told_all(&mut self, home: usize, id: PeerId, ids: &Ids) {
        let telling = self.tellings.get(&home).copied().unwrap_or_default();
        let mut over = Vec::new();
        for (peer, homes) in &mut self.said {
            let Some((said, when)) = homes.get_mut(&home).filter(|(said, _)| said.online) else { continue };
            if *when != telling && self.bridge.view().owns(ids.key(*peer)) {
                (said.online, said.revision) = (false, u64::MAX);
                over.push(*peer);
            }
        }
        for peer in over {
            self.bridge.presence(ids.id(peer), &[], Origin::Member(id));
        }
    }

    /// Links whose other end has to hear what arrived, at once.
    pub(crate) fn owes_much(&self, to: usize) -> bool {
        self.links.get(&to).is_some_and(|end| end.arrived.unacknowledged() >= ACKNOWLEDGE_AFTER)
    }
}
