//! The program `package-index-svc`.

use std::process::ExitCode;

use p2psb_runtime::Program;

const PROGRAM: Program = Program {
    name: "package-index-svc",
    version: env!("CARGO_PKG_VERSION"),
    about: "The catalogue of packages, releases and hosts",
};

fn main() -> ExitCode {
    p2psb_runtime::verbs::main::<p2psb_package_index_svc::Server>(PROGRAM)
}
