//! The program `discovery-svc`.

use std::process::ExitCode;

use p2psb_runtime::Program;

const PROGRAM: Program = Program {
    name: "discovery-svc",
    version: env!("CARGO_PKG_VERSION"),
    about: "Finds peers and services for clients that do not look themselves",
};

fn main() -> ExitCode {
    p2psb_runtime::verbs::main::<p2psb_discovery_svc::Server>(PROGRAM)
}
