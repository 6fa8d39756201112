//! The machine that is measured on: which it is, which core does what, and what a process of it costs.
//!
//! Promise: a server that is started under [`Machine::as_server`] runs on one core, everything else of the measurement on
//! another one, if there are two.

use std::fs;
use std::time::Duration;

use p2psb_e2e::trouble::{Context as _, Result, Trouble};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores this process may use, and their roles.
#[derive(Debug)]
pub(crate) struct Machine {
    server: usize,
    clients: usize,
    cores: usize,
    /// All of them.
    allowed: CpuSet,
}

impl Machine {
    /// Chooses the cores and moves this process, and all it starts, to the one of the clients. Must be called before any
    /// other thread is started.
    pub(crate) fn take() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("asking for the cores of this process")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let server = cores.next().context("this process may run on no core")?;
        let clients = cores.next().unwrap_or(server);
        let machine = Self { server, clients, cores: allowed.count() as usize, allowed };
        pin(machine.clients)?;
        raise_descriptors()?;
        Ok(machine)
    }

    /// Until the value is dropped, what this thread starts is a server.
    pub(crate) fn as_server(&self) -> Result<AsServer> {
        pin(self.server)?;
        Ok(AsServer { clients: self.clients })
    }

    /// Runs something on all cores that this process may use: what computes, and serves nobody. A panic of it is an error.
    pub(crate) fn on_all_cores<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let allowed = self.allowed;
        let worker = move || {
            sched_setaffinity(None, &allowed).context("moving to all cores")?;
            Ok(work())
        };
        let ended = std::thread::scope(|scope| scope.spawn(worker).join());
        ended.unwrap_or_else(|_| {
            Err(Trouble::new("what was to be computed panicked; the reason stands above"))
        })
    }

    /// CPU, cores, kernel.
    pub(crate) fn name(&self) -> String {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let model = model.map_or("unknown CPU", |(_, name)| name.trim());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let shared = if self.server == self.clients { ", SHARED by server and clients" } else { "" };
        format!("{model}, {} cores{shared}, Linux {}", self.cores, kernel.trim())
    }

    /// Whether server and clients have a core each.
    pub(crate) const fn is_fit(&self) -> bool {
        self.server != self.clients
    }
}

/// See [`Machine::as_server`].
pub(crate) struct AsServer {
    clients: usize,
}

impl Drop for AsServer {
    fn drop(&mut self) {
        // It worked when the process began.
        let _ = pin(self.clients);
    }
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).context(format_args!("moving to core {core}"))
}

/// As many descriptors as the system lets this process have: thousands of connections need one each.
pub(crate) fn raise_descriptors() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raising the limit of files")
}

/// How many descriptors a process may have.
pub(crate) fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// The time that the threads of a process have spent on a core.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let tasks = format!("/proc/{pid}/task");
    let mut nanos = 0;
    for task in fs::read_dir(&tasks).context(&tasks)? {
        let path = task.context(&tasks)?.path().join("schedstat");
        // A thread may end between the two looks.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let spent = text.split_whitespace().next().and_then(|first| first.parse::<u64>().ok());
        nanos += spent.ok_or_else(|| Trouble::new(format!("{}: {text:?}", path.display())))?;
    }
    Ok(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_grows_while_it_works() {
        let before = cpu_time(std::process::id()).unwrap();
        let digest = (0..200_000_u32).fold([0; 32], |digest, n| {
            *blake3::Hasher::new().update(&digest).update(&n.to_le_bytes()).finalize().as_bytes()
        });
        assert_ne!(digest, [0; 32]);
        assert!(cpu_time(std::process::id()).unwrap() > before);
    }
}
