//! Which rendezvous become homes: up to `max_homes` in each backbone, each server once.
//!
//! Two servers belong to one backbone if either lists the other. Unbridged servers are backbones of their own.

use std::collections::{BTreeMap, BTreeSet};

use p2psb_proto::model::PeerId;

/// The homes that are held, each with the ids of its backbone as it told them.
#[derive(Debug)]
pub(crate) struct Plan {
    max_homes: usize,
    homes: BTreeMap<PeerId, BTreeSet<PeerId>>,
}

impl Plan {
    pub(crate) fn new(max_homes: usize) -> Self {
        Self { max_homes: max_homes.max(1), homes: BTreeMap::new() }
    }

    /// Whether `server`, which lists `backbone`, may become a home now.
    pub(crate) fn has_room(&self, server: &PeerId, backbone: &BTreeSet<PeerId>) -> bool {
        let related = |(home, theirs): &(&PeerId, &BTreeSet<PeerId>)| {
            backbone.contains(home) || theirs.contains(server) || !theirs.is_disjoint(backbone)
        };
        !self.homes.contains_key(server) && self.homes.iter().filter(related).count() < self.max_homes
    }

    /// Makes `server` a home if there is room.
    pub(crate) fn join(&mut self, server: PeerId, backbone: BTreeSet<PeerId>) -> bool {
        let room = self.has_room(&server, &backbone);
        if room {
            self.homes.insert(server, backbone);
        }
        room
    }

    /// The session with `server` ended.
    pub(crate) fn leave(&mut self, server: &PeerId) {
        self.homes.remove(server);
    }

    /// All homes.
    pub(crate) fn homes(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.homes.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::PublicKey;

    use super::*;

    fn id(n: u8) -> PeerId {
        PeerId::new(PublicKey::from_bytes([n; 32]))
    }

    fn ids(all: &[u8]) -> BTreeSet<PeerId> {
        all.iter().map(|n| id(*n)).collect()
    }

    #[test]
    fn a_backbone_gets_as_many_homes_as_allowed() {
        let mut plan = Plan::new(2);
        assert!(plan.join(id(1), ids(&[1, 2, 3])));
        assert!(plan.join(id(2), ids(&[1, 2, 3])));
        assert!(!plan.join(id(3), ids(&[1, 2, 3])));
        plan.leave(&id(1));
        assert!(plan.join(id(3), ids(&[1, 2, 3])));
        assert_eq!(plan.homes().collect::<Vec<_>>(), [id(2), id(3)]);
    }

    #[test]
    fn unbridged_servers_are_backbones_of_their_own() {
        let mut plan = Plan::new(1);
        assert!(plan.join(id(1), ids(&[1])));
        assert!(plan.join(id(2), ids(&[2])));
        assert!(!plan.join(id(3), ids(&[2, 3])), "one listing the other is enough");
    }

    #[test]
    fn a_server_is_a_home_once() {
        let mut plan = Plan::new(3);
        assert!(plan.join(id(1), ids(&[1])));
        assert!(!plan.join(id(1), ids(&[1])));
    }
}
