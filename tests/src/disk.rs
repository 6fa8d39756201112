//! A small disk, for programs that are to find it full. Only those that are put on it see it, and it is gone with its value.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::trouble::{Context as _, Result, Trouble};

/// Mounts a disk of size `$0` at `$1`, says so, and keeps it until standard input ends.
const KEEP: &str = r#"mount -t tmpfs -o "size=$0" tmpfs "$1" && echo mounted && exec cat"#;

/// A small disk, and the process that keeps the view of mounts in which it is there.
#[derive(Debug)]
pub struct SmallDisk {
    keeper: Child,
    at: PathBuf,
}

impl SmallDisk {
    /// A disk of a size such as `20m` at an empty folder, or why this user can't have one.
    pub fn mount(at: &Path, size: &str) -> Result<Self> {
        std::fs::create_dir_all(at).context(at.display())?;
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", KEEP, size])
            .arg(at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("unshare")?;
        let mut said = String::new();
        let out = keeper.stdout.take().context("its standard output")?;
        BufReader::new(out).read_line(&mut said).context("unshare")?;
        if said.trim() == "mounted" {
            return Ok(Self { keeper, at: at.to_owned() });
        }
        let mut why = String::new();
        if let Some(err) = &mut keeper.stderr {
            err.read_to_string(&mut why).context("unshare")?;
        }
        keeper.wait().context("unshare")?;
        Err(Trouble::new(format!("no small disk can be mounted here: {}", why.trim())))
    }

    /// Where it is, for those who see it.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// The same place for everybody else.
    #[must_use]
    pub fn seen_at(&self) -> PathBuf {
        let top = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        top.join(self.at.strip_prefix("/").unwrap_or(&self.at))
    }

    /// A program that runs `binary` where the disk is there.
    pub(crate) fn script(&self, binary: &Path) -> String {
        let view = format!("/proc/{}/ns/mnt", self.keeper.id());
        format!("#!/bin/sh\nexec nsenter --mount={view} -- '{}' \"$@\"\n", binary.display())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Gone already, or about to be: nothing else can be done for it here.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
