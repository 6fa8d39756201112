//! The configuration of `discovery-svc`: as written, and as meant.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use p2psb_client::config::{self, NetworkConfig};
use p2psb_client::{Endpoint, TlsConfig};
use p2psb_proto::model::{Address, AddressKind, NetworkId};
use p2psb_runtime::ConfigError;
use p2psb_runtime::config::{Common, DrainConfig, MetricsConfig, TelemetryConfig};
use p2psb_runtime::serve::Http2Config;
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
    pub advertise: Vec<Endpoint>,
    /// Rendezvous to start from: `https://host:7400`, with `#peer1…` to pin who must answer.
    pub rendezvous: Vec<Endpoint>,
    /// The community.
    pub network: NetworkConfig,
    /// TLS of the listener.
    pub tls: TlsConfig,
    /// HTTP/2.
    pub http2: Http2Config,
    /// Endpoint for operators.
    pub metrics: MetricsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Stopping.
    pub drain: DrainConfig,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::UNSPECIFIED, 7410).into(),
            data_dir: "/var/lib/p2psb/discovery".into(),
            advertise: Vec::new(),
            rendezvous: Vec::new(),
            network: NetworkConfig::default(),
            tls: TlsConfig::default(),
            http2: Http2Config::default(),
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
    /// HTTP/2.
    pub http2: Http2Config,
}

impl p2psb_runtime::Settings for Settings {
    type Meant = Config;

    fn common(&self) -> Common<'_> {
        Common { telemetry: &self.telemetry, metrics: &self.metrics, drain: &self.drain }
    }

    fn meant(self) -> Result<Config, ConfigError> {
        if self.rendezvous.is_empty() {
            return Err(ConfigError::value(
                "rendezvous",
                "names no rendezvous; set for example rendezvous = [\"https://rendezvous.example.org:7400\"]",
            ));
        }
        self.http2.check("http2")?;
        let rendezvous = config::rendezvous(self.rendezvous).map_err(ConfigError::at("rendezvous"))?;
        let advertise = config::advertise(&self.advertise, AddressKind::Listen);
        Ok(Config {
            listen: self.listen,
            data_dir: self.data_dir,
            advertise: advertise.map_err(ConfigError::at("advertise"))?,
            rendezvous,
            network: self.network.meant().map_err(ConfigError::at("network.name"))?,
            tls: self.tls,
            http2: self.http2,
        })
    }
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
    fn an_address_that_no_record_can_hold_names_its_key() {
        let rendezvous = vec!["https://a.example:7400".parse().unwrap()];
        let advertise = vec!["https://a..b:1".parse().unwrap()];
        let error =
            Settings { rendezvous, advertise, ..Settings::default() }.meant().unwrap_err().to_string();
        assert!(error.contains("`advertise`"), "{error}");
    }
}
