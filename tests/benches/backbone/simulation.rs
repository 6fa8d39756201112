//! The protocol of the backbone in virtual time, with more members than any machine could run: the engine of the simulator's own
//! suite, in the size that is promised.

use std::time::Instant;

use p2psb_e2e::Result;

use super::Size;
use crate::machine::Machine;
use crate::report::{Bar, Better, Report, Row};
use crate::sample::Sample;
use crate::sim::Config;
use crate::sim::leaving::{Deaths, leaving};

const LEAST_FOUND: f64 = 99.9;
const MOST_ABSENT: f64 = 5.0;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Simulated {
    pub(super) members: usize,
    pub(super) peers: u32,
    /// Questions in a second.
    pub(super) asks: u64,
    pub(super) deaths: Deaths,
}

pub(super) fn measure(machine: &Machine, size: &Size, report: &mut Report) -> Result<()> {
    let Simulated { members, peers, asks, deaths } = size.simulated;
    report.remark(format_args!("simulating {members} members with {peers} peers"));
    let config = Config {
        members,
        operators: members.div_ceil(10),
        peers,
        asks,
        changes: 50,
        presence: false,
        tick: 500,
        ..Config::default()
    };
    let begin = Instant::now();
    // One seed, so one run: a failure can be run again.
    let told = machine.on_all_cores(|| leaving(config, deaths))?;
    report.remark(format_args!("simulated in {:.0} s: {told}", begin.elapsed().as_secs_f64()));
    report.row(&Row {
        name: "simulation: found within one hop",
        unit: "%",
        better: Better::More,
        value: Sample::once(told.found() * 100.0),
        bar: Bar::AtLeast(LEAST_FOUND),
    });
    report.row(&Row {
        name: "simulation: record absent after a death",
        unit: "s",
        better: Better::Less,
        value: Sample::once(told.absent as f64 / 1000.0),
        bar: Bar::AtMost(MOST_ABSENT),
    });
    Ok(())
}
