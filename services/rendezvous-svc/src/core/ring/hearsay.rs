//! Whom a member counts by the word of others.
//!
//! On a link both ends prove themselves. Of a member with which this one has no link there are only words, and whoever says them
//! can make up as many names, keys and records as it likes; what it can't make up are links with others.
//!
//! Promises, for a member that has no link with this one:
//! - Nobody counts without a valid record of its own that offers the service of a rendezvous, or, where the trust list of this
//!   server says who may bridge, without standing there: see [`Claim`].
//! - It counts if this member had a link with it in the last [`REMEMBERED`], if the trust list names it, or if two linked members
//!   speak for it. Who has one link only believes all that it is told: there is nobody who could know better.
//! - For whom one of several linked members speaks alone, that one answers: [`ALONE`] of them count. So of the three owners of a
//!   key one at most is made up by the same liar, and the other two can say that a peer is unknown.
//! - Who counts no longer keeps its place for a while: the others may be about to speak for it. Nor does its entry keep out
//!   anybody who is linked, or for whom others speak.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;
use p2psb_proto::model::limits::MEMBERS;

use super::{Member, Place, Ring};
use crate::core::placement::Operator;
use crate::core::session::REMEMBERED;

/// How many members count because the same linked member, and nobody else, speaks for them.
const ALONE: usize = 1;
/// Doubt lasts for this part of the time that a member takes to join; a newcomer has links with most others sooner.
const DOUBT: u32 = 3;

/// That somebody may be a member: its own record offers the service of a rendezvous, and it may bridge with this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// By its own record.
    pub operator: Operator,
    /// The trust list names it.
    pub is_listed: bool,
}

/// Which linked members say something, one bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots([u64; MEMBERS / 64]);

impl Slots {
    pub(super) fn set(&mut self, slot: usize, on: bool) {
        if let Some(word) = self.0.get_mut(slot / 64) {
            let bit = 1 << (slot % 64);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        self.0.get(slot / 64).is_some_and(|word| word & (1 << (slot % 64)) != 0)
    }

    pub(super) fn any(&self) -> bool {
        self.0.iter().any(|word| *word != 0)
    }

    pub(super) fn first_free(&self) -> Option<usize> {
        (0..MEMBERS).find(|slot| !self.has(*slot))
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The only one.
    fn only(&self) -> Option<usize> {
        let (at, word) = self.0.iter().enumerate().find(|(_, word)| **word != 0)?;
        let bit = usize::try_from(word.trailing_zeros()).ok()?;
        (self.count() == 1).then_some(at * 64 + bit)
    }
}

impl Member {
    /// It has proven itself, now or not long ago.
    fn is_met(&self, now: Instant) -> bool {
        self.linked.is_some() || self.met.is_some_and(|met| met.age(now) < REMEMBERED)
    }

    /// Who alone speaks for one that has not proven itself.
    fn only_speaker(&self, now: Instant) -> Option<usize> {
        if self.is_met(now) { None } else { self.speakers.only() }
    }

    /// How long there has been doubt whether it is a member.
    pub(super) fn doubted_for(&self, now: Instant) -> Option<Duration> {
        self.doubted.map(|since| now.saturating_duration_since(since))
    }
}

impl Ring {
    pub(super) fn has_one_link(&self) -> bool {
        self.members.values().filter(|member| member.linked.is_some()).nth(1).is_none()
    }

    /// Whether there is no doubt that this is a member, whatever else is said by those who speak for it.
    pub(super) fn is_certain(&self, peer: &PeerId, now: Instant) -> bool {
        self.members.get(peer).is_some_and(|member| {
            let is_known = |claim: Claim| {
                claim.is_listed || member.speakers.count() > 1 || member.speakers.any() && self.has_one_link()
            };
            member.is_met(now) || member.claim.is_some_and(is_known)
        })
    }

    /// Members that have not proven themselves, and what is known of their own records.
    pub fn hearsay(&self, now: Instant) -> impl Iterator<Item = (PeerId, Option<Claim>)> {
        let unproven = self.members.iter().filter(move |(_, member)| !member.is_met(now));
        unproven.map(|(peer, member)| (*peer, member.claim))
    }

    /// The own record of a member that has not proven itself says this now, or nothing any more.
    pub fn claimed(&mut self, peer: &PeerId, claim: Option<Claim>) {
        let Some(member) = self.members.get_mut(peer).filter(|member| member.linked.is_none()) else {
            return;
        };
        member.claim = claim;
        if let Some(claim) = claim {
            self.is_stale |= member.operator != claim.operator;
            member.operator = claim.operator;
        }
    }

    /// Looks who is to be doubted.
    pub(super) fn weigh(&mut self, now: Instant) {
        let mut unproven: Vec<(bool, Instant, PeerId)> = Vec::new();
        for (peer, member) in &mut self.members {
            if member.is_met(now) {
                member.doubted = None;
            } else {
                unproven.push((!member.standing.in_ring(), member.named, *peer));
            }
        }
        // Who is in the ring keeps its place there, and whoever came first.
        unproven.sort_unstable();
        let mut alone: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, _, peer) in unproven {
            let mut is_certain = self.is_certain(&peer, now);
            let Some(member) = self.members.get_mut(&peer) else { continue };
            let counts = member.is_alive() || member.standing.in_ring();
            if let Some(speaker) = member.speakers.only().filter(|_| counts && !is_certain)
                && member.claim.is_some()
            {
                let before = alone.entry(speaker).or_default();
                is_certain = *before < ALONE;
                *before += 1;
            }
            let is_silent = !member.speakers.any() && member.claim.is_some();
            if is_certain {
                member.doubted = None;
            } else if !is_silent {
                // If nobody speaks for it any more its time runs out in another way; a doubt from before stays.
                member.doubted.get_or_insert(now);
            }
        }
    }

    /// How long one that is in the ring stays there in spite of doubt.
    pub(super) fn patience(&self) -> Duration {
        self.timing.join_after / DOUBT
    }

    /// Forgets somebody, so that there is room for a member that is linked, or of whom `by` speaks: the one that has been dead for
    /// the longest time; else one that has not proven itself. Of those that only one speaks for, the last one of whoever speaks
    /// alone for most goes first; for one that is not linked nobody goes who has as few speakers itself.
    pub(super) fn make_room(&mut self, by: Option<usize>, now: Instant) -> Option<usize> {
        let dead = self.members.iter().filter(|(_, member)| !member.standing.in_ring());
        let dead = dead.filter_map(|(peer, member)| Some((member.dead_for(now)?, *peer)));
        let dead = dead.max().map(|(_, peer)| peer);
        let goes = dead.or_else(|| self.of_the_loudest(by, now)).or_else(|| match by {
            None => self.last_unproven(now),
            Some(_) => None,
        })?;
        self.is_stale |= self.members.get(&goes).is_some_and(|member| member.standing.in_ring());
        self.forget(&goes)
    }

    /// The last one of those for whom only the one speaks who speaks alone for most; not if `by` would then speak for more.
    fn of_the_loudest(&self, by: Option<usize>, now: Instant) -> Option<PeerId> {
        let mut alone: BTreeMap<usize, usize> = BTreeMap::new();
        for speaker in self.members.values().filter_map(|member| member.only_speaker(now)) {
            *alone.entry(speaker).or_default() += 1;
        }
        let (most, loudest) = alone.iter().map(|(speaker, count)| (*count, *speaker)).max()?;
        let own = by.map_or(0, |by| alone.get(&by).copied().unwrap_or_default() + 1);
        let its = || self.members.iter().filter(|(_, one)| one.only_speaker(now) == Some(loudest));
        let last = || its().max_by_key(|(peer, member)| (!member.standing.in_ring(), member.named, **peer));
        (most > own).then(last).flatten().map(|(peer, _)| *peer)
    }

    /// The last one that was named of those that have not proven themselves, else of those that did and have no link.
    fn last_unproven(&self, now: Instant) -> Option<PeerId> {
        let others = self.members.iter().filter(|(_, member)| member.linked.is_none());
        let last = others.max_by_key(|(peer, member)| (!member.is_met(now), member.named, **peer));
        last.map(|(peer, _)| *peer)
    }
}

impl Place {
    /// The place of one that is not certain to be a member, for so long, where `patience` is the most.
    pub(super) fn doubted(self, doubted_for: Duration, patience: Duration) -> Self {
        match self {
            Self::Out | Self::Early => Self::Out,
            Self::In if doubted_for >= patience => Self::Out,
            Self::In => Self::In,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ring::{Introduction, Timing, Word};
    use crate::core::testing::{Time, peer};

    const LIAR: u8 = 9;

    fn operator(n: u8) -> Operator {
        Operator::of(&peer(n), None)
    }

    fn claim(n: u8, is_listed: bool) -> Option<Claim> {
        Some(Claim { operator: operator(n), is_listed })
    }

    fn link(ring: &mut Ring, n: u8, up_for: u64, at: Instant) {
        let up_for = Duration::from_secs(up_for);
        ring.linked(
            peer(n),
            &Introduction { operator: operator(n), boot: 1, up_for, oldest_up_for: up_for },
            at,
        );
    }

    /// Member `by` says that it has had a link with `about` for very long.
    fn vouch(ring: &mut Ring, by: u8, about: u8, at: Instant) {
        let word = Word { about: peer(about), linked: true, age: Duration::from_secs(1000), in_ring: true };
        ring.told(&peer(by), &word, claim(about, false), at);
    }

    /// Whom of those from 20 on the ring has.
    fn unproven(ring: &mut Ring, at: Instant) -> Vec<u8> {
        ring.tick(at);
        (20..=255).filter(|n| ring.view().current().contains(&peer(*n))).collect()
    }

    /// Member 1, up for so long, and its links with these.
    fn ring(up_for: u64, links: &[u8]) -> (Ring, Time) {
        let t = Time::start();
        let mut ring = Ring::new(peer(1), operator(1), Timing::default(), t.at(0).mono);
        ring.tick(t.at(up_for).mono);
        links.iter().for_each(|n| link(&mut ring, *n, 1000, t.at(up_for).mono));
        (ring, t)
    }

    #[test]
    fn of_all_whom_one_of_several_speaks_for_alone_one_counts() {
        let (mut a, t) = ring(100, &[2, 3, LIAR]);
        (20..=200).for_each(|n| vouch(&mut a, LIAR, n, t.at(100).mono));
        let first = unproven(&mut a, t.at(100).mono);
        assert_eq!(first.len(), ALONE);
        assert_eq!(unproven(&mut a, t.at(1000).mono), first, "and always the same");
        // Another one speaks for one of those that do not, and for one that nobody has spoken for.
        vouch(&mut a, 2, 200, t.at(1000).mono);
        vouch(&mut a, 2, 201, t.at(1000).mono);
        let all = unproven(&mut a, t.at(1000).mono);
        assert_eq!(all.len(), 3);
        assert!(all.contains(&200) && all.contains(&201), "{all:?}");
    }

    #[test]
    fn who_comes_first_to_a_liar_is_free_of_what_it_made_up_soon_after_it_comes_to_others() {
        let (mut a, t) = ring(0, &[LIAR]);
        (20..=200).for_each(|n| vouch(&mut a, LIAR, n, t.at(1).mono));
        assert_eq!(unproven(&mut a, t.at(1).mono).len(), 181, "nobody could say anything else");
        link(&mut a, 2, 1000, t.at(2).mono);
        assert_eq!(unproven(&mut a, t.at(2).mono).len(), 181, "it may be about to say the same");
        assert_eq!(unproven(&mut a, t.at(11).mono).len(), 181);
        assert_eq!(unproven(&mut a, t.at(12).mono).len(), ALONE);
        // As if it had died, again and again.
        for at in 13..200 {
            for n in 20..=200 {
                let (linked, age) = (at % 2 == 0, Duration::ZERO);
                let word = Word { about: peer(n), linked, age, in_ring: true };
                a.told(&peer(LIAR), &word, claim(n, false), t.at(at).mono);
            }
            assert!(unproven(&mut a, t.at(at).mono).len() <= ALONE, "at {at}");
        }
    }

    #[test]
    fn who_was_met_or_is_listed_counts_by_the_word_of_one() {
        let (mut a, t) = ring(100, &[2, 3, 20, 21, 22]);
        for n in 20..=22 {
            vouch(&mut a, 2, n, t.at(100).mono);
        }
        unproven(&mut a, t.at(130).mono);
        (20..=22).for_each(|n| a.unlinked(&peer(n), Duration::ZERO, t.at(200).mono));
        assert_eq!(unproven(&mut a, t.at(4000).mono), [20, 21, 22], "cut off, and reached by another one");
        let word = |n| Word { about: peer(n), linked: true, age: Duration::from_secs(60), in_ring: true };
        for n in 30..=35 {
            a.told(&peer(3), &word(n), claim(n, true), t.at(4000).mono);
        }
        assert_eq!(unproven(&mut a, t.at(4000).mono), [20, 21, 22, 30, 31, 32, 33, 34, 35]);
        let late = t.at(200).mono + REMEMBERED;
        unproven(&mut a, late);
        let left = unproven(&mut a, late + Duration::from_secs(10));
        assert_eq!(left.len(), ALONE + 6, "it is too long ago: {left:?}");
    }

    #[test]
    fn who_has_no_record_does_not_count_until_it_is_known() {
        let (mut a, t) = ring(100, &[2]);
        let word = Word { about: peer(20), linked: true, age: Duration::from_secs(60), in_ring: true };
        a.told(&peer(2), &word, None, t.at(100).mono);
        assert_eq!(unproven(&mut a, t.at(101).mono), [0u8; 0]);
        assert_eq!(a.hearsay(t.at(101).mono).collect::<Vec<_>>(), [(peer(20), None)]);
        a.claimed(&peer(20), claim(20, false));
        assert_eq!(unproven(&mut a, t.at(102).mono), [20]);
        a.claimed(&peer(20), None);
        assert_eq!(unproven(&mut a, t.at(103).mono), [20]);
        assert_eq!(unproven(&mut a, t.at(113).mono), [0u8; 0], "its record ran out");
    }

    #[test]
    fn names_that_are_made_up_keep_out_nobody_who_is_linked_or_of_whom_others_speak() {
        let id = |n: u16| {
            let mut bytes = [77; 32];
            bytes[..2].copy_from_slice(&n.to_le_bytes());
            PeerId::new(p2psb_proto::model::PublicKey::from_bytes(bytes))
        };
        let (mut a, t) = ring(100, &[2, LIAR]);
        let vouch = |ring: &mut Ring, by: u8, about: PeerId| {
            let word = Word { about, linked: true, age: Duration::from_secs(100), in_ring: true };
            ring.told(&peer(by), &word, claim(1, false), t.at(100).mono);
        };
        (0..600).for_each(|n| vouch(&mut a, LIAR, id(n)));
        assert_eq!(a.members.len(), MEMBERS);
        link(&mut a, 3, 1000, t.at(100).mono);
        (1000..1020).for_each(|n| vouch(&mut a, 2, id(n)));
        (1000..1020).for_each(|n| vouch(&mut a, 3, id(n)));
        (600..1000).for_each(|n| vouch(&mut a, LIAR, id(n)));
        a.tick(t.at(130).mono);
        assert_eq!(a.members.len(), MEMBERS);
        let ring = a.view().current().clone();
        assert!((1000..1020).all(|n| ring.contains(&id(n))) && ring.contains(&peer(3)));
        assert_eq!(ring.len(), 4 + 20 + ALONE);
    }
}
