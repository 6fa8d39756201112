//! What an idle session costs, beside an idle stream of a bare server over the same TLS.

use std::time::Duration;

use p2psb_e2e::Result;
use p2psb_e2e::memory::rss_anon;
use p2psb_e2e::trouble::{Context as _, Trouble};

use super::stage::{Rendezvous, Stage};
use crate::floor::Floor;
use crate::hold::Held;
use crate::machine::descriptors;
use crate::report::{Bar, Better, Report, Row};
use crate::sample::Sample;
use crate::wire::Target;

/// At most 1.2 times the floor.
const OF_FLOOR: f64 = 1.0 / 1.2;
/// Bytes that the bare server answers once: a hello and a lease are about as long.
const ANSWER: usize = 700;
/// Descriptors of a server beside those of its sessions.
const OTHERS: usize = 100;
/// How long clients may take to open theirs.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn measure(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    let sessions = stage.size.sessions;
    if descriptors() < sessions + OTHERS {
        return Err(Trouble::new(format!(
            "{sessions} sessions need more open files than this process may have"
        )));
    }
    let (mut product, mut floors) = (Vec::new(), Vec::new());
    for round in 0..stage.size.rounds {
        report.remark(format_args!(
            "opening {sessions} sessions, round {} of {}",
            round + 1,
            stage.size.rounds
        ));
        let rendezvous = Rendezvous::start(stage.machine).await?;
        product.push(grown(stage, &rendezvous.target()?, rendezvous.pid()?, &["--proven"]).await?);
        drop(rendezvous);
        let floor = Floor::start(stage.machine, ANSWER, &[]).await?;
        floors.push(grown(stage, &floor.target, floor.pid(), &[]).await?);
    }
    report.row(&Row {
        name: "memory of an idle session",
        unit: "bytes",
        better: Better::Less,
        value: Sample::of(product),
        bar: Bar::OfFloor(OF_FLOOR, Sample::of(floors)),
    });
    Ok(())
}

/// By how much a server grows with each of so many streams.
async fn grown(stage: &Stage<'_>, target: &Target, pid: u32, flags: &[&str]) -> Result<f64> {
    let memory = || rss_anon(pid).context("the system does not tell what memory a process holds");
    let (count, holders) = (stage.size.sessions, stage.size.holders);
    // One more that stays: what the first one allocates for all is not counted.
    let first = Held::start(target, 1, 1, flags)?;
    first.wait(PATIENCE).await?;
    let before = memory()?;
    let mut held = Vec::new();
    for holder in 0..holders {
        held.push(Held::start(target, count / holders, holder + 2, flags)?);
    }
    for holder in &held {
        holder.wait(PATIENCE).await?;
    }
    let grown = memory()?.saturating_sub(before) as f64 / count as f64;
    drop((held, first));
    Ok(grown)
}
