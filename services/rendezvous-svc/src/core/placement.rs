//! Which members own a key: the id of a peer, or the name of a service.
//!
//! Every member has a weight for every key, a hash of both, and the three heaviest own the key (highest random weight, Thaler
//! and Ravishankar, 1998). Members are taken from the heaviest on, and one that would be the third of its operator is passed
//! over as long as the ring has anybody else: so the owners span two operators where there are two.
//!
//! Promises:
//! - Who sees the same ring computes the same owners: nothing but the ids and operators of its members counts.
//! - When a member joins or leaves, a key changes at most one owner, and only keys that the member owns, or owned, change
//!   any. "At most two of an operator" is a matroid, and the heaviest set of a matroid changes by one exchange; so the rule of
//!   operators costs no movement.
//! - Keys spread evenly while no operator has more than 43 % of the members. An operator with the share p leaves the third
//!   owner of p³ of all keys to the others, who carry p³ / 3(1 − p) more than their part: 3.6 % at 0.4, 8 % at one half. Who is
//!   alone beside one large operator owns every key: that is what spanning means, and an operator who joins must bring room.
//!
//! The hash is public, so anybody can look for an id that falls to given members, at about n³ / 6 attempts for a given three
//! of n. A peer gains nothing by that but company: what one member takes is bounded by its limits, and replacing a record never
//! needs room. A member can look for an id of its own that owns a given key. It can then keep silent about it, but not forge
//! it, and neither alone: "unknown" needs two owners, and one of the three belongs to another operator.

use p2psb_proto::model::PeerId;

use super::own::SERVICE;

/// How many members own a key.
pub const OWNERS: usize = 3;
/// How many of them may be of one operator while there is another.
const OF_ONE_OPERATOR: usize = OWNERS - 1;
/// The attribute of the service in a rendezvous' own record that names its operator.
pub const OPERATOR_ATTRIBUTE: &str = "operator";

/// Keys for BLAKE3: what is hashed for one purpose means nothing for another.
const PEERS: &[u8; 32] = b"p2psb placement 1: ids of peers.";
const SERVICES: &[u8; 32] = b"p2psb placement 1: service names";
const MEMBERS: &[u8; 32] = b"p2psb placement 1: ring members.";
const OPERATORS: &[u8; 32] = b"p2psb placement 1: operators....";

fn hash(purpose: &[u8; 32], bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(blake3::keyed_hash(purpose, bytes).as_bytes()) {
        *to = *from;
    }
    u64::from_le_bytes(first)
}

/// Something that is owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

impl Key {
    /// A peer: its record and its presence.
    #[must_use]
    pub fn peer(peer: &PeerId) -> Self {
        Self(hash(PEERS, &peer.to_bytes()))
    }

    /// A service: the list of its providers.
    #[must_use]
    pub fn service(name: &str) -> Self {
        Self(hash(SERVICES, name.as_bytes()))
    }

    /// A number in `0..n` that differs between the members that ask: so that not all of them turn to the same owner first.
    #[must_use]
    pub fn turn(self, asker: &PeerId, n: usize) -> usize {
        let n = u64::try_from(n).unwrap_or(1).max(1);
        usize::try_from(weight(self, hash(MEMBERS, &asker.to_bytes())) % n).unwrap_or_default()
    }
}

/// Who runs a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operator(u64);

impl Operator {
    /// Of a member whose record names this one; of one that names nobody, it alone is one.
    #[must_use]
    pub fn of(member: &PeerId, named: Option<&str>) -> Self {
        match named {
            Some(name) if !name.is_empty() => Self(hash(OPERATORS, name.as_bytes())),
            Some(_) | None => Self(hash(OPERATORS, &member.to_bytes())),
        }
    }

    /// As a member's own record says it: nobody else can change that on the way.
    #[must_use]
    pub fn of_record(member: &PeerId, record: &p2psb_proto::model::PeerRecord) -> Self {
        let service = record.services.iter().find(|offer| offer.name.as_str() == SERVICE);
        let mut attributes = service.into_iter().flat_map(|offer| &offer.attributes);
        let named = attributes.find(|(key, _)| key == OPERATOR_ATTRIBUTE).map(|(_, value)| value.as_str());
        Self::of(member, named)
    }
}

/// A member of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    member: PeerId,
    hash: u64,
    operator: Operator,
}

/// The owners of a key, the heaviest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owners([Option<PeerId>; OWNERS]);

impl Owners {
    /// Them.
    pub fn iter(self) -> impl Iterator<Item = PeerId> {
        self.0.into_iter().flatten()
    }

    /// Whether `member` is one.
    #[must_use]
    pub fn contains(&self, member: &PeerId) -> bool {
        self.0.contains(&Some(*member))
    }

    /// How many there are: [`OWNERS`], or as many as the ring has members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().flatten().count()
    }

    /// Whether the ring is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A ring as it is at one moment, and with it the owners of every key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// In the order of ids, which decides between equal weights.
    seats: Vec<Seat>,
    digest: u64,
}

type Heaviest<'a> = [Option<(u64, &'a Seat)>; OWNERS];

impl Placement {
    /// The ring of these members. One that is named twice counts once.
    #[must_use]
    pub fn new(members: impl IntoIterator<Item = (PeerId, Operator)>) -> Self {
        let seat = |(member, operator): (PeerId, Operator)| Seat {
            member,
            hash: hash(MEMBERS, &member.to_bytes()),
            operator,
        };
        let mut seats: Vec<Seat> = members.into_iter().map(seat).collect();
        seats.sort_by_key(|seat| seat.member);
        seats.dedup_by_key(|seat| seat.member);
        let digest = seats.iter().fold(0, |digest, seat| digest ^ weight(Key(seat.operator.0), seat.hash));
        Self { seats, digest }
    }

    /// Who owns `key`.
    #[must_use]
    pub fn owners(&self, key: Key) -> Owners {
        let mut heaviest = self.heaviest(key, |_| true);
        if let Some(operator) = only_operator(&heaviest) {
            let [best, ..] = self.heaviest(key, |seat| seat.operator != operator);
            if let (Some(best), Some(last)) = (best, heaviest.last_mut()) {
                *last = Some(best);
            }
        }
        Owners(heaviest.map(|seat| seat.map(|(_, seat)| seat.member)))
    }

    fn heaviest(&self, key: Key, may: impl Fn(&Seat) -> bool) -> Heaviest<'_> {
        let mut heaviest: Heaviest<'_> = [None; OWNERS];
        let mut least = None;
        for seat in &self.seats {
            let weight = weight(key, seat.hash);
            // Nearly always it ends here: with 300 members about 17 are among the first three when they come.
            if least.is_some_and(|least| weight <= least) || !may(seat) {
                continue;
            }
            let [first, second, third] = &mut heaviest;
            *third = Some((weight, seat));
            if second.is_none_or(|(second, _)| weight > second) {
                std::mem::swap(second, third);
            }
            if first.is_none_or(|(first, _)| weight > first) {
                std::mem::swap(first, second);
            }
            least = third.map(|(weight, _)| weight);
        }
        heaviest
    }

    /// Whether `member` is in the ring.
    #[must_use]
    pub fn contains(&self, member: &PeerId) -> bool {
        self.seats.binary_search_by_key(member, |seat| seat.member).is_ok()
    }

    /// The members, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = PeerId> {
        self.seats.iter().map(|seat| seat.member)
    }

    /// How many members there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether nobody is in the ring.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// The same number for the same ring: members that say different ones to each other do not agree yet.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }
}

/// The operator of all three, if they are three and have the same.
fn only_operator(heaviest: &Heaviest<'_>) -> Option<Operator> {
    let mut operators = heaviest.iter().map(|seat| seat.map(|(_, seat)| seat.operator));
    let first = operators.next().flatten()?;
    (operators.filter(|operator| *operator == Some(first)).count() == OF_ONE_OPERATOR).then_some(first)
}

/// `wyhash64` of wyhash 4.2 (Wang Yi, public domain): two 64 × 64 → 128 bit multiplications.
const fn weight(key: Key, member: u64) -> u64 {
    const A: u64 = 0x2d35_8dcc_aa6c_78a5;
    const B: u64 = 0x8bb8_4b93_962e_acc9;
    let (low, high) = multiply(key.0 ^ A, member ^ B);
    let (low, high) = multiply(low ^ A, high ^ B);
    low ^ high
}

/// The low and the high half of the product.
#[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
const fn multiply(a: u64, b: u64) -> (u64, u64) {
    let product = a as u128 * b as u128;
    (product as u64, (product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use p2psb_proto::model::{Genesis, PeerRecord, PublicKey, UnixMillis};

    use super::*;
    use crate::core::testing::peer;

    /// An id that costs nothing.
    fn id(n: u64) -> PeerId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        PeerId::new(PublicKey::from_bytes(bytes))
    }

    /// A ring of `n` members; `operator` says who runs which.
    fn ring(n: u64, operator: impl Fn(u64) -> u64) -> Vec<(PeerId, Operator)> {
        (0..n).map(|i| (id(1 << 40 | i), Operator(operator(i)))).collect()
    }

    fn keys(n: u64) -> impl Iterator<Item = Key> {
        (0..n).map(|i| Key::peer(&id(i)))
    }

    /// How many copies each member holds.
    fn copies(ring: &[(PeerId, Operator)], n: u64) -> HashMap<PeerId, u64> {
        let placement = Placement::new(ring.iter().copied());
        let mut copies = HashMap::new();
        for owner in keys(n).flat_map(|key| placement.owners(key).iter().collect::<Vec<_>>()) {
            *copies.entry(owner).or_default() += 1;
        }
        copies
    }

    #[test]
    fn keys_are_spread_evenly() {
        let n = 200_000;
        for operators in [100, 3, 4] {
            let ring = ring(100, |i| i % operators);
            let copies = copies(&ring, n);
            let mean = n * 3 / 100;
            let (least, most) = (copies.values().min().unwrap(), copies.values().max().unwrap());
            // One standard deviation is 1.3 %, and of a hundred members some are three of them away.
            assert!(*most * 100 <= mean * 105 && *least * 100 >= mean * 95, "{operators}: {least} {most}");
        }
    }

    #[test]
    fn beside_a_large_operator_the_others_carry_what_the_module_says() {
        let (n, members) = (50_000, 100);
        for large in [40, 50, 80, 99] {
            let share = large as f64 / members as f64;
            let expected = 1.0 + share.powi(3) / (3.0 * (1.0 - share));
            let ring = ring(members, |i| if i < large { 0 } else { i });
            let copies = copies(&ring, n);
            let of_others: u64 = ring[large as usize..].iter().map(|(member, _)| copies[member]).sum();
            let found = of_others as f64 / (members - large) as f64 / (n * 3) as f64 * members as f64;
            assert!((found / expected - 1.0).abs() < 0.03, "{large}: {found} instead of {expected}");
        }
    }

    #[test]
    fn owners_span_two_operators_where_there_are_two() {
        for large in [1, 2, 5, 9] {
            let ring = ring(10, |i| u64::from(i >= large));
            let operators: HashMap<_, _> = ring.iter().copied().collect();
            let placement = Placement::new(ring);
            for key in keys(500) {
                let owners: Vec<_> = placement.owners(key).iter().collect();
                assert_eq!(owners.len(), 3);
                assert!(owners.iter().any(|owner| operators[owner] != operators[&owners[0]]));
            }
        }
    }

    #[test]
    fn only_what_a_member_owns_moves_when_it_comes_or_goes_one_owner_of_each_key() {
        for operators in [1, 2, 3, 5, 40] {
            // Uneven ones: operator 0 runs more than half.
            let all = ring(40, |i| if i % 2 == 0 { 0 } else { i % operators });
            let whole = Placement::new(all.iter().copied());
            for gone in [0, 1, 7, 39] {
                let rest = all.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, member)| *member);
                let (rest, gone) = (Placement::new(rest), all[gone].0);
                for key in keys(2000) {
                    let (before, after) = (whole.owners(key), rest.owners(key));
                    let kept = before.iter().filter(|owner| after.contains(owner)).count();
                    assert_eq!(kept, if before.contains(&gone) { 2 } else { 3 }, "{before:?} {after:?}");
                }
            }
        }
    }

    #[test]
    fn when_the_last_member_of_the_second_operator_goes_the_first_owns_all() {
        let mut ring = ring(5, |i| u64::from(i == 4));
        let alone = ring[4].0;
        let both = Placement::new(ring.iter().copied());
        assert!(keys(100).all(|key| both.owners(key).contains(&alone)));
        ring.pop();
        let rest = Placement::new(ring);
        for key in keys(100) {
            let (before, after) = (both.owners(key), rest.owners(key));
            assert_eq!((after.len(), before.iter().filter(|owner| after.contains(owner)).count()), (3, 2));
        }
    }

    #[test]
    fn a_small_ring_owns_everything() {
        for n in 0..=3 {
            let placement = Placement::new(ring(n, |_| 0));
            assert!(keys(20).all(|key| placement.owners(key).len() == n as usize));
            assert_eq!((placement.len(), placement.is_empty()), (n as usize, n == 0));
        }
    }

    #[test]
    fn the_order_in_which_members_are_known_does_not_count() {
        let members = ring(20, |i| i % 3);
        let forth = Placement::new(members.iter().copied());
        let back = Placement::new(members.iter().rev().chain(members.first()).copied());
        assert_eq!((&forth, forth.digest()), (&back, back.digest()));
        let other = Placement::new(members.iter().map(|(member, _)| (*member, Operator::of(member, None))));
        assert_ne!(forth.digest(), other.digest(), "who runs a member is part of the ring");
        assert!(forth.contains(&members[7].0) && !forth.contains(&id(7)));
    }

    #[test]
    fn every_version_computes_the_same_owners() {
        let placement = Placement::new((1..=9).map(|n| (peer(n), Operator::of(&peer(n), Some("one")))));
        let owners = |key| -> Vec<_> {
            let owners = placement.owners(key).iter();
            owners.map(|owner| (1..=9).find(|n| peer(*n) == owner).unwrap()).collect()
        };
        let found = [Key::peer(&peer(100)), Key::peer(&peer(101)), Key::service("chat")].map(owners);
        assert_eq!(
            (found, placement.digest()),
            ([vec![7, 4, 1], vec![7, 1, 2], vec![3, 8, 5]], 5_269_140_802_041_062_137)
        );
        let mixed =
            Placement::new((1..=9).map(|n| (peer(n), Operator::of(&peer(n), Some("one").filter(|_| n > 1)))));
        assert!((100..140).all(|n| mixed.owners(Key::peer(&peer(n))).contains(&peer(1))));
    }

    #[test]
    fn an_operator_is_read_from_the_members_own_record() {
        let record = |attributes| PeerRecord {
            network: Genesis::open("test").unwrap().network_id(),
            seq: 1,
            issued: UnixMillis(0),
            expires: UnixMillis(1),
            addresses: Vec::new(),
            services: vec![p2psb_proto::model::peer::ServiceOffer {
                name: SERVICE.parse().unwrap(),
                attributes,
            }],
            homes: Vec::new(),
            endorsements: Vec::new(),
        };
        let named =
            |value: &str| record(vec![("x".into(), "y".into()), (OPERATOR_ATTRIBUTE.into(), value.into())]);
        let of = |n, record| Operator::of_record(&peer(n), &record);
        assert_eq!(of(1, named("one")), of(2, named("one")));
        assert_ne!(of(1, named("one")), of(1, named("two")));
        assert_ne!(of(1, named("")), of(2, named("")), "who names nobody stands alone");
        assert_eq!(of(1, named("")), of(1, record(Vec::new())));
    }

    #[test]
    fn askers_do_not_all_begin_with_the_same_owner() {
        let key = Key::peer(&id(5));
        let mut turns = [0; 3];
        for asker in 0..300 {
            turns[key.turn(&id(asker), 3)] += 1;
        }
        assert!(turns.iter().all(|turn| *turn > 60), "{turns:?}");
        assert_eq!(key.turn(&id(1), 0), 0);
    }
}
