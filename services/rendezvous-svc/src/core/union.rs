//! One page out of the pages of several owners of a service.
//!
//! Promises: no provider twice in a page; nothing that stands before the end of a page is missed because an owner had more to
//! say; what one owner does not know another one adds. An owner can add nothing behind the place that it says it came to.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::PresenceState;

use super::directory::{Located, Page};
use super::page::{Cursor, Part};

/// Of two places the one that comes first in an answer.
fn before(a: &Cursor, b: &Cursor) -> Ordering {
    let rank = |cursor: &Cursor| (cursor.part == Part::Rest, cursor.after);
    rank(a).cmp(&rank(b))
}

fn place(found: &Located) -> Cursor {
    let is_online = found.presence.state == PresenceState::Online;
    Cursor { part: if is_online { Part::Online } else { Part::Rest }, after: found.peer }
}

/// Makes one page of at most `items` out of `pages` that begin at the same place.
#[must_use]
pub fn unite(pages: Vec<Page>, items: usize) -> Page {
    let sampled = pages.iter().any(|page| page.sampled);
    // Behind the place where the first owner stopped the others' pages are not the whole truth.
    let mut next = pages.iter().filter_map(|page| page.next).min_by(before);
    let mut best: BTreeMap<PeerId, Located> = BTreeMap::new();
    for found in pages.into_iter().flat_map(|page| page.peers) {
        let is_better = |known: &Located| before(&place(&found), &place(known)) == Ordering::Less;
        if best.get(&found.peer).is_none_or(is_better) {
            best.insert(found.peer, found);
        }
    }
    let mut peers: Vec<Located> = best.into_values().collect();
    peers.sort_by(|a, b| before(&place(a), &place(b)));
    if let Some(end) = next {
        peers.retain(|found| before(&place(found), &end) != Ordering::Greater);
    }
    if peers.len() > items {
        peers.truncate(items);
        next = peers.last().map(place);
    }
    Page { peers, next, sampled }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use p2psb_proto::model::presence::{Presence, PresenceSource};

    use super::*;
    use crate::core::testing::{T0, peer};

    fn found(n: u8, state: PresenceState) -> Located {
        let presence =
            Presence { state, last_seen: T0, as_of: T0, source: PresenceSource::Session, home: None };
        Located { peer: peer(n), bytes: Bytes::new(), presence }
    }

    /// Peers in the order of their ids, all online.
    fn sorted() -> Vec<u8> {
        let mut all: Vec<u8> = (0..10).collect();
        all.sort_by_key(|n| peer(*n));
        all
    }

    fn page(of: &[u8], next: Option<u8>) -> Page {
        let peers = of.iter().map(|n| found(*n, PresenceState::Online)).collect();
        let next = next.map(|n| Cursor { part: Part::Online, after: peer(n) });
        Page { peers, next, sampled: false }
    }

    fn ids(page: &Page) -> Vec<PeerId> {
        page.peers.iter().map(|found| found.peer).collect()
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
        assert_eq!(one.next, Some(Cursor { part: Part::Online, after: peer(s[1]) }));
    }

    #[test]
    fn a_page_has_no_more_than_was_asked_for() {
        let s = sorted();
        let one = unite(vec![page(&[s[0], s[2]], None), page(&[s[1], s[3]], None)], 3);
        assert_eq!(ids(&one), [s[0], s[1], s[2]].map(peer));
        assert_eq!(one.next, Some(Cursor { part: Part::Online, after: peer(s[2]) }));
    }

    #[test]
    fn whom_one_owner_calls_online_is_online() {
        let s = sorted();
        let offline = Page { peers: vec![found(s[0], PresenceState::Offline)], next: None, sampled: true };
        let one = unite(vec![offline, page(&[s[0], s[1]], None)], 9);
        assert_eq!(ids(&one), [s[0], s[1]].map(peer));
        assert!(one.sampled && one.peers.iter().all(|one| one.presence.state == PresenceState::Online));
    }
}
