//! A whole program as a process: exit codes, the lines a supervisor waits for, `health`, SIGTERM.
//!
//! This binary is both the test and the program: started with [`AS_PROGRAM`] set it runs a service.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

use p2psb_runtime::config::{Common, DrainConfig, MetricsConfig, TelemetryConfig};
use p2psb_runtime::serve::{Drained, Listener, serve};
use p2psb_runtime::{Api, ConfigError, NoFlags, Program, Running, ServeOptions, Service, Settings, Status};
use serde::{Deserialize, Serialize};

const AS_PROGRAM: &str = "RUNTIME_TEST_AS_PROGRAM";

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    listen: SocketAddr,
    metrics: MetricsConfig,
    telemetry: TelemetryConfig,
    drain: DrainConfig,
}

impl Default for Config {
    fn default() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let metrics = MetricsConfig { listen: Some(any) };
        Self { listen: any, metrics, telemetry: TelemetryConfig::default(), drain: DrainConfig::default() }
    }
}

impl Settings for Config {
    type Meant = SocketAddr;

    fn common(&self) -> Common<'_> {
        Common { telemetry: &self.telemetry, metrics: &self.metrics, drain: &self.drain }
    }

    fn meant(self) -> Result<SocketAddr, ConfigError> {
        if self.listen.ip().is_loopback() {
            Ok(self.listen)
        } else {
            Err(ConfigError::value("listen", "must be a loopback address"))
        }
    }
}

struct Server {
    running: Running,
    addr: SocketAddr,
    status: Status,
}

impl Service for Server {
    type Settings = Config;
    type Flags = NoFlags;
    type Error = std::io::Error;

    async fn bind(addr: SocketAddr) -> Result<Self, std::io::Error> {
        let listener = Listener::bind(addr)?;
        let addr = listener.addr();
        let options = ServeOptions::default();
        let status = options.status.clone();
        let running = serve(Api::new(&[]), listener.plaintext(&options.http2), options)
            .map_err(std::io::Error::other)?;
        Ok(Self { running, addr, status })
    }

    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn status(&self) -> Status {
        self.status.clone()
    }

    async fn failed(&mut self) -> String {
        self.running.closed().await
    }

    async fn shutdown(self, deadline: Duration) {
        assert_eq!(self.running.drain(deadline).await, Drained::Clean);
    }
}

fn main() -> ExitCode {
    if std::env::var_os(AS_PROGRAM).is_some() {
        return p2psb_runtime::main::<Server>(Program {
            name: "sample",
            version: "1.2.3",
            about: "A sample",
        });
    }
    let tests: [(&str, fn()); 6] = [
        ("a_wrong_configuration_exits_64_and_names_the_key", wrong_configuration),
        ("check_and_print_config_do_not_run", check_and_print),
        ("a_taken_port_exits_69", taken_port),
        ("a_program_says_where_it_listens_is_healthy_and_drains_on_sigterm", whole_life),
        ("a_program_may_open_as_many_files_as_the_system_allows", open_files),
        ("help_and_version_exit_0_and_a_wrong_flag_64", command_line),
    ];
    for (name, test) in tests {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(AS_PROGRAM, "1").args(args);
    command
}

fn output(args: &[&str], env: &[(&str, &str)]) -> Output {
    program(args).envs(env.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn wrong_configuration() {
    for (args, env, wanted) in [
        (vec!["--set", "lisen=1"], vec![], "did you mean `listen`?"),
        (vec![], vec![("P2PSB_DRAIN__DEADLINE", "soon")], "P2PSB_DRAIN__DEADLINE"),
        (vec!["--config", "/nowhere.toml"], vec![], "/nowhere.toml"),
        (vec!["--set", "listen=192.0.2.1:1"], vec![], "must be a loopback address"),
        (vec!["--log", "a=b=c"], vec![], "set by --log"),
        (vec!["health", "--set", "metrics.listen=off"], vec![], "metrics.listen is off"),
    ] {
        let output = output(&args, &env);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{args:?} {env:?}: {said}");
        assert!(said.contains(wanted), "{wanted:?} is not in {said:?}");
    }
}

fn check_and_print() {
    assert_eq!(output(&["--check-config"], &[]).status.code(), Some(0));
    let printed = output(&["--print-config", "--set", "drain.deadline=3s"], &[]);
    assert_eq!(printed.status.code(), Some(0));
    assert!(text(&printed.stdout).contains("deadline = \"3s\""), "{}", text(&printed.stdout));
}

fn taken_port() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let output = output(&["--set", &format!("listen={addr}")], &[]);
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains(&addr.to_string()));
}

fn command_line() {
    assert_eq!(text(&output(&["--version"], &[]).stdout), "sample 1.2.3\n");
    assert_eq!(output(&["--help"], &[]).status.code(), Some(0));
    assert_eq!(output(&["--colour"], &[]).status.code(), Some(64));
}

fn whole_life() {
    let mut child = program(&["--log-format", "json"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let metrics = addr_in(&mut lines, "metrics listening");
    let addr = addr_in(&mut lines, "listening");
    assert!(std::net::TcpStream::connect(addr).is_ok());
    let healthy = output(&["health", "--set", &format!("metrics.listen={metrics}")], &[]);
    assert_eq!((healthy.status.code(), text(&healthy.stdout)), (Some(0), "{\"state\":\"ready\"}\n"));
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let rest: Vec<String> = lines.collect();
    assert!(rest.iter().any(|line| line.contains("\"message\":\"stopped\"")), "{rest:?}");
    let gone = output(&["health", "--set", &format!("metrics.listen={metrics}")], &[]);
    assert_eq!(gone.status.code(), Some(1));
}

fn open_files() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let mut low = Command::new("sh");
    low.args(["-c", "ulimit -Sn 256 && exec \"$0\" --log-format json"]).arg(std::env::current_exe().unwrap());
    let mut child = low.env(AS_PROGRAM, "1").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    addr_in(&mut lines, "listening");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(files[3], files[4], "soft and hard limit");
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// The address in the line with this message.
fn addr_in(lines: &mut impl Iterator<Item = String>, message: &str) -> SocketAddr {
    for line in lines {
        let event: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
        if event["message"] == message {
            return event["addr"].as_str().unwrap().parse().unwrap();
        }
    }
    panic!("the program ended without saying {message:?}");
}

fn terminate(child: &Child) {
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
}
