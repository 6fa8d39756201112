//! `cargo bench-net backbone`: a rendezvous under load.

mod locate;
mod peer_memory;
mod register;
mod session_memory;
mod stage;

use std::time::Duration;

use p2psb_e2e::Result;
use stage::Stage;

use crate::load::Span;
use crate::machine::Machine;
use crate::report::Report;
use crate::sample::ROUNDS;

/// How much is measured, and how long.
#[derive(Debug)]
pub(crate) struct Size {
    /// Registered peers.
    pub(crate) peers: u64,
    /// Registrations in a round.
    registrations: u64,
    /// Sessions at once.
    sessions: usize,
    /// Processes that hold them.
    holders: usize,
    rounds: usize,
    span: Span,
}

impl Size {
    /// What the bars are about.
    pub(crate) const FULL: Self = Self {
        peers: 1_000_000,
        registrations: 20_000,
        sessions: 10_000,
        holders: 4,
        rounds: ROUNDS,
        span: Span { warm: Duration::from_millis(300), measured: Duration::from_secs(2) },
    };

    /// Enough to see that everything runs.
    pub(crate) const QUICK: Self = Self {
        peers: 2_000,
        registrations: 200,
        sessions: 40,
        holders: 2,
        rounds: 1,
        span: Span { warm: Duration::from_millis(20), measured: Duration::from_millis(200) },
    };
}

/// Measures all rows that are wanted.
pub(crate) async fn measure(machine: &Machine, size: &Size, report: &mut Report) -> Result<()> {
    let mut stage = Stage::new(machine, size);
    if report.wants("peer-memory") {
        peer_memory::measure(&mut stage, report).await?;
    }
    if report.wants("locate") {
        locate::measure(&mut stage, report).await?;
    }
    if report.wants("register") {
        register::measure(&mut stage, report).await?;
    }
    stage.clear();
    if report.wants("session-memory") {
        session_memory::measure(&stage, report).await?;
    }
    Ok(())
}
