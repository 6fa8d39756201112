//! Who pays for what is kept. Every record, and every name of a service, is charged to whoever brought it for as long as it
//! stays, also after its session is gone: so neither one network nor one member can take all the room.
//!
//! Invariants:
//! - Every count is the number of things that were charged there and have not left.
//! - What is here already is never refused: who brings something newer in its place takes over the charge if there is room
//!   at his, else it stays where it was.
//! - This server itself needs no room, and neither does what members say of themselves, up to [`BACKBONE`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use p2psb_proto::model::{PeerId, limits};

use super::admission::{Admission, LimitReached, Limits, Origin, below};

/// So many things of members need no room: all there may be, and those that have just gone.
pub const BACKBONE: usize = 2 * limits::MEMBERS;

/// Who brought something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bringer {
    /// This server itself.
    Own,
    /// A member speaks of itself, or of another member.
    Backbone,
    /// A peer speaks of itself, from there; behind a proxy that does not tell, nobody knows from where.
    Peer(Option<IpAddr>),
    /// This member speaks of somebody else.
    Member(PeerId),
}

/// The same, in 16 bytes.
#[derive(Clone, Debug)]
pub enum Payer {
    /// This server itself.
    Own,
    /// A member that spoke of itself, or of another member.
    Backbone,
    /// A peer, from there.
    Peer(Origin),
    /// This member.
    Member(Arc<PeerId>),
}

impl Payer {
    /// Whom the ledger knows it as.
    #[must_use]
    pub fn bringer(&self) -> Bringer {
        match self {
            Self::Own => Bringer::Own,
            Self::Backbone => Bringer::Backbone,
            Self::Peer(origin) => Bringer::Peer(origin.ip()),
            Self::Member(member) => Bringer::Member(**member),
        }
    }
}

/// The limits of what is kept, with the names of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// In all, and of peers from one address or network.
    pub peers: Limits,
    /// Brought by one member.
    pub per_member: (usize, &'static str),
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    peers: Admission,
    members: HashMap<PeerId, Share>,
    per_member: (usize, &'static str),
    of_backbone: usize,
}

/// What a member pays for.
#[derive(Debug)]
struct Share {
    member: Arc<PeerId>,
    count: usize,
}

impl Ledger {
    /// Nothing is here yet.
    #[must_use]
    pub fn new(shares: Shares) -> Self {
        let peers = Admission::new(shares.peers);
        Self { peers, members: HashMap::new(), per_member: shares.per_member, of_backbone: 0 }
    }

    /// Charges one thing more.
    pub fn enter(&mut self, by: Bringer) -> Result<(), LimitReached> {
        self.has_room(by)?;
        self.count(by);
        Ok(())
    }

    /// Whether one thing more may be charged.
    pub fn has_room(&self, by: Bringer) -> Result<(), LimitReached> {
        match by {
            Bringer::Own => Ok(()),
            Bringer::Backbone if self.of_backbone < BACKBONE => Ok(()),
            Bringer::Backbone => self.peers.has_room(),
            Bringer::Peer(_) | Bringer::Member(_) => {
                self.peers.has_room()?;
                self.has_share(by)
            }
        }
    }

    /// Something newer, brought by `to`, takes the place of what is charged to `from`. Returns who pays from now on.
    pub fn hand_over(&mut self, from: Bringer, to: Bringer) -> Bringer {
        if from == to {
            return from;
        }
        self.leave(from);
        let payer = if self.has_share(to).is_ok() { to } else { from };
        self.count(payer);
        payer
    }

    /// One thing that was charged there is gone.
    pub fn leave(&mut self, by: Bringer) {
        match by {
            Bringer::Peer(from) => return self.peers.leave(from),
            Bringer::Own => {}
            Bringer::Backbone => self.of_backbone = self.of_backbone.saturating_sub(1),
            Bringer::Member(member) => match self.members.get_mut(&member) {
                Some(share) if share.count > 1 => share.count -= 1,
                _ => drop(self.members.remove(&member)),
            },
        }
        self.peers.leave(None);
    }

    /// Whether one more fits into the share of who brings it.
    fn has_share(&self, by: Bringer) -> Result<(), LimitReached> {
        match by {
            Bringer::Own => Ok(()),
            Bringer::Backbone => below(self.of_backbone, (BACKBONE, "members")),
            Bringer::Peer(from) => self.peers.has_room_for(from),
            Bringer::Member(member) => {
                below(self.members.get(&member).map_or(0, |share| share.count), self.per_member)
            }
        }
    }

    fn count(&mut self, by: Bringer) {
        match by {
            Bringer::Peer(from) => return self.peers.count(from),
            Bringer::Own => {}
            Bringer::Backbone => self.of_backbone += 1,
            Bringer::Member(member) => {
                let new = || Share { member: Arc::new(member), count: 0 };
                self.members.entry(member).or_insert_with(new).count += 1;
            }
        }
        self.peers.count(None);
    }

    /// Who was charged, to be kept beside what it pays for.
    #[must_use]
    pub fn payer(&self, by: Bringer) -> Payer {
        match by {
            Bringer::Own => Payer::Own,
            Bringer::Backbone => Payer::Backbone,
            Bringer::Peer(from) => Payer::Peer(Origin::of(from)),
            Bringer::Member(member) => {
                let share = self.members.get(&member);
                Payer::Member(share.map_or_else(|| Arc::new(member), |share| Arc::clone(&share.member)))
            }
        }
    }

    /// How many things are charged.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.peers.total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    const SHARES: Shares = Shares {
        peers: Limits { total: (6, "total"), per_ip: (1, "ip"), per_prefix: (2, "prefix") },
        per_member: (2, "member"),
    };

    fn from(ip: &str) -> Bringer {
        Bringer::Peer(Some(ip.parse().unwrap()))
    }

    fn refused(result: Result<(), LimitReached>) -> &'static str {
        result.unwrap_err().limit
    }

    #[test]
    fn addresses_networks_members_and_the_whole_have_their_limits() {
        let mut ledger = Ledger::new(SHARES);
        ledger.enter(from("192.0.2.1")).unwrap();
        assert_eq!(refused(ledger.enter(from("192.0.2.1"))), "ip");
        ledger.enter(from("192.0.2.2")).unwrap();
        assert_eq!(refused(ledger.enter(from("192.0.2.3"))), "prefix");
        for member in [1, 2] {
            ledger.enter(Bringer::Member(peer(member))).unwrap();
            ledger.enter(Bringer::Member(peer(member))).unwrap();
            if member == 1 {
                assert_eq!(refused(ledger.enter(Bringer::Member(peer(1)))), "member");
            }
        }
        for by in [from("2001:db8::1"), Bringer::Member(peer(3)), Bringer::Peer(None)] {
            assert_eq!(refused(ledger.enter(by)), "total");
        }
        ledger.leave(from("192.0.2.2"));
        ledger.enter(Bringer::Member(peer(3))).unwrap();
    }

    #[test]
    fn this_server_and_its_members_need_no_room_but_members_only_so_much_of_it() {
        let mut ledger = Ledger::new(SHARES);
        for _ in 0..6 {
            ledger.enter(Bringer::Peer(None)).unwrap();
        }
        for _ in 0..BACKBONE {
            ledger.enter(Bringer::Backbone).unwrap();
        }
        assert_eq!(refused(ledger.enter(Bringer::Backbone)), "total");
        assert_eq!(ledger.hand_over(Bringer::Peer(None), Bringer::Backbone), Bringer::Peer(None));
        ledger.enter(Bringer::Own).unwrap();
        assert_eq!(ledger.total(), 6 + BACKBONE + 1);
    }

    #[test]
    fn a_charge_is_taken_over_where_there_is_room_and_stays_where_there_is_none() {
        let mut ledger = Ledger::new(SHARES);
        let (full, member) = (from("192.0.2.1"), Bringer::Member(peer(1)));
        ledger.enter(full).unwrap();
        ledger.enter(member).unwrap();
        assert_eq!(ledger.hand_over(member, full), member, "no room there");
        assert_eq!(ledger.hand_over(full, full), full);
        assert_eq!(ledger.hand_over(full, member), member);
        assert_eq!(ledger.hand_over(member, full), full, "now there is");
        ledger.leave(full);
        ledger.leave(member);
        assert_eq!((ledger.total(), ledger.members.len()), (0, 0));
    }

    #[test]
    fn in_a_full_network_a_peer_may_change_its_address() {
        let mut ledger = Ledger::new(SHARES);
        ledger.enter(from("192.0.2.1")).unwrap();
        ledger.enter(from("192.0.2.2")).unwrap();
        assert_eq!(ledger.hand_over(from("192.0.2.2"), from("192.0.2.3")), from("192.0.2.3"));
    }
}
