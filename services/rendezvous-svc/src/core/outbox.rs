//! What is still to be told to one member: *whose* record or presence changed, not what it was. So a slow member holds up
//! nobody, a peer that changes twice is told once, and what waits is bounded by the number of peers.
//!
//! What the member comes to own is put in by the thousand, on a walk; it waits behind everything that changes.
//!
//! Invariant: "from here on all" is said before all that is put in after it, and "that was all" only when nothing waits.

use std::collections::{HashSet, VecDeque};

use p2psb_proto::model::PeerId;
use p2psb_proto::model::limits::BATCH_ITEMS;

use super::presence::HOMES_OF_PEER;

/// Words about homes outside the ring that go into one batch; each has about 40 bytes.
const HOMES: usize = 512;
/// Of so many peers a batch says how they are: each may have several homes, and this one, and whoever hears takes no more statements.
const STATED: usize = BATCH_ITEMS / (HOMES_OF_PEER + 1);

/// Peers in the order in which they changed first, each once.
#[derive(Debug, Default)]
pub struct Waiting {
    order: VecDeque<PeerId>,
    members: HashSet<PeerId>,
}

impl Waiting {
    /// Adds a peer behind the others, unless it waits already.
    pub fn push(&mut self, peer: PeerId) {
        if self.members.insert(peer) {
            self.order.push_back(peer);
        }
    }

    /// Takes the first ones, `most` at most.
    pub fn take(&mut self, most: usize) -> Vec<PeerId> {
        let taken: Vec<PeerId> = self.order.drain(..most.min(self.order.len())).collect();
        for peer in &taken {
            self.members.remove(peer);
        }
        if self.order.is_empty() {
            // The first full state is the largest there will be.
            *self = Self::default();
        }
        taken
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    words: Waiting,
    homes: Waiting,
    records: Waiting,
    presence: Waiting,
    walked: (Waiting, Waiting),
    interest: Waiting,
    again: Waiting,
    members: bool,
    tells_all: bool,
    told_all: bool,
}

/// What goes into the next batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Of which members it is said how they stand.
    pub words: Vec<PeerId>,
    /// Of which homes outside the ring it is said whether they are alive.
    pub homes: Vec<PeerId>,
    /// Whose records.
    pub records: Vec<PeerId>,
    /// Whose presence; if nothing is known of it, that.
    pub presence: Vec<PeerId>,
    /// In whom there is, or is no longer, interest.
    pub interest: Vec<PeerId>,
    /// Of whom the other end is to say once more how they are.
    pub again: Vec<PeerId>,
    /// Whether the list of members.
    pub members: bool,
    /// Whether from here on the member is told all that it owns.
    pub tells_all: bool,
    /// Whether that was all.
    pub told_all: bool,
}

impl Next {
    /// There is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
            && self.homes.is_empty()
            && self.records.is_empty()
            && self.presence.is_empty()
            && self.interest.is_empty()
            && self.again.is_empty()
            && !self.members
            && !self.tells_all
            && !self.told_all
    }
}

impl Outbox {
    /// A member stands differently.
    pub fn word(&mut self, member: PeerId) {
        self.words.push(member);
    }

    /// A home outside the ring went, or came.
    pub fn home(&mut self, home: PeerId) {
        self.homes.push(home);
    }

    /// The record of a peer changed.
    pub fn record(&mut self, peer: PeerId) {
        self.records.push(peer);
    }

    /// The presence of a peer at this server changed.
    pub fn presence(&mut self, peer: PeerId) {
        self.presence.push(peer);
    }

    /// A walk came by a peer: the member owns its record, and what this server says of its presence, if it is here.
    pub fn walked(&mut self, peer: PeerId, is_here: bool) {
        let (records, presence) = &mut self.walked;
        records.push(peer);
        if is_here {
            presence.push(peer);
        }
    }

    /// The members changed.
    pub fn members(&mut self) {
        self.members = true;
    }

    /// There is, or is no longer, interest in the presence of a peer.
    pub fn interest(&mut self, peer: PeerId) {
        self.interest.push(peer);
    }

    /// The other end is to say once more how a peer is.
    pub fn again(&mut self, peer: PeerId) {
        self.again.push(peer);
    }

    /// Everything that the member owns will be put in from now on.
    pub fn tells_all(&mut self) {
        (self.tells_all, self.told_all) = (true, false);
    }

    /// Everything that the member owns was put in.
    pub fn told_all(&mut self) {
        self.told_all = true;
    }

    /// Puts back what was taken and did not arrive.
    pub fn put_back(&mut self, next: Next) {
        next.words.into_iter().for_each(|member| self.words.push(member));
        next.homes.into_iter().for_each(|home| self.homes.push(home));
        next.records.into_iter().for_each(|peer| self.records.push(peer));
        next.presence.into_iter().for_each(|peer| self.presence.push(peer));
        next.interest.into_iter().for_each(|peer| self.interest.push(peer));
        next.again.into_iter().for_each(|peer| self.again.push(peer));
        self.members |= next.members;
        self.tells_all |= next.tells_all;
        self.told_all |= next.told_all;
    }

    /// Takes what fits into one batch; presence only once no record waits, so that a peer is known before it is online, and no
    /// home outside the ring, so that the home is. What was walked by fills what is left.
    pub fn next(&mut self, most: usize) -> Next {
        let (words, mut records) = (self.words.take(most), self.records.take(most));
        let homes = self.homes.take(HOMES);
        let is_time = self.records.order.is_empty() && self.homes.order.is_empty();
        let stated = most.min(STATED);
        let mut presence = if is_time { self.presence.take(stated) } else { Vec::new() };
        let (walked_records, walked_presence) = &mut self.walked;
        records.extend(walked_records.take(most - records.len()));
        if is_time && walked_records.is_empty() {
            presence.extend(walked_presence.take(stated - presence.len()));
        }
        let (interest, again) = (self.interest.take(most), self.again.take(most));
        let members = std::mem::take(&mut self.members);
        let tells_all = std::mem::take(&mut self.tells_all);
        let told_all = !self.waits() && std::mem::take(&mut self.told_all);
        Next { words, homes, records, presence, interest, again, members, tells_all, told_all }
    }

    fn waits(&self) -> bool {
        let (walked_records, walked_presence) = &self.walked;
        let of_peers = [&self.records, &self.presence, walked_records, walked_presence];
        let others = [&self.words, &self.homes, &self.interest, &self.again];
        of_peers.into_iter().chain(others).any(|one| !one.is_empty())
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.waits() && !self.members && !self.tells_all && !self.told_all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    #[test]
    fn no_batch_says_more_of_peers_than_is_taken_where_each_has_many_homes() {
        let mut outbox = Outbox::default();
        for n in 0..100 {
            outbox.presence(peer(n));
            outbox.walked(peer(100 + n), true);
        }
        let mut told = 0;
        while !outbox.is_empty() {
            let next = outbox.next(64);
            assert!(next.presence.len() * (HOMES_OF_PEER + 1) <= BATCH_ITEMS);
            told += next.presence.len();
        }
        assert_eq!(told, 200);
    }

    #[test]
    fn what_changes_twice_is_told_once_and_in_order() {
        let mut outbox = Outbox::default();
        for n in [1, 2, 1, 3] {
            outbox.record(peer(n));
        }
        assert_eq!(outbox.next(2).records, [peer(1), peer(2)]);
        outbox.record(peer(1));
        assert_eq!(outbox.next(9).records, [peer(3), peer(1)]);
        assert!(outbox.is_empty() && outbox.next(9).is_empty());
    }

    #[test]
    fn that_was_all_is_said_last_and_again_if_it_did_not_arrive() {
        let mut outbox = Outbox::default();
        outbox.tells_all();
        outbox.told_all();
        for n in [1, 2] {
            outbox.record(peer(n));
            outbox.interest(peer(n));
            outbox.word(peer(n));
        }
        let first = outbox.next(1);
        assert_eq!((first.records.as_slice(), first.told_all), (&[peer(1)][..], false));
        assert!(first.tells_all);
        let last = outbox.next(1);
        assert!(!last.tells_all);
        assert_eq!((last.words.as_slice(), last.interest.as_slice()), (&[peer(2)][..], &[peer(2)][..]));
        assert!(last.told_all && outbox.is_empty());
        outbox.put_back(first.clone());
        outbox.put_back(last);
        outbox.put_back(first);
        let again = outbox.next(9);
        assert_eq!((again.records.as_slice(), again.told_all), (&[peer(1), peer(2)][..], true));
        assert!(again.tells_all, "the other end begins anew, too");
        assert!(outbox.next(9).is_empty());
    }

    #[test]
    fn what_changes_goes_ahead_of_what_a_walk_came_by() {
        let mut outbox = Outbox::default();
        outbox.tells_all();
        (0..10).for_each(|n| outbox.walked(peer(n), n % 2 == 0));
        outbox.told_all();
        outbox.presence(peer(7));
        outbox.record(peer(20));
        let next = outbox.next(4);
        assert_eq!(next.records, [peer(20), peer(0), peer(1), peer(2)]);
        assert_eq!((next.presence.as_slice(), next.tells_all), (&[peer(7)][..], true));
        outbox.presence(peer(3));
        let next = outbox.next(4);
        assert_eq!((next.records.len(), next.presence.as_slice()), (4, &[peer(3)][..]));
        let next = outbox.next(4);
        assert_eq!(next.records, [peer(7), peer(8), peer(9)]);
        assert_eq!(next.presence, [0, 2, 4, 6].map(peer), "after the records of the walk");
        assert!(!next.told_all);
        let last = outbox.next(4);
        assert_eq!((last.presence.as_slice(), last.told_all), (&[peer(8)][..], true));
        assert!(outbox.is_empty());
    }

    #[test]
    fn records_go_before_presence() {
        let mut outbox = Outbox::default();
        outbox.presence(peer(1));
        outbox.record(peer(1));
        outbox.record(peer(2));
        outbox.members();
        let first = outbox.next(1);
        assert_eq!((first.records.len(), first.presence.len(), first.members), (1, 0, true));
        let second = outbox.next(1);
        assert_eq!((second.records.len(), second.presence.len(), second.members), (1, 1, false));
    }
}
