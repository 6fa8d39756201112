//! The configuration of `package-index-svc`: as written, and as meant.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use p2psb_client::config::{self, NetworkConfig};
use p2psb_client::{Endpoint, TlsConfig};
use p2psb_proto::model::{Address, AddressKind, NetworkId};
use p2psb_runtime::config::{Common, DrainConfig, MetricsConfig, TelemetryConfig};
use p2psb_runtime::serve::Http2Config;
use p2psb_runtime::{Clock, ConfigError};
use serde::{Deserialize, Serialize};

use crate::core::limits::{self, Quotas};

/// Name of the database in the data folder.
const DATABASE: &str = "index.sqlite";

/// The smallest database that is of any use.
const LEAST_DATABASE_BYTES: u64 = 1 << 20;

/// The most connections for reading.
const MOST_READERS: usize = 256;

/// As written in file, variables and flags.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where identity, certificate and database lie.
    pub data_dir: PathBuf,
    /// Where others reach this service; it goes into its record. Empty: the listening address.
    pub advertise: Vec<Endpoint>,
    /// Rendezvous to register at: `https://host:7400`, with `#peer1…` to pin who must answer.
    pub rendezvous: Vec<Endpoint>,
    /// The community.
    pub network: NetworkConfig,
    /// TLS of the listener.
    pub tls: TlsConfig,
    /// The database.
    pub index: IndexSettings,
    /// How much anybody may put in.
    pub limits: LimitSettings,
    /// Connections.
    pub http2: Http2Config,
    /// Endpoint for operators.
    pub metrics: MetricsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Stopping.
    pub drain: DrainConfig,
}

/// Section `index`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IndexSettings {
    /// The database file; without it `index.sqlite` in the data folder.
    pub database: Option<PathBuf>,
    /// Connections for reading.
    pub readers: usize,
}

impl Default for IndexSettings {
    fn default() -> Self {
        Self { database: None, readers: 4 }
    }
}

/// Section `limits`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Packages of one publisher.
    pub packages_per_publisher: u64,
    /// Entries in the chain of one package.
    pub entries_per_package: u64,
    /// Claims of one host.
    pub claims_per_host: u64,
    /// Bytes in the database.
    pub database_bytes: u64,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            packages_per_publisher: limits::PACKAGES_PER_PUBLISHER,
            entries_per_package: limits::ENTRIES_PER_PACKAGE,
            claims_per_host: limits::CLAIMS_PER_HOST,
            database_bytes: limits::DATABASE_BYTES,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::UNSPECIFIED, 7420).into(),
            data_dir: "/var/lib/p2psb/package-index".into(),
            advertise: Vec::new(),
            rendezvous: Vec::new(),
            network: NetworkConfig::default(),
            tls: TlsConfig::default(),
            index: IndexSettings::default(),
            limits: LimitSettings::default(),
            http2: Http2Config::default(),
            metrics: MetricsConfig::loopback(9420),
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
    /// Where identity and certificate lie.
    pub data_dir: PathBuf,
    /// Stated addresses.
    pub advertise: Vec<Address>,
    /// Rendezvous to register at; without any the index serves whoever knows its address.
    pub rendezvous: Vec<Endpoint>,
    /// The community.
    pub network: NetworkId,
    /// TLS of the listener.
    pub tls: TlsConfig,
    /// The database file.
    pub database: PathBuf,
    /// Connections for reading.
    pub readers: usize,
    /// How much anybody may put in.
    pub quotas: Quotas,
    /// Bytes in the database.
    pub database_bytes: u64,
    /// Connections.
    pub http2: Http2Config,
    /// What time it is; not configurable, but tests move it.
    pub clock: Clock,
}

impl p2psb_runtime::Settings for Settings {
    type Meant = Config;

    fn common(&self) -> Common<'_> {
        Common { telemetry: &self.telemetry, metrics: &self.metrics, drain: &self.drain }
    }

    fn meant(self) -> Result<Config, ConfigError> {
        self.http2.check("http2")?;
        let quotas = self.limits.quotas()?;
        if !(1..=MOST_READERS).contains(&self.index.readers) {
            return Err(ConfigError::value("index.readers", format!("must be 1 to {MOST_READERS}")));
        }
        let rendezvous = config::rendezvous(self.rendezvous).map_err(ConfigError::at("rendezvous"))?;
        let advertise = config::advertise(&self.advertise, AddressKind::Listen);
        Ok(Config {
            listen: self.listen,
            database: self.index.database.unwrap_or_else(|| self.data_dir.join(DATABASE)),
            data_dir: self.data_dir,
            advertise: advertise.map_err(ConfigError::at("advertise"))?,
            rendezvous,
            network: self.network.meant().map_err(ConfigError::at("network.name"))?,
            tls: self.tls,
            readers: self.index.readers,
            quotas,
            database_bytes: self.limits.database_bytes,
            http2: self.http2,
            clock: Clock::system(),
        })
    }
}

impl LimitSettings {
    fn quotas(&self) -> Result<Quotas, ConfigError> {
        for (key, value, least) in [
            ("limits.packages_per_publisher", self.packages_per_publisher, 1),
            ("limits.entries_per_package", self.entries_per_package, 1),
            ("limits.claims_per_host", self.claims_per_host, 1),
            ("limits.database_bytes", self.database_bytes, LEAST_DATABASE_BYTES),
        ] {
            if value < least {
                return Err(ConfigError::value(key, format!("must be at least {least}")));
            }
        }
        Ok(Quotas {
            packages_per_publisher: self.packages_per_publisher,
            entries_per_package: self.entries_per_package,
            claims_per_host: self.claims_per_host,
        })
    }
}

#[cfg(test)]
mod tests {
    use p2psb_runtime::Settings as _;

    use super::*;

    #[test]
    fn the_defaults_are_right_and_the_database_lies_in_the_data_folder() {
        let config = Settings { data_dir: "/d".into(), ..Settings::default() }.meant().unwrap();
        assert_eq!(config.database, PathBuf::from("/d/index.sqlite"));
        assert_eq!(config.quotas, Quotas::default());
    }

    #[test]
    fn what_is_wrong_names_its_key() {
        let with = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.meant().unwrap_err().to_string()
        };
        for (error, key) in [
            (with(|s| s.rendezvous = vec!["https://a:1".parse().unwrap(); 65]), "`rendezvous`"),
            (with(|s| s.advertise = vec!["https://a..b:1".parse().unwrap()]), "`advertise`"),
            (with(|s| s.network.name = "Ä".into()), "`network.name`"),
            (with(|s| s.index.readers = 0), "`index.readers`"),
            (with(|s| s.limits.claims_per_host = 0), "`limits.claims_per_host`"),
            (with(|s| s.limits.database_bytes = 5), "`limits.database_bytes`"),
            (with(|s| s.http2.max_connections = 0), "`http2.max_connections`"),
        ] {
            assert!(error.contains(key), "{error}");
        }
    }
}
