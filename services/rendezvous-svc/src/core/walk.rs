//! The walk over all that this member holds, to find what others have to be told after the ring changed or a member restarted.
//!
//! One place in the table moves on, some entries at a time, and begins again at the end while there is something to do. What is
//! to be done joins the walk where it is and is done when the walk comes by there again: so nothing starts over because
//! something else began, and a ring that changes all the time does not keep the far end of the table from being seen.
//!
//! Invariant: who was in the ring, or had restarted, when its errand began has been named for every key that it owns and that
//! was held all the while, when the errand ends.

use std::sync::Arc;

use p2psb_proto::model::PeerId;

use super::placement::{Key, Owners, Placement};

/// Errands of changes at once; more become one that tells all owners everything.
const CHANGES: usize = 8;

/// An entry of what is held.
#[derive(Clone, Debug)]
pub struct Held<C> {
    /// Its place; entries come in this order.
    pub at: C,
    /// Whose it is.
    pub peer: PeerId,
    /// The services it offers.
    pub services: Vec<Key>,
    /// Whether the peer is here, so that its presence is to be told, too.
    pub is_here: bool,
}

/// What is held, page by page.
pub trait Holdings {
    /// A place between entries.
    type Cursor: Clone + Ord;

    /// At most `most` entries behind `after`; fewer only at the end. Entries that stay are found, those that change may be
    /// found twice, or, as they are told when they change, not at all.
    fn page(&self, after: Option<&Self::Cursor>, most: usize) -> Vec<Held<Self::Cursor>>;
}

/// Names an errand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errand(u64);

#[derive(Clone, Debug)]
enum What {
    /// The member has to be told all it owns.
    Fill(PeerId),
    /// Owners that they were not in this ring have to be told; in none: all of them.
    Change(Option<Arc<Placement>>),
}

#[derive(Debug)]
struct Job<C> {
    errand: Errand,
    what: What,
    /// Where it joined the walk.
    from: Option<C>,
    /// The walk has come to the end of the table since.
    wrapped: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Walk<C> {
    at: Option<C>,
    jobs: Vec<Job<C>>,
    next: u64,
}

impl<C> Default for Walk<C> {
    fn default() -> Self {
        Self { at: None, jobs: Vec::new(), next: 0 }
    }
}

impl<C: Clone + Ord> Walk<C> {
    fn add(&mut self, what: What) -> Errand {
        self.next += 1;
        let errand = Errand(self.next);
        self.jobs.push(Job { errand, what, from: self.at.clone(), wrapped: false });
        errand
    }

    /// `member` has to be told all it owns.
    pub fn fill(&mut self, member: PeerId) -> Errand {
        // An older errand for it ends with the member not knowing all: it restarted since.
        self.jobs.retain(|job| !matches!(job.what, What::Fill(other) if other == member));
        self.add(What::Fill(member))
    }

    /// The ring is not what it was.
    pub fn changed(&mut self, from: Arc<Placement>) {
        let changes = self.jobs.iter().filter(|job| matches!(job.what, What::Change(_))).count();
        let mut from = Some(from);
        if changes >= CHANGES {
            self.jobs.retain(|job| !matches!(job.what, What::Change(_)));
            from = None;
        }
        self.add(What::Change(from));
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Walks over at most `most` entries; `tell` is called for each with the members that have to be told of it. Returns the
    /// errands that are done, but for those of changes, for which nobody waits.
    pub fn step<H: Holdings<Cursor = C>>(
        &mut self,
        holdings: &H,
        most: usize,
        ring: &Placement,
        mut tell: impl FnMut(&Held<C>, PeerId),
    ) -> Vec<Errand> {
        if self.jobs.is_empty() {
            return Vec::new();
        }
        let page = holdings.page(self.at.as_ref(), most);
        let at_end = page.len() < most;
        for held in &page {
            for key in std::iter::once(Key::peer(&held.peer)).chain(held.services.iter().copied()) {
                let owners = ring.owners(key);
                let wanted = |owner: &PeerId| self.jobs.iter().any(|job| job.wants(owner, key));
                owners.iter().filter(wanted).for_each(|owner| tell(held, owner));
            }
        }
        self.at = if at_end { None } else { page.last().map(|held| held.at.clone()) };
        let mut done = Vec::new();
        let at = &self.at;
        self.jobs.retain_mut(|job| {
            let has_come_by = at_end || *at >= job.from;
            let is_done = job.from.is_none() && at_end || job.wrapped && has_come_by;
            job.wrapped |= at_end;
            if is_done && matches!(job.what, What::Fill(_)) {
                done.push(job.errand);
            }
            !is_done
        });
        done
    }
}

impl<C> Job<C> {
    fn wants(&self, owner: &PeerId, key: Key) -> bool {
        match &self.what {
            What::Fill(member) => member == owner,
            What::Change(from) => {
                let before = from.as_ref().map_or_else(Owners::default, |from| from.owners(key));
                !before.contains(owner)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::placement::Operator;
    use crate::core::testing::peer;

    struct Shelf(BTreeMap<u16, Held<u16>>);

    impl Shelf {
        fn new(n: u16) -> Self {
            let held = |at| Held { at, peer: id(at), services: Vec::new(), is_here: false };
            Self((0..n).map(|at| (at, held(at))).collect())
        }
    }

    impl Holdings for Shelf {
        type Cursor = u16;

        fn page(&self, after: Option<&u16>, most: usize) -> Vec<Held<u16>> {
            let from = after.map_or(0, |after| after + 1);
            self.0.range(from..).take(most).map(|(_, held)| held.clone()).collect()
        }
    }

    fn id(n: u16) -> PeerId {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        PeerId::new(p2psb_proto::model::PublicKey::from_bytes(bytes))
    }

    fn ring(members: impl IntoIterator<Item = u8>) -> Arc<Placement> {
        Arc::new(Placement::new(members.into_iter().map(|n| (peer(n), Operator::of(&peer(n), None)))))
    }

    /// Walks until nothing is left to do; who was told of what, and which errands were done in which step.
    fn run(
        walk: &mut Walk<u16>,
        shelf: &Shelf,
        most: usize,
        ring: &Placement,
    ) -> (Vec<(u16, PeerId)>, Vec<Errand>) {
        let (mut told, mut done) = (Vec::new(), Vec::new());
        for _ in 0..1000 {
            done.extend(walk.step(shelf, most, ring, |held, owner| told.push((held.at, owner))));
            if walk.is_over() {
                told.sort();
                return (told, done);
            }
        }
        panic!("the walk does not end");
    }

    fn owned(ring: &Placement, shelf: &Shelf, is: impl Fn(u16, &PeerId) -> bool) -> Vec<(u16, PeerId)> {
        let owners = |at: &u16| ring.owners(Key::peer(&id(*at))).iter().map(|o| (*at, o)).collect::<Vec<_>>();
        let mut all: Vec<_> = shelf.0.keys().flat_map(owners).filter(|(at, owner)| is(*at, owner)).collect();
        all.sort();
        all
    }

    #[test]
    fn a_member_is_told_all_it_owns_and_nothing_else() {
        let (shelf, ring) = (Shelf::new(200), ring(1..=6));
        for most in [1, 7, 200, 500] {
            let mut walk = Walk::default();
            let errand = walk.fill(peer(3));
            let (told, done) = run(&mut walk, &shelf, most, &ring);
            assert_eq!(told, owned(&ring, &shelf, |_, owner| *owner == peer(3)), "{most}");
            assert_eq!(done, [errand]);
        }
    }

    #[test]
    fn after_a_change_only_those_are_told_that_did_not_own() {
        let (shelf, before, after) = (Shelf::new(300), ring(1..=6), ring((1..=7).filter(|n| *n != 2)));
        let mut walk = Walk::default();
        walk.changed(Arc::clone(&before));
        let (told, done) = run(&mut walk, &shelf, 10, &after);
        let gained = |at, owner: &PeerId| !before.owners(Key::peer(&id(at))).contains(owner);
        assert_eq!(told, owned(&after, &shelf, gained));
        assert!(done.is_empty() && told.len() < 600 && told.len() > 100);
    }

    #[test]
    fn what_joins_on_the_way_ends_when_the_walk_comes_by_again() {
        let (shelf, ring) = (Shelf::new(100), ring(1..=3));
        let mut walk = Walk::default();
        let first = walk.fill(peer(1));
        let mut told = Vec::new();
        assert!(walk.step(&shelf, 60, &ring, |held, owner| told.push((held.at, owner))).is_empty());
        let second = walk.fill(peer(2));
        assert_eq!(walk.step(&shelf, 60, &ring, |held, owner| told.push((held.at, owner))), [first]);
        let (rest, done) = run(&mut walk, &shelf, 60, &ring);
        assert_eq!(done, [second]);
        told.extend(rest);
        let of =
            |n| told.iter().filter(|(_, owner)| *owner == peer(n)).map(|(at, _)| *at).collect::<Vec<_>>();
        assert_eq!(of(1), (0..100).collect::<Vec<_>>());
        assert_eq!(of(2), (60..100).chain(0..60).collect::<Vec<_>>());
    }

    #[test]
    fn a_member_that_restarts_again_is_told_all_from_there_on() {
        let (shelf, ring) = (Shelf::new(100), ring(1..=3));
        let mut walk = Walk::default();
        walk.fill(peer(1));
        walk.step(&shelf, 60, &ring, |_, _| ());
        let again = walk.fill(peer(1));
        let (told, done) = run(&mut walk, &shelf, 30, &ring);
        assert_eq!((told.len(), done), (100, vec![again]));
    }

    #[test]
    fn a_ring_that_changes_all_the_time_does_not_keep_the_walk_from_ending() {
        let shelf = Shelf::new(100);
        let rings = [ring(1..=5), ring(1..=6)];
        let mut walk = Walk::default();
        let errand = walk.fill(peer(1));
        let mut done = Vec::new();
        for turn in 0..30 {
            walk.changed(Arc::clone(&rings[turn % 2]));
            done.extend(walk.step(&shelf, 10, &rings[(turn + 1) % 2], |_, _| ()));
            assert!(walk.jobs.len() <= CHANGES + 1);
        }
        assert_eq!(done, [errand]);
    }

    #[test]
    fn who_flaps_is_told_what_it_missed() {
        let shelf = Shelf::new(50);
        let (with, without) = (ring(1..=5), ring(1..=4));
        let mut walk = Walk::default();
        walk.changed(Arc::clone(&with));
        walk.changed(Arc::clone(&without));
        let (told, _) = run(&mut walk, &shelf, 50, &with);
        assert!(!told.is_empty());
        let missed = owned(&with, &shelf, |_, owner| *owner == peer(5));
        assert!(missed.iter().all(|one| told.contains(one)));
    }

    #[test]
    fn the_owners_of_a_service_are_told_too_and_an_empty_table_is_soon_done() {
        let (mut shelf, ring) = (Shelf::new(1), ring(1..=9));
        let service = Key::service("chat");
        shelf.0.get_mut(&0).unwrap().services.push(service);
        let mut walk = Walk::default();
        let owner = ring.owners(service).iter().next().unwrap();
        walk.fill(owner);
        let (told, _) = run(&mut walk, &shelf, 9, &ring);
        assert!(told.contains(&(0, owner)));
        let errand = walk.fill(owner);
        assert_eq!(walk.step(&Shelf::new(0), 9, &ring, |_, _| ()), [errand]);
    }

    #[test]
    fn a_table_that_shrank_behind_the_place_where_an_errand_began_ends_it() {
        let ring = ring(1..=3);
        let mut walk = Walk::default();
        walk.fill(peer(9));
        walk.step(&Shelf::new(100), 60, &ring, |_, _| ());
        let errand = walk.fill(peer(1));
        assert_eq!(run(&mut walk, &Shelf::new(5), 3, &ring).1.last(), Some(&errand));
    }
}
