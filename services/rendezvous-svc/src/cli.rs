//! The verbs of `rendezvous-svc`. Without one it runs the server.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use p2psb_client::Identity;
use p2psb_proto::model::ServiceName;
use p2psb_runtime::config::{self, CommonArgs, Loaded};
use p2psb_runtime::exit::Exit;
use p2psb_runtime::{ConfigError, Program, Settings as _, program};

use crate::config::Config;
use crate::init::{self, MemberName, Named};
use crate::server::{Server, ServerFlags};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    flags: ServerFlags,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Ask the running program whether it is healthy: exit 0 if it is, 1 if not.
    Health,
    /// Make the identity if there is none, and print the id.
    Init {
        /// Make a key for members of a backbone to share, too, if there is none.
        #[arg(long, value_name = "FILE")]
        bridge_key: Option<PathBuf>,
    },
    /// Print the id.
    Id,
    /// Make the identities of all members of a backbone and of the providers they endorse, and the key they share.
    InitBackbone {
        /// Where bridge.key, endorse/ and members/ are written.
        #[arg(long, value_name = "DIR")]
        shared: PathBuf,
        /// A member and its data_dir; may be repeated.
        #[arg(long = "member", value_name = "NAME=DIR")]
        members: Vec<Named<MemberName>>,
        /// A provider of a reserved service and its data_dir; may be repeated.
        #[arg(long = "provider", value_name = "SERVICE=DIR")]
        providers: Vec<Named<ServiceName>>,
    },
}

/// The whole program.
#[must_use]
pub fn main(program: Program) -> ExitCode {
    let cli: Cli = match program::parse(program) {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    if let Some(Verb::InitBackbone { shared, members, providers }) = &cli.verb {
        // It concerns many data folders, so no server's configuration is asked.
        return init_backbone(program, shared, members, providers).into();
    }
    let loaded = match load(&cli.common, &cli.flags) {
        Ok(loaded) => loaded,
        Err(error) => return program::complain(program, Exit::Usage, &error).into(),
    };
    let data_dir = &loaded.value.data_dir;
    let exit = match &cli.verb {
        None => program::run::<Server>(program, &cli.common, loaded),
        Some(Verb::Health) => program::health(program, loaded.value.common().metrics),
        Some(Verb::Init { bridge_key }) => {
            program::print(program, init::server(data_dir, bridge_key.as_deref()))
        }
        Some(Verb::Id) => {
            program::print(program, Identity::load(data_dir).map(|identity| identity.peer_id()))
        }
        // It was done above.
        Some(Verb::InitBackbone { .. }) => Exit::Ok,
    };
    exit.into()
}

fn load(common: &CommonArgs, flags: &ServerFlags) -> Result<Loaded<Config>, ConfigError> {
    config::load(&program::spec::<Server>(common, flags)?)
}

fn init_backbone(
    program: Program,
    shared: &Path,
    members: &[Named<MemberName>],
    providers: &[Named<ServiceName>],
) -> Exit {
    let made = init::backbone(shared, members, providers);
    let lines = made.map(|made| {
        let lines: Vec<String> = made.iter().map(|(name, id)| format!("{name} {id}")).collect();
        lines.join("\n")
    });
    program::print(program, lines)
}
