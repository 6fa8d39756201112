//! Faults of one kind each, with many seeds.

use crate::engine::net::Water;
use crate::engine::store::{Real, Shelf, Store};
use crate::engine::{Config, World};
use crate::sizes::seeds;

const SECOND: u64 = 1_000;
/// No living peer may be with no owner for longer.
const ABSENT: u64 = 5 * SECOND;
/// After so long everything has come to rest: leave, join, overlap, and a lost home's grace.
const REST: u64 = 200 * SECOND;

/// A backbone that has started, and its peers.
fn started<S: Store>(config: Config) -> World<S> {
    let mut world = World::new(config);
    world.run(5 * SECOND);
    world.come(10 * SECOND);
    world.run(15 * SECOND);
    world
}

/// Everything comes to rest, and is as it should be.
fn rest<S: Store>(world: &mut World<S>) {
    world.run_checked(REST, ABSENT);
    let changes = std::mem::take(&mut world.config.changes);
    world.run(5 * SECOND);
    world.check_settled();
    world.config.changes = changes;
}

/// Some member that is up.
fn any<S: Store>(world: &mut World<S>) -> usize {
    let up = world.up();
    world.rng.choice(up).unwrap()
}

#[test]
fn a_backbone_that_starts_as_a_whole_knows_every_peer_within_seconds() {
    for seed in seeds(6) {
        let config = Config { seed, ..Config::default() };
        let mut world = started::<Real>(config);
        world.check_rings();
        rest(&mut world);
        assert_eq!(world.report.missed, 0, "seed {seed}: {}", world.report);
        assert_eq!(world.report.strangers.0, world.report.strangers.1, "seed {seed}: {}", world.report);
    }
}

#[test]
fn when_one_member_dies_no_record_is_missed_and_the_dead_own_nothing_after_their_grace() {
    for seed in seeds(6) {
        let mut world = started::<Real>(Config { seed, homes: 1 + seed as usize % 2, ..Config::default() });
        for _ in 0..3 {
            let one = any(&mut world);
            let quietly = world.rng.bool();
            world.kill(one, quietly);
            world.run_checked(150 * SECOND, ABSENT);
            world.revive(one);
            world.run_checked(60 * SECOND, ABSENT);
        }
        rest(&mut world);
        assert!(world.report.found() > 0.999, "seed {seed}: {}", world.report);
    }
}

#[test]
fn a_rolling_restart_of_all_members_misses_no_record() {
    for seed in seeds(4) {
        let mut world = started::<Real>(Config { seed, ..Config::default() });
        for one in 0..world.members.len() {
            world.kill(one, false);
            world.run_checked(5 * SECOND, ABSENT);
            world.revive(one);
            world.run_checked(10 * SECOND, ABSENT);
        }
        assert_eq!(world.members.iter().filter(|one| one.bridge.is_finished()).count(), world.members.len());
        rest(&mut world);
        assert!(world.report.found() > 0.999, "seed {seed}: {}", world.report);
    }
}

#[test]
fn a_partition_heals_and_both_sides_agree_again() {
    for seed in seeds(4) {
        let mut world = started::<Real>(Config { seed, ..Config::default() });
        let split = world.rng.usize(1..world.members.len());
        world.net.side = (0..split).map(|member| (member, 1)).collect();
        let lasts = world.rng.u64(20..200) * SECOND;
        world.run(lasts);
        world.net.side.clear();
        world.run(150 * SECOND);
        world.check_dead();
        rest(&mut world);
    }
}

#[test]
fn a_cut_between_two_that_both_reach_a_third_changes_no_ring_and_hides_no_peer() {
    for seed in seeds(6) {
        let members = if seed % 2 == 0 { 3 } else { 12 };
        let mut world = started::<Real>(Config { seed, members, ..Config::default() });
        let changes = world.report.changes;
        world.net.cut.insert((0, 1));
        world.run_checked(300 * SECOND, ABSENT);
        world.net.cut.clear();
        rest(&mut world);
        assert_eq!(world.report.changes, changes, "seed {seed}: a ring changed");
        assert_eq!(world.report.missed, 0, "seed {seed}: {}", world.report);
    }
}

#[test]
fn a_member_that_reaches_one_other_only_is_known_to_all() {
    for seed in seeds(4) {
        let mut world = started::<Real>(Config { seed, ..Config::default() });
        world.net.cut = (2..world.members.len()).map(|other| (0, other)).collect();
        world.run_checked(300 * SECOND, ABSENT);
        let seen = world.members[5].bridge.view().current().contains(&world.names[0]);
        assert!(seen, "seed {seed}: it is linked with one that all see");
        world.net.cut.clear();
        rest(&mut world);
    }
}

#[test]
fn messages_that_are_lost_repeated_and_late_do_no_lasting_harm() {
    for seed in seeds(6) {
        let water = Water { lost: 3, repeated: 20, late: 20 };
        let mut world = started::<Real>(Config { seed, water, ..Config::default() });
        world.run_checked(120 * SECOND, ABSENT);
        let one = any(&mut world);
        world.kill(one, false);
        world.run_checked(120 * SECOND, ABSENT);
        world.revive(one);
        world.run_checked(60 * SECOND, ABSENT);
        world.config.water = Water::default();
        rest(&mut world);
        assert!(world.report.found() > 0.995, "seed {seed}: {}", world.report);
    }
}

#[test]
fn a_member_that_stands_still_for_a_while_goes_on_where_it_was() {
    for (seed, seconds) in seeds(6).zip([10, 40, 100].into_iter().cycle()) {
        let mut world = started::<Real>(Config { seed, ..Config::default() });
        let one = any(&mut world);
        world.pause(one);
        world.run_checked(seconds * SECOND, ABSENT);
        world.resume(one);
        rest(&mut world);
        assert!(world.report.found() > 0.99, "seed {seed}: {}", world.report);
    }
}

#[test]
fn members_come_one_by_one_and_go_again() {
    for seed in seeds(4) {
        let mut world = World::<Real>::new(Config { seed, ..Config::default() });
        let late = 3..world.members.len();
        late.clone().for_each(|one| world.kill(one, false));
        world.run(5 * SECOND);
        world.come(10 * SECOND);
        world.run(60 * SECOND);
        for one in late.clone() {
            world.revive(one);
            world.run_checked(20 * SECOND, ABSENT);
        }
        rest(&mut world);
        for one in late.skip(2) {
            world.kill(one, seed % 2 == 0);
            world.run_checked(70 * SECOND, ABSENT);
        }
        rest(&mut world);
        assert!(world.report.found() > 0.999, "seed {seed}: {}", world.report);
    }
}

#[test]
fn who_watches_sees_every_change_while_members_die_and_restart() {
    for seed in seeds(4) {
        let mut world = started::<Real>(Config { seed, changes: 10, ..Config::default() });
        for _ in 0..300 {
            let (member, peer) = (any(&mut world), world.rng.u32(0..world.config.peers));
            world.watch(member, peer);
        }
        world.run_checked(30 * SECOND, ABSENT);
        for _ in 0..3 {
            let one = any(&mut world);
            world.kill(one, false);
            let down = if world.rng.bool() { 20 } else { 120 };
            world.run_checked(down * SECOND, ABSENT);
            world.revive(one);
            world.run_checked(45 * SECOND, ABSENT);
        }
        rest(&mut world);
        let seen = world.report.presence.len();
        assert!(seen > 300, "seed {seed}: only {seen} changes were seen");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        let water = Water { lost: 3, repeated: 20, late: 20 };
        let mut world = started::<Shelf>(Config { seed: 7, water, ..Config::default() });
        world.kill(3, true);
        world.run(100 * SECOND);
        let digests: Vec<u64> =
            world.members.iter().map(|one| one.bridge.view().current().digest()).collect();
        (world.report.to_string(), digests)
    };
    assert_eq!(run(), run());
}
