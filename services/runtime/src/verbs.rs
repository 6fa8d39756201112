//! The command line of a service that keeps an identity in its data folder: run, `init`, `id`, `health`.
//!
//! What an identity is, the service knows; here it is a text that is printed.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, CommonArgs, ConfigError, Loaded, Settings as _};
use crate::exit::Exit;
use crate::program::{self, NoFlags, Program, Service};

/// A service with an identity.
pub trait Identified: Service<Flags = NoFlags> {
    /// Why there is none.
    type IdentityError: Display;

    /// The data folder that a configuration names.
    fn data_dir(settings: &Self::Settings) -> &Path;

    /// The id of the identity in a folder; it is made first if there is none and `make` is set.
    fn id(folder: &Path, make: bool) -> Result<String, Self::IdentityError>;
}

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
pub fn main<S: Identified>(program: Program) -> ExitCode {
    let cli: Cli = match program::parse(program) {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    let loaded = match load::<S>(&cli.common) {
        Ok(loaded) => loaded,
        Err(error) => return program::complain(program, Exit::Usage, &error).into(),
    };
    let folder = |given: Option<PathBuf>| given.unwrap_or_else(|| S::data_dir(&loaded.value).to_owned());
    let exit = match cli.verb {
        Some(Verb::Health) => program::health(program, loaded.value.common().metrics),
        Some(Verb::Init { data_dir }) => program::print(program, S::id(&folder(data_dir), true)),
        Some(Verb::Id { data_dir }) => program::print(program, S::id(&folder(data_dir), false)),
        None => program::run::<S>(program, &cli.common, loaded),
    };
    exit.into()
}

fn load<S: Service<Flags = NoFlags>>(common: &CommonArgs) -> Result<Loaded<S::Settings>, ConfigError> {
    config::load(&program::spec::<S>(common, &NoFlags {})?)
}
