//! The course of every program: configuration → telemetry → bind → log the address → wait → drain
//! under a deadline → flush.
//!
//! Promises: a wrong command line or configuration ends with 64 before a port is bound, a port or
//! resource that is not there with 69, a server that fails by itself with 70; the line `listening`
//! with `addr` and `name` appears once calls are served, `metrics listening` with `addr` before it;
//! a second signal ends the program at once.

use std::fmt::Display;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{self, CommonArgs, ConfigError, Loaded, MetricsConfig, Settings, Spec};
use crate::exit::Exit;
use crate::metrics::{self, Admin, Recorder};
use crate::probe;
use crate::serve::Listener;
use crate::status::Status;
use crate::telemetry;

/// Beyond the drain deadline, how long a service may take for its last work (a snapshot, a flush).
const LAST_WORK: Duration = Duration::from_secs(5);

/// Who the program is.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its name, as in logs and traces.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
}

/// A service that a program runs, by the same door as tests.
pub trait Service: Sized + Send {
    /// Its configuration.
    type Settings: Settings;
    /// Flags of its own; [`NoFlags`] if there are none.
    type Flags: Flags;
    /// Why it can't be bound. Its text says what to do.
    type Error: Display + Send;

    /// Variables with the prefix `P2PSB_` that are not configuration keys.
    const RESERVED_ENV: &'static [&'static str] = &[];

    /// Makes the service; returns once its socket listens.
    fn bind(
        config: <Self::Settings as Settings>::Meant,
    ) -> impl Future<Output = Result<Self, Self::Error>> + Send;

    /// The stable reason of an error, in UPPER_SNAKE, for programs.
    fn reason(_error: &Self::Error) -> &'static str {
        "START_FAILED"
    }

    /// Where it listens.
    fn addr(&self) -> SocketAddr;

    /// What it says of itself.
    fn status(&self) -> Status;

    /// Resolves, with the reason, if the service fails by itself.
    fn failed(&mut self) -> impl Future<Output = String> + Send {
        std::future::pending()
    }

    /// Stops: running calls may end until `deadline`, then they are cut.
    fn shutdown(self, deadline: Duration) -> impl Future<Output = ()> + Send;
}

/// Flags of a service that stand for configuration keys.
pub trait Flags: Args + Send {
    /// What was given: (flag as the user knows it, key, value).
    fn overrides(&self) -> Vec<(String, String, String)>;
}

/// A service without flags of its own.
#[derive(Debug, Clone, Default, Args)]
pub struct NoFlags {}

impl Flags for NoFlags {
    fn overrides(&self) -> Vec<(String, String, String)> {
        Vec::new()
    }
}

#[derive(Debug, Parser)]
struct Cli<F: Args> {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    flags: F,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Verb {
    /// Ask the running program whether it is healthy: exit 0 if it is, 1 if not.
    Health,
}

/// A whole program: without a verb it runs the service, `health` asks a running one.
pub fn main<S: Service>(program: Program) -> ExitCode {
    let cli: Cli<S::Flags> = match parse(program) {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    let loaded = spec::<S>(&cli.common, &cli.flags).and_then(|spec| config::load::<S::Settings>(&spec));
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return complain(program, Exit::Usage, &error).into(),
    };
    match cli.verb {
        Some(Verb::Health) => health(program, loaded.value.common().metrics).into(),
        None => run::<S>(program, &cli.common, loaded).into(),
    }
}

/// Parses the command line of a program; what is to be said is said, and the exit to take returned.
pub fn parse<C: CommandFactory + FromArgMatches>(program: Program) -> Result<C, Exit> {
    let command = C::command().name(program.name).version(program.version).about(program.about);
    let parsed = command.try_get_matches().and_then(|matches| C::from_arg_matches(&matches));
    parsed.map_err(|error| {
        // Nobody is left to tell if standard output is closed.
        let _ = error.print();
        if error.use_stderr() { Exit::Usage } else { Exit::Ok }
    })
}

/// Where a service's configuration comes from, its own flags included.
pub fn spec<S: Service>(common: &CommonArgs, flags: &S::Flags) -> Result<Spec, ConfigError> {
    let mut spec = common.spec()?;
    spec.flags.extend(flags.overrides());
    spec.reserved_env = S::RESERVED_ENV.iter().map(|name| (*name).to_owned()).collect();
    Ok(spec)
}

/// Told the stable reason and the text of what keeps a program from serving.
pub type Tell<'a> = &'a dyn Fn(&'static str, &str);

/// The reason of a wrong configuration.
const WRONG: &str = "INVALID_ARGUMENT";

/// The reason of a port that can't be had.
const PORT: &str = "LISTEN_FAILED";

/// Runs a service from its configuration to its end, or does what `--check-config` and
/// `--print-config` ask for. For programs that parse their own command line.
pub fn run<S: Service>(program: Program, common: &CommonArgs, loaded: Loaded<S::Settings>) -> Exit {
    run_telling::<S>(program, common, loaded, &|_, _| {})
}

/// As [`run`]; what keeps the program from serving is also told to the caller, for whom a line on
/// standard error is not enough.
pub fn run_telling<S: Service>(
    program: Program,
    common: &CommonArgs,
    loaded: Loaded<S::Settings>,
    tell: Tell<'_>,
) -> Exit {
    let wrong = |error: &dyn Display| {
        tell(WRONG, &error.to_string());
        complain(program, Exit::Usage, error)
    };
    if let Err(error) = check::<S>(&loaded) {
        return wrong(&error);
    }
    if common.print_config
        && let Err(exit) = print_config(program, &loaded.value)
    {
        return exit;
    }
    let sections = loaded.value.common();
    let (telemetry, metrics, drain) =
        (sections.telemetry.clone(), sections.metrics.clone(), sections.drain.clone());
    let config = match loaded.meant() {
        Ok(config) => config,
        Err(error) => return wrong(&error),
    };
    if common.check_config || common.print_config {
        return Exit::Ok;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(program, Exit::Unavailable, &error),
    };
    let exit = runtime.block_on(async {
        let telemetry = match telemetry::init(program.name, program.version, &telemetry) {
            Ok(telemetry) => telemetry,
            Err(error) => return wrong(&error),
        };
        let exit = live::<S>(program, config, &metrics, drain.deadline, tell).await;
        telemetry.shutdown().await;
        exit
    });
    // What still blocks a thread must not keep a program that has said goodbye.
    runtime.shutdown_timeout(Duration::from_secs(1));
    exit
}

/// The shared sections, checked beyond their types.
fn check<S: Service>(loaded: &Loaded<S::Settings>) -> Result<(), ConfigError> {
    let checked = loaded.value.common().telemetry.check();
    checked.map_err(|error| error.written_at(|key| loaded.origin(key)))
}

fn print_config<T: Settings>(program: Program, settings: &T) -> Result<(), Exit> {
    let text = config::to_toml(settings).map_err(|error| complain(program, Exit::Internal, &error))?;
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.map_err(|error| complain(program, Exit::Unavailable, &error))
}

/// Asks the running program whether it is healthy and prints what it says.
pub fn health(program: Program, metrics: &MetricsConfig) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(program, Exit::Unavailable, &error),
    };
    match runtime.block_on(probe::check(metrics.listen)) {
        Ok(health) => {
            // The exit code says it all if standard output is closed.
            let _ = writeln!(std::io::stdout(), "{}", health.body);
            if health.serves { Exit::Ok } else { Exit::No }
        }
        Err(error @ (probe::ProbeError::Off | probe::ProbeError::AnyPort)) => {
            complain(program, Exit::Usage, &error)
        }
        Err(error) => complain(program, Exit::No, &error),
    }
}

/// Prints what a verb has to say, or says why it failed.
pub fn print<T: Display, E: Display>(program: Program, result: Result<T, E>) -> Exit {
    let text = match result {
        Ok(text) => text,
        Err(error) => return complain(program, Exit::Unavailable, &error),
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => Exit::Ok,
        Err(error) => complain(program, Exit::Unavailable, &error),
    }
}

/// Says on standard error why the program ends.
pub fn complain(program: Program, exit: Exit, error: &dyn Display) -> Exit {
    // Nobody is left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{}: {error}", program.name);
    exit
}

/// Bind → log → wait → drain.
async fn live<S: Service>(
    program: Program,
    config: <S::Settings as Settings>::Meant,
    metrics: &MetricsConfig,
    deadline: Duration,
    tell: Tell<'_>,
) -> Exit {
    let refused = |reason: &'static str, error: &dyn Display| {
        tell(reason, &error.to_string());
        let exit = Exit::Unavailable;
        tracing::error!(reason, %error, exit = exit.code(), "ending");
        exit
    };
    // Without it there is room for fewer connections, and the listener says so when it is used up.
    match crate::open_files::raise_limit() {
        Ok(limit) => tracing::debug!(limit, "files that may be open"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return failed(Exit::Unavailable, &error),
    };
    // Handles of metrics are made while a service binds, so the recorder comes first.
    let recorder = match metrics::install(program.name, program.version) {
        Ok(recorder) => recorder,
        Err(error) => return failed(Exit::Internal, &error),
    };
    let admin = match metrics.listen.map(Listener::bind).transpose() {
        Ok(listener) => listener,
        Err(error) => return refused(PORT, &format!("metrics.listen: {error}")),
    };
    let bound = tokio::select! {
        bound = S::bind(config) => bound,
        signal = signals.next() => {
            tracing::info!(signal, "stopped before it had started");
            return Exit::Ok;
        }
    };
    let service = match bound {
        Ok(service) => service,
        Err(error) => return refused(S::reason(&error), &error),
    };
    let _admin = admin.map(|listener| announce(listener, recorder, service.status()));
    tracing::info!(addr = %service.addr(), name = program.name, version = program.version, "listening");
    until_told(service, &mut signals, deadline).await
}

fn announce(listener: Listener, recorder: Recorder, status: Status) -> Admin {
    let admin = Admin::serve(listener, recorder, status);
    tracing::info!(addr = %admin.addr(), "metrics listening");
    admin
}

async fn until_told<S: Service>(mut service: S, signals: &mut Signals, deadline: Duration) -> Exit {
    let exit = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, ?deadline, "draining");
            Exit::Ok
        }
        reason = service.failed() => failed(Exit::Internal, &reason),
    };
    tokio::select! {
        ended = tokio::time::timeout(deadline + LAST_WORK, service.shutdown(deadline)) => match ended {
            Ok(()) => {
                tracing::info!("stopped");
                exit
            }
            Err(_) => failed(Exit::Internal, &"the service did not stop in time"),
        },
        signal = signals.next() => failed(Exit::Internal, &format!("a second signal ({signal}) ended the drain")),
    }
}

fn failed(exit: Exit, error: &dyn Display) -> Exit {
    tracing::error!(%error, exit = exit.code(), "ending");
    exit
}

/// The signals that ask a program to stop.
#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The signals that ask a program to stop.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C",
            Err(_) => std::future::pending().await,
        }
    }
}
