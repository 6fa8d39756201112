//! The program `rendezvous-svc`.

use std::process::ExitCode;

use p2psb_rendezvous_svc::cli;
use p2psb_runtime::Program;

const PROGRAM: Program = Program {
    name: "rendezvous-svc",
    version: env!("CARGO_PKG_VERSION"),
    about: "Where peers meet, and who knows which of them are online",
};

fn main() -> ExitCode {
    cli::main(PROGRAM)
}
