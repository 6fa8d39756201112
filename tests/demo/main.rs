//! `cargo demo`: the whole of p2pSB on this machine, with real processes, told as a person would like to read it.
//!
//! It starts three bridged rendezvous, discovery, the package index and two agents on free ports in a temporary folder;
//! one agent publishes, the other searches and fetches, and what arrived is compared. It ends with 0 only if nothing
//! differs, and leaves nothing behind, also on Ctrl-C.

mod story;
mod tell;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use p2psb_e2e::trouble::Context as _;
use p2psb_e2e::{Cluster, Result};
use serde_json::json;
use tell::Teller;
use tokio::signal::unix::{SignalKind, signal};

/// As shells report a program that ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// p2pSB on this machine: publish with one agent, search and fetch with another, compare.
#[derive(Debug, Parser)]
#[command(name = "cargo demo")]
pub(crate) struct Args {
    /// What to publish: a folder or a file [default: this repository's proto/].
    #[arg(long, value_name = "PATH")]
    input: Option<PathBuf>,

    /// Leave everything running until Ctrl-C, and print commands to try against it.
    #[arg(long)]
    stay: bool,

    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let teller = Teller::new(args.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            teller.failed(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&args, &teller)) {
        Ok(End::Told) => ExitCode::SUCCESS,
        Ok(End::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(trouble) => {
            teller.failed(&trouble.to_string());
            ExitCode::FAILURE
        }
    }
}

/// How the demo ended, if nothing went wrong.
enum End {
    /// To its end.
    Told,
    /// By a signal before that.
    Interrupted,
}

async fn run(args: &Args, teller: &Teller) -> Result<End> {
    let default = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../proto"));
    let input = args.input.clone().unwrap_or(default);
    let input = input.canonicalize().context(format_args!("--input {}", input.display()))?;

    let mut asked_to_stop = Signals::new()?;
    let started = tokio::select! {
        cluster = story::start(teller) => Some(cluster?),
        () = asked_to_stop.next() => None,
    };
    let Some(cluster) = started else {
        teller.say("stopped", "stopped before everything had started", json!({}));
        return Ok(End::Interrupted);
    };
    let told = tokio::select! {
        told = story::tell(&cluster, &input, teller) => Some(told),
        () = asked_to_stop.next() => None,
    };
    let end = match told {
        Some(Ok(told)) if args.stay => {
            story::suggest(&cluster, &told, teller);
            asked_to_stop.next().await;
            Ok(End::Told)
        }
        Some(told) => told.map(|_| End::Told),
        None => Ok(End::Interrupted),
    };
    let stopped = stop(cluster, teller).await;
    end.and_then(|end| stopped.map(|()| end))
}

async fn stop(cluster: Cluster, teller: &Teller) -> Result<()> {
    let processes = cluster.services().count();
    cluster.stop().await?;
    teller.say("stopped", format_args!("stopped all {processes} and removed their folder"), json!({}));
    Ok(())
}

/// What asks a demo to stop: Ctrl-C, SIGTERM, a closed terminal.
struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listening to signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
