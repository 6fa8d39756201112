//! The placement function by itself: how evenly keys lie, and how many move.

use std::collections::HashMap;
use std::ops::Range;

use p2psb_proto::model::PeerId;
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

/// Places `keys` keys on `members` members of `operators` operators, on all cores that there are.
pub(crate) fn measure(members: u64, operators: u64, keys: u64) -> Spread {
    let ring = |n: u64| {
        let member =
            |n| (cheap(2, n), Operator::of(&cheap(2, n), Some(&format!("operator {}", n % operators))));
        Placement::new((0..n).map(member))
    };
    let (whole, smaller) = (ring(members), ring(members - 1));
    let parts = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let counts: Vec<Counts> = std::thread::scope(|scope| {
        let part = |n| keys * n / parts..keys * (n + 1) / parts;
        let threads: Vec<_> = (0..parts)
            .map(|n| {
                scope.spawn({
                    let (whole, smaller) = (&whole, &smaller);
                    move || Counts::of(part(n), whole, smaller)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut copies = HashMap::new();
    for (owner, held) in counts.iter().flat_map(|count| &count.copies) {
        *copies.entry(owner).or_insert(0) += held;
    }
    let moved = |of: fn(&Counts) -> u64| counts.iter().map(of).sum::<u64>() as f64;
    let mean = (keys * OWNERS as u64) as f64 / members as f64;
    let most = copies.values().copied().max().unwrap_or_default() as f64 / mean;
    Spread { most, join: moved(|count| count.join) / mean, leave: moved(|count| count.leave) / mean }
}

/// What was counted of a part of the keys.
#[derive(Default)]
struct Counts {
    copies: HashMap<PeerId, u64>,
    join: u64,
    leave: u64,
}

impl Counts {
    fn of(keys: Range<u64>, whole: &Placement, smaller: &Placement) -> Self {
        let mut counts = Self::default();
        for n in keys {
            let key = Key::peer(&cheap(1, n));
            let (with, without) = (whole.owners(key), smaller.owners(key));
            with.iter().for_each(|owner| *counts.copies.entry(owner).or_default() += 1);
            counts.join += with.iter().filter(|owner| !without.contains(owner)).count() as u64;
            counts.leave += without.iter().filter(|owner| !with.contains(owner)).count() as u64;
        }
        counts
    }
}
