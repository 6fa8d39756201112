//! Endpoints: a server's address as people write it, `https://host:7400#peer1…`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use p2psb_proto::model::{Address, Host, PeerId, Transport};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where and how to dial a server, and who it must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    host: String,
    port: u16,
    plaintext: bool,
    pin: Option<PeerId>,
}

/// A text that is no endpoint.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{text:?} is no endpoint: {problem}; write https://host:port, with #peer1… behind it to pin who must answer"
)]
pub struct EndpointError {
    text: String,
    problem: String,
}

impl Endpoint {
    /// The endpoint of an address in a peer's record; `None` for a relayed one. Whoever answers must be that peer.
    #[must_use]
    pub fn of(address: &Address, peer: PeerId) -> Option<Self> {
        let host = match &address.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Dns(name) => name.clone(),
            Host::Relay(..) => return None,
        };
        let plaintext = address.transport == Transport::Plaintext;
        Some(Self { host, port: address.port, plaintext, pin: Some(peer) })
    }

    /// TLS at this socket.
    #[must_use]
    pub fn at(addr: SocketAddr) -> Self {
        Self { host: addr.ip().to_string(), port: addr.port(), plaintext: false, pin: None }
    }

    /// DNS name or IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// No TLS.
    #[must_use]
    pub const fn is_plaintext(&self) -> bool {
        self.plaintext
    }

    /// Who must answer.
    #[must_use]
    pub const fn pin(&self) -> Option<PeerId> {
        self.pin
    }

    /// The same endpoint, with who must answer.
    #[must_use]
    pub fn pinned(mut self, peer: PeerId) -> Self {
        self.pin = Some(peer);
        self
    }

    /// `host:port`, an IPv6 address in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The URL without the pin.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.plaintext { "http" } else { "https" }, self.authority())
    }

    /// This endpoint as an address for a peer record.
    pub fn to_address(
        &self,
        kind: p2psb_proto::model::AddressKind,
    ) -> Result<Address, p2psb_proto::model::RecordError> {
        let transport = if self.plaintext { Transport::Plaintext } else { Transport::Tls };
        match self.host.parse::<std::net::IpAddr>() {
            Ok(ip) => Ok(Address::ip((ip, self.port).into(), transport, kind)),
            Err(_) => Address::dns(&self.host, self.port, transport, kind),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let fail = |problem: &str| EndpointError {
            text: text.chars().take(200).collect(),
            problem: problem.to_owned(),
        };
        let (url, pin) = match text.trim().split_once('#') {
            Some((url, pin)) => (url, Some(pin.parse::<PeerId>().map_err(|e| fail(&e.to_string()))?)),
            None => (text.trim(), None),
        };
        let uri: http::Uri = url.parse().map_err(|e: http::uri::InvalidUri| fail(&e.to_string()))?;
        let plaintext = match uri.scheme_str() {
            Some("https") => false,
            Some("http") => true,
            _ => return Err(fail("it must begin with https:// or http://")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(fail("it must not have a path"));
        }
        let authority = uri.authority().ok_or_else(|| fail("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(fail("it must not have a user"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().filter(|p| *p != 0).ok_or_else(|| fail("the port is missing"))?;
        if host.is_empty() {
            return Err(fail("the host is missing"));
        }
        Ok(Self { host, port, plaintext, pin })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())?;
        self.pin.map_or(Ok(()), |pin| write!(f, "#{pin}"))
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_survive_their_text_form() {
        let pin = "peer1qx9g3c7awsylr90a2tdj6096t4ev5ecfhuwegysm7d6gsqd5pah4cguszjn";
        for text in ["https://a.example:7400", "http://127.0.0.1:1", &format!("https://[::1]:7400#{pin}")] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("https://[::1]:7400/".parse::<Endpoint>().unwrap().host(), "::1");
    }

    #[test]
    fn what_is_no_endpoint_is_explained() {
        for (text, why) in [
            ("a:7400", "https://"),
            ("ftp://a:1", "https://"),
            ("https://a", "port"),
            ("https://a:0", "port"),
            ("https://a:7400/x", "path"),
            ("https://u@a:7400", "user"),
            ("https://a:7400#peer1x", "no id"),
            ("", "https://"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
