//! Sections and values that every service's configuration shares.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ConfigError;
use crate::retry::Backoff;

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Pretty on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// As written in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Pretty => "pretty",
            Self::Json => "json",
        }
    }
}

/// Section `telemetry.log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`info`), or levels by module (`info,h2=debug`).
    pub filter: String,
    /// `auto`, `pretty` or `json`.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Auto }
    }
}

/// Section `telemetry`: logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Where an OpenTelemetry collector takes OTLP over gRPC, such as `http://127.0.0.1:4317`;
    /// nothing is traced without it. TLS is left to a collector on this machine.
    pub otlp_endpoint: Option<String>,
    /// The share of traces begun here that is kept, 0 to 1; what a caller sampled is always kept.
    pub sample_ratio: f64,
    /// Logs.
    pub log: LogConfig,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample_ratio: 1.0, log: LogConfig::default() }
    }
}

impl TelemetryConfig {
    /// Checks what types alone can't; errors name the keys below `telemetry`.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(ConfigError::value("telemetry.sample_ratio", "must lie between 0 and 1"));
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            return Err(ConfigError::value(
                "telemetry.log.filter",
                format!("{error}; write a level such as `info`, or `info,h2=debug`"),
            ));
        }
        let Some(endpoint) = &self.otlp_endpoint else { return Ok(()) };
        match endpoint.parse::<http::Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => Ok(()),
            _ => Err(ConfigError::value(
                "telemetry.otlp_endpoint",
                format!("{endpoint:?} is not an address such as http://127.0.0.1:4317 (gRPC without TLS)"),
            )),
        }
    }
}

/// Section `metrics`: the HTTP endpoint for operators (`/metrics`, `/status`, `/healthz`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Where to listen; off without it, and then the `health` verb can't ask.
    #[serde(deserialize_with = "listen_or_off")]
    pub listen: Option<SocketAddr>,
}

impl MetricsConfig {
    /// Loopback at `port`: the usual default.
    pub fn loopback(port: u16) -> Self {
        Self { listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) }
    }
}

/// An address, or `off`: a default that is on needs a word to switch it off.
fn listen_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        None => Ok(None),
        Some(text) if text == "off" || text.is_empty() => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            serde::de::Error::custom(format_args!(
                "{text:?} is not an address with port such as 127.0.0.1:9400, nor `off`"
            ))
        }),
    }
}

/// Section `drain`: how a service stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainConfig {
    /// After a signal, how long calls may still run before connections are cut.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(20) }
    }
}

/// A section for what is tried again, with growing pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// The first pause.
    #[serde(with = "humantime_serde")]
    pub initial: Duration,
    /// The longest pause.
    #[serde(with = "humantime_serde")]
    pub max: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { initial: Duration::from_millis(500), max: Duration::from_secs(60) }
    }
}

impl RetryConfig {
    /// The pauses, with chance from `rng`.
    pub fn backoff(&self, rng: fastrand::Rng) -> Backoff {
        Backoff::new(self.initial, self.max, rng)
    }
}

/// A secret text: it can be read by code, and by nobody in logs or printed configurations.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// How a secret shows itself.
const REDACTED: &str = "***";

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself: the caller takes care of where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn shown(&self) -> &'static str {
        // An unset secret is no secret, and a default that is printed must read back as unset.
        if self.0.is_empty() { "" } else { REDACTED }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}
