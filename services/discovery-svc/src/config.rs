//! The configuration of `discovery-svc`: as written, and as meant.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use p2psb_client::{Endpoint, TlsConfig};
use p2psb_proto::model::{Address, AddressKind, Genesis, NetworkId};
use p2psb_runtime::ConfigError;
use p2psb_runtime::config::{Common, DrainConfig, MetricsConfig, TelemetryConfig};
use serde::{Deserialize, Serialize};

/// As written in file, variables and flags.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the identity and the certificate lie.
    pub data_dir: PathBuf,
    /// Where others reach this service; it goes into its record. Empty: the listening address.
    pub advertise: Vec<String>,
    /// Rendezvous to start from: `https://host:7400`, with `#peer1…` to pin who must answer.
    pub rendezvous: Vec<String>,
    /// The community.
    pub network: NetworkSettings,
    /// TLS of the listener.
    pub tls: TlsConfig,
    /// Endpoint for operators.
    pub metrics: MetricsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Stopping.
    pub drain: DrainConfig,
}

/// Section `network`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSettings {
    /// Name of the open network.
    pub name: String,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self { name: "p2psb".into() }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::UNSPECIFIED, 7410).into(),
            data_dir: "/var/lib/p2psb/discovery".into(),
            advertise: Vec::new(),
            rendezvous: Vec::new(),
            network: NetworkSettings::default(),
            tls: TlsConfig::default(),
            metrics: MetricsConfig::loopback(9410),
            telemetry: TelemetryConfig::default(),
            drain: DrainConfig::default(),
        }
    }
}

/// As meant.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the identity and the certificate lie.
    pub data_dir: PathBuf,
    /// Stated addresses.
    pub advertise: Vec<Address>,
    /// At least one.
    pub rendezvous: Vec<Endpoint>,
    /// The community.
    pub network: NetworkId,
    /// TLS of the listener.
    pub tls: TlsConfig,
}

impl p2psb_runtime::Settings for Settings {
    type Meant = Config;

    fn common(&self) -> Common<'_> {
        Common { telemetry: &self.telemetry, metrics: &self.metrics, drain: &self.drain }
    }

    fn meant(self) -> Result<Config, ConfigError> {
        let rendezvous = endpoints("rendezvous", &self.rendezvous)?;
        if rendezvous.is_empty() {
            return Err(ConfigError::value(
                "rendezvous",
                "names no rendezvous; set for example rendezvous = [\"https://rendezvous.example.org:7400\"]",
            ));
        }
        let advertise = endpoints("advertise", &self.advertise)?
            .iter()
            .map(|e| e.to_address(AddressKind::Listen))
            .collect::<Result<_, _>>()
            .map_err(|e| ConfigError::value("advertise", e.to_string()))?;
        let network = Genesis::open(&self.network.name)
            .map_err(|e| ConfigError::value("network.name", e.to_string()))?
            .network_id();
        Ok(Config {
            listen: self.listen,
            data_dir: self.data_dir,
            advertise,
            rendezvous,
            network,
            tls: self.tls,
        })
    }
}

fn endpoints(key: &str, texts: &[String]) -> Result<Vec<Endpoint>, ConfigError> {
    texts.iter().map(|t| t.parse::<Endpoint>().map_err(|e| ConfigError::value(key, e.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use p2psb_runtime::Settings as _;

    use super::*;

    #[test]
    fn without_a_rendezvous_it_says_so() {
        let error = Settings::default().meant().unwrap_err().to_string();
        assert!(error.contains("rendezvous"), "{error}");
    }

    #[test]
    fn an_endpoint_that_is_none_names_its_key() {
        let rendezvous = vec!["https://a.example:7400".to_owned()];
        let advertise = vec!["nonsense".to_owned()];
        let error =
            Settings { rendezvous, advertise, ..Settings::default() }.meant().unwrap_err().to_string();
        assert!(error.contains("advertise"), "{error}");
    }
}
