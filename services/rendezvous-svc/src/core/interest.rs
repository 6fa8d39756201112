//! Presence is told to whoever asked for it: what this member watches at others, and what others watch here.
//!
//! Invariants:
//! - Whoever is watched is subscribed at all owners of its id, unless this member is one; when they change, an old one is given up only after all new
//!   ones have answered, or left the ring themselves.
//! - A change of presence reaches exactly the members that subscribed to that id, each within its limit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use p2psb_proto::model::PeerId;

use super::placement::Key;
use super::ring::View;

/// Ids that one member may be subscribed to here.
pub const SUBSCRIPTIONS: usize = 1_000_000;
/// Ids that one edge may be: this server subscribes to each at its owners.
pub const SUBSCRIPTIONS_OF_EDGE: usize = 16_384;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Post {
    owner: PeerId,
    /// It has said how the peer is.
    answered: bool,
    /// It is an owner no longer.
    is_old: bool,
}

#[derive(Debug, Default)]
struct Watched {
    watchers: usize,
    posts: Vec<Post>,
}

impl Watched {
    /// Gives up old owners if the new ones know. Returns whom.
    fn give_up(&mut self) -> Vec<PeerId> {
        let all_answered = self.posts.iter().filter(|post| !post.is_old).all(|post| post.answered);
        if !all_answered {
            return Vec::new();
        }
        let (old, posts) = self.posts.iter().partition(|post| post.is_old);
        self.posts = posts;
        let old: Vec<Post> = old;
        old.into_iter().map(|post| post.owner).collect()
    }

    fn post_at(&mut self, peer: &PeerId, view: &View) -> Vec<PeerId> {
        let owners: Vec<PeerId> = match view.owners(Key::peer(peer)) {
            // What this member owns it hears from the homes themselves.
            owners if owners.contains(&view.own()) => vec![view.own()],
            owners => owners.iter().collect(),
        };
        for post in &mut self.posts {
            post.is_old = !owners.contains(&post.owner);
        }
        let known = |posts: &[Post], owner: &PeerId| posts.iter().any(|post| post.owner == *owner);
        let new: Vec<PeerId> = owners.into_iter().filter(|owner| !known(&self.posts, owner)).collect();
        let post = |owner: &PeerId| Post { owner: *owner, answered: *owner == view.own(), is_old: false };
        self.posts.extend(new.iter().map(post));
        new
    }
}

/// What this member watches.
#[derive(Debug, Default)]
pub struct Interest {
    watched: BTreeMap<PeerId, Watched>,
}

/// Members to which something is to be said, and about whom.
pub type Sayings = Vec<(PeerId, PeerId)>;

impl Interest {
    /// One more watches `peer`.
    pub fn watch(&mut self, peer: PeerId, view: &View) -> Sayings {
        let watched = self.watched.entry(peer).or_default();
        watched.watchers += 1;
        if watched.watchers > 1 {
            return Vec::new();
        }
        say(watched.post_at(&peer, view), peer)
    }

    /// One fewer does.
    pub fn unwatch(&mut self, peer: &PeerId) -> Sayings {
        let Some(watched) = self.watched.get_mut(peer) else { return Vec::new() };
        watched.watchers = watched.watchers.saturating_sub(1);
        if watched.watchers > 0 {
            return Vec::new();
        }
        let gone = self.watched.remove(peer).unwrap_or_default();
        say(gone.posts.into_iter().map(|post| post.owner).collect(), *peer)
    }

    /// The ring is not what it was.
    pub fn ring_changed(&mut self, view: &View) -> Sayings {
        let mut sayings = Vec::new();
        for (peer, watched) in &mut self.watched {
            sayings.extend(say(watched.post_at(peer, view), *peer));
            sayings.extend(say(watched.give_up(), *peer));
        }
        sayings
    }

    /// An owner has said how the peer is.
    pub fn answered(&mut self, owner: &PeerId, peer: &PeerId) -> Sayings {
        let Some(watched) = self.watched.get_mut(peer) else { return Vec::new() };
        let Some(post) = watched.posts.iter_mut().find(|post| post.owner == *owner) else {
            return Vec::new();
        };
        if std::mem::replace(&mut post.answered, true) {
            return Vec::new();
        }
        say(watched.give_up(), *peer)
    }

    /// A member restarted, and knows of no interest.
    pub fn began_anew(&mut self, owner: &PeerId) -> Sayings {
        let mut sayings = Vec::new();
        for (peer, watched) in &mut self.watched {
            for post in watched.posts.iter_mut().filter(|post| post.owner == *owner) {
                post.answered = false;
                sayings.push((*owner, *peer));
            }
        }
        sayings
    }

    /// Whether this member wants to hear of `peer` from `owner`: what is to be said to it.
    #[must_use]
    pub fn wants(&self, owner: &PeerId, peer: &PeerId) -> bool {
        self.watched.get(peer).is_some_and(|watched| watched.posts.iter().any(|post| post.owner == *owner))
    }

    /// Whether `peer` is watched, and an owner has said how it is.
    #[must_use]
    pub fn is_settled(&self, peer: &PeerId) -> bool {
        self.watched.get(peer).is_some_and(|watched| watched.posts.iter().any(|post| post.answered))
    }

    /// The owners that have said how a watched peer is.
    pub fn told_by(&self, peer: &PeerId) -> impl Iterator<Item = PeerId> {
        let posts = self.watched.get(peer).into_iter().flat_map(|watched| &watched.posts);
        posts.filter(|post| post.answered).map(|post| post.owner)
    }

    /// Whether anybody watches `peer`.
    #[must_use]
    pub fn is_watched(&self, peer: &PeerId) -> bool {
        self.watched.contains_key(peer)
    }
}

fn say(to: Vec<PeerId>, of: PeerId) -> Sayings {
    to.into_iter().map(|owner| (owner, of)).collect()
}

/// A member watches more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at most {limit} peers are watched over one link")]
pub struct TooManySubscriptions {
    /// How many it may.
    pub limit: usize,
}

/// What others watch here.
#[derive(Debug, Default)]
pub struct Subscribers {
    of_peer: HashMap<PeerId, BTreeSet<PeerId>>,
    of_member: HashMap<PeerId, BTreeSet<PeerId>>,
}

impl Subscribers {
    /// A member wants to hear of `peer`, one of `limit` at most. Returns whether it did not before.
    pub fn subscribe(
        &mut self,
        member: PeerId,
        peer: PeerId,
        limit: usize,
    ) -> Result<bool, TooManySubscriptions> {
        let peers = self.of_member.entry(member).or_default();
        if peers.len() >= limit && !peers.contains(&peer) {
            return Err(TooManySubscriptions { limit });
        }
        let is_new = peers.insert(peer);
        self.of_peer.entry(peer).or_default().insert(member);
        Ok(is_new)
    }

    /// It does no longer. Returns whether it did before.
    pub fn unsubscribe(&mut self, member: &PeerId, peer: &PeerId) -> bool {
        let Some(peers) = self.of_member.get_mut(member) else { return false };
        let did = peers.remove(peer);
        if peers.is_empty() {
            self.of_member.remove(member);
        }
        self.leave(member, peer);
        did
    }

    fn leave(&mut self, member: &PeerId, peer: &PeerId) {
        let Some(members) = self.of_peer.get_mut(peer) else { return };
        members.remove(member);
        if members.is_empty() {
            self.of_peer.remove(peer);
        }
    }

    /// Whether a member wants to hear of `peer`.
    #[must_use]
    pub fn has(&self, member: &PeerId, peer: &PeerId) -> bool {
        self.of_peer.get(peer).is_some_and(|members| members.contains(member))
    }

    /// A member restarted, or is gone. Returns of whom it wanted to hear.
    pub fn forget(&mut self, member: &PeerId) -> BTreeSet<PeerId> {
        let peers = self.of_member.remove(member).unwrap_or_default();
        for peer in &peers {
            self.leave(member, peer);
        }
        peers
    }

    /// Forgets all members but those that `stay`.
    pub fn retain(&mut self, stay: impl Fn(&PeerId) -> bool) {
        let gone: Vec<PeerId> = self.of_member.keys().filter(|member| !stay(member)).copied().collect();
        gone.iter().for_each(|member| drop(self.forget(member)));
    }

    /// Who wants to hear of `peer`.
    pub fn of(&self, peer: &PeerId) -> impl Iterator<Item = PeerId> {
        self.of_peer.get(peer).into_iter().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::placement::{OWNERS, Operator, Placement};
    use crate::core::testing::peer;

    const OWN: u8 = 50;

    fn view(members: impl IntoIterator<Item = u8>) -> View {
        let ring = Placement::new(members.into_iter().map(|n| (peer(n), Operator::of(&peer(n), None))));
        View::of(peer(OWN), Arc::new(ring), None)
    }

    fn owners(view: &View, of: PeerId) -> Vec<PeerId> {
        view.owners(Key::peer(&of)).iter().collect()
    }

    fn to(sayings: Sayings) -> Vec<PeerId> {
        sayings.into_iter().map(|(owner, _)| owner).collect()
    }

    #[test]
    fn the_first_watcher_subscribes_at_all_owners_and_the_last_gives_up() {
        let (mut interest, view, one) = (Interest::default(), view(1..=9), peer(100));
        let owners = owners(&view, one);
        assert_eq!(to(interest.watch(one, &view)), owners);
        assert!(interest.watch(one, &view).is_empty());
        assert!(interest.unwatch(&one).is_empty() && interest.is_watched(&one));
        assert!(interest.wants(&owners[0], &one));
        assert_eq!(to(interest.unwatch(&one)), owners);
        assert!(!interest.wants(&owners[0], &one) && !interest.is_watched(&one));
        assert!(interest.unwatch(&one).is_empty());
    }

    #[test]
    fn new_owners_answer_before_old_ones_are_given_up() {
        let (mut interest, before) = (Interest::default(), view(1..=9));
        let one = (100..=200).map(peer).find(|one| owners(&before, *one).contains(&peer(3))).unwrap();
        for owner in to(interest.watch(one, &before)) {
            assert!(interest.answered(&owner, &one).is_empty());
        }
        let after = view((1..=9).filter(|n| *n != 3));
        let new = to(interest.ring_changed(&after));
        assert_eq!(new.len(), 1);
        assert!(interest.wants(&peer(3), &one), "until the new one has answered");
        assert!(interest.ring_changed(&after).is_empty());
        assert_eq!(to(interest.answered(&new[0], &one)), [peer(3)]);
        assert!(!interest.wants(&peer(3), &one));
        assert!(interest.answered(&new[0], &one).is_empty());
        // The member comes back before its successor was given up.
        let again = to(interest.ring_changed(&before));
        assert_eq!(again, [peer(3)]);
        assert_eq!(to(interest.answered(&peer(3), &one)), new);
    }

    #[test]
    fn an_owner_that_left_before_it_answered_holds_up_nothing() {
        let (mut interest, one) = (Interest::default(), peer(100));
        let first = view(1..=3);
        to(interest.watch(one, &first)).iter().for_each(|owner| drop(interest.answered(owner, &one)));
        let grown =
            (4..=40).map(|n| view(1..=n)).find(|view| owners(view, one) != owners(&first, one)).unwrap();
        let new = to(interest.ring_changed(&grown));
        assert_eq!(new.len(), 1);
        let given_up = to(interest.ring_changed(&first));
        assert_eq!(given_up, new, "it never answered, and the others did");
        assert_eq!(interest.watched[&one].posts.len(), OWNERS);
    }

    #[test]
    fn what_this_member_owns_itself_needs_no_answer() {
        let (mut interest, one) = (Interest::default(), peer(100));
        let view = view([OWN, 1, 2]);
        interest.watch(one, &view);
        assert_eq!(interest.watched[&one].posts.iter().filter(|post| post.answered).count(), 1);
    }

    #[test]
    fn a_member_that_restarted_is_told_the_interest_anew() {
        let (mut interest, view) = (Interest::default(), view(1..=3));
        for n in 100..110 {
            for owner in to(interest.watch(peer(n), &view)) {
                interest.answered(&owner, &peer(n));
            }
        }
        let sayings = interest.began_anew(&peer(2));
        let mut of: Vec<_> = sayings.iter().map(|(_, of)| *of).collect();
        of.sort();
        let mut expected: Vec<_> = (100..110).map(peer).collect();
        expected.sort();
        assert_eq!(of, expected);
        assert!(sayings.iter().all(|(owner, _)| *owner == peer(2)));
        assert!(interest.began_anew(&peer(9)).is_empty());
    }

    #[test]
    fn subscriptions_are_bounded_for_each_member_and_leave_nothing_behind() {
        let mut subscribers = Subscribers::default();
        let mut subscribe = |member, n| subscribers.subscribe(peer(member), peer(n), 2);
        let results = [100, 101, 100, 102].map(|n| subscribe(1, n));
        let too_many = Err(TooManySubscriptions { limit: 2 });
        assert_eq!(results, [Ok(true), Ok(true), Ok(false), too_many]);
        assert_eq!(subscribe(2, 100), Ok(true));
        assert_eq!(subscribers.of(&peer(100)).count(), 2);
        assert_eq!(subscribers.of(&peer(102)).count(), 0);
        assert!(subscribers.unsubscribe(&peer(1), &peer(100)));
        assert!(!subscribers.unsubscribe(&peer(1), &peer(100)));
        assert_eq!(subscribers.of(&peer(100)).collect::<Vec<_>>(), [peer(2)]);
        assert_eq!(subscribers.forget(&peer(1)).into_iter().collect::<Vec<_>>(), [peer(101)]);
        subscribers.forget(&peer(2));
        assert!(subscribers.of_peer.is_empty() && subscribers.of_member.is_empty());
    }
}
