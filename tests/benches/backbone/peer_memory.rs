//! What a registered peer costs: its record of 300 bytes, and all that is kept beside it.

use p2psb_e2e::Result;

use super::stage::Stage;
use crate::report::{Bar, Better, Report, Row};
use crate::sample::Sample;

const MOST_BYTES: f64 = 600.0;

pub(super) async fn measure(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    let measured = stage.populated(report).await?.memory_per_peer;
    report.row(&Row {
        name: "memory of a registered peer",
        unit: "bytes",
        better: Better::Less,
        // Once: a million is many, and the same again gives the same.
        value: Sample::once(measured),
        bar: Bar::AtMost(MOST_BYTES),
    });
    Ok(())
}
