//! The configuration: [`Config`] as it is written, [`ServerConfig`] as it is meant.
//!
//! Promise: whoever holds a [`ServerConfig`] knows that its values fit together and that the files it names were readable.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use p2psb_client::config::{self, NetworkConfig};
use p2psb_client::{Endpoint, TlsConfig, TlsMode};
use p2psb_proto::model::peer::{Endorsement, ServiceOffer};
use p2psb_proto::model::{Address, AddressKind, NetworkId, PeerId, limits};
use p2psb_runtime::config::{Common, DrainConfig, MetricsConfig, TelemetryConfig};
use p2psb_runtime::serve::Http2Config;
use p2psb_runtime::{Clock, ConfigError, Settings};
use serde::{Deserialize, Serialize};

use crate::backbone::trust::{BridgeKey, Trust};
use crate::core::admission::Limits;
use crate::core::ledger::Shares;
use crate::core::members::Role;
use crate::core::placement::OPERATOR_ATTRIBUTE;
use crate::core::ring;
use crate::core::session::Timing;
use crate::core::watched::WatchedLimits;
use crate::own_record::parse_endorsement;

/// The port that everybody expects.
pub const DEFAULT_PORT: u16 = 7400;
/// The port for operators.
pub const DEFAULT_METRICS_PORT: u16 = 9400;
/// How many other members may be configured: to know one is enough.
const MAX_PEERS: usize = 64;
/// Heartbeats that make sense.
const HEARTBEATS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));
/// Intervals of snapshots that make sense.
const SNAPSHOTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));
/// Lifetimes of unary registrations that make sense.
const REGISTRATIONS: (Duration, Duration) = (Duration::from_secs(1), limits::RECORD_LIFETIME);

/// The configuration as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Identity, certificate, and whatever else must survive a restart.
    pub data_dir: PathBuf,
    /// Where others reach this server, best first.
    pub advertise: Vec<Endpoint>,
    /// Providers of reserved services that this operator vouches for: `service=peer1…`.
    pub endorse: Vec<String>,
    /// The same, one file each, named `service@anything`, that holds the id.
    pub endorse_dir: Option<PathBuf>,
    /// A proxy ends TLS in front of this server: nobody's address is known but by the word of `http2.proxies`.
    pub behind_proxy: bool,
    /// The community.
    pub network: NetworkConfig,
    /// How the listener speaks.
    pub tls: TlsConfig,
    /// The other members of the backbone.
    pub bridge: BridgeConfig,
    /// Whom this server dials.
    pub dial: DialConfig,
    /// Durations of sessions.
    pub session: SessionConfig,
    /// What outlives a restart.
    pub snapshot: SnapshotConfig,
    /// How many of everything.
    pub limits: LimitsConfig,
    /// HTTP/2.
    pub http2: Http2Config,
    /// The endpoint for operators.
    pub metrics: MetricsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// How to stop.
    pub drain: DrainConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)),
            data_dir: "/var/lib/p2psb/rendezvous".into(),
            advertise: Vec::new(),
            endorse: Vec::new(),
            endorse_dir: None,
            behind_proxy: false,
            network: NetworkConfig::default(),
            tls: TlsConfig::default(),
            bridge: BridgeConfig::default(),
            dial: DialConfig::default(),
            session: SessionConfig::default(),
            snapshot: SnapshotConfig::default(),
            limits: LimitsConfig::default(),
            http2: Http2Config::default(),
            metrics: MetricsConfig::loopback(DEFAULT_METRICS_PORT),
            telemetry: TelemetryConfig::default(),
            drain: DrainConfig::default(),
        }
    }
}

/// Section `bridge`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BridgeConfig {
    /// Other members; one is enough.
    pub peers: Vec<Endpoint>,
    /// The secret that all members share.
    pub key_file: Option<PathBuf>,
    /// Ids of members that need not know the secret.
    pub trust: Vec<String>,
    /// What this server is in its backbone: a member that owns its share, or an edge.
    pub role: BridgeRole,
    /// Let edges have links with this server: they need no proof of trust, and are bounded by limits.edges.
    pub edges: bool,
    /// Who runs this server: what it holds lies with another operator, too, where there is one. Empty: nobody else runs others.
    pub operator: String,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        let (peers, trust, operator) = (Vec::new(), Vec::new(), String::new());
        Self { peers, key_file: None, trust, role: BridgeRole::Member, edges: true, operator }
    }
}

/// Key `bridge.role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BridgeRole {
    /// Owns its share of what is known; members prove that they may be one.
    #[default]
    Member,
    /// Serves its own peers and owns nothing: it keeps links with up to three members, and needs no proof of trust.
    Edge,
}

/// Section `dial`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DialConfig {
    /// Dial private, loopback and link-local addresses that somebody else told, not only configured ones.
    pub allow_private: bool,
}

/// Section `session`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionConfig {
    /// How often a peer must be heard. After 2.5 of them in silence it is SUSPECT, one later OFFLINE.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long a unary registration counts.
    #[serde(with = "humantime_serde")]
    pub registration_ttl: Duration,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(30), registration_ttl: Duration::from_secs(300) }
    }
}

/// Section `snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotConfig {
    /// Write what is known into `data_dir` now and then, and start from it.
    pub enabled: bool,
    /// How often; a large one is written less often.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { enabled: true, interval: Duration::from_secs(30) }
    }
}

/// Section `limits`. An `ip` is an IPv4 address or an IPv6 /64, a `prefix` an IPv4 /24 or an IPv6 /48.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Sessions.
    pub sessions: usize,
    /// Sessions from one ip.
    pub sessions_per_ip: usize,
    /// Sessions from one prefix.
    pub sessions_per_prefix: usize,
    /// Unary registrations.
    pub registrations: usize,
    /// Unary registrations from one ip.
    pub registrations_per_ip: usize,
    /// Unary registrations from one prefix.
    pub registrations_per_prefix: usize,
    /// Peers of whom a record or withdrawal is kept, also after their sessions.
    pub records: usize,
    /// Those brought by peers from one ip.
    pub records_per_ip: usize,
    /// Those brought by peers from one prefix.
    pub records_per_prefix: usize,
    /// Those brought by one member of the backbone.
    pub records_per_member: usize,
    /// Edges with a link.
    pub edges: usize,
    /// Edges from one ip.
    pub edges_per_ip: usize,
    /// Edges from one prefix.
    pub edges_per_prefix: usize,
    /// Names of services that are known.
    pub services: usize,
    /// Those brought by peers from one ip.
    pub services_per_ip: usize,
    /// Those brought by peers from one prefix.
    pub services_per_prefix: usize,
    /// Those brought by one member of the backbone.
    pub services_per_member: usize,
    /// Peers that are watched, each counted as often as it is.
    pub watched: usize,
    /// Those watched from one ip.
    pub watched_per_ip: usize,
    /// Those watched from one prefix.
    pub watched_per_prefix: usize,
    /// Those watched by one watcher.
    pub watched_per_watcher: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            sessions: 10_000,
            sessions_per_ip: 512,
            sessions_per_prefix: 2048,
            registrations: 100_000,
            registrations_per_ip: 1024,
            registrations_per_prefix: 8192,
            records: 1_000_000,
            records_per_ip: 4096,
            records_per_prefix: 16_384,
            records_per_member: 500_000,
            edges: 64,
            edges_per_ip: 8,
            edges_per_prefix: 32,
            services: 100_000,
            services_per_ip: 1024,
            services_per_prefix: 4096,
            services_per_member: 50_000,
            watched: 1_000_000,
            watched_per_ip: 100_000,
            watched_per_prefix: 200_000,
            watched_per_watcher: 50_000,
        }
    }
}

impl LimitsConfig {
    fn check(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("sessions", self.sessions),
            ("sessions_per_ip", self.sessions_per_ip),
            ("sessions_per_prefix", self.sessions_per_prefix),
            ("registrations", self.registrations),
            ("registrations_per_ip", self.registrations_per_ip),
            ("registrations_per_prefix", self.registrations_per_prefix),
            ("records", self.records),
            ("records_per_ip", self.records_per_ip),
            ("records_per_prefix", self.records_per_prefix),
            ("records_per_member", self.records_per_member),
            ("edges", self.edges),
            ("edges_per_ip", self.edges_per_ip),
            ("edges_per_prefix", self.edges_per_prefix),
            ("services", self.services),
            ("services_per_ip", self.services_per_ip),
            ("services_per_prefix", self.services_per_prefix),
            ("services_per_member", self.services_per_member),
            ("watched", self.watched),
            ("watched_per_ip", self.watched_per_ip),
            ("watched_per_prefix", self.watched_per_prefix),
            ("watched_per_watcher", self.watched_per_watcher),
        ] {
            if value == 0 {
                return Err(ConfigError::value(format!("limits.{key}"), "must be at least 1"));
            }
        }
        Ok(())
    }

    /// Of sessions.
    #[must_use]
    pub const fn of_sessions(&self) -> Limits {
        Limits {
            total: (self.sessions, "limits.sessions"),
            per_ip: (self.sessions_per_ip, "limits.sessions_per_ip"),
            per_prefix: (self.sessions_per_prefix, "limits.sessions_per_prefix"),
        }
    }

    /// Of unary registrations.
    #[must_use]
    pub const fn of_registrations(&self) -> Limits {
        Limits {
            total: (self.registrations, "limits.registrations"),
            per_ip: (self.registrations_per_ip, "limits.registrations_per_ip"),
            per_prefix: (self.registrations_per_prefix, "limits.registrations_per_prefix"),
        }
    }
}

impl LimitsConfig {
    /// Of edges.
    #[must_use]
    pub const fn of_edges(&self) -> Limits {
        Limits {
            total: (self.edges, "limits.edges"),
            per_ip: (self.edges_per_ip, "limits.edges_per_ip"),
            per_prefix: (self.edges_per_prefix, "limits.edges_per_prefix"),
        }
    }

    /// Of records.
    #[must_use]
    pub const fn of_records(&self) -> Shares {
        Shares {
            peers: Limits {
                total: (self.records, "limits.records"),
                per_ip: (self.records_per_ip, "limits.records_per_ip"),
                per_prefix: (self.records_per_prefix, "limits.records_per_prefix"),
            },
            per_member: (self.records_per_member, "limits.records_per_member"),
        }
    }

    /// Of names of services.
    #[must_use]
    pub const fn of_services(&self) -> Shares {
        Shares {
            peers: Limits {
                total: (self.services, "limits.services"),
                per_ip: (self.services_per_ip, "limits.services_per_ip"),
                per_prefix: (self.services_per_prefix, "limits.services_per_prefix"),
            },
            per_member: (self.services_per_member, "limits.services_per_member"),
        }
    }

    /// Of watched peers.
    #[must_use]
    pub const fn of_watched(&self) -> WatchedLimits {
        WatchedLimits {
            sources: Limits {
                total: (self.watched, "limits.watched"),
                per_ip: (self.watched_per_ip, "limits.watched_per_ip"),
                per_prefix: (self.watched_per_prefix, "limits.watched_per_prefix"),
            },
            per_watcher: (self.watched_per_watcher, "limits.watched_per_watcher"),
        }
    }
}

/// The configuration as meant.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Identity and certificate.
    pub data_dir: PathBuf,
    /// Where others reach this server; empty: where it listens.
    pub advertise: Vec<Address>,
    /// Configured endorsements.
    pub endorse: Vec<Endorsement>,
    /// Where more of them lie.
    pub endorse_dir: Option<PathBuf>,
    /// Nobody's address is known.
    pub behind_proxy: bool,
    /// The community.
    pub network: NetworkId,
    /// How the listener speaks.
    pub tls: TlsConfig,
    /// What this server is in its backbone.
    pub role: Role,
    /// Edges may have links with it.
    pub takes_edges: bool,
    /// Other members to dial.
    pub bridge_peers: Vec<Endpoint>,
    /// Who may bridge; `None`: nobody.
    pub trust: Option<Trust>,
    /// Who runs this server, if that was said.
    pub operator: Option<String>,
    /// Dial private addresses that somebody else told.
    pub allow_private: bool,
    /// Durations of sessions.
    pub timing: Timing,
    /// How often a snapshot is written; `None`: never, and none is read.
    pub snapshot: Option<Duration>,
    /// How many of everything.
    pub limits: LimitsConfig,
    /// HTTP/2.
    pub http2: Http2Config,
    /// How long members take to join the ring and to leave it. One backbone has one: no key of the file, so only tests change it.
    pub ring: ring::Timing,
    /// Where the time comes from; tests move it.
    pub clock: Clock,
}

impl Settings for Config {
    type Meant = ServerConfig;

    fn common(&self) -> Common<'_> {
        Common { telemetry: &self.telemetry, metrics: &self.metrics, drain: &self.drain }
    }

    fn meant(self) -> Result<ServerConfig, ConfigError> {
        self.limits.check()?;
        self.http2.check("http2")?;
        within("session.heartbeat", self.session.heartbeat, HEARTBEATS)?;
        within("session.registration_ttl", self.session.registration_ttl, REGISTRATIONS)?;
        within("snapshot.interval", self.snapshot.interval, SNAPSHOTS)?;
        check_tls(&self)?;
        if let Some(pinned) = self.advertise.iter().find(|endpoint| endpoint.pin().is_some()) {
            let problem =
                format!("{pinned} names an id behind `#`; leave it out, the record is this server's");
            return Err(ConfigError::value("advertise", problem));
        }
        let advertise =
            config::advertise(&self.advertise, AddressKind::Listen).map_err(ConfigError::at("advertise"))?;
        let network = self.network.meant().map_err(ConfigError::at("network.name"))?;
        let trust = trust(&self.bridge)?;
        Ok(ServerConfig {
            listen: self.listen,
            data_dir: self.data_dir,
            advertise,
            endorse: endorsements(&self.endorse)?,
            endorse_dir: directory("endorse_dir", self.endorse_dir)?,
            behind_proxy: self.behind_proxy,
            network,
            tls: self.tls,
            role: match self.bridge.role {
                BridgeRole::Member => Role::Member,
                BridgeRole::Edge => Role::Edge,
            },
            takes_edges: self.bridge.edges,
            bridge_peers: self.bridge.peers,
            trust,
            operator: operator(&self.bridge.operator)?,
            allow_private: self.dial.allow_private,
            timing: Timing { heartbeat: self.session.heartbeat, registration: self.session.registration_ttl },
            snapshot: self.snapshot.enabled.then_some(self.snapshot.interval),
            limits: self.limits,
            http2: self.http2,
            ring: ring::Timing::default(),
            clock: Clock::system(),
        })
    }
}

fn within(key: &str, value: Duration, (least, most): (Duration, Duration)) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::value(key, format!("{value:?} is not between {least:?} and {most:?}")))
}

fn check_tls(config: &Config) -> Result<(), ConfigError> {
    if config.behind_proxy && config.tls.mode != TlsMode::Plaintext {
        let problem = "a proxy that ends TLS needs tls.mode = \"plaintext\" behind it";
        return Err(ConfigError::value("behind_proxy", problem));
    }
    let files = [("tls.cert_file", &config.tls.cert_file), ("tls.key_file", &config.tls.key_file)];
    for (key, file) in files {
        match (config.tls.mode, file) {
            (TlsMode::Pem, None) => return Err(ConfigError::missing(key)),
            (TlsMode::Pem, Some(file)) if !file.is_file() => {
                return Err(ConfigError::value(key, format!("there is no file {}", file.display())));
            }
            _ => {}
        }
    }
    Ok(())
}

fn directory(key: &str, path: Option<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
    match path {
        Some(path) if !path.is_dir() => {
            Err(ConfigError::value(key, format!("there is no folder {}", path.display())))
        }
        path => Ok(path),
    }
}

fn endorsements(written: &[String]) -> Result<Vec<Endorsement>, ConfigError> {
    let parse = |text: &String| {
        let (service, peer) = text.split_once('=').ok_or_else(|| {
            ConfigError::value("endorse", format!("{text:?} is not written as service=peer1…"))
        })?;
        parse_endorsement(service, peer)
            .map_err(|problem| ConfigError::value("endorse", format!("{text:?}: {problem}")))
    };
    written.iter().map(parse).collect()
}

fn trust(bridge: &BridgeConfig) -> Result<Option<Trust>, ConfigError> {
    if bridge.peers.len() > MAX_PEERS {
        let problem = format!("at most {MAX_PEERS} are allowed; to know one member is enough");
        return Err(ConfigError::value("bridge.peers", problem));
    }
    if bridge.role == BridgeRole::Edge {
        return edge(bridge);
    }
    let key = bridge.key_file.as_ref().map(|file| BridgeKey::load(file)).transpose();
    let key = key.map_err(ConfigError::at("bridge.key_file"))?;
    let parse = |text: &String| PeerId::from_str(text).map_err(ConfigError::at("bridge.trust"));
    let ids: HashSet<PeerId> = bridge.trust.iter().map(parse).collect::<Result<_, _>>()?;
    if key.is_some() || !ids.is_empty() {
        return Ok(Some(Trust::new(key, ids)));
    }
    if bridge.peers.is_empty() {
        return Ok(None);
    }
    let problem = "others are to be bridged with, but neither bridge.key_file nor bridge.trust says who may";
    Err(ConfigError::value("bridge.peers", problem))
}

/// An edge proves nothing, and needs somebody to have links with.
fn edge(bridge: &BridgeConfig) -> Result<Option<Trust>, ConfigError> {
    for (key, is_set) in
        [("bridge.key_file", bridge.key_file.is_some()), ("bridge.trust", !bridge.trust.is_empty())]
    {
        if is_set {
            let problem = "an edge neither proves nor demands a right to bridge; leave it out, or set bridge.role = \"member\"";
            return Err(ConfigError::value(key, problem));
        }
    }
    if bridge.peers.is_empty() {
        return Err(ConfigError::missing("bridge.peers"));
    }
    Ok(None)
}

fn operator(name: &str) -> Result<Option<String>, ConfigError> {
    if name.len() > limits::ATTRIBUTE_VALUE_BYTES {
        let problem = format!("a name has at most {} bytes", limits::ATTRIBUTE_VALUE_BYTES);
        return Err(ConfigError::value("bridge.operator", problem));
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

/// The service that every rendezvous offers, with whom it is run by.
pub(crate) fn own_service(
    operator: Option<&str>,
) -> Result<ServiceOffer, p2psb_proto::model::name::NameError> {
    let mut offer = ServiceOffer::new(crate::core::own::SERVICE.parse()?);
    offer.attributes.extend(operator.map(|name| (OPERATOR_ATTRIBUTE.to_owned(), name.to_owned())));
    Ok(offer)
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::Genesis;

    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.meant().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_right() {
        let meant = Config::default().meant().unwrap();
        assert_eq!(meant.listen.port(), 7400);
        assert_eq!(meant.network, Genesis::open("p2psb").unwrap().network_id());
        assert!(meant.trust.is_none() && meant.bridge_peers.is_empty());
    }

    #[test]
    fn what_does_not_fit_together_names_its_key() {
        let endpoint: Endpoint = "https://r2.example:7400".parse().unwrap();
        let pinned = endpoint.clone().pinned(crate::core::testing::peer(1));
        for (key, error) in [
            ("bridge.peers", refused(|c| c.bridge.peers = vec![endpoint.clone()])),
            ("bridge.peers", refused(|c| c.bridge.peers = vec![endpoint.clone(); 65])),
            ("bridge.trust", refused(|c| c.bridge.trust = vec!["peer1x".into()])),
            ("bridge.key_file", refused(|c| c.bridge.key_file = Some("/nowhere/key".into()))),
            ("advertise", refused(|c| c.advertise = vec![pinned])),
            ("advertise", refused(|c| c.advertise = vec![endpoint.clone(); 17])),
            ("advertise", refused(|c| c.advertise = vec!["https://a..b:1".parse().unwrap()])),
            ("endorse", refused(|c| c.endorse = vec!["p2psb.discovery".into()])),
            ("endorse", refused(|c| c.endorse = vec!["chat=peer1x".into()])),
            ("endorse_dir", refused(|c| c.endorse_dir = Some("/nowhere".into()))),
            ("network.name", refused(|c| c.network.name = "A b".into())),
            ("session.heartbeat", refused(|c| c.session.heartbeat = Duration::ZERO)),
            ("session.registration_ttl", refused(|c| c.session.registration_ttl = Duration::from_secs(9999))),
            ("snapshot.interval", refused(|c| c.snapshot.interval = Duration::ZERO)),
            ("limits.records", refused(|c| c.limits.records = 0)),
            ("limits.watched_per_watcher", refused(|c| c.limits.watched_per_watcher = 0)),
            ("behind_proxy", refused(|c| c.behind_proxy = true)),
            ("tls.cert_file", refused(|c| c.tls.mode = TlsMode::Pem)),
        ] {
            assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
        }
    }
}
