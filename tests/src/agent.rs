//! The command line of a program, run as a person would, and what it said.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::process::clean_environment;
use crate::trouble::{Context as _, Result, Trouble};

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The command line of one agent.
#[derive(Clone, Debug)]
pub struct Agent {
    binary: PathBuf,
    config: PathBuf,
    patience: Duration,
    folder: Option<PathBuf>,
    user: Option<u32>,
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Agent {
    /// The command line `binary` with the configuration `config`.
    #[must_use]
    pub const fn new(binary: PathBuf, config: PathBuf) -> Self {
        Self { binary, config, patience: PATIENCE, folder: None, user: None }
    }

    /// The same with another time that a command may take.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The same, typed in this folder.
    #[must_use]
    pub fn in_folder(mut self, folder: PathBuf) -> Self {
        self.folder = Some(folder);
        self
    }

    /// The same, typed by another user.
    #[must_use]
    pub const fn by(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// The command as a person would type it.
    #[must_use]
    pub fn shown(&self, args: &str) -> String {
        format!("{} --config {} {args}", self.binary.display(), self.config.display())
    }

    /// Runs a command, and waits for its end.
    pub async fn run(&self, args: &[&str]) -> Result<Said> {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(&self.config).args(args);
        clean_environment(&mut command);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command.stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(self.patience, command.output()).await;
        let output = output.context(format_args!("`{}` did not end in time", args.join(" ")))?;
        let output = output.context(self.binary.display())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        })
    }

    /// Runs a command that must succeed.
    pub async fn ok(&self, args: &[&str]) -> Result<Said> {
        let said = self.run(args).await?;
        if said.code == 0 {
            return Ok(said);
        }
        Err(Trouble::new(format!("`{}` ended with {}:\n{}{}", args.join(" "), said.code, said.out, said.err)))
    }

    /// Runs a command with `--json` that must succeed, and gives the last object it printed.
    pub async fn json(&self, args: &[&str]) -> Result<Value> {
        self.ok(&[&["--json"], args].concat()).await?.last()
    }

    /// Runs a command with `--json` that must succeed, and gives all objects it printed.
    pub async fn objects(&self, args: &[&str]) -> Result<Vec<Value>> {
        self.ok(&[&["--json"], args].concat()).await?.objects()
    }

    /// Runs a command with `--json` that must fail with exit code 1, and gives the reason and what it says of it.
    pub async fn refused(&self, args: &[&str]) -> Result<(String, String)> {
        let said = self.run(&[&["--json"], args].concat()).await?;
        let last = said.last()?;
        let text = |key: &str| last.get(key).and_then(Value::as_str).map(str::to_owned);
        match (said.code, text("reason"), text("message")) {
            (1, Some(reason), Some(message)) => Ok((reason, message)),
            (code, ..) => Err(Trouble::new(format!("`{}` ended with {code}: {last}", args.join(" ")))),
        }
    }
}

impl Said {
    /// The objects it printed, one a line.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let lines = self.out.lines().filter(|l| !l.trim().is_empty());
        lines.map(|l| serde_json::from_str(l).context(format_args!("no JSON: {l}"))).collect()
    }

    /// The last of them.
    pub fn last(&self) -> Result<Value> {
        let last = self.objects()?.pop();
        last.context(format_args!("nothing was printed; standard error: {}", self.err))
    }
}
