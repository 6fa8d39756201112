//! A process that opens many streams and holds them: `bench-net hold`, and how it is started.
//!
//! Each stream has a connection of its own, as a peer has. With `--proven` it is a session of a peer, with handshake and lease.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use p2psb_e2e::eventually::wait_for;
use p2psb_e2e::process::Process;
use p2psb_e2e::trouble::{Context as _, Result};
use prost::Message as _;
use serde_json::json;
use tempfile::TempDir;

use crate::crowd::Crowd;
use crate::floor::Flat;
use crate::session::{CONNECT, Session, say_and_hear};
use crate::wire::{Target, Wire};

/// Handshakes at a time.
const AT_A_TIME: usize = 32;
/// What a client of a bare server says first: about as much as a hello.
const FIRST_WORDS: usize = 200;

/// What is to be held.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Plan {
    /// The server.
    #[arg(long)]
    addr: SocketAddr,
    /// Its certificate.
    #[arg(long)]
    pem: PathBuf,
    /// How many streams.
    #[arg(long)]
    count: u64,
    /// Where to come from.
    #[arg(long)]
    source: IpAddr,
    /// Sessions of peers.
    #[arg(long)]
    proven: bool,
}

/// Streams that another process holds until this value is dropped.
pub(crate) struct Held {
    process: Process,
    // Last: the process ends before its folder goes.
    _dir: TempDir,
}

impl Held {
    /// Starts a process that opens `count` streams from an address of its own, the `host`-th of loopback.
    pub(crate) fn start(target: &Target, count: usize, host: usize, flags: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("p2psb-hold-").tempdir().context("a temporary folder")?;
        let exe = std::env::current_exe().context("finding the running executable")?;
        let pem = target.pem.as_ref().context("only servers with TLS are held")?.display().to_string();
        let source =
            Ipv4Addr::from(Ipv4Addr::LOCALHOST.to_bits() + u32::try_from(host).unwrap_or(0)).to_string();
        let (addr, count) = (target.addr.to_string(), count.to_string());
        let mut args = vec!["hold", "--addr", &addr, "--pem", &pem, "--count", &count, "--source", &source];
        args.extend(flags);
        let process = Process::start("hold", &exe, &args, &dir.path().join("log"), None)?;
        Ok(Self { process, _dir: dir })
    }

    /// Waits until all are open.
    pub(crate) async fn wait(&self, within: Duration) -> Result<()> {
        wait_for("all streams are open", within, async || {
            let lines = self.process.lines("holding");
            if lines.is_empty() { Err(self.process.logged()) } else { Ok(()) }
        })
        .await
    }
}

/// Opens the streams, says so, and holds them until the process is killed.
pub(crate) fn hold(plan: &Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("making a runtime")?.block_on(run(plan))
}

async fn run(plan: &Plan) -> Result<()> {
    let crowd = Crowd::new()?;
    let target = Target { addr: plan.addr, pem: Some(plan.pem.clone()) };
    let wires: Vec<Wire> = futures::stream::iter(0..plan.count)
        .map(|number| open(plan, &target, &crowd, number))
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await?;
    let kept: Vec<_> = wires.into_iter().map(|wire| tokio::spawn(keep(wire))).collect();
    {
        use std::io::Write as _;
        writeln!(std::io::stdout(), "{}", json!({ "message": "holding" })).context("saying it")?;
    }
    for one in kept {
        // None should end before this process does.
        one.await.context("holding a stream")??;
    }
    Ok(())
}

/// Answers what has to be answered.
async fn keep(mut wire: Wire) -> Result<()> {
    loop {
        wire.hear(|_| ()).await?;
        wire.flush().await?;
    }
}

async fn open(plan: &Plan, target: &Target, crowd: &Crowd, number: u64) -> Result<Wire> {
    let mut wire = Wire::connect(target, Some(plan.source)).await?;
    if plan.proven {
        return Ok(Session::open(wire, crowd, number).await?.into_wire());
    }
    let stream = wire.open(CONNECT);
    say_and_hear(&mut wire, stream, &Flat::sized(FIRST_WORDS).encode_to_vec()).await?;
    Ok(wire)
}
