//! A network of its own for a test: sites with one address each, and ways between them that can be cut and mended.
//!
//! What is sent over a way that is cut is lost without a word, as behind a router that died. It is made of the network namespaces
//! of Linux: a test runs itself once more inside one, where it may do what it likes, and which is gone with it. Whoever may not
//! make one for everybody may make one of an own user, where the system allows that.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::trouble::{Context as _, Result, Trouble};

/// Tells a test that it runs inside.
const INSIDE: &str = "E2E_INSIDE_NETWORK";

/// Ways to a namespace, the usual one first.
const WAYS_IN: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];

/// Makes a site, whose keeper is process `$0`: the `$1`th.
const MAKE_SITE: &str = r#"set -e
ip link add "c$1" type veth peer name way netns "$0"
ip addr add "10.77.$1.1/30" dev "c$1"
ip link set "c$1" up
exec nsenter --net="/proc/$0/ns/net" sh -ec '
  ip link set lo up
  ip addr add "10.77.$0.2/30" dev way
  ip link set way up
  ip route add default via "10.77.$0.1"' "$1""#;

/// Where a test is after [`enter`].
#[derive(Debug)]
pub enum Entered {
    /// Inside.
    Inside(Network),
    /// It ran inside, and this is what came of it.
    Ran(Output),
}

/// Runs the test of this name and executable inside a network of its own, unless it is there. Fails where there can be none.
pub fn enter(test: &str) -> Result<Entered> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(Entered::Inside(Network::new()?));
    }
    let way_in = way_in()?;
    let executable = std::env::current_exe().context("finding the running executable")?;
    let mut command = Command::new("unshare");
    command.args(way_in).arg("--").arg(executable).args([test, "--exact", "--nocapture"]);
    let output = command.env(INSIDE, "1").stdin(Stdio::null()).output().context("unshare")?;
    Ok(Entered::Ran(output))
}

fn way_in() -> Result<&'static [&'static str]> {
    let mut why = String::new();
    for way in WAYS_IN {
        let tried = Command::new("unshare").args(way).args(["ip", "link", "set", "lo", "up"]).output();
        let tried = tried.context("unshare")?;
        if tried.status.success() {
            return Ok(way);
        }
        why = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
    }
    Err(Trouble::new(format!("no network can be made here (it needs `ip` and namespaces): {why}")))
}

/// The network of this process. The process itself is in its middle, and reaches every site.
#[derive(Debug)]
pub struct Network {
    keepers: Vec<Child>,
}

/// A place in a network where programs can run.
#[derive(Clone, Debug)]
pub struct Site {
    number: usize,
    view: PathBuf,
}

impl Network {
    fn new() -> Result<Self> {
        run("ip", &["link", "set", "lo", "up"])?;
        let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
        std::fs::write(forward, "1").context(forward.display())?;
        Ok(Self { keepers: Vec::new() })
    }

    /// One more site.
    pub fn site(&mut self) -> Result<Site> {
        let number = self.keepers.len() + 1;
        let mut keeper = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare")?;
        let pid = keeper.id().to_string();
        let out = keeper.stdout.take().context("its standard output")?;
        self.keepers.push(keeper);
        let mut said = String::new();
        BufReader::new(out).read_line(&mut said).context("unshare")?;
        run("sh", &["-c", MAKE_SITE, &pid, &number.to_string()])?;
        Ok(Site { number, view: format!("/proc/{pid}/ns/net").into() })
    }

    /// From now on nothing comes from one of two sites to the other.
    pub fn cut(&self, one: &Site, other: &Site) -> Result<()> {
        Self::rule("add", one, other)
    }

    /// The way between two sites, which was cut, is open again.
    pub fn mend(&self, one: &Site, other: &Site) -> Result<()> {
        Self::rule("del", one, other)
    }

    fn rule(verb: &str, one: &Site, other: &Site) -> Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let (from, to) = (from.addr().to_string(), to.addr().to_string());
            run("ip", &["rule", verb, "from", &from, "to", &to, "blackhole"])?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for keeper in &mut self.keepers {
            // Gone already, or about to be: nothing else can be done for it here.
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

impl Site {
    /// Its address.
    #[must_use]
    pub fn addr(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, u8::try_from(self.number).unwrap_or(u8::MAX), 2)
    }

    /// A program that runs `binary` there.
    pub(crate) fn script(&self, binary: &Path) -> String {
        format!("#!/bin/sh\nexec nsenter --net={} -- '{}' \"$@\"\n", self.view.display(), binary.display())
    }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().context(program)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Trouble::new(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
