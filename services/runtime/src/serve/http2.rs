//! The HTTP/2 settings of a server, as a section of its configuration.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tonic::transport::Server;

use crate::admission::{Limits, Source};
use crate::config::ConfigError;

/// Bounds of what HTTP/2 itself allows.
const FRAME_RANGE: std::ops::RangeInclusive<u32> = (16 << 10)..=((16 << 20) - 1);
const WINDOW_RANGE: std::ops::RangeInclusive<u32> = 65_535..=((1 << 31) - 1);

/// How many networks may be shared sources, or proxies: each newcomer is compared with them.
const MAX_SOURCES: usize = 64;

/// A section of HTTP/2 settings and limits. The defaults suit small messages. An `ip` is an IPv4 address or an IPv6 /64, a `prefix`
/// an IPv4 /24 or an IPv6 /48.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http2Config {
    /// Connections at a time, those that still shake hands included; one more is closed at once.
    pub max_connections: usize,
    /// Those from one ip.
    pub connections_per_ip: usize,
    /// Those from one prefix.
    pub connections_per_prefix: usize,
    /// Networks from which many callers come, such as proxies: no limit per ip or prefix holds for them.
    pub shared_sources: Vec<Source>,
    /// Networks of proxies that say in a header of the PROXY protocol, version 2, whom they connect for. That one counts, then.
    pub proxies: Vec<Source>,
    /// Bytes of answers that wait for slow readers; beyond it further answers are refused.
    pub waiting_bytes: usize,
    /// Those for readers from one ip.
    pub waiting_bytes_per_ip: usize,
    /// Those for readers from one prefix.
    pub waiting_bytes_per_prefix: usize,
    /// Calls at a time on one connection.
    pub max_concurrent_streams: u32,
    /// All headers of one call together.
    pub max_header_list_bytes: u32,
    /// The largest frame a client may send; small frames are the largest single cost of bulk.
    pub max_frame_bytes: u32,
    /// How much a client may send on one stream before it must wait for us.
    pub stream_window_bytes: u32,
    /// The same for all streams of a connection together.
    pub connection_window_bytes: u32,
    /// How often a silent connection is asked whether it lives.
    #[serde(with = "humantime_serde")]
    pub keep_alive_interval: Duration,
    /// How long the answer may take.
    #[serde(with = "humantime_serde")]
    pub keep_alive_timeout: Duration,
    /// How long a client may take to shake hands, and then again to begin to speak HTTP/2.
    #[serde(with = "humantime_serde")]
    pub preface_timeout: Duration,
    /// After how long a client is cut that takes nothing of what is sent to it.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
}

impl Default for Http2Config {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            // Twice the sessions that a source may have by default: some of it calls, too.
            connections_per_ip: 1024,
            connections_per_prefix: 4096,
            // Whoever comes over loopback was let onto this machine: a proxy, most likely, or what the operator runs himself.
            shared_sources: vec![Source::V4(0x7f00_0000, 8), Source::V6(1, 128)],
            proxies: Vec::new(),
            waiting_bytes: 256 << 20,
            waiting_bytes_per_ip: 32 << 20,
            waiting_bytes_per_prefix: 64 << 20,
            max_concurrent_streams: 64,
            max_header_list_bytes: 16 << 10,
            max_frame_bytes: 256 << 10,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 2 << 20,
            // A ping costs 25–31 µs each; a minute finds dead connections early enough.
            keep_alive_interval: Duration::from_secs(60),
            keep_alive_timeout: Duration::from_secs(20),
            preface_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(30),
        }
    }
}

impl Http2Config {
    /// For bulk: windows below 4 MiB stall even on loopback.
    pub fn bulk() -> Self {
        Self { stream_window_bytes: 8 << 20, connection_window_bytes: 16 << 20, ..Self::default() }
    }

    /// Checks the values; `section` is the name of the section they stand in.
    pub fn check(&self, section: &str) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| Err(ConfigError::value(format!("{section}.{key}"), problem));
        for (key, most) in [
            ("max_connections", self.max_connections),
            ("connections_per_ip", self.connections_per_ip),
            ("connections_per_prefix", self.connections_per_prefix),
            ("waiting_bytes", self.waiting_bytes),
            ("waiting_bytes_per_ip", self.waiting_bytes_per_ip),
            ("waiting_bytes_per_prefix", self.waiting_bytes_per_prefix),
        ] {
            if most == 0 {
                return wrong(key, "must be at least 1".into());
            }
        }
        for (key, sources) in [("shared_sources", &self.shared_sources), ("proxies", &self.proxies)] {
            if sources.len() > MAX_SOURCES {
                return wrong(key, format!("at most {MAX_SOURCES} networks are allowed"));
            }
        }
        if self.max_concurrent_streams == 0 {
            return wrong("max_concurrent_streams", "must be at least 1".into());
        }
        if self.max_header_list_bytes < 1024 {
            return wrong("max_header_list_bytes", "must be at least 1024".into());
        }
        if !FRAME_RANGE.contains(&self.max_frame_bytes) {
            return wrong(
                "max_frame_bytes",
                format!("must be {} to {}", FRAME_RANGE.start(), FRAME_RANGE.end()),
            );
        }
        for (key, window) in [
            ("stream_window_bytes", self.stream_window_bytes),
            ("connection_window_bytes", self.connection_window_bytes),
        ] {
            if !WINDOW_RANGE.contains(&window) {
                return wrong(key, format!("must be {} to {}", WINDOW_RANGE.start(), WINDOW_RANGE.end()));
            }
        }
        for (key, time) in [
            ("keep_alive_interval", self.keep_alive_interval),
            ("keep_alive_timeout", self.keep_alive_timeout),
            ("preface_timeout", self.preface_timeout),
            ("write_timeout", self.write_timeout),
        ] {
            if time.is_zero() {
                return wrong(key, "must be longer than nothing, such as \"20s\"".into());
            }
        }
        Ok(())
    }

    /// Of connections.
    pub(super) const fn of_connections(&self) -> Limits {
        Limits {
            total: (self.max_connections, "http2.max_connections"),
            per_ip: (self.connections_per_ip, "http2.connections_per_ip"),
            per_prefix: (self.connections_per_prefix, "http2.connections_per_prefix"),
        }
    }

    /// Of the bytes of answers that wait.
    pub(super) const fn of_waiting(&self) -> Limits {
        Limits {
            total: (self.waiting_bytes, "http2.waiting_bytes"),
            per_ip: (self.waiting_bytes_per_ip, "http2.waiting_bytes_per_ip"),
            per_prefix: (self.waiting_bytes_per_prefix, "http2.waiting_bytes_per_prefix"),
        }
    }

    /// A tonic server with these settings.
    pub fn server(&self) -> Server {
        Server::builder()
            .max_concurrent_streams(self.max_concurrent_streams)
            .http2_max_header_list_size(self.max_header_list_bytes)
            .max_frame_size(self.max_frame_bytes)
            .initial_stream_window_size(self.stream_window_bytes)
            .initial_connection_window_size(self.connection_window_bytes)
            .http2_keepalive_interval(Some(self.keep_alive_interval))
            .http2_keepalive_timeout(Some(self.keep_alive_timeout))
    }
}
