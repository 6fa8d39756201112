//! What is still to be told to one member: *whose* record or presence changed, not what it was. So a slow member holds up
//! nobody, a peer that changes twice is told once, and what waits is bounded by the number of peers.

use std::collections::{HashSet, VecDeque};

use p2psb_proto::model::PeerId;

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
    records: Waiting,
    presence: Waiting,
    members: bool,
}

/// What goes into the next batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Whose records.
    pub records: Vec<PeerId>,
    /// Whose presence.
    pub presence: Vec<PeerId>,
    /// Whether the list of members.
    pub members: bool,
}

impl Next {
    /// There is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.presence.is_empty() && !self.members
    }
}

impl Outbox {
    /// The record of a peer changed.
    pub fn record(&mut self, peer: PeerId) {
        self.records.push(peer);
    }

    /// The presence of a peer at this server changed.
    pub fn presence(&mut self, peer: PeerId) {
        self.presence.push(peer);
    }

    /// The members changed.
    pub fn members(&mut self) {
        self.members = true;
    }

    /// Takes what fits into one batch; presence only once no record waits, so that a peer is known before it is online.
    pub fn next(&mut self, most: usize) -> Next {
        let records = self.records.take(most);
        let presence = if self.records.order.is_empty() { self.presence.take(most) } else { Vec::new() };
        Next { records, presence, members: std::mem::take(&mut self.members) }
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.order.is_empty() && self.presence.order.is_empty() && !self.members
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

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
