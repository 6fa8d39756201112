//! One real process: its log goes to a file, its address is read from there, and it never outlives its value.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::{Child, Command};

use crate::eventually::wait_for;
use crate::trouble::{Context as _, Result, Trouble};

/// How long a process may take from its start to its line `listening`.
const START: Duration = Duration::from_secs(30);

/// Beyond this a process that was asked to stop is killed.
const STOP: Duration = Duration::from_secs(30);

/// How long a killed process may take to be gone.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// Lines of a log that are shown when a test fails.
const SHOWN_LINES: usize = 60;

/// A running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: u32,
    log: PathBuf,
    /// Where this process' lines begin in the log, which it shares with those before it.
    log_begin: u64,
    told: bool,
}

impl Process {
    /// Starts `binary` with `args`, as another user if one is given. Standard output and error are appended to `log`.
    pub fn start(name: &str, binary: &Path, args: &[&str], log: &Path, user: Option<u32>) -> Result<Self> {
        let open = || File::options().create(true).append(true).open(log);
        let out = open().context(log.display())?;
        let log_begin = out.metadata().context(log.display())?.len();
        let mut command = Command::new(binary);
        command.args(args).stdin(Stdio::null()).stdout(out).stderr(open().context(log.display())?);
        clean_environment(&mut command);
        // A group of its own: a Ctrl-C in the terminal is for whoever started it, who then stops it in order.
        command.process_group(0).kill_on_drop(true);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let child = command.spawn().context(format_args!("starting {}", binary.display()))?;
        let pid = child.id().context("a process that was started has an id")?;
        Ok(Self { name: name.to_owned(), child, pid, log: log.to_owned(), log_begin, told: false })
    }

    /// Its id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its log goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it logged so far, since it was started.
    #[must_use]
    pub fn logged(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let begin = usize::try_from(self.log_begin).unwrap_or(0).min(bytes.len());
        String::from_utf8_lossy(bytes.get(begin..).unwrap_or_default()).into_owned()
    }

    /// The lines of its log with this message.
    #[must_use]
    pub fn lines(&self, message: &str) -> Vec<Value> {
        let parsed =
            self.logged().lines().filter_map(|l| serde_json::from_str(l).ok()).collect::<Vec<Value>>();
        parsed.into_iter().filter(|l| field(l, "message").is_some_and(|m| m == message)).collect()
    }

    /// Waits for the line with `message` and gives its field `addr`.
    pub async fn addr(&mut self, message: &str) -> Result<SocketAddr> {
        let what = format!("{} says `{message}`", self.name);
        let found = wait_for(&what, START, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Ok(Err(format!("{} ended with {status}", self.name)));
            }
            let line = self.lines(message).into_iter().next_back().ok_or("no such line")?;
            let addr = field(&line, "addr").ok_or("the line has no field addr")?;
            Ok(Ok(addr.parse().map_err(|_| format!("{addr} is no address"))?))
        })
        .await;
        found.and_then(|early| early.map_err(Trouble::from)).map_err(|trouble| {
            self.told = true;
            Trouble::new(format!("{trouble}\n{}", self.tail()))
        })
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context(format_args!("killing {}", self.name))
    }

    /// Sends a signal by name: `TERM`, `STOP`, `CONT`.
    pub fn signal(&mut self, signal: &str) -> Result<()> {
        if !self.is_running() {
            return Err(Trouble::new(format!("{} has ended already", self.name)));
        }
        // The shell's own `kill`: every system has it, and it needs no unsafe code.
        let script = format!("kill -{signal} {}", self.pid);
        let status = std::process::Command::new("sh").args(["-c", &script]).status().context("sh")?;
        if status.success() { Ok(()) } else { Err(Trouble::new(format!("{script}: {status}"))) }
    }

    /// Waits for its end.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => status.context(&self.name),
            Err(_) => {
                Err(Trouble::new(format!("{} still runs after {within:?}\n{}", self.name, self.tail())))
            }
        }
    }

    /// Asks it to stop (SIGTERM) and waits until it has; after a while it is killed, which is an error.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        if self.is_running() {
            self.signal("TERM")?;
        }
        let ended = self.ended(STOP).await;
        if ended.is_err() {
            self.kill().await?;
        }
        ended
    }

    /// The end of its log, for people.
    #[must_use]
    pub fn tail(&self) -> String {
        let logged = self.logged();
        let lines: Vec<_> = logged.lines().collect();
        let shown = lines.get(lines.len().saturating_sub(SHOWN_LINES)..).unwrap_or_default().join("\n");
        format!("--- log of {} (pid {}):\n{shown}\n---", self.name, self.pid)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.told {
            eprintln!("{}", self.tail());
        }
        // Gone already, or about to be; its folder goes next, so its end is awaited, for a moment.
        let _ = self.child.start_kill();
        let begin = Instant::now();
        while self.is_running() && begin.elapsed() < LAST_MOMENT {
            std::thread::yield_now();
        }
    }
}

/// Takes away what the caller's environment could change: a developer's own `P2PSB_…` variables.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("P2PSB_") || n == "RUST_LOG") {
            command.env_remove(name);
        }
    }
}

/// A field of a JSON log line, which stands at the top or below `fields`.
#[must_use]
pub fn field(line: &Value, name: &str) -> Option<String> {
    let value = line.get(name).or_else(|| line.get("fields")?.get(name))?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}
