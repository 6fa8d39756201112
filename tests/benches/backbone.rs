//! `cargo bench-net backbone`: a rendezvous under load.

mod fleet;
mod kill;
mod ledger;
mod locate;
mod locate_stream;
mod peer_memory;
mod placement;
mod presence;
mod register;
mod session_memory;
mod simulation;
mod stage;
mod watchers;

use std::time::Duration;

use p2psb_e2e::Result;
use presence::Changing;
use simulation::Simulated;
use stage::Stage;

use crate::load::Span;
use crate::machine::Machine;
use crate::report::Report;
use crate::sample::ROUNDS;
use crate::sim::leaving::Deaths;

/// What `--only` can name, in the order of the table.
pub(crate) const TOPICS: [&str; 9] = [
    "peer-memory",
    "locate",
    "locate-stream",
    "register",
    "session-memory",
    "presence",
    "kill",
    "placement",
    "simulation",
];

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
    /// Peers that change, for those who watch.
    changing: Changing,
    /// Locates in a second while a member dies.
    locates: u64,
    /// Members and ids of the placement function.
    placed: (u64, u64),
    simulated: Simulated,
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
        changing: Changing { peers: 4_000, rate: 2_000, span: Duration::from_secs(4) },
        locates: 5_000,
        placed: (300, 10_000_000),
        simulated: Simulated {
            members: 300,
            peers: 1_000_000,
            asks: 2_000,
            deaths: Deaths { apart: 3, close: 12 },
        },
        rounds: ROUNDS,
        span: Span { warm: Duration::from_millis(300), measured: Duration::from_secs(2) },
    };

    /// Enough to see that everything runs.
    pub(crate) const QUICK: Self = Self {
        peers: 2_000,
        registrations: 200,
        sessions: 40,
        holders: 2,
        changing: Changing { peers: 100, rate: 50, span: Duration::from_secs(2) },
        locates: 50,
        placed: (300, 1_000_000),
        simulated: Simulated { members: 40, peers: 5_000, asks: 100, deaths: Deaths { apart: 1, close: 3 } },
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
    if report.wants("locate-stream") {
        locate_stream::measure(&mut stage, report).await?;
    }
    if report.wants("register") {
        register::measure(&mut stage, report).await?;
    }
    stage.clear();
    if report.wants("session-memory") {
        session_memory::measure(&stage, report).await?;
    }
    if report.wants("presence") {
        presence::measure(&stage, report).await?;
    }
    if report.wants("kill") {
        kill::measure(&stage, report).await?;
    }
    if report.wants("placement") {
        placement::measure(machine, size, report)?;
    }
    if report.wants("simulation") {
        simulation::measure(machine, size, report)?;
    }
    Ok(())
}
