//! Which rendezvous become homes: up to `max_homes` in each backbone, each server once.
//!
//! Two servers belong to one backbone if either lists the other. Unbridged servers are backbones of their own. The rendezvous that the
//! peer runs itself is a home beside all of them: it takes nobody's place.

use std::collections::{BTreeMap, BTreeSet};

use p2psb_proto::model::PeerId;

/// The homes that are held, each with the ids of its backbone as it told them.
#[derive(Debug)]
pub(crate) struct Plan {
    max_homes: usize,
    /// The rendezvous that this peer runs itself.
    own: Option<PeerId>,
    homes: BTreeMap<PeerId, BTreeSet<PeerId>>,
}

impl Plan {
    pub(crate) fn new(max_homes: usize, own: Option<PeerId>) -> Self {
        Self { max_homes: max_homes.max(1), own, homes: BTreeMap::new() }
    }

    /// Whether this peer runs the server itself.
    fn is_own(&self, server: &PeerId) -> bool {
        self.own.as_ref() == Some(server)
    }

    /// How many homes more the backbone of a server has room for; `server`, if it is known, lists `backbone`. None for a server that is
    /// a home already.
    pub(crate) fn room(&self, server: Option<&PeerId>, backbone: &BTreeSet<PeerId>) -> usize {
        if server.is_some_and(|server| self.homes.contains_key(server)) {
            return 0;
        }
        if server.is_some_and(|server| self.is_own(server)) {
            return 1;
        }
        let beside = |(home, theirs): &(&PeerId, &BTreeSet<PeerId>)| {
            !self.is_own(home) && related((Some(home), theirs), (server, backbone))
        };
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
        let mut plan = Plan::new(2, None);
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
        let mut plan = Plan::new(1, None);
        assert!(plan.join(id(1), ids(&[1])));
        assert!(plan.join(id(2), ids(&[2])));
        assert!(!plan.join(id(3), ids(&[2, 3])), "one listing the other is enough");
    }

    #[test]
    fn a_server_is_a_home_once() {
        let mut plan = Plan::new(3, Some(id(2)));
        for server in [id(1), id(2)] {
            assert!(plan.join(server, ids(&[1, 2])));
            assert!(!plan.join(server, ids(&[1, 2])));
        }
    }

    #[test]
    fn the_own_rendezvous_takes_nobodys_place_and_nobody_takes_its() {
        let (all, own) = (ids(&[1, 2, 9]), id(9));
        let mut plan = Plan::new(2, Some(own));
        assert!(plan.join(own, all.clone()));
        assert!(plan.join(id(1), all.clone()) && plan.join(id(2), all.clone()));
        plan.leave(&own);
        assert_eq!((plan.room(None, &all), plan.room(Some(&own), &all)), (0, 1));
        assert!(plan.join(own, all));
    }
}
