//! Who provides which service.
//!
//! Invariants:
//! - A name is here while somebody offers it, and charged to whoever brought it first. Where there is no room for one more
//!   name its offers are only counted: such a peer is found by its id, and by the service once it says it anew and there is
//!   room.
//! - Of a name at most so many providers are kept: those with the lowest [`rank`] of the day. The others compete again with
//!   every new record, which is at least every two hours, so that every day others are chosen.
//! - What is left out is never kept secret: then the name is *sampled*.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use p2psb_proto::model::{PeerId, UnixMillis};

use super::ledger::{Bringer, Ledger, Shares};

const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;

/// The number of the day, from which everybody chooses alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Day(u64);

impl Day {
    /// The day, UTC.
    #[must_use]
    pub const fn of(now: UnixMillis) -> Self {
        Self(now.0 / DAY_MILLIS)
    }
}

/// A peer's place among the providers of a service: the same at every rendezvous, another one tomorrow.
#[must_use]
pub fn rank(peer: &PeerId, day: Day) -> u64 {
    let mut first = [0; 8];
    blake3::Hasher::new()
        .update(&day.0.to_le_bytes())
        .update(&peer.to_bytes())
        .finalize_xof()
        .fill(&mut first);
    u64::from_be_bytes(first)
}

/// What one entry of the table offers under one name.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Shared by all who offer it. In a box of its own, so that a pointer to it is thin.
    name: Arc<Box<str>>,
    /// Counted under the name; not where there was no room for the name.
    listed: bool,
}

impl Offer {
    /// The service.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// All that one entry offers: one service, as a rule.
#[derive(Debug, Default)]
pub enum Offers {
    /// Nothing is offered.
    #[default]
    None,
    /// It stands here itself.
    One(Offer),
    /// Others have them behind a thin pointer.
    Several(Box<Box<[Offer]>>),
}

impl Offers {
    /// In a row.
    #[must_use]
    pub fn as_slice(&self) -> &[Offer] {
        match self {
            Self::One(offer) => std::slice::from_ref(offer),
            Self::None => &[],
            Self::Several(offers) => offers,
        }
    }
}

impl From<Box<[Offer]>> for Offers {
    fn from(offers: Box<[Offer]>) -> Self {
        match <Box<[Offer; 1]>>::try_from(offers) {
            Ok(one) => {
                let [one] = *one;
                Self::One(one)
            }
            Err(others) if others.is_empty() => Self::None,
            Err(others) => Self::Several(Box::new(others)),
        }
    }
}

impl From<Offers> for Box<[Offer]> {
    fn from(offers: Offers) -> Self {
        match offers {
            Offers::One(offer) => Box::new([offer]),
            Offers::None => Self::default(),
            Offers::Several(offers) => *offers,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Services {
    names: HashMap<Box<str>, Name>,
    ledger: Ledger,
    /// Providers that are kept of one name.
    most: usize,
    /// Offers that stand under no name.
    unlisted: usize,
}

#[derive(Debug)]
struct Name {
    name: Arc<Box<str>>,
    brought_by: Bringer,
    /// Peers that offer it, kept or not.
    offers: usize,
    kept: Sample,
}

impl Services {
    /// None yet; of each at most `most` providers will be kept.
    #[must_use]
    pub fn new(shares: Shares, most: usize) -> Self {
        Self { names: HashMap::new(), ledger: Ledger::new(shares), most, unlisted: 0 }
    }

    /// A peer offers the services `new`, and not those it offered before any more.
    pub fn replace(
        &mut self,
        peer: PeerId,
        old: Box<[Offer]>,
        new: &[Box<str>],
        by: Bringer,
        day: Day,
    ) -> Box<[Offer]> {
        let mut old = old.into_vec();
        let offers = new.iter().map(|name| {
            let before = old.iter().position(|offer| offer.name() == &**name).map(|at| old.swap_remove(at));
            match before {
                Some(offer) if offer.listed => {
                    if let Some(known) = self.names.get_mut(name.as_ref()) {
                        known.kept.add(peer, self.most, day);
                    }
                    offer
                }
                Some(_) => {
                    self.unlisted = self.unlisted.saturating_sub(1);
                    self.add(peer, name, by, day)
                }
                None => self.add(peer, name, by, day),
            }
        });
        let offers = offers.collect();
        self.remove(&peer, &old);
        offers
    }

    fn add(&mut self, peer: PeerId, name: &str, by: Bringer, day: Day) -> Offer {
        if !self.names.contains_key(name) {
            if self.ledger.enter(by).is_err() {
                self.unlisted += 1;
                return Offer { name: Arc::new(name.into()), listed: false };
            }
            let (name, kept) = (Arc::new(name.into()), Sample::default());
            self.names.insert(Box::clone(&name), Name { name, brought_by: by, offers: 0, kept });
        }
        match self.names.get_mut(name) {
            Some(known) => {
                known.offers += 1;
                known.kept.add(peer, self.most, day);
                Offer { name: Arc::clone(&known.name), listed: true }
            }
            None => Offer { name: Arc::new(name.into()), listed: false },
        }
    }

    /// A peer does not offer these any more.
    pub fn remove(&mut self, peer: &PeerId, offers: &[Offer]) {
        for offer in offers {
            if !offer.listed {
                self.unlisted = self.unlisted.saturating_sub(1);
                continue;
            }
            let Some(known) = self.names.get_mut(offer.name()) else { continue };
            known.offers = known.offers.saturating_sub(1);
            known.kept.remove(peer, self.most);
            if known.offers == 0 {
                self.ledger.leave(known.brought_by);
                self.names.remove(offer.name());
            }
        }
    }

    /// The kept providers of a service behind `after`, in the order of their ids.
    pub fn providers(&self, service: &str, after: Option<PeerId>) -> impl Iterator<Item = &PeerId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let known = self.names.get(service).into_iter();
        known.flat_map(move |known| known.kept.peers.range((from, Bound::Unbounded)))
    }

    /// Whether there are, or may be, providers beside those that are kept.
    #[must_use]
    pub fn is_sampled(&self, service: &str) -> bool {
        match self.names.get(service) {
            Some(known) => known.offers > known.kept.peers.len(),
            None => self.unlisted > 0,
        }
    }

    /// How many names are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether nothing is offered that has room.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// How many offers stand under no name.
    #[must_use]
    pub const fn unlisted(&self) -> usize {
        self.unlisted
    }
}

/// Some of the providers of a service.
#[derive(Debug, Default)]
struct Sample {
    peers: BTreeSet<PeerId>,
    /// The same by their rank, while there are too many: few services ever need it.
    ranked: Option<Ranked>,
}

#[derive(Debug)]
struct Ranked {
    day: Day,
    order: BTreeSet<(u64, PeerId)>,
}

impl Sample {
    /// Keeps the peer, if it is not kept yet, and there is room or one with a higher rank.
    fn add(&mut self, peer: PeerId, most: usize, day: Day) {
        if self.peers.contains(&peer) {
            return;
        }
        if self.ranked.is_none() && self.peers.len() < most {
            self.peers.insert(peer);
            return;
        }
        let peers = &self.peers;
        let order = || peers.iter().map(|peer| (rank(peer, day), *peer)).collect();
        let ranked = match &mut self.ranked {
            Some(ranked) if ranked.day == day => ranked,
            stale => stale.insert(Ranked { day, order: order() }),
        };
        let own = (rank(&peer, day), peer);
        if self.peers.len() >= most {
            if ranked.order.last().is_none_or(|last| *last < own) {
                return;
            }
            if let Some((_, last)) = ranked.order.pop_last() {
                self.peers.remove(&last);
            }
        }
        ranked.order.insert(own);
        self.peers.insert(peer);
    }

    fn remove(&mut self, peer: &PeerId, most: usize) {
        if !self.peers.remove(peer) {
            return;
        }
        let Some(ranked) = &mut self.ranked else { return };
        ranked.order.remove(&(rank(peer, ranked.day), *peer));
        // Not at once, so that one peer that comes and goes does not make the order anew every time.
        if self.peers.len() < most / 2 {
            self.ranked = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::admission::Limits;
    use crate::core::testing::{T0, peer};

    const HERE: Bringer = Bringer::Peer(None);
    const MOST: usize = 8;

    fn services(names: usize) -> Services {
        let peers = Limits { total: (names, "names"), per_ip: (2, "ip"), per_prefix: (3, "prefix") };
        Services::new(Shares { peers, per_member: (2, "member") }, MOST)
    }

    fn day(n: u64) -> Day {
        Day(Day::of(T0).0 + n)
    }

    fn offer(services: &mut Services, n: u8, old: Box<[Offer]>, names: &[&str], by: Bringer) -> Box<[Offer]> {
        let names: Vec<Box<str>> = names.iter().map(|name| (*name).into()).collect();
        services.replace(peer(n), old, &names, by, day(0))
    }

    fn kept(services: &Services, name: &str) -> Vec<PeerId> {
        services.providers(name, None).copied().collect()
    }

    fn lowest(of: impl Iterator<Item = u8>, day: Day) -> Vec<PeerId> {
        let mut all: Vec<PeerId> = of.map(peer).collect();
        all.sort_unstable_by_key(|peer| rank(peer, day));
        all.truncate(MOST);
        all.sort_unstable();
        all
    }

    #[test]
    fn of_too_many_providers_those_with_the_lowest_rank_of_the_day_are_kept() {
        let mut s = services(9);
        for n in 1..=8 {
            offer(&mut s, n, Box::default(), &["chat"], HERE);
        }
        assert!(!s.is_sampled("chat"));
        for n in 9..=40 {
            offer(&mut s, n, Box::default(), &["chat"], HERE);
            assert_eq!(kept(&s, "chat"), lowest(1..=n, day(0)));
            assert!(s.is_sampled("chat"));
        }
        let after = kept(&s, "chat")[2];
        assert_eq!(s.providers("chat", Some(after)).copied().collect::<Vec<_>>(), kept(&s, "chat")[3..]);
    }

    #[test]
    fn another_day_others_are_kept_once_all_have_spoken_again() {
        let mut s = services(9);
        let mut offers: Vec<_> =
            (1..=40).map(|n| offer(&mut s, n, Box::default(), &["chat"], HERE)).collect();
        assert_ne!(lowest(1..=40, day(0)), lowest(1..=40, day(1)));
        for (n, offers) in (1..=40).zip(&mut offers) {
            *offers = s.replace(peer(n), std::mem::take(offers), &["chat".into()], HERE, day(1));
        }
        assert_eq!(kept(&s, "chat"), lowest(1..=40, day(1)));
        let name = &s.names["chat"];
        assert_eq!((name.offers, name.kept.ranked.as_ref().unwrap().order.len()), (40, MOST));
    }

    #[test]
    fn who_leaves_makes_room_for_whoever_speaks_next() {
        let mut s = services(9);
        let offers: Vec<_> =
            (1..=9).map(|n| (n, offer(&mut s, n, Box::default(), &["chat"], HERE))).collect();
        let out = (1..=9).find(|n| !kept(&s, "chat").contains(&peer(*n))).unwrap();
        let (gone, own) = offers.iter().find(|(n, _)| *n != out).unwrap();
        s.remove(&peer(*gone), own);
        assert!(s.is_sampled("chat"), "one is not named");
        let own = offers.iter().find(|(n, _)| *n == out).unwrap().1.clone();
        offer(&mut s, out, own, &["chat"], HERE);
        assert!(kept(&s, "chat").contains(&peer(out)) && !s.is_sampled("chat"));
        for (n, own) in offers.iter().filter(|(n, _)| n != gone) {
            s.remove(&peer(*n), own);
        }
        assert_eq!((s.len(), s.ledger.total(), s.unlisted()), (0, 0, 0));
    }

    #[test]
    fn names_are_charged_to_who_brought_them_and_one_too_many_is_not_listed() {
        let mut s = services(4);
        let ip = |text: &str| Bringer::Peer(Some(text.parse().unwrap()));
        let first = offer(&mut s, 1, Box::default(), &["a", "b", "c"], ip("192.0.2.1"));
        assert_eq!((s.len(), s.unlisted()), (2, 1));
        assert!(first.iter().any(|offer| offer.name() == "c"), "its record says so all the same");
        assert!(s.is_sampled("c") && s.is_sampled("nobody knows") && !s.is_sampled("a"));
        let second = offer(&mut s, 2, Box::default(), &["a", "c", "d"], ip("192.0.2.2"));
        assert_eq!((kept(&s, "a").len(), kept(&s, "c")), (2, vec![peer(2)]), "a known name costs nothing");
        assert_eq!(s.unlisted(), 2, "three are the network's share");
        let first = offer(&mut s, 1, first, &["a", "b", "c"], ip("192.0.2.1"));
        assert_eq!((kept(&s, "c").len(), s.unlisted()), (2, 1), "now the name is known");
        let member = Bringer::Member(peer(9));
        let third = offer(&mut s, 3, Box::default(), &["d", "e"], member);
        assert_eq!((s.len(), kept(&s, "e").len()), (4, 0), "as many as there may be");
        for (n, offers) in [(1, first), (2, second), (3, third)] {
            s.remove(&peer(n), &offers);
        }
        assert_eq!((s.len(), s.ledger.total(), s.unlisted()), (0, 0, 0));
    }

    #[test]
    fn a_peer_that_moves_to_a_full_network_keeps_its_services() {
        let mut s = services(9);
        let ip = |text: &str| Bringer::Peer(Some(text.parse().unwrap()));
        offer(&mut s, 1, Box::default(), &["a", "b"], ip("192.0.2.1"));
        let moving = offer(&mut s, 2, Box::default(), &["c"], ip("198.51.100.1"));
        offer(&mut s, 2, moving, &["c"], ip("192.0.2.1"));
        assert_eq!((kept(&s, "c"), s.unlisted()), (vec![peer(2)], 0));
    }

    #[test]
    fn the_order_is_made_anew_only_after_half_of_the_kept_have_gone() {
        let mut s = Sample::default();
        for n in 1..=9 {
            s.add(peer(n), MOST, day(0));
        }
        let mut peers: Vec<_> = s.peers.iter().copied().collect();
        for _ in 0..4 {
            s.remove(&peers.pop().unwrap(), MOST);
        }
        assert!(s.ranked.is_some());
        s.add(peer(77), MOST, day(0));
        assert_eq!(s.ranked.as_ref().unwrap().order.len(), s.peers.len());
        for peer in s.peers.clone().iter().take(2) {
            s.remove(peer, MOST);
        }
        assert!(s.ranked.is_none());
    }
}
