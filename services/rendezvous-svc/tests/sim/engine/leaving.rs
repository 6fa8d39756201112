//! The course of the promised figures: a backbone in which members die one after the other while peers are looked for
//! everywhere.

use super::net::Millis;
use super::store::Shelf;
use super::world::World;
use super::{Config, Report};

const SECOND: Millis = 1_000;
/// How long the members have to find each other, and the peers to come.
const BEGIN: Millis = 10 * SECOND;
const COME: Millis = 30 * SECOND;
/// Between two deaths that are looked at one by one: the first is out of all rings, and moved, before the second.
const APART: Millis = 75 * SECOND;
/// Between two that overlap.
const CLOSE: Millis = 15 * SECOND;
/// No record may be absent for longer.
pub(crate) const ABSENT: Millis = 5 * SECOND;
/// At the end.
const REST: Millis = 60 * SECOND;

/// How many members die.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deaths {
    /// Each after the one before is mended: how long a record is absent is looked at after these.
    pub(crate) apart: usize,
    /// One soon after the other, so that a peer may lose all its owners at once.
    pub(crate) close: usize,
}

/// Members die, half of them quietly; none comes back.
pub(crate) fn leaving(config: Config, deaths: Deaths) -> Report {
    let mut world = World::<Shelf>::new(config);
    world.run(BEGIN);
    world.come(COME);
    world.run(COME + BEGIN);
    for _ in 0..deaths.apart {
        let peers = kill_one(&mut world);
        for _ in 0..APART / SECOND {
            world.run(SECOND);
            // How long is reported, not judged.
            world.check_some(&peers, Millis::MAX);
            world.check_dead();
        }
    }
    // Nobody else was lost either.
    world.check_present(Millis::MAX);
    world.run(ABSENT + SECOND);
    world.check_present(Millis::MAX);
    for _ in 0..deaths.close {
        kill_one(&mut world);
        world.run(CLOSE);
        world.check_dead();
    }
    world.run(REST);
    world.check_dead();
    world.report.clone()
}

/// Returns the peers who may miss it.
fn kill_one(world: &mut World<Shelf>) -> Vec<u32> {
    let up = world.up();
    let Some(one) = world.rng.choice(up) else { return Vec::new() };
    let (peers, quietly) = (world.depend_on(one), world.rng.bool());
    world.kill(one, quietly);
    peers
}
