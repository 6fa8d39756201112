//! The agent's configuration: as written, and as meant.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use p2psb_client::Endpoint;
use p2psb_client::config::{self, NetworkConfig};
use p2psb_proto::model::{Address, AddressKind, NetworkId};
use p2psb_rendezvous_svc::ServerConfig;
use p2psb_runtime::config::{Common, ConfigError, DrainConfig, MetricsConfig, Settings, TelemetryConfig};
use serde::{Deserialize, Serialize};

use crate::edge::EdgeConfig;

/// The configuration file in the data folder, used when no other is named.
pub const CONFIG_FILE: &str = "peer-agent.toml";

/// As written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where other peers connect.
    pub listen: SocketAddr,
    /// Keys, catalogue, control file. Unset: `p2psb` in the user's data folder.
    pub data_dir: Option<PathBuf>,
    /// Where others reach this agent, best first: endpoints without pins.
    pub advertise: Vec<Endpoint>,
    /// The rendezvous to register at.
    pub rendezvous: Vec<Endpoint>,
    /// The community.
    pub network: NetworkConfig,
    /// The user's own door.
    pub control: ControlConfig,
    /// A rendezvous inside the agent.
    pub edge: EdgeConfig,
    /// For operators.
    pub metrics: MetricsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// How it stops.
    pub drain: DrainConfig,
}

/// Section `control`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// Where the command line reaches the daemon: loopback.
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7430)),
            data_dir: None,
            advertise: Vec::new(),
            rendezvous: Vec::new(),
            network: NetworkConfig::default(),
            control: ControlConfig::default(),
            edge: EdgeConfig::default(),
            metrics: MetricsConfig::default(),
            telemetry: TelemetryConfig::default(),
            drain: DrainConfig::default(),
        }
    }
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7440)) }
    }
}

impl Config {
    /// The data folder: as written, else the user's.
    pub fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        let written = self.data_dir.clone().filter(|path| !path.as_os_str().is_empty());
        let folder = written.or_else(default_data_dir).ok_or_else(|| ConfigError::missing("data_dir"))?;
        // What the working directory is must not matter to what is kept for long.
        std::path::absolute(&folder).map_err(ConfigError::at("data_dir"))
    }
}

/// `p2psb` in the folder for data of this user.
fn default_data_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")))?;
    Some(base.join("p2psb"))
}

/// As meant.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where other peers connect.
    pub listen: SocketAddr,
    /// Where the command line connects: loopback.
    pub control: SocketAddr,
    /// Absolute.
    pub data_dir: PathBuf,
    /// Addresses that the user states.
    pub advertise: Vec<Address>,
    /// At least one.
    pub rendezvous: Vec<Endpoint>,
    /// The community.
    pub network: NetworkId,
    /// The rendezvous to run inside the agent, if there is to be one.
    pub edge: Option<ServerConfig>,
}

impl Settings for Config {
    type Meant = AgentConfig;

    fn common(&self) -> Common<'_> {
        Common { telemetry: &self.telemetry, metrics: &self.metrics, drain: &self.drain }
    }

    fn meant(self) -> Result<AgentConfig, ConfigError> {
        let data_dir = self.data_dir()?;
        if !self.control.listen.ip().is_loopback() {
            let problem = "must be a loopback address such as 127.0.0.1:7440: whoever reaches it and has the token is you";
            return Err(ConfigError::value("control.listen", problem));
        }
        if self.rendezvous.is_empty() {
            return Err(ConfigError::missing("rendezvous"));
        }
        let rendezvous = config::rendezvous(self.rendezvous).map_err(ConfigError::at("rendezvous"))?;
        if let Some(endpoint) = self.advertise.iter().find(|endpoint| endpoint.is_plaintext()) {
            let problem = format!("{endpoint}: peers are reached by https:// only");
            return Err(ConfigError::value("advertise", problem));
        }
        let advertise = config::advertise(&self.advertise, AddressKind::Mapped);
        let edge = self.edge.meant(&data_dir, &self.network, &rendezvous)?;
        Ok(AgentConfig {
            listen: self.listen,
            control: self.control.listen,
            data_dir,
            advertise: advertise.map_err(ConfigError::at("advertise"))?,
            rendezvous,
            network: self.network.meant().map_err(ConfigError::at("network.name"))?,
            edge,
        })
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::Genesis;

    use super::*;

    fn meant(change: impl FnOnce(&mut Config)) -> Result<AgentConfig, String> {
        let mut config = Config {
            data_dir: Some("/tmp/p2psb".into()),
            rendezvous: vec!["https://r.example.org:7400".parse().unwrap()],
            ..Config::default()
        };
        change(&mut config);
        config.meant().map_err(|error| error.to_string())
    }

    #[test]
    fn a_usual_configuration_is_understood() {
        let config =
            meant(|config| config.advertise = vec!["https://me.example.org:7430".parse().unwrap()]).unwrap();
        assert_eq!(config.advertise[0].to_string(), "me.example.org:7430 (mapped)");
        assert_eq!(config.network, Genesis::open("p2psb").unwrap().network_id());
    }

    #[test]
    fn a_rendezvous_inside_has_a_folder_of_its_own_and_is_there_only_if_it_is_wanted() {
        assert!(meant(|_| ()).unwrap().edge.is_none());
        let edge = meant(|config| config.edge.serve = true).unwrap().edge.unwrap();
        assert_eq!(edge.data_dir, std::path::Path::new("/tmp/p2psb/rendezvous"));
        assert_eq!(edge.listen, "0.0.0.0:7400".parse().unwrap());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        assert!(meant(|config| config.rendezvous.clear()).unwrap_err().contains("rendezvous"));
        let error = meant(|config| config.control.listen = "0.0.0.0:7440".parse().unwrap()).unwrap_err();
        assert!(error.contains("control.listen") && error.contains("loopback"));
        assert!(meant(|config| config.network.name = "A B".into()).unwrap_err().contains("network.name"));
        let error = meant(|config| config.advertise = vec!["http://me:1".parse().unwrap()]).unwrap_err();
        assert!(error.contains("https://"));
        let edge = |change: &dyn Fn(&mut EdgeConfig)| {
            meant(|config| {
                config.edge.serve = true;
                change(&mut config.edge);
            })
            .unwrap_err()
        };
        let endpoint = || -> Endpoint { "https://me.example.org:7400".parse().unwrap() };
        assert!(edge(&|edge| edge.advertise = vec![endpoint(); 17]).contains("`edge.advertise`"));
        assert!(edge(&|edge| edge.members = vec![endpoint(); 65]).contains("`edge.members`"));
    }
}
