//! The members of the backbone: who they are, and which of them this one has a link with.
//!
//! Invariants: there is one link with each member at most. Of two that were dialed from both ends at once the one dialed by
//! the lower id stays, and both ends come to that by themselves; of two dialed from the same end the later one stays, since
//! that end knows that the earlier one is dead. A member that is only named never keeps a proven one out.

use std::collections::HashMap;
use std::time::Instant;

use p2psb_proto::model::PeerId;

use super::session::REMEMBERED;

/// What a rendezvous is in its backbone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Owns its share of what is known.
    #[default]
    Member,
    /// Serves its peers and owns nothing: it has links with some members, and they tell and ask the owners for it.
    Edge,
}

/// Which end dialed a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialedBy {
    /// This server.
    Us,
    /// The other member.
    Them,
}

/// Names a link, so that the end of an old one is not taken for the end of a newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkTicket(u64);

/// A link may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkRefused {
    /// With itself.
    #[error("this is the server itself")]
    Own,
    /// Another one stays.
    #[error("a live link with this member exists")]
    Duplicate,
    /// Too many members.
    #[error("the backbone has {limit} members, as many as it may")]
    Full {
        /// How many there may be.
        limit: usize,
    },
}

/// A link that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Its ticket.
    pub ticket: LinkTicket,
    /// The link that it replaces, and that must be told.
    pub replaced: Option<LinkTicket>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    ticket: LinkTicket,
    dialed_by: DialedBy,
    seq: u64,
}

#[derive(Debug)]
struct Member {
    link: Option<Link>,
    /// From itself.
    heard: Option<Instant>,
    /// From itself or from another member.
    named: Instant,
    /// Who named it first, if that was somebody else.
    named_by: Option<PeerId>,
}

impl Member {
    const fn named(now: Instant, named_by: Option<PeerId>) -> Self {
        Self { link: None, heard: None, named: now, named_by }
    }
}

/// What is known of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Who.
    pub peer: PeerId,
    /// Whether there is a link.
    pub linked: bool,
    /// When it was last heard.
    pub heard: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub struct Members {
    own: PeerId,
    members: HashMap<PeerId, Member>,
    limit: usize,
    next_ticket: u64,
}

impl Members {
    /// Nobody but `own`; at most `limit` others.
    #[must_use]
    pub fn new(own: PeerId, limit: usize) -> Self {
        Self { own, members: HashMap::new(), limit, next_ticket: 0 }
    }

    /// The same with tickets that nobody has who was made by [`Self::new`].
    #[must_use]
    pub fn apart(self) -> Self {
        Self { next_ticket: u64::MAX / 2, ..self }
    }

    /// Whether a link with `peer`, proven on both ends, may be; `seq` was chosen by the end that dialed. Changes nothing.
    pub fn may_link(&self, peer: &PeerId, dialed_by: DialedBy, seq: u64) -> Result<(), LinkRefused> {
        if *peer == self.own {
            return Err(LinkRefused::Own);
        }
        let Some(member) = self.members.get(peer) else {
            // Those that were only named make room.
            let limit = self.limit;
            return if self.links() >= limit { Err(LinkRefused::Full { limit }) } else { Ok(()) };
        };
        let Some(old) = member.link else { return Ok(()) };
        let stays = if old.dialed_by == dialed_by {
            seq <= old.seq
        } else {
            let we_are_lower = self.own < *peer;
            we_are_lower == (old.dialed_by == DialedBy::Us)
        };
        if stays { Err(LinkRefused::Duplicate) } else { Ok(()) }
    }

    /// A link with `peer` is up.
    pub fn link(
        &mut self,
        peer: PeerId,
        dialed_by: DialedBy,
        seq: u64,
        now: Instant,
    ) -> Result<Linked, LinkRefused> {
        self.may_link(&peer, dialed_by, seq)?;
        if !self.members.contains_key(&peer) && self.members.len() >= self.limit {
            self.make_room();
        }
        self.next_ticket += 1;
        let ticket = LinkTicket(self.next_ticket);
        let member = self.members.entry(peer).or_insert_with(|| Member::named(now, None));
        (member.heard, member.named) = (Some(now), now);
        let replaced = member.link.replace(Link { ticket, dialed_by, seq }).map(|old| old.ticket);
        Ok(Linked { ticket, replaced })
    }

    /// Forgets the member without a link that was named longest ago; one that was never heard itself first.
    fn make_room(&mut self) {
        let unlinked = self.members.iter().filter(|(_, member)| member.link.is_none());
        let first = unlinked.min_by_key(|(peer, member)| (member.heard.is_some(), member.named, **peer));
        if let Some(peer) = first.map(|(peer, _)| *peer) {
            self.members.remove(&peer);
        }
    }

    /// Something came over a link.
    pub fn heard(&mut self, peer: &PeerId, now: Instant) {
        if let Some(member) = self.members.get_mut(peer) {
            (member.heard, member.named) = (Some(now), now);
        }
    }

    /// Whether this is the link with the member now. What a replaced one still says is older than what the one in its place says.
    #[must_use]
    pub fn is_current(&self, peer: &PeerId, ticket: LinkTicket) -> bool {
        self.members.get(peer).and_then(|member| member.link).is_some_and(|link| link.ticket == ticket)
    }

    /// A link ended. Returns whether it was the current one.
    pub fn unlink(&mut self, peer: &PeerId, ticket: LinkTicket) -> bool {
        let was_current = self.is_current(peer, ticket);
        if let Some(member) = self.members.get_mut(peer).filter(|_| was_current) {
            member.link = None;
        }
        was_current
    }

    /// A member, or an earlier life of this one, names another one. Returns whether that is news. If there is no room, one is
    /// forgotten that was named by who named most, unless `by` did so itself: who makes up names keeps none out that others say.
    pub fn name(&mut self, peer: PeerId, by: Option<PeerId>, now: Instant) -> bool {
        if peer == self.own {
            return false;
        }
        if let Some(member) = self.members.get_mut(&peer) {
            member.named = now;
            return false;
        }
        if self.members.len() >= self.limit && !self.make_room_for_named(by) {
            return false;
        }
        self.members.insert(peer, Member::named(now, by));
        true
    }

    /// Those that were never heard here, and the member that named each.
    fn only_named(&self) -> impl Iterator<Item = (PeerId, PeerId)> {
        let never = self.members.iter().filter(|(_, member)| member.heard.is_none());
        never.filter_map(|(peer, member)| Some((*peer, member.named_by?)))
    }

    fn make_room_for_named(&mut self, by: Option<PeerId>) -> bool {
        let mut named: HashMap<PeerId, usize> = HashMap::new();
        self.only_named().for_each(|(_, by)| *named.entry(by).or_default() += 1);
        let own = by.and_then(|by| named.get(&by)).copied().unwrap_or_default() + 1;
        let most = named.into_iter().max_by_key(|(by, count)| (*count, *by));
        let Some((loudest, _)) = most.filter(|(_, count)| *count > own) else { return false };
        let last = self.only_named().filter(|(_, by)| *by == loudest).map(|(peer, _)| peer).max();
        last.is_some_and(|peer| self.members.remove(&peer).is_some())
    }

    /// Whether there is a link with `peer`.
    #[must_use]
    pub fn is_linked(&self, peer: &PeerId) -> bool {
        self.members.get(peer).is_some_and(|member| member.link.is_some())
    }

    /// Whether `peer` is a member.
    #[must_use]
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.members.contains_key(peer)
    }

    /// What is known of one member.
    #[must_use]
    pub fn view(&self, peer: &PeerId) -> Option<MemberView> {
        let member = self.members.get(peer)?;
        Some(MemberView { peer: *peer, linked: member.link.is_some(), heard: member.heard })
    }

    /// All members but this one, linked ones first, then by id.
    #[must_use]
    pub fn all(&self) -> Vec<MemberView> {
        let mut all: Vec<MemberView> = self.members.keys().filter_map(|peer| self.view(peer)).collect();
        all.sort_unstable_by_key(|member| (!member.linked, member.peer));
        all
    }

    /// How many links there are.
    #[must_use]
    pub fn links(&self) -> usize {
        self.members.values().filter(|member| member.link.is_some()).count()
    }

    /// Forgets members that nobody has named for longer than any record lives.
    pub fn sweep(&mut self, now: Instant) {
        self.members.retain(|_, member| {
            member.link.is_some() || now.saturating_duration_since(member.named) < REMEMBERED
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Time, peer};

    /// Two members, the lower id first.
    fn pair() -> (Members, Members) {
        let (a, b) = (peer(1).min(peer(2)), peer(1).max(peer(2)));
        (Members::new(a, 10), Members::new(b, 10))
    }

    #[test]
    fn when_both_dial_at_once_both_keep_the_link_that_the_lower_id_dialed() {
        let now = Time::start().at(0).mono;
        for lower_first in [true, false] {
            let (mut low, mut high) = pair();
            let (l, h) = (low.own, high.own);
            // The listener of each link comes first; then the dialer hears that it was accepted.
            let by_low = high.link(l, DialedBy::Them, 1, now);
            let by_high = low.link(h, DialedBy::Them, 1, now);
            assert!(by_low.is_ok() && by_high.is_ok());
            let mut steps: [(&mut Members, PeerId, bool); 2] = [(&mut low, h, true), (&mut high, l, false)];
            if !lower_first {
                steps.reverse();
            }
            for (members, other, stays) in steps {
                let linked = members.link(other, DialedBy::Us, 1, now);
                assert_eq!(linked.is_ok(), stays);
                assert_eq!(linked.is_ok_and(|linked| linked.replaced.is_some()), stays);
            }
            assert_eq!((low.links(), high.links()), (1, 1));
        }
    }

    #[test]
    fn a_later_link_from_the_same_end_replaces_a_dead_one() {
        let (mut low, high) = pair();
        let now = Time::start().at(0).mono;
        let first = low.link(high.own, DialedBy::Them, 5, now).unwrap();
        assert_eq!(low.link(high.own, DialedBy::Them, 5, now), Err(LinkRefused::Duplicate));
        let second = low.link(high.own, DialedBy::Them, 6, now).unwrap();
        assert_eq!(second.replaced, Some(first.ticket));
        assert!(!low.is_current(&high.own, first.ticket) && low.is_current(&high.own, second.ticket));
        assert!(!low.unlink(&high.own, first.ticket), "its end is not the end of the newer one");
        assert!(low.is_linked(&high.own));
        assert!(low.unlink(&high.own, second.ticket));
        assert!(!low.is_linked(&high.own) && low.contains(&high.own));
    }

    #[test]
    fn a_server_does_not_link_with_itself() {
        let (mut low, _) = pair();
        let now = Time::start().at(0).mono;
        assert_eq!(low.link(low.own, DialedBy::Us, 1, now), Err(LinkRefused::Own));
        assert!(!low.name(low.own, None, now));
    }

    #[test]
    fn members_are_bounded_named_and_forgotten() {
        let t = Time::start();
        let mut members = Members::new(peer(9), 2);
        assert!(members.name(peer(1), None, t.at(0).mono));
        assert!(!members.name(peer(1), None, t.at(5).mono), "no news");
        members.link(peer(2), DialedBy::Us, 1, t.at(0).mono).unwrap();
        assert!(!members.name(peer(3), None, t.at(0).mono));
        let order: Vec<_> = members.all().iter().map(|member| (member.peer, member.linked)).collect();
        assert_eq!(order, [(peer(2), true), (peer(1), false)]);
        members.sweep(t.at(5).mono + REMEMBERED);
        assert!(!members.contains(&peer(1)) && members.contains(&peer(2)));
    }

    #[test]
    fn a_proven_link_takes_the_place_of_the_member_named_longest_ago() {
        let t = Time::start();
        let mut members = Members::new(peer(9), 2);
        members.name(peer(1), None, t.at(1).mono);
        members.name(peer(2), None, t.at(0).mono);
        members.link(peer(3), DialedBy::Them, 1, t.at(2).mono).unwrap();
        assert!(members.contains(&peer(1)) && !members.contains(&peer(2)));
        members.link(peer(4), DialedBy::Them, 1, t.at(2).mono).unwrap();
        assert_eq!((members.links(), members.all().len()), (2, 2));
        assert_eq!(members.may_link(&peer(5), DialedBy::Us, 1), Err(LinkRefused::Full { limit: 2 }));
    }

    #[test]
    fn who_makes_up_names_keeps_out_none_that_others_say() {
        let now = Time::start().at(0).mono;
        let mut members = Members::new(peer(200), 20);
        let (liar, other) = (Some(peer(100)), Some(peer(101)));
        assert_eq!((0..50).filter(|n| members.name(peer(*n), liar, now)).count(), 20);
        assert!((60..65).all(|n| members.name(peer(n), other, now)));
        assert!((60..65).all(|n| members.contains(&peer(n))) && members.all().len() == 20);
        assert!(!members.name(peer(50), liar, now), "it has more than anybody");
    }
}
