//! A backbone with its services and agents, each a real process, in one temporary folder.
//!
//! Ports are chosen by the system and read from the logs; a service that is restarted listens where it did before, and nobody
//! else is given that port meanwhile.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use p2psb_client::{Endpoint, Identity};
use p2psb_proto::model::PeerId;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use toml::{Table, Value};

use crate::agent::Agent;
use crate::binaries::{Binaries, Program};
use crate::disk::SmallDisk;
use crate::network::Site;
use crate::process::Process;
use crate::trouble::{Context as _, Result, Trouble};

/// Where a service listens before it is known where.
const ANY_PORT: &str = "127.0.0.1:0";

/// What a cluster shall consist of.
#[derive(Clone, Debug)]
pub struct Plan {
    prefix: String,
    rendezvous: usize,
    bridged: bool,
    discovery: bool,
    indexes: usize,
    plaintext: bool,
    agents: Vec<String>,
    settings: Vec<(String, Value)>,
    sites: Vec<Site>,
}

/// A cluster that runs. Dropping it ends every process and removes the folder.
#[derive(Debug)]
pub struct Cluster {
    /// `r1`, `r2`, …
    pub rendezvous: Vec<Service>,
    /// `discovery`, if planned.
    pub discovery: Option<Service>,
    /// `index`, if planned.
    pub index: Option<Service>,
    /// `index2` and further ones, if planned.
    pub more_indexes: Vec<Service>,
    /// By the names of the plan.
    pub agents: Vec<Service>,
    binaries: Binaries,
    // Last: processes end before their folder goes.
    dir: TempDir,
}

/// One service of a cluster, running or not.
#[derive(Debug)]
pub struct Service {
    /// Its name within the cluster.
    pub name: String,
    /// Which program it is.
    pub program: Program,
    /// Its configuration as it is written when it starts.
    pub settings: Table,
    /// What it is started with beside its configuration.
    pub flags: Vec<String>,
    binary: PathBuf,
    home: PathBuf,
    addr: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    process: Option<Process>,
    user: Option<u32>,
    /// Keeps its port from everybody else while it does not run.
    held: Option<TcpSocket>,
}

impl Cluster {
    /// One rendezvous, discovery, index, no agents: what most tests begin with.
    #[must_use]
    pub fn plan() -> Plan {
        Plan {
            prefix: "p2psb-test-".into(),
            rendezvous: 1,
            bridged: true,
            discovery: true,
            indexes: 1,
            plaintext: false,
            agents: Vec::new(),
            settings: Vec::new(),
            sites: Vec::new(),
        }
    }

    /// The temporary folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The programs it is made of.
    #[must_use]
    pub const fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The command line of an agent.
    pub fn agent(&self, name: &str) -> Result<Agent> {
        self.agents.iter().find(|a| a.name == name).map(Service::cli).context(format_args!("no agent {name}"))
    }

    /// The process of an agent.
    pub fn agent_service(&mut self, name: &str) -> Result<&mut Service> {
        self.agents.iter_mut().find(|a| a.name == name).context(format_args!("no agent {name}"))
    }

    /// A service of this cluster that is not part of it yet: an agent more.
    pub fn new_agent(&self, name: &str) -> Service {
        let mut agent = self.service(name, Program::Agent);
        agent.set("rendezvous", endpoints(&self.rendezvous));
        agent.set("control.listen", ANY_PORT);
        agent
    }

    /// Makes an agent's keys, starts it, and makes it part of this cluster.
    pub async fn start_agent(&mut self, agent: Service) -> Result<Agent> {
        self.start_agent_changed(agent, |_| Ok(())).await
    }

    /// The same, with a change between the keys and the start: another user, another disk.
    pub async fn start_agent_changed(
        &mut self,
        mut agent: Service,
        change: impl FnOnce(&mut Service) -> Result<()>,
    ) -> Result<Agent> {
        agent.write_config()?;
        agent.cli().ok(&["init"]).await?;
        change(&mut agent)?;
        let cli = agent.cli();
        self.agents.push(agent.started().await?);
        Ok(cli)
    }

    /// How all rendezvous are dialed, for peers of the harness.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>> {
        self.rendezvous.iter().map(Service::dialed).collect()
    }

    /// Every service, in the order in which they were started.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        let indexes = self.index.iter().chain(&self.more_indexes);
        self.rendezvous.iter().chain(&self.discovery).chain(indexes).chain(&self.agents)
    }

    /// Stops everything in order: agents first, rendezvous last. Says what did not stop by itself.
    pub async fn stop(mut self) -> Result<()> {
        let (discovery, index) = (self.discovery.take(), self.index.take());
        let stages = [
            std::mem::take(&mut self.agents),
            discovery.into_iter().chain(index).chain(std::mem::take(&mut self.more_indexes)).collect(),
            std::mem::take(&mut self.rendezvous),
        ];
        let mut troubles = Vec::new();
        for mut stage in stages {
            let stops = stage.iter_mut().map(Service::stop);
            let ended = futures::future::join_all(stops).await;
            troubles.extend(ended.into_iter().filter_map(Result::err).map(|t| t.to_string()));
        }
        if troubles.is_empty() { Ok(()) } else { Err(Trouble::new(troubles.join("\n"))) }
    }

    fn service(&self, name: &str, program: Program) -> Service {
        let home = self.dir.path().join(name);
        let mut service = Service {
            name: name.to_owned(),
            program,
            settings: Table::new(),
            flags: Vec::new(),
            binary: self.binaries.path(program),
            addr: None,
            metrics: None,
            process: None,
            user: None,
            held: None,
            home,
        };
        service.set("listen", ANY_PORT);
        service.set("data_dir", service.data_dir().display().to_string());
        service.set("network.name", crate::peer::NETWORK);
        service.set("metrics.listen", ANY_PORT);
        service.set("telemetry.log.format", "json");
        service
    }
}

impl Plan {
    /// How the name of the temporary folder begins.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// So many rendezvous, bridged with each other.
    #[must_use]
    pub fn rendezvous(mut self, count: usize) -> Self {
        self.rendezvous = count;
        self
    }

    /// Rendezvous that know nothing of each other: backbones of their own.
    #[must_use]
    pub fn unbridged(mut self) -> Self {
        self.bridged = false;
        self
    }

    /// Without discovery and index.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.discovery = false;
        self.indexes = 0;
        self
    }

    /// So many package indexes, which know nothing of each other.
    #[must_use]
    pub fn indexes(mut self, count: usize) -> Self {
        self.indexes = count;
        self
    }

    /// Services without TLS.
    #[must_use]
    pub fn plaintext(mut self) -> Self {
        self.plaintext = true;
        self
    }

    /// An agent of this name more.
    #[must_use]
    pub fn agent(mut self, name: &str) -> Self {
        self.agents.push(name.into());
        self
    }

    /// Sets a key in the configuration of every rendezvous.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// The rendezvous in turn at these sites, instead of all at this one.
    #[must_use]
    pub fn at(mut self, sites: &[Site]) -> Self {
        self.sites = sites.to_vec();
        self
    }

    /// Builds the programs, makes keys and configurations, starts everything and waits until it listens.
    pub async fn start(self) -> Result<Cluster> {
        let binaries =
            tokio::task::spawn_blocking(Binaries::build).await.context("building the programs")??;
        let dir =
            tempfile::Builder::new().prefix(&self.prefix).tempdir().context("making a temporary folder")?;
        let mut cluster = Cluster {
            rendezvous: Vec::new(),
            discovery: None,
            index: None,
            more_indexes: Vec::new(),
            agents: Vec::new(),
            binaries,
            dir,
        };
        self.make_keys(&cluster).await?;
        for number in 1..=self.rendezvous {
            let service = self.rendezvous_service(&cluster, number)?;
            cluster.rendezvous.push(service.started().await?);
        }
        let provider = |name: &str, program| {
            let mut service = cluster.service(name, program);
            service.set("rendezvous", endpoints(&cluster.rendezvous));
            self.transport(&mut service);
            service
        };
        let discovery = self.discovery.then(|| provider("discovery", Program::Discovery));
        let indexes: Vec<_> = self.index_names().map(|name| provider(&name, Program::Index)).collect();
        if let Some(service) = discovery {
            cluster.discovery = Some(service.started().await?);
        }
        for service in indexes {
            let service = service.started().await?;
            match cluster.index {
                None => cluster.index = Some(service),
                Some(_) => cluster.more_indexes.push(service),
            }
        }
        for name in &self.agents {
            let agent = cluster.new_agent(name);
            cluster.start_agent(agent).await?;
        }
        Ok(cluster)
    }

    /// The bridge key, every identity and the endorsements, by the program's own verb.
    async fn make_keys(&self, cluster: &Cluster) -> Result<()> {
        let dir = cluster.dir().display();
        let mut args = vec!["init-backbone".to_owned(), format!("--shared={dir}/shared")];
        args.extend((1..=self.rendezvous).map(|n| format!("--member=r{n}={dir}/r{n}/data")));
        if self.discovery {
            args.push(format!("--provider=p2psb.discovery={dir}/discovery/data"));
        }
        args.extend(
            self.index_names().map(|name| format!("--provider=p2psb.package-index={dir}/{name}/data")),
        );
        let mut command = tokio::process::Command::new(cluster.binaries.path(Program::Rendezvous));
        crate::process::clean_environment(&mut command);
        let output = command.args(&args).output().await.context("init-backbone")?;
        if output.status.success() {
            return Ok(());
        }
        Err(Trouble::new(format!("init-backbone: {}", String::from_utf8_lossy(&output.stderr))))
    }

    fn index_names(&self) -> impl Iterator<Item = String> {
        (1..=self.indexes).map(|n| if n == 1 { "index".to_owned() } else { format!("index{n}") })
    }

    fn transport(&self, service: &mut Service) {
        if self.plaintext {
            service.set("tls.mode", "plaintext");
        }
    }

    fn rendezvous_service(&self, cluster: &Cluster, number: usize) -> Result<Service> {
        let shared = cluster.dir().join("shared");
        let mut service = cluster.service(&format!("r{number}"), Program::Rendezvous);
        service.set("endorse_dir", shared.join("endorse").display().to_string());
        service.set("dial.allow_private", true);
        self.transport(&mut service);
        if self.bridged {
            service.set("bridge.key_file", shared.join("bridge.key").display().to_string());
            service.set("bridge.peers", endpoints(&cluster.rendezvous));
        }
        for (key, value) in &self.settings {
            service.set(key, value.clone());
        }
        if let Some(site) = self.sites.get(number - 1) {
            service.run_at(site)?;
        }
        Ok(service)
    }
}

/// Gives a folder and all in it to a user.
fn give(path: &Path, user: u32) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(user), Some(user)).context(path.display())?;
    if !path.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(path).context(path.display())? {
        give(&entry.context(path.display())?.path(), user)?;
    }
    Ok(())
}

fn endpoints(services: &[Service]) -> Value {
    Value::Array(services.iter().map(|s| Value::String(s.endpoint())).collect())
}

impl Service {
    /// Sets a key of its configuration, `section.key`; it holds from the next start on.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let mut table = &mut self.settings;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                table.insert(part.to_owned(), value.into());
                return;
            }
            let below = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(below) = below else { return };
            table = below;
        }
    }

    /// Where it keeps its state.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.home.join("config.toml")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Where it listens, or did before it was stopped.
    pub fn addr(&self) -> Result<SocketAddr> {
        self.addr.context(format_args!("{} never listened", self.name))
    }

    /// Where it answers its operator.
    pub fn metrics(&self) -> Result<SocketAddr> {
        self.metrics.context(format_args!("{} never listened", self.name))
    }

    /// A figure that it shows its operator.
    pub async fn figure(&self, name: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(self.metrics()?).await.context(&self.name)?;
        let request = b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.context(&self.name)?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.context(&self.name)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.context(format_args!("{} shows no {name}", self.name))?;
        value.trim().parse().context(name)
    }

    /// How others name it: `https://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let plaintext = self.settings.get("tls").and_then(|t| t.get("mode")?.as_str()) == Some("plaintext");
        let scheme = if plaintext { "http" } else { "https" };
        self.addr.map_or_else(String::new, |addr| format!("{scheme}://{addr}"))
    }

    /// The same for the SDK, with the id that must answer.
    pub fn dialed(&self) -> Result<Endpoint> {
        let endpoint: Endpoint = self.endpoint().parse().context(&self.name)?;
        Ok(endpoint.pinned(self.peer_id()?))
    }

    /// Runs it as another user from its next start on; what it has so far becomes that user's.
    pub fn run_as(&mut self, user: u32) -> Result<()> {
        let binary = self.home.join(self.program.name());
        std::fs::copy(&self.binary, &binary).context(binary.display())?;
        self.binary = binary;
        self.user = Some(user);
        give(&self.home, user)
    }

    /// Runs it from its next start on, and its command line from now on, where this disk is there.
    pub fn run_on(&mut self, disk: &SmallDisk) -> Result<()> {
        self.run_by("on-small-disk", &disk.script(&self.binary))
    }

    /// Runs it from its next start on at this site of a network.
    pub fn run_at(&mut self, site: &Site) -> Result<()> {
        let any_port = format!("{}:0", site.addr());
        self.set("listen", any_port.as_str());
        self.set("metrics.listen", any_port);
        self.run_by("at-its-site", &site.script(&self.binary))
    }

    fn run_by(&mut self, name: &str, script: &str) -> Result<()> {
        std::fs::create_dir_all(&self.home).context(self.home.display())?;
        let at = self.home.join(name);
        std::fs::write(&at, script).context(at.display())?;
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&at, executable).context(at.display())?;
        self.binary = at;
        Ok(())
    }

    /// Its id, from its key.
    pub fn peer_id(&self) -> Result<PeerId> {
        let identity = Identity::load(&self.data_dir()).context(&self.name)?;
        Ok(identity.peer_id())
    }

    /// The process, if it runs.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context(format_args!("{} does not run", self.name))
    }

    /// The process' id, if it was started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The command line of this program with this configuration.
    #[must_use]
    pub fn cli(&self) -> Agent {
        Agent::new(self.binary.clone(), self.config())
    }

    /// Writes the configuration file.
    pub fn write_config(&self) -> Result<()> {
        std::fs::create_dir_all(&self.home).context(self.home.display())?;
        let text = toml::to_string(&self.settings).context("writing a configuration")?;
        std::fs::write(self.config(), text).context(self.config().display())
    }

    /// Starts it and waits until it listens.
    pub async fn start(&mut self) -> Result<()> {
        self.write_config()?;
        let config = self.config().display().to_string();
        let mut args = vec!["--config", &config];
        if self.program == Program::Agent {
            args.push("run");
        }
        args.extend(self.flags.iter().map(String::as_str));
        let mut process = Process::start(&self.name, &self.binary, &args, &self.log(), self.user)?;
        let addr = process.addr("listening").await?;
        self.metrics = Some(process.addr("metrics listening").await?);
        self.addr = Some(addr);
        // From now on it is known by this address.
        self.set("listen", addr.to_string());
        self.process = Some(process);
        self.held = None;
        Ok(())
    }

    /// Binds the port it had, without listening: whoever dials it is refused, and nobody is given it. On Linux the service
    /// can have it back all the same, as both may reuse it; elsewhere the port is left to luck.
    fn hold(&mut self) {
        let held = |addr| {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(addr).map(|()| socket)
        };
        self.held = self.addr.filter(|_| cfg!(target_os = "linux")).and_then(|addr| held(addr).ok());
    }

    async fn started(mut self) -> Result<Self> {
        self.start().await?;
        Ok(self)
    }

    /// Asks it to stop and waits for its end. What does not run is stopped already.
    pub async fn stop(&mut self) -> Result<Option<ExitStatus>> {
        match self.process.take() {
            None => Ok(None),
            Some(mut process) => {
                let status = process.stop().await?;
                self.hold();
                Ok(Some(status))
            }
        }
    }

    /// `kill -9`.
    pub async fn kill(&mut self) -> Result<()> {
        self.process()?.kill().await?;
        self.process = None;
        self.hold();
        Ok(())
    }
}
