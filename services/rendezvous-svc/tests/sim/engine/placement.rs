//! The placement function by itself: how evenly keys lie, and how many move.

use std::collections::HashMap;

use p2psb_rendezvous_svc::core::placement::{Key, OWNERS, Operator, Placement};

use super::ids::cheap;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    /// Copies at the member that has most, over the mean.
    pub(crate) most: f64,
    /// Copies that move when a member joins, over its even part of all.
    pub(crate) join: f64,
    /// Copies that move when a member leaves, over its even part of all.
    pub(crate) leave: f64,
}

/// Places `keys` keys on `members` members of `operators` operators.
pub(crate) fn measure(members: u64, operators: u64, keys: u64) -> Spread {
    let ring = |n: u64| {
        let member =
            |n| (cheap(2, n), Operator::of(&cheap(2, n), Some(&format!("operator {}", n % operators))));
        Placement::new((0..n).map(member))
    };
    let (whole, smaller) = (ring(members), ring(members - 1));
    let mut copies = HashMap::new();
    for n in 0..keys {
        whole
            .owners(Key::peer(&cheap(1, n)))
            .iter()
            .for_each(|owner| *copies.entry(owner).or_insert(0u64) += 1);
    }
    let (mut join, mut leave) = (0u64, 0u64);
    for n in 0..keys {
        let key = Key::peer(&cheap(1, n));
        let (with, without) = (whole.owners(key), smaller.owners(key));
        join += with.iter().filter(|owner| !without.contains(owner)).count() as u64;
        leave += without.iter().filter(|owner| !with.contains(owner)).count() as u64;
    }
    let mean = (keys * OWNERS as u64) as f64 / members as f64;
    let most = copies.values().copied().max().unwrap_or_default() as f64 / mean;
    Spread { most, join: join as f64 / mean, leave: leave as f64 / mean }
}
