//! The placement function by itself: how evenly it spreads copies over members, and how many of them move when the ring changes.

use p2psb_e2e::Result;

use super::Size;
use crate::machine::Machine;
use crate::report::{Bar, Better, Report, Row};
use crate::sample::Sample;
use crate::sim::placement::measure as place;

/// Of the mean, and of what has to move at least.
const MOST: f64 = 1.05;
const OPERATORS: u64 = 10;

pub(super) fn measure(machine: &Machine, size: &Size, report: &mut Report) -> Result<()> {
    let (members, ids) = size.placed;
    report.remark(format_args!("placing {ids} ids on {members} members"));
    let spread = machine.on_all_cores(|| place(members, OPERATORS, ids))?;
    for (name, value) in [
        ("placement: copies, most over mean", spread.most),
        ("placement: moved by a join, over best", spread.join),
        ("placement: moved by a leave, over best", spread.leave),
    ] {
        // Once: the same members and ids give the same.
        let (value, bar) = (Sample::once(value), Bar::AtMost(MOST));
        report.row(&Row { name, unit: "×", better: Better::Less, value, bar });
    }
    Ok(())
}
