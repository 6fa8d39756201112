//! One page out of the pages of several owners of a service.
//!
//! Promises:
//! - No provider is twice in a page, and every page ends behind the place where it began.
//! - Nothing that stands before the end of a page is missed because an owner had more to say; what one owner does not know
//!   another one adds. An owner can add nothing behind the place that it says it came to.
//! - An owner that stops before the others, without having said as much as it was asked for, is asked for what follows. It may
//!   have looked at as many providers as it does for a page; if it goes on like this for longer than there are providers, or
//!   says no more, it neither ends the page nor hides what others say.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use p2psb_proto::model::PeerId;
use p2psb_proto::model::limits::{LOOKED_AT, SERVICE_PROVIDERS};
use p2psb_proto::model::presence::PresenceState;

use super::directory::{Located, Page};
use super::page::{Cursor, Part as PagePart};
use super::presence::Said;

/// Of two places the one that comes first in an answer.
fn before(a: &Cursor, b: &Cursor) -> Ordering {
    let rank = |cursor: &Cursor| (cursor.part == PagePart::Rest, cursor.after);
    rank(a).cmp(&rank(b))
}

/// Where it stands in an answer.
#[must_use]
pub fn place(found: &Located) -> Cursor {
    let is_online = found.presence.state == PresenceState::Online;
    Cursor { part: if is_online { PagePart::Online } else { PagePart::Rest }, after: found.peer }
}

/// Whether a provider stands behind `from` and not behind `end`, as far as there are such places.
#[must_use]
pub fn lies_in(found: &Located, from: Option<Cursor>, end: Option<Cursor>) -> bool {
    let place = place(found);
    from.is_none_or(|from| before(&from, &place) == Ordering::Less)
        && end.is_none_or(|end| before(&place, &end) != Ordering::Greater)
}

/// A provider, and why its presence is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The provider.
    pub located: Located,
    /// The word of a home that was told and is proven, if there is any; `None`: it was found here.
    pub said: Option<Vec<Said>>,
}

impl Found {
    fn place(&self) -> Cursor {
        place(&self.located)
    }
}

impl From<Located> for Found {
    fn from(located: Located) -> Self {
        Self { located, said: None }
    }
}

/// Of an owner that stops early without need so many pages are asked for: with them one that is honest has looked twice at all
/// the providers that it keeps, for those that are online and for the rest.
const ROUNDS: usize = 2 * SERVICE_PROVIDERS / LOOKED_AT + 1;

/// A page says that the next one does not begin behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a page is followed by what came before it")]
pub struct NotBehind;

/// What one owner said so far.
#[derive(Debug)]
struct Part {
    peers: BTreeMap<PeerId, Found>,
    /// Where it stopped; `None`: it knows no more.
    end: Option<Cursor>,
    /// It stopped because it had said as much as it was asked for, or is this server.
    had_to: bool,
    /// Pages that it was asked for.
    rounds: usize,
    /// It is asked no more, and holds up nobody.
    given_up: bool,
}

impl Part {
    fn is_early(&self) -> bool {
        self.end.is_some() && !self.had_to
    }
}

/// See the module.
#[derive(Debug)]
pub struct Union {
    from: Option<Cursor>,
    items: usize,
    parts: BTreeMap<PeerId, Part>,
    sampled: bool,
}

impl Union {
    /// Nobody has said anything yet to a question for at most `items` providers behind `from`.
    #[must_use]
    pub const fn new(from: Option<Cursor>, items: usize) -> Self {
        Self { from, items, parts: BTreeMap::new(), sampled: false }
    }

    /// An owner says a page: its first one, or one that goes on where it stopped. `had_to` is whether it had to stop there.
    pub fn take(&mut self, owner: PeerId, page: Page<Found>, had_to: bool) -> Result<(), NotBehind> {
        let from = self.from;
        let known = self.parts.get(&owner).filter(|part| part.end.is_some());
        let begin = known.map_or(from, |part| part.end);
        let is_behind = |place: &Cursor, begin: Option<Cursor>| {
            begin.is_none_or(|begin| before(&begin, place) == Ordering::Less)
        };
        if page.next.is_some_and(|next| !is_behind(&next, begin)) {
            return Err(NotBehind);
        }
        let new = || Part { peers: BTreeMap::new(), end: None, had_to: false, rounds: 0, given_up: false };
        let part = self.parts.entry(owner).or_insert_with(new);
        // Who changed its presence between two pages may be missed, but leads nobody back.
        let peers = page.peers.into_iter().filter(|found| is_behind(&found.place(), from));
        part.peers.extend(peers.map(|found| (found.located.peer, found)));
        part.end = page.next;
        part.rounds += 1;
        // Nothing counts that it says twice, or says to lie behind the place where it stopped.
        let counted = part.peers.values().filter(|found| lies_in(&found.located, from, part.end));
        part.had_to = had_to || counted.count() >= self.items;
        if part.is_early() && part.rounds >= ROUNDS {
            part.given_up = true;
        }
        self.sampled |= page.sampled;
        Ok(())
    }

    /// Nobody has said anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether an owner has said anything.
    #[must_use]
    pub fn has_heard(&self, owner: &PeerId) -> bool {
        self.parts.contains_key(owner)
    }

    /// There may be providers that no page names.
    pub const fn mark_sampled(&mut self) {
        self.sampled = true;
    }

    /// An owner that stopped without need where others go on: it is to be asked for more, from there, or to be given up.
    #[must_use]
    pub fn ask_on(&self) -> Option<(PeerId, Cursor)> {
        let parts = || self.parts.iter().filter(|(_, part)| !part.given_up);
        let early = parts().filter_map(|(owner, part)| Some((*owner, part.end.filter(|_| part.is_early())?)));
        let (owner, end) = early.min_by(|(_, a), (_, b)| before(a, b))?;
        let mut others = parts().filter(|(other, _)| **other != owner).map(|(_, part)| part.end).peekable();
        others.peek()?;
        let cuts = |other: Option<Cursor>| other.is_none_or(|other| before(&end, &other) == Ordering::Less);
        others.all(cuts).then_some((owner, end))
    }

    /// An owner does not say more in time: what it said counts, but not where it stopped.
    pub fn give_up(&mut self, owner: &PeerId) {
        if let Some(part) = self.parts.get_mut(owner) {
            part.given_up = true;
            self.sampled = true;
        }
    }

    /// The page that all of them make.
    #[must_use]
    pub fn page(self) -> Page<Found> {
        // Behind the place where the first owner stopped the others' pages are not the whole truth.
        let first_end = |given_up: bool| {
            let parts = self.parts.values().filter(move |part| part.given_up == given_up);
            parts.filter_map(|part| part.end).min_by(before)
        };
        let all_given_up = self.parts.values().all(|part| part.given_up);
        let mut next = first_end(all_given_up);
        let mut best: BTreeMap<PeerId, Found> = BTreeMap::new();
        for found in self.parts.into_values().flat_map(|part| part.peers.into_values()) {
            let is_better = |known: &Found| before(&found.place(), &known.place()) == Ordering::Less;
            if best.get(&found.located.peer).is_none_or(is_better) {
                best.insert(found.located.peer, found);
            }
        }
        let mut peers: Vec<Found> = best.into_values().collect();
        peers.sort_by(|a, b| before(&a.place(), &b.place()));
        if let Some(end) = next {
            peers.retain(|found| before(&found.place(), &end) != Ordering::Greater);
        }
        if peers.len() > self.items {
            peers.truncate(self.items);
            next = peers.last().map(Found::place);
        }
        Page { peers, next, sampled: self.sampled }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use p2psb_proto::model::presence::{Presence, PresenceSource};

    use super::*;
    use crate::core::testing::{T0, peer};

    fn found(n: u8, state: PresenceState) -> Found {
        let presence =
            Presence { state, last_seen: T0, as_of: T0, source: PresenceSource::Session, home: None };
        Located { peer: peer(n), bytes: Bytes::new(), presence }.into()
    }

    /// Peers in the order of their ids, all online.
    fn sorted() -> Vec<u8> {
        let mut all: Vec<u8> = (0..10).collect();
        all.sort_by_key(|n| peer(*n));
        all
    }

    fn page(of: &[u8], next: Option<u8>) -> Page<Found> {
        let peers = of.iter().map(|n| found(*n, PresenceState::Online)).collect();
        let next = next.map(|n| Cursor { part: PagePart::Online, after: peer(n) });
        Page { peers, next, sampled: false }
    }

    /// Of owners that all stopped where they had to.
    fn unite(pages: Vec<Page<Found>>, items: usize) -> Page<Found> {
        let mut union = Union::new(None, items);
        for (n, page) in pages.into_iter().enumerate() {
            union.take(owner(n), page, true).unwrap();
        }
        assert_eq!(union.ask_on(), None);
        union.page()
    }

    fn owner(n: usize) -> PeerId {
        peer(100 + u8::try_from(n).unwrap())
    }

    fn at(n: u8) -> Cursor {
        Cursor { part: PagePart::Online, after: peer(n) }
    }

    fn ids(page: &Page<Found>) -> Vec<PeerId> {
        page.peers.iter().map(|found| found.located.peer).collect()
    }

    #[test]
    fn what_one_owner_lacks_another_adds_and_nobody_is_named_twice() {
        let s = sorted();
        let one = unite(vec![page(&[s[0], s[2], s[4]], None), page(&[s[1], s[2]], None)], 100);
        let expected: Vec<_> = [s[0], s[1], s[2], s[4]].map(peer).to_vec();
        assert_eq!((ids(&one), one.next), (expected, None));
    }

    #[test]
    fn a_page_ends_where_the_first_owner_stopped() {
        let s = sorted();
        let one = unite(vec![page(&[s[0], s[1]], Some(s[1])), page(&[s[0], s[3], s[5]], None)], 100);
        assert_eq!(ids(&one), [s[0], s[1]].map(peer));
        assert_eq!(one.next, Some(Cursor { part: PagePart::Online, after: peer(s[1]) }));
    }

    #[test]
    fn a_page_has_no_more_than_was_asked_for() {
        let s = sorted();
        let one = unite(vec![page(&[s[0], s[2]], None), page(&[s[1], s[3]], None)], 3);
        assert_eq!(ids(&one), [s[0], s[1], s[2]].map(peer));
        assert_eq!(one.next, Some(Cursor { part: PagePart::Online, after: peer(s[2]) }));
    }

    #[test]
    fn whom_one_owner_calls_online_is_online() {
        let s = sorted();
        let offline = Page { peers: vec![found(s[0], PresenceState::Offline)], next: None, sampled: true };
        let one = unite(vec![offline, page(&[s[0], s[1]], None)], 9);
        assert_eq!(ids(&one), [s[0], s[1]].map(peer));
        assert!(
            one.sampled && one.peers.iter().all(|one| one.located.presence.state == PresenceState::Online)
        );
    }

    #[test]
    fn who_stops_early_without_need_is_asked_on_and_then_counts() {
        let s = sorted();
        let mut union = Union::new(None, 9);
        union.take(owner(0), page(&[s[0], s[1], s[4]], None), false).unwrap();
        union.take(owner(1), page(&[], Some(s[1])), false).unwrap();
        assert_eq!(union.ask_on(), Some((owner(1), at(s[1]))));
        // It had looked at many that did not fit, and knows one that the other one does not.
        union.take(owner(1), page(&[s[3]], None), false).unwrap();
        assert_eq!(union.ask_on(), None);
        let one = union.page();
        assert_eq!((ids(&one), one.next), ([s[0], s[1], s[3], s[4]].map(peer).to_vec(), None));
        assert!(!one.sampled);
    }

    #[test]
    fn owners_that_stop_early_at_one_place_end_the_page_there() {
        let s = sorted();
        let mut union = Union::new(None, 9);
        for n in 0..3 {
            union.take(owner(n), page(&[s[1]], Some(s[4])), false).unwrap();
        }
        assert_eq!(union.ask_on(), None);
        let one = union.page();
        assert_eq!((ids(&one), one.next), (vec![peer(s[1])], Some(at(s[4]))));
    }

    #[test]
    fn who_never_comes_to_an_end_neither_hides_others_nor_makes_the_walk_endless() {
        let s = sorted();
        let mut union = Union::new(None, 9);
        union.take(owner(0), page(&[s[0], s[8]], None), false).unwrap();
        union.take(owner(1), page(&[s[9]], None), false).unwrap();
        let mut places: Vec<PeerId> = (100..=255).map(peer).filter(|one| *one < peer(s[8])).collect();
        places.sort_unstable();
        let mut asked = 0;
        let lie = |after| Page {
            peers: vec![],
            next: Some(Cursor { part: PagePart::Online, after }),
            sampled: false,
        };
        union.take(owner(2), lie(places[0]), false).unwrap();
        while let Some((liar, _)) = union.ask_on() {
            assert_eq!(liar, owner(2));
            asked += 1;
            union.take(liar, lie(places[asked]), false).unwrap();
        }
        assert_eq!(asked, ROUNDS - 1);
        let one = union.page();
        assert_eq!((ids(&one), one.next), ([s[0], s[8], s[9]].map(peer).to_vec(), None));
    }

    #[test]
    fn who_says_no_more_holds_up_nobody_but_may_have_known_more() {
        let s = sorted();
        let mut union = Union::new(None, 9);
        union.take(owner(0), page(&[s[3]], None), false).unwrap();
        union.take(owner(1), page(&[s[0]], Some(s[0])), false).unwrap();
        union.give_up(&owner(1));
        assert_eq!(union.ask_on(), None);
        let one = union.page();
        assert_eq!((ids(&one), one.next, one.sampled), ([s[0], s[3]].map(peer).to_vec(), None, true));
        // Where it is the only one its page is the page.
        let mut alone = Union::new(None, 9);
        alone.take(owner(1), page(&[s[0]], Some(s[0])), false).unwrap();
        assert_eq!(alone.ask_on(), None);
        assert_eq!(alone.page().next, Some(at(s[0])));
    }

    #[test]
    fn what_is_said_twice_or_behind_the_end_does_not_make_a_page_full() {
        let s = sorted();
        let mut union = Union::new(None, 3);
        union.take(owner(0), page(&[s[0], s[4]], None), false).unwrap();
        union.take(owner(1), page(&[s[0], s[0], s[0], s[7], s[8]], Some(s[1])), false).unwrap();
        assert_eq!(union.ask_on(), Some((owner(1), at(s[1]))));
        union.take(owner(1), page(&[s[2], s[3]], Some(s[3])), false).unwrap();
        assert_eq!(union.ask_on(), None, "now it has said three");
    }

    #[test]
    fn a_page_that_leads_back_is_refused() {
        let s = sorted();
        for next in [s[3], s[2]] {
            let mut union = Union::new(Some(at(s[3])), 9);
            assert_eq!(union.take(owner(0), page(&[s[5]], Some(next)), false), Err(NotBehind));
            assert!(union.is_empty());
            // Neither does one that goes on.
            union.take(owner(0), page(&[s[5]], Some(s[6])), false).unwrap();
            assert_eq!(union.take(owner(0), page(&[], Some(s[6])), false), Err(NotBehind));
        }
        let mut union = Union::new(Some(at(s[3])), 9);
        union.take(owner(0), page(&[s[1], s[5]], None), false).unwrap();
        assert_eq!(ids(&union.page()), [peer(s[5])], "what stands before the beginning is none of it");
    }
}
