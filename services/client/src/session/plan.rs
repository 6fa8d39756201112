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

    /// How many homes more the backbone of a server has room for; `server`, if it is known, lists `backbone`. None for a server that is
    /// a home already.
    pub(crate) fn room(&self, server: Option<&PeerId>, backbone: &BTreeSet<PeerId>) -> usize {
        if server.is_some_and(|server| self.homes.contains_key(server)) {
            return 0;
        }
        let beside =
            |(home, theirs): &(&PeerId, &BTreeSet<PeerId>)| related((Some(home), theirs), (server, backbone));
        self.max_homes.saturating_sub(self.homes.iter().filter(beside).count())
    }

    /// Makes `server` a home if there is room.
    pub(crate) fn join(&mut self, server: PeerId, backbone: BTreeSet<PeerId>) -> bool {
        let room = self.room(Some(&server), &backbone) > 0;
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

/// Whether two servers, each with the backbone it lists, belong to one backbone.
pub(super) fn related(
    (one, theirs): (Option<&PeerId>, &BTreeSet<PeerId>),
    (other, others): (Option<&PeerId>, &BTreeSet<PeerId>),
) -> bool {
    let lists = |all: &BTreeSet<PeerId>, server: Option<&PeerId>| server.is_some_and(|id| all.contains(id));
    lists(others, one) || lists(theirs, other) || !theirs.is_disjoint(others)
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
        assert_eq!(plan.room(Some(&id(1)), &ids(&[1, 2, 3])), 0);
        plan.leave(&id(3));
        assert_eq!(plan.room(None, &ids(&[1, 2, 3])), 1);
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
