//! The program `peer-agent`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2psb_peer_agent::cli::main()
}
