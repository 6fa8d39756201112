//! Homes outside the ring: for a member the edges, for an edge everybody but the members that it has links with.
//!
//! Nobody asks such a home anything, and it owns nothing; what matters is whether it is alive, since what it said of its peers
//! holds only while it is.
//!
//! Invariants:
//! - A home is alive while it has a link with this server, or a linked member says that it is.
//! - What a member said ends with the link to it: that was the last sign of life that it had.
//! - At most [`FAR_HOMES`] are known; the one that has been dead for the longest time makes room, never a living one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use super::homes::FOREVER;
use super::session::REMEMBERED;

/// Homes outside the ring of which it is known whether they are alive: about 200 bytes each. As many as all members of the largest
/// backbone have room for, so that none that lives is left out.
pub const FAR_HOMES: usize = 32_768;

#[derive(Debug)]
struct Home {
    /// Another one in each life of it.
    boot: u64,
    is_linked: bool,
    /// Linked members that say that it is alive.
    said_by: BTreeSet<PeerId>,
    /// The last sign of life of one that is not alive.
    heard: Instant,
}

impl Home {
    fn is_alive(&self) -> bool {
        self.is_linked || !self.said_by.is_empty()
    }
}

/// What became of a home by a member's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It is as it was.
    Nothing,
    /// It went, or came.
    Changed,
    /// It lives another life: what it said in an earlier one it has to say again.
    Restarted,
}

/// See the module.
#[derive(Debug, Default)]
pub struct FarHomes(BTreeMap<PeerId, Home>);

impl FarHomes {
    /// A link with a home is up.
    pub fn linked(&mut self, home: PeerId, boot: u64, now: Instant) {
        if let Some(home) = self.entry(home, boot, now) {
            (home.is_linked, home.boot) = (true, boot);
        }
    }

    /// A link with a home ended, over which nothing had come since `heard`.
    pub fn unlinked(&mut self, home: &PeerId, heard: Instant) {
        if let Some(home) = self.0.get_mut(home) {
            (home.is_linked, home.heard) = (false, home.heard.max(heard));
        }
    }

    /// The linked member `by` says whether a home is alive, in which life, and if not, when it gave a sign of life last.
    pub fn told(&mut self, by: PeerId, home: PeerId, (is_alive, boot): (bool, u64), heard: Instant) -> News {
        let was_known = self.0.contains_key(&home);
        let Some(home) = self.entry(home, boot, heard) else { return News::Nothing };
        let was_alive = home.is_alive();
        if is_alive {
            home.said_by.insert(by);
        } else {
            home.said_by.remove(&by);
            home.heard = home.heard.max(heard);
        }
        let restarted = is_alive && std::mem::replace(&mut home.boot, boot) != boot;
        match restarted {
            true => News::Restarted,
            false if was_known && was_alive == home.is_alive() => News::Nothing,
            false => News::Changed,
        }
    }

    /// The link with a member ended, which was heard last at that time: what it said of homes holds no longer.
    pub fn member_unlinked(&mut self, member: &PeerId, heard: Instant) {
        for home in self.0.values_mut() {
            if home.said_by.remove(member) {
                home.heard = home.heard.max(heard);
            }
        }
    }

    fn entry(&mut self, home: PeerId, boot: u64, heard: Instant) -> Option<&mut Home> {
        if !self.0.contains_key(&home) {
            if self.0.len() >= FAR_HOMES {
                let dead = self.0.iter().filter(|(_, known)| !known.is_alive());
                let first = dead.min_by_key(|(_, known)| known.heard).map(|(peer, _)| *peer)?;
                self.0.remove(&first);
            }
            self.0.insert(home, Home { boot, is_linked: false, said_by: BTreeSet::new(), heard });
        }
        self.0.get_mut(&home)
    }

    /// Whether a member hears a home, as it says itself.
    #[must_use]
    pub fn is_heard_by(&self, member: &PeerId, home: &PeerId) -> bool {
        self.0.get(home).is_some_and(|home| home.said_by.contains(member))
    }

    /// Whether a home has a link with this server.
    #[must_use]
    pub fn is_linked(&self, home: &PeerId) -> bool {
        self.0.get(home).is_some_and(|home| home.is_linked)
    }

    /// In which life a home was last; 0 if that is not known.
    #[must_use]
    pub fn boot(&self, home: &PeerId) -> u64 {
        self.0.get(home).map_or(0, |home| home.boot)
    }

    /// Whether anything is known of a home.
    #[must_use]
    pub fn contains(&self, home: &PeerId) -> bool {
        self.0.contains_key(home)
    }

    /// How long a home has given no sign of life; `None` if it is alive, [`FOREVER`] of one that is not known.
    #[must_use]
    pub fn dead_for(&self, home: &PeerId, now: Instant) -> Option<Duration> {
        let Some(home) = self.0.get(home) else { return Some(FOREVER) };
        (!home.is_alive()).then(|| now.saturating_duration_since(home.heard))
    }

    /// How long ago a home that has no link with this server gave its last sign of life here.
    #[must_use]
    pub fn silent_for(&self, home: &PeerId, now: Instant) -> Duration {
        self.0.get(home).map_or(REMEMBERED, |home| now.saturating_duration_since(home.heard))
    }

    /// All that are known.
    pub fn all(&self) -> impl Iterator<Item = PeerId> {
        self.0.keys().copied()
    }

    /// Those that have a link with this server.
    pub fn all_linked(&self) -> impl Iterator<Item = PeerId> {
        self.0.iter().filter(|(_, home)| home.is_linked).map(|(peer, _)| *peer)
    }

    /// Forgets those of whose peers nobody will ask any more.
    pub fn sweep(&mut self, now: Instant) {
        self.0
            .retain(|_, home| home.is_alive() || now.saturating_duration_since(home.heard) < 2 * REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Time, peer};
    use p2psb_proto::model::PublicKey;

    #[test]
    fn a_home_is_alive_while_somebody_hears_it() {
        let (mut far, t) = (FarHomes::default(), Time::start());
        let (home, at) = (peer(9), |seconds| t.at(seconds).mono);
        assert_eq!(far.dead_for(&home, at(0)), Some(FOREVER));
        far.linked(home, 1, at(0));
        far.told(peer(1), home, (true, 1), at(1));
        far.told(peer(2), home, (true, 1), at(1));
        assert!(
            far.is_linked(&home) && far.is_heard_by(&peer(1), &home) && !far.is_heard_by(&peer(3), &home)
        );
        far.unlinked(&home, at(5));
        assert_eq!(far.dead_for(&home, at(50)), None, "others hear it");
        far.told(peer(1), home, (false, 1), at(20));
        assert_eq!(far.dead_for(&home, at(50)), None, "one does");
        far.member_unlinked(&peer(2), at(10));
        assert_eq!(far.dead_for(&home, at(50)), Some(Duration::from_secs(30)), "the last sign was at 20");
        far.told(peer(1), home, (true, 1), at(60));
        assert_eq!(far.dead_for(&home, at(60)), None);
    }

    #[test]
    fn homes_are_bounded_and_the_longest_dead_make_room() {
        let (mut far, t) = (FarHomes::default(), Time::start());
        let id = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            PeerId::new(PublicKey::from_bytes(bytes))
        };
        for n in 0..FAR_HOMES + 10 {
            // One in three is alive.
            far.told(peer(1), id(n), (n % 3 == 0, 1), t.at(n as u64).mono);
        }
        assert_eq!(far.0.len(), FAR_HOMES);
        assert!(
            (0..FAR_HOMES).filter(|n| n % 3 == 0).all(|n| far.contains(&id(n))),
            "no living one had to go"
        );
        assert!(!far.contains(&id(1)) && far.contains(&id(FAR_HOMES)));
        far.member_unlinked(&peer(1), t.at(0).mono);
        far.sweep(t.at(FAR_HOMES as u64).mono + 2 * REMEMBERED);
        assert!(far.all().next().is_none() || far.0.len() < 20);
        let mut full = FarHomes::default();
        let news = (0..=FAR_HOMES).map(|n| full.told(peer(1), id(n), (true, 1), t.at(0).mono)).last();
        assert_eq!(news, Some(News::Nothing));
        assert_eq!((full.0.len(), full.contains(&id(FAR_HOMES))), (FAR_HOMES, false));
    }
}
