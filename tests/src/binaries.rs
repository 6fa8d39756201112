//! The programs under test, built by the harness itself: `cargo test` builds no binary of another package and would run
//! a stale one happily.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::trouble::{Context as _, Result, Trouble};

/// The four programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `rendezvous-svc`.
    Rendezvous,
    /// `discovery-svc`.
    Discovery,
    /// `package-index-svc`.
    Index,
    /// `peer-agent`.
    Agent,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rendezvous, Self::Discovery, Self::Index, Self::Agent];

    /// The binary's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rendezvous => "rendezvous-svc",
            Self::Discovery => "discovery-svc",
            Self::Index => "package-index-svc",
            Self::Agent => "peer-agent",
        }
    }
}

/// Where the freshly built programs lie.
#[derive(Clone, Debug)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// Builds the programs with the profile and the target directory of the running executable, once per process; when
    /// nothing changed, that takes cargo a moment.
    pub fn build() -> Result<Self> {
        static BUILT: OnceLock<Result<Binaries>> = OnceLock::new();
        BUILT.get_or_init(|| Layout::of_this_process()?.build()).clone()
    }

    /// A program.
    #[must_use]
    pub fn path(&self, program: Program) -> PathBuf {
        self.dir.join(program.name())
    }
}

/// Where cargo put the running executable, and so with which profile and target, and whether it is a test.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    is_test: bool,
    target_dir: PathBuf,
    triple: Option<String>,
    profile: String,
}

impl Layout {
    fn of_this_process() -> Result<Self> {
        let exe = std::env::current_exe().context("finding the running executable")?;
        // Cargo writes the first only into a folder that it made itself, the second always.
        let is_target_dir =
            |dir: &Path| ["CACHEDIR.TAG", ".rustc_info.json"].iter().any(|f| dir.join(f).is_file());
        Self::of(&exe, is_target_dir)
            .with_context(|| format!("{} is not in a target directory of cargo", exe.display()))
    }

    /// From `TARGET[/TRIPLE]/PROFILE[/deps]/executable`; cargo marks TARGET by a file.
    fn of(exe: &Path, is_target_dir: impl Fn(&Path) -> bool) -> Option<Self> {
        let dir = exe.parent()?;
        let is_test = dir.ends_with("deps");
        let dir = if is_test { dir.parent()? } else { dir };
        let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
        let profile = name(dir)?;
        let above = dir.parent()?;
        if is_target_dir(above) {
            return Some(Self { is_test, target_dir: above.to_owned(), triple: None, profile });
        }
        let target_dir = above.parent().filter(|dir| is_target_dir(dir))?;
        Some(Self { is_test, target_dir: target_dir.to_owned(), triple: name(above), profile })
    }

    fn build(&self) -> Result<Binaries> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        // The whole workspace, and beside tests with what tests need, as `cargo test` built it: else features of
        // dependencies would differ, and all of them be built a second time.
        command.args(["build", "--locked", "--workspace", "--bins", "--quiet"]);
        if self.is_test {
            command.arg("--tests");
        }
        match self.profile.as_str() {
            "debug" => {}
            "release" => drop(command.arg("--release")),
            other => drop(command.args(["--profile", other])),
        }
        if let Some(triple) = &self.triple {
            command.args(["--target", triple]);
        }
        command.arg("--target-dir").arg(&self.target_dir);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        // What the outer cargo told about the package that runs now is not true of those that are built.
        for (name, _) in std::env::vars_os() {
            let of_package = name.to_str().is_some_and(|n| {
                ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
                    .iter()
                    .any(|prefix| n.starts_with(prefix))
            });
            if of_package {
                command.env_remove(name);
            }
        }
        let output = command.output().context("running cargo")?;
        if !output.status.success() {
            return Err(Trouble::new(format!(
                "the programs could not be built:\n{}",
                String::from_utf8_lossy(&output.stderr)
            )));
        }
        let dir = self.triple.iter().fold(self.target_dir.clone(), |dir, triple| dir.join(triple));
        Ok(Binaries { dir: dir.join(&self.profile) })
    }
}

trait WithContext<T> {
    fn with_context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> WithContext<T> for Option<T> {
    fn with_context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.ok_or_else(|| Trouble::from(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(exe: &str) -> Option<(String, Option<String>, String)> {
        let layout = Layout::of(Path::new(exe), |dir| dir == Path::new("/w/target"))?;
        Some((layout.target_dir.to_str()?.to_owned(), layout.triple, layout.profile))
    }

    #[test]
    fn profile_and_target_are_read_off_the_path() {
        let plain = |profile: &str| Some(("/w/target".to_owned(), None, profile.to_owned()));
        assert_eq!(layout("/w/target/debug/deps/processes-1f"), plain("debug"));
        assert_eq!(layout("/w/target/release/demo"), plain("release"));
        let crossed = Some(("/w/target".into(), Some("x86_64-unknown-linux-musl".into()), "ci".into()));
        assert_eq!(layout("/w/target/x86_64-unknown-linux-musl/ci/deps/t-1"), crossed);
        assert_eq!(layout("/usr/bin/demo"), None);
    }
}
