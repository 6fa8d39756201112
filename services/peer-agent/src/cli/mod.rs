//! The command line. `run` is the daemon; every other verb asks a running one, or does without.
//!
//! Promises: results go to standard output, everything else to standard error; with `--json` every line of standard output is one
//! JSON object with an `event`; the exit code is 0 for done, 64 for a wrong command line or configuration, 69 when no agent is
//! running or it went away, 130 after Ctrl-C, 1 for any other failure.

mod daemon;
mod fetch;
mod init;
mod output;
mod paths;
mod publish;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use p2psb_client::Endpoint;
use p2psb_proto::error::{Failure, Reason};
use p2psb_runtime::config::{self, CommonArgs, ConfigError, Loaded, Spec};
use p2psb_runtime::exit::Exit;
use p2psb_runtime::{Program, program};

use crate::config::{CONFIG_FILE, Config};
use crate::server::Server;
use output::Output;

/// Who this program is.
pub const PROGRAM: Program = Program {
    name: "peer-agent",
    version: env!("CARGO_PKG_VERSION"),
    about: "A member's agent of p2pSB: publish folders, find and fetch packages, serve them to others",
};

/// Interrupted, as shells say it.
const INTERRUPTED: u8 = 130;

const AFTER_HELP: &str = "\
Begin with:
  peer-agent init --rendezvous https://host:7400
  peer-agent run &
  peer-agent publish ./folder
  peer-agent search word
  peer-agent fetch publisher/name

Exit codes: 0 done, 64 wrong command line or configuration, 69 no agent is running, 130 Ctrl-C, 1 any other failure.";

#[derive(Debug, Parser)]
#[command(after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,

    /// Where keys, catalogue and control file lie [env: P2PSB_DATA_DIR; default: p2psb in the user's data folder].
    #[arg(long, value_name = "DIR", global = true, help_heading = "Configuration")]
    data_dir: Option<PathBuf>,

    /// Print one JSON object a line instead of text for people.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make identity, publisher key and a commented configuration; what is there already is kept.
    Init {
        /// A rendezvous to register at, such as https://host:7400; may be repeated.
        #[arg(long, value_name = "URL")]
        rendezvous: Vec<Endpoint>,
    },
    /// Run the agent until it is told to stop (SIGTERM, Ctrl-C).
    Run(RunArgs),
    /// Publish a folder or files as a release; they stay where they are and are shared from there.
    Publish(publish::Args),
    /// Search packages whose name, title, description or tags hold all of the words.
    Search {
        /// What to look for.
        #[arg(required = true, value_name = "WORD")]
        words: Vec<String>,
        /// At most so many results.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
    },
    /// Fetch a release: publisher/name[@requirement], or name[@requirement] when only one publisher has it.
    ///
    /// Into a folder that was fetched before, it restores what was changed or removed there; what was added stays. It goes on in the agent
    /// when this command ends: when the disk was full, for instance, it is kept until there is room.
    Fetch(fetch::Args),
    /// Give up a fetch that is not complete, and remove what it has so far.
    Cancel {
        /// The folder it goes to, as `status` shows it.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Show whom the agent is connected to, what it shares and what it fetches.
    Status,
    /// Show where a peer is.
    Locate {
        /// Its id: peer1…
        peer: String,
    },
    /// Show the own ids.
    Id,
    /// Ask the running agent whether it is healthy: exit 0 if it is, 1 if not, 69 if none is running.
    Health,
}

#[derive(Clone, Copy, Debug, Default, clap::Args)]
struct RunArgs {
    /// Run a rendezvous inside the agent as well, for the machines around it and for friends; sets edge.serve.
    ///
    /// It is an edge of the backbones of your rendezvous: who is there is found from everywhere, and whoever is around finds each other
    /// even while no other rendezvous is in reach. It listens at edge.listen; what it holds lies in `rendezvous` in the data folder.
    #[arg(long)]
    rendezvous: bool,
}

/// Why a verb failed.
#[derive(Debug)]
enum Problem {
    /// Command line or configuration.
    Usage(ConfigError),
    /// No agent, or it went away.
    Unavailable(Failure),
    /// Anything else.
    Failed(Failure),
    /// Ctrl-C; what is to be said of it.
    Interrupted(String),
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error)
    }
}

impl Problem {
    const fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Unavailable(_) => 69,
            Self::Failed(_) => 1,
            Self::Interrupted(_) => INTERRUPTED,
        }
    }
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let cli: Cli = match program::parse(PROGRAM) {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    let output = Output::new(cli.json);
    match dispatch(cli, &output) {
        Ok(code) => code,
        Err(problem) => {
            output.problem(&problem);
            ExitCode::from(problem.code())
        }
    }
}

fn dispatch(cli: Cli, output: &Output) -> Result<ExitCode, Problem> {
    let only_config = cli.common.check_config || cli.common.print_config;
    let verb = match cli.verb {
        None if !only_config => {
            // Nobody is left to tell if standard error is closed.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                Cli::command().name(PROGRAM.name).about(PROGRAM.about).render_help().to_string().as_bytes(),
            );
            return Ok(Exit::Usage.into());
        }
        Some(Verb::Init { rendezvous }) if !only_config => {
            let (file, config) = for_init(&cli.common, cli.data_dir)?;
            init::run(&config.value.data_dir()?, file, &rendezvous, output)?;
            return Ok(ExitCode::SUCCESS);
        }
        verb => verb,
    };
    let args = match verb {
        Some(Verb::Run(args)) => args,
        _ => RunArgs::default(),
    };
    let loaded = load(&cli.common, cli.data_dir, args)?;
    let data_dir = loaded.value.data_dir()?;
    let run = |loaded| {
        let tell = |reason: &'static str, message: &str| output.refused(reason, message);
        program::run_telling::<Server>(PROGRAM, &cli.common, loaded, &tell).into()
    };
    match verb {
        _ if only_config => Ok(run(loaded)),
        None | Some(Verb::Run(_)) => Ok(run(loaded)),
        Some(Verb::Id | Verb::Init { .. }) => init::show_ids(&data_dir, output).map(|()| ExitCode::SUCCESS),
        Some(verb) => ask(verb, &data_dir, output),
    }
}

/// Verbs that a running agent answers.
fn ask(verb: Verb, data_dir: &std::path::Path, output: &Output) -> Result<ExitCode, Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
    let answered = runtime.block_on(async {
        let daemon = daemon::connect(data_dir).await?;
        match verb {
            Verb::Publish(args) => publish::run(daemon, args, output).await.map(|()| true),
            Verb::Fetch(args) => fetch::run(daemon, args, output).await.map(|()| true),
            Verb::Cancel { folder } => fetch::cancel(daemon, &folder, output).await.map(|()| true),
            Verb::Search { words, limit } => {
                show::search(daemon, &words.join(" "), limit, output).await.map(|()| true)
            }
            Verb::Status => show::status(daemon, output).await.map(|()| true),
            Verb::Locate { peer } => show::locate(daemon, peer, output).await.map(|()| true),
            Verb::Health => show::health(daemon, output).await,
            // Answered without an agent, before.
            Verb::Init { .. } | Verb::Run(_) | Verb::Id => Ok(true),
        }
    });
    runtime.shutdown_background();
    answered.map(|yes| ExitCode::from(if yes { 0 } else { 1 }))
}

/// Flags, variables and the configuration file; without a named file the one in the data folder, if there is one.
fn load(common: &CommonArgs, data_dir: Option<PathBuf>, run: RunArgs) -> Result<Loaded<Config>, ConfigError> {
    let mut spec = spec(common, data_dir)?;
    if run.rendezvous {
        spec.flags.push(("--rendezvous".into(), "edge.serve".into(), "true".into()));
    }
    if spec.file.is_none() {
        let usual = config::load::<Config>(&spec)?.value.data_dir()?.join(CONFIG_FILE);
        spec.file = usual.exists().then_some(usual);
    }
    config::load(&spec)
}

/// For `init`: the file to write, which may not be there yet.
fn for_init(
    common: &CommonArgs,
    data_dir: Option<PathBuf>,
) -> Result<(PathBuf, Loaded<Config>), ConfigError> {
    let mut spec = spec(common, data_dir)?;
    let named = spec.file.clone();
    spec.file = named.clone().filter(|file| file.exists());
    let loaded = config::load::<Config>(&spec)?;
    let file = match named {
        Some(file) => file,
        None => loaded.value.data_dir()?.join(CONFIG_FILE),
    };
    Ok((file, loaded))
}

fn spec(common: &CommonArgs, data_dir: Option<PathBuf>) -> Result<Spec, ConfigError> {
    let mut spec = common.spec()?;
    if let Some(folder) = data_dir {
        let folder = folder
            .into_os_string()
            .into_string()
            .map_err(|folder| ConfigError::value("data_dir", format!("{} is not UTF-8", folder.display())))?;
        spec.flags.push(("--data-dir".into(), "data_dir".into(), folder));
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["peer-agent"], args].concat())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_is_understood_with_flags_before_or_behind() {
        let cli = parse(&[
            "--json",
            "publish",
            "a",
            "b",
            "--name",
            "x",
            "--version",
            "1.0.0",
            "--tag",
            "t",
            "--tag",
            "u",
        ]);
        let cli = cli.unwrap();
        assert!(cli.json);
        let Some(Verb::Publish(args)) = cli.verb else { panic!("not publish") };
        assert_eq!((args.paths.len(), args.tag.len()), (2, 2));
        let cli = parse(&["fetch", "demo@^1", "-o", "there", "--data-dir", "/d", "--json"]).unwrap();
        assert!(cli.json && cli.data_dir == Some("/d".into()));
        for args in [
            &["run", "--set", "rendezvous=https://h:1,https://h:2"][..],
            &["run", "--rendezvous", "--set", "edge.listen=0.0.0.0:7401"],
            &["init", "--rendezvous", "https://h:7400", "--rendezvous", "http://h:7401"],
            &["search", "two", "words"],
            &["status"],
            &["locate", "peer1x"],
            &["id"],
            &["health"],
            &["cancel", "there"],
            &["--config", "f.toml", "--check-config"],
        ] {
            assert!(parse(args).is_ok(), "{args:?}");
        }
        for args in [
            &["publish"][..],
            &["status", "--rendezvous"],
            &["fetch"],
            &["cancel"],
            &["search"],
            &["locate"],
            &["init", "--rendezvous", "h"],
            &["nonsense"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn the_file_in_the_data_folder_is_used_and_flags_win_over_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join(CONFIG_FILE), "rendezvous = ['https://a:1']\nlisten = '127.0.0.1:5'\n")
            .unwrap();
        let common = CommonArgs { set: vec!["listen=127.0.0.1:6".into()], ..CommonArgs::default() };
        let loaded = load(&common, Some(data.clone()), RunArgs::default()).unwrap();
        assert!(!loaded.value.edge.serve);
        let loaded = load(&common, Some(data.clone()), RunArgs { rendezvous: true }).unwrap();
        assert!(loaded.value.edge.serve);
        assert_eq!(loaded.value.rendezvous.len(), 1);
        assert_eq!(loaded.value.listen.port(), 6);
        assert_eq!(loaded.value.data_dir().unwrap(), data);
        std::fs::write(data.join(CONFIG_FILE), "rendezvou = []\n").unwrap();
        let error = load(&common, Some(data), RunArgs::default()).unwrap_err().to_string();
        assert!(error.contains("rendezvous") && error.contains("peer-agent.toml"), "{error}");
    }
}
