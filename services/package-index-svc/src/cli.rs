//! The verbs of `package-index-svc`. Without one it runs the service.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use p2psb_client::Identity;
use p2psb_runtime::config::{self, CommonArgs, Loaded, MetricsConfig};
use p2psb_runtime::exit::Exit;
use p2psb_runtime::{ConfigError, NoFlags, Program, Settings as _, program};

use crate::config::Settings;
use crate::server::Server;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the identity if there is none, and print the id that rendezvous endorse.
    Init {
        /// Where; by default data_dir of the configuration.
        #[arg(long, value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
    },
    /// Print the id.
    Id {
        /// Where the identity lies; by default data_dir of the configuration.
        #[arg(long, value_name = "FOLDER")]
        data_dir: Option<PathBuf>,
    },
    /// Ask the running program whether it is healthy: exit 0 if it is, 1 if not.
    Health,
}

/// The whole program.
#[must_use]
pub fn main(program: Program) -> ExitCode {
    let cli: Cli = match program::parse(program) {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    let loaded = match load(&cli.common) {
        Ok(loaded) => loaded,
        Err(error) => return program::complain(program, Exit::Usage, &error).into(),
    };
    let metrics: MetricsConfig = loaded.value.metrics().clone();
    let folder = loaded.value.data_dir.clone();
    let exit = match cli.verb {
        None => program::run::<Server>(program, &cli.common, loaded),
        Some(Verb::Health) => program::health(program, &metrics),
        Some(Verb::Init { data_dir }) => {
            print_id(program, Identity::load_or_create(&data_dir.unwrap_or(folder)))
        }
        Some(Verb::Id { data_dir }) => print_id(program, Identity::load(&data_dir.unwrap_or(folder))),
    };
    exit.into()
}

fn load(common: &CommonArgs) -> Result<Loaded<Settings>, ConfigError> {
    config::load(&program::spec::<Server>(common, &NoFlags {})?)
}

fn print_id(program: Program, identity: Result<Identity, p2psb_client::IdentityError>) -> Exit {
    let identity = match identity {
        Ok(identity) => identity,
        Err(error) => return program::complain(program, Exit::Unavailable, &error),
    };
    match writeln!(std::io::stdout(), "{}", identity.peer_id()) {
        Ok(()) => Exit::Ok,
        Err(error) => program::complain(program, Exit::Unavailable, &error),
    }
}
