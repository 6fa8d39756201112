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
mod load;
mod machine;
mod report;
mod sample;
mod wire;

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

    /// Only rows of topics with this in their name: locate, register, peer-memory, session-memory.
    #[arg(long, global = true, value_name = "TOPIC")]
    only: Option<String>,

    /// So many registered peers instead of a million, for a look with a profiler; nothing is judged.
    #[arg(long, global = true, value_name = "COUNT")]
    peers: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Rendezvous: calls, registrations, memory.
    Backbone,
    /// A floor, started by a measurement.
    #[command(hide = true)]
    Serve(floor::Plan),
    /// A client with many streams, started by a measurement.
    #[command(hide = true)]
    Hold(hold::Plan),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match &args.what {
        What::Serve(plan) => machine::raise_descriptors().and_then(|()| floor::serve(plan)).map(|()| true),
        What::Hold(plan) => machine::raise_descriptors().and_then(|()| hold::hold(plan)).map(|()| true),
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
