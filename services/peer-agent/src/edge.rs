//! The rendezvous inside the agent: the library of `rendezvous-svc`, run as an *edge* of the backbones that the agent uses. It serves the
//! machines around it and the agent's friends, and owns nothing.
//!
//! Promise: it is another one than the agent, with an identity and a folder of its own, and it stops after the agent has said goodbye
//! there. What it may take is bounded for a machine that is its user's, not its peers'.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use p2psb_client::config::{self, NetworkConfig};
use p2psb_client::{Endpoint, Locator, SessionKeeper};
use p2psb_proto::error::Reason;
use p2psb_proto::model::{PeerId, limits};
use p2psb_rendezvous_svc::config::{
    BridgeConfig, BridgeRole, Config as RendezvousConfig, DEFAULT_PORT, LimitsConfig, ServerConfig,
};
use p2psb_rendezvous_svc::server::{Look, Server, StartError};
use p2psb_runtime::serve::Http2Config;
use p2psb_runtime::status::{Component, State};
use p2psb_runtime::{ConfigError, Service as _, Settings as _, Status};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// How often it is looked at least whom others vouch for.
const LOOK: Duration = Duration::from_secs(60);

/// Its folder, in the agent's data folder.
const FOLDER: &str = "rendezvous";

/// Section `edge`, as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EdgeConfig {
    /// Whether the agent runs a rendezvous.
    pub serve: bool,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others reach it, best first.
    pub advertise: Vec<Endpoint>,
    /// Members of the backbones whose edge it is. Empty: the agent's own rendezvous.
    pub members: Vec<Endpoint>,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            serve: false,
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)),
            advertise: Vec::new(),
            members: Vec::new(),
        }
    }
}

impl EdgeConfig {
    /// As meant, for an agent with this folder, community and rendezvous; `None` if none is to be run.
    pub fn meant(
        self,
        data_dir: &Path,
        network: &NetworkConfig,
        rendezvous: &[Endpoint],
    ) -> Result<Option<ServerConfig>, ConfigError> {
        if !self.serve {
            return Ok(None);
        }
        let members = config::rendezvous(self.members).map_err(ConfigError::at("edge.members"))?;
        let members = if members.is_empty() { rendezvous.to_vec() } else { members };
        let config = RendezvousConfig {
            listen: self.listen,
            data_dir: data_dir.join(FOLDER),
            advertise: self.advertise,
            network: network.clone(),
            bridge: BridgeConfig {
                peers: members,
                role: BridgeRole::Edge,
                edges: false,
                ..BridgeConfig::default()
            },
            limits: capacity(),
            http2: http2(),
            ..RendezvousConfig::default()
        };
        config.meant().map(Some).map_err(named_as_here)
    }
}

/// What its peers may take of the machine.
fn capacity() -> LimitsConfig {
    LimitsConfig {
        sessions: 1000,
        sessions_per_ip: 128,
        sessions_per_prefix: 512,
        registrations: 1000,
        registrations_per_ip: 128,
        registrations_per_prefix: 512,
        records: 20_000,
        records_per_ip: 256,
        records_per_prefix: 1024,
        records_per_member: 10_000,
        services: 2000,
        services_per_ip: 128,
        services_per_prefix: 512,
        services_per_member: 1000,
        watched: 16_000,
        watched_per_ip: 4000,
        watched_per_prefix: 8000,
        watched_per_watcher: 2000,
        ..LimitsConfig::default()
    }
}

/// The same of connections.
fn http2() -> Http2Config {
    Http2Config {
        max_connections: 2048,
        connections_per_ip: 256,
        connections_per_prefix: 1024,
        waiting_bytes: 32 << 20,
        waiting_bytes_per_ip: 8 << 20,
        waiting_bytes_per_prefix: 16 << 20,
        ..Http2Config::default()
    }
}

/// The rendezvous names its own keys; the user wrote others.
fn named_as_here(error: ConfigError) -> ConfigError {
    match error {
        ConfigError::Value { key, origin, problem } => {
            let key = match key.as_str() {
                "advertise" => "edge.advertise".to_owned(),
                "bridge.peers" => "edge.members".to_owned(),
                _ => key,
            };
            ConfigError::Value { key, origin, problem }
        }
        other => other,
    }
}

/// Why the rendezvous inside the agent can't start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// Its port.
    #[error("edge.listen: {0}; if another rendezvous runs on this machine, choose another port")]
    Listen(std::io::Error),
    /// Anything else.
    #[error("the rendezvous inside the agent: {0}")]
    Start(StartError),
}

impl EdgeError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Listen(_) => Reason::ListenFailed,
            Self::Start(error) => error.reason(),
        }
    }
}

impl From<StartError> for EdgeError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Listen(error) => Self::Listen(error),
            error => Self::Start(error),
        }
    }
}

/// See the module.
pub struct Edge {
    server: Server,
}

/// What is shown of it.
#[derive(Clone)]
pub struct EdgeView {
    /// Its id.
    pub server: PeerId,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What changes.
    pub look: Look,
}

impl Edge {
    /// Starts it; returns once its socket listens.
    pub async fn bind(config: ServerConfig) -> Result<Self, EdgeError> {
        let server = Server::bind(config).await?;
        tracing::info!(addr = %server.addr(), id = %server.peer_id(), "the rendezvous inside the agent listens");
        Ok(Self { server })
    }

    /// How the agent itself comes to it.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        let mut addr = self.server.addr();
        if addr.ip().is_unspecified() {
            addr.set_ip(match addr.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Endpoint::at(addr).pinned(self.server.peer_id())
    }

    /// For whoever shows it.
    #[must_use]
    pub fn view(&self) -> EdgeView {
        EdgeView { server: self.server.peer_id(), listen: self.server.addr(), look: self.server.look() }
    }

    /// What it says of itself.
    #[must_use]
    pub fn status(&self) -> Status {
        self.server.status()
    }

    /// Resolves, with the reason, if it fails by itself.
    pub async fn failed(&mut self) -> String {
        self.server.failed().await
    }

    /// Its peers are told when to leave and where to go; who is left at the deadline is cut.
    pub async fn shutdown(self, deadline: Duration) {
        self.server.shutdown(deadline).await;
    }
}

/// Lets it vouch for whom the agent's own rendezvous vouch for: whoever comes to it, and to nobody else, relies on what its user does.
pub async fn vouch(edge: EdgeView, locator: Locator, sessions: Arc<SessionKeeper>, stop: CancellationToken) {
    let mut changes = sessions.changes();
    loop {
        tokio::select! {
            () = locator.refresh() => {}
            () = stop.cancelled() => return,
        }
        let vouchers = locator.rendezvous().into_iter().filter(|one| one.configured);
        let mut endorsed: Vec<_> = vouchers
            .filter_map(|one| one.record)
            .flat_map(|record| record.value().endorsements.clone())
            .collect();
        endorsed.sort_by(|a, b| (a.service.as_str(), a.peer).cmp(&(b.service.as_str(), b.peer)));
        endorsed.dedup();
        endorsed.truncate(limits::ENDORSEMENTS);
        edge.look.endorse(endorsed);
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            // Another session: there may be somebody to ask now.
            changed = changes.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// Says in the agent's status how its rendezvous is. Without it the agent still does what it is for.
pub async fn report(edge: Status, component: Component, stop: CancellationToken) {
    let mut states = edge.subscribe();
    loop {
        let state = states.borrow_and_update().clone();
        match state {
            State::Ready => component.ready(),
            State::Degraded(why) | State::NotReady(why) => component.degraded(why),
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}
