//! The figures that are promised, in a size for every day, and in full with `P2PSB_SIM_LONG`.

use std::time::Instant;

use crate::engine::Config;
use crate::engine::leaving::{ABSENT, Deaths, leaving};
use crate::engine::placement::measure;

pub(crate) fn is_long() -> bool {
    std::env::var_os("P2PSB_SIM_LONG").is_some()
}

/// Seeds to run with.
pub(crate) fn seeds(short: u64) -> Box<dyn Iterator<Item = u64>> {
    match std::env::var("P2PSB_SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => Box::new(std::iter::once(seed)),
        None if is_long() => Box::new(0..short * 20),
        None => Box::new(0..short),
    }
}

#[test]
fn keys_lie_evenly_and_few_move() {
    let (members, keys) = if is_long() { (300, 10_000_000) } else { (60, 60_000) };
    let spread = measure(members, 10, keys);
    eprintln!("{members} members, {keys} keys: {spread:?}");
    assert!(spread.most <= 1.05 && spread.join <= 1.05 && spread.leave <= 1.05, "{spread:?}");
}

#[test]
fn while_members_leave_nearly_every_locate_is_answered_within_one_hop() {
    let short = Config {
        members: 40,
        operators: 8,
        peers: 1500,
        asks: 60,
        presence: false,
        tick: 200,
        ..Config::default()
    };
    let long = Config {
        members: 300,
        operators: 30,
        peers: 1_000_000,
        asks: 2000,
        changes: 50,
        tick: 500,
        ..short.clone()
    };
    let (config, deaths, runs) = if is_long() {
        (long, Deaths { apart: 3, close: 12 }, 1)
    } else {
        (short, Deaths { apart: 1, close: 5 }, 2)
    };
    for seed in seeds(runs).take(runs as usize) {
        let start = Instant::now();
        let report = leaving(Config { seed, ..config.clone() }, deaths);
        eprintln!("seed {seed}, {:?}: {report}", start.elapsed());
        assert!(report.found() >= 0.999, "seed {seed}: {report}");
        assert!(report.absent <= ABSENT, "seed {seed}: {report}");
    }
}
