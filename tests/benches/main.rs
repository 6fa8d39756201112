//! `cargo bench-net NAME`: measures what this tree promises of its speed and memory. One row for each promise; it ends with
//! 1 if one does not hold.
//!
//! A server under measurement is the product's own program, or a floor of this one, each a process of its own on one core;
//! clients are on the other. A floor is measured in the same run, in turn with what it is compared with.
//!
//! A row more is a file more in the folder of its name, and a line in the list there.

mod backbone;
mod crowd;
mod floor;
mod hold;
mod keep;
mod load;
mod machine;
mod report;
mod sample;
mod session;
mod wire;

/// The simulator of the backbone's own suite: the same engine, so that what is promised is what is tested.
#[path = "../../services/rendezvous-svc/tests/sim/engine/mod.rs"]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    unused_imports,
    reason = "it is written as a test, and the suite uses all of it"
)]
mod sim;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use machine::Machine;
use p2psb_e2e::Result;
use p2psb_e2e::trouble::Context as _;
use report::Report;

/// As sysexits.h names a failure that is none of the measured.
const BROKEN: u8 = 70;

/// Measures what is promised, beside floors: bare servers with nothing behind them. Exit 1: a row does not hold.
#[derive(Debug, Parser)]
#[command(name = "cargo bench-net")]
struct Args {
    #[command(subcommand)]
    what: What,

    #[command(flatten)]
    form: Form,
}

#[derive(Debug, clap::Args)]
struct Form {
    /// Print one JSON object a row; what is for people goes to standard error.
    #[arg(long, global = true)]
    json: bool,

    /// Small and short: shows that everything runs, and judges nothing.
    #[arg(long, global = true)]
    quick: bool,

    /// Only rows of topics with this in their name: peer-memory, locate, locate-stream, register, session-memory, presence,
    /// kill, placement, simulation.
    #[arg(long, global = true, value_name = "TOPIC", value_parser = topic)]
    only: Option<String>,

    /// So many registered peers instead of a million, for a look with a profiler; nothing is judged.
    #[arg(long, global = true, value_name = "COUNT")]
    peers: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Rendezvous: calls, registrations, memory, presence, a death, placement, the simulated protocol.
    Backbone,
    /// A floor, started by a measurement.
    #[command(hide = true)]
    Serve(floor::Plan),
    /// A client with many streams, started by a measurement.
    #[command(hide = true)]
    Hold(hold::Plan),
    /// Peers made of the SDK, started by a measurement.
    #[command(hide = true)]
    Keep(keep::Plan),
}

/// A part of the name of a topic at least.
fn topic(text: &str) -> std::result::Result<String, String> {
    let is_known = backbone::TOPICS.iter().any(|topic| topic.contains(text));
    is_known.then(|| text.to_owned()).ok_or_else(|| format!("there are: {}", backbone::TOPICS.join(", ")))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match &args.what {
        What::Serve(plan) => machine::raise_descriptors().and_then(|()| floor::serve(plan)).map(|()| true),
        What::Hold(plan) => machine::raise_descriptors().and_then(|()| hold::hold(plan)).map(|()| true),
        What::Keep(plan) => machine::raise_descriptors().and_then(|()| keep::keep(plan)).map(|()| true),
        What::Backbone => measure(&args.form),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            let _ = writeln!(std::io::stderr(), "bench-net: {trouble}");
            ExitCode::from(BROKEN)
        }
    }
}

/// Returns whether every row holds.
fn measure(form: &Form) -> Result<bool> {
    // Before this process moves to one core: building may use all.
    p2psb_e2e::Binaries::build()?;
    let machine = Machine::take()?;
    let can_judge = !form.quick && form.peers.is_none() && machine.is_fit() && !cfg!(debug_assertions);
    let mut report = Report::new(form.json, can_judge, form.only.clone());
    if !can_judge {
        report.remark(format_args!(
            "nothing is judged: a small run, one core, or a build that is not optimised"
        ));
    }
    report.begin(&machine.name());
    // One thread: this process is the client, and has one core.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let mut size = if form.quick { backbone::Size::QUICK } else { backbone::Size::FULL };
    size.peers = form.peers.unwrap_or(size.peers);
    runtime.block_on(backbone::measure(&machine, &size, &mut report))?;
    Ok(report.end())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_names_every_topic_and_no_other_is_taken() {
        let help = Args::command().render_long_help().to_string().replace('\n', " ");
        let unknown: Vec<_> = backbone::TOPICS.iter().filter(|topic| !help.contains(*topic)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(topic("locate").is_ok() && topic("latency").is_err());
    }
}
