//! Addresses: where a peer can be dialed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use prost::Message as _;

use super::id::PeerId;
use super::record::RecordError;
use super::{excerpt, limits};
use crate::wire::common::v1 as wire;
use crate::wire::common::v1::SignedRecord;
use crate::wire::common::v1::address::Host as WireHost;

pub use crate::wire::common::v1::{AddressKind, Transport};

/// Where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An IP address; never an IPv4-mapped one.
    Ip(IpAddr),
    /// A DNS name, resolved anew at each dial.
    Dns(String),
    /// Through a relay: its id and its own addresses, none of them relayed.
    Relay(PeerId, Vec<Address>),
}

/// An address as it stands in a peer record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Where.
    pub host: Host,
    /// 1 to 65535; 0 with a relay.
    pub port: u16,
    /// How to speak there; unspecified with a relay.
    pub transport: Transport,
    /// How it is known.
    pub kind: AddressKind,
    /// Lower is tried first within a kind.
    pub priority: u16,
    /// With kind CONFIRMED, and only there: who reached it. Nothing is verified yet; see [`Address::believed`].
    pub confirmation: Option<Box<SignedRecord>>,
}

impl Address {
    /// A plain address; an IPv4-mapped one becomes IPv4.
    #[must_use]
    pub fn ip(at: SocketAddr, transport: Transport, kind: AddressKind) -> Self {
        let host = Host::Ip(at.ip().to_canonical());
        Self { host, port: at.port(), transport, kind, priority: 0, confirmation: None }
    }

    /// A DNS name.
    pub fn dns(name: &str, port: u16, transport: Transport, kind: AddressKind) -> Result<Self, RecordError> {
        let host = Host::Dns(dns_name(name)?);
        Ok(Self { host, port, transport, kind, priority: 0, confirmation: None })
    }

    /// The socket address, if it is an IP.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            _ => None,
        }
    }

    /// Host and port as URLs write them, if it is no relay.
    #[must_use]
    pub fn authority(&self) -> Option<String> {
        match &self.host {
            Host::Ip(ip) => Some(SocketAddr::new(*ip, self.port).to_string()),
            Host::Dns(name) => Some(format!("{name}:{}", self.port)),
            Host::Relay(..) => None,
        }
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> wire::Address {
        let host = match &self.host {
            Host::Ip(IpAddr::V4(ip)) => WireHost::Ip4(u32::from(*ip)),
            Host::Ip(IpAddr::V6(ip)) => WireHost::Ip6(Bytes::copy_from_slice(&ip.octets())),
            Host::Dns(name) => WireHost::Dns(name.clone()),
            Host::Relay(peer, addresses) => WireHost::Relay(wire::RelayAddress {
                peer_id: peer.to_wire(),
                addresses: addresses.iter().map(Self::to_wire).collect(),
            }),
        };
        wire::Address {
            host: Some(host),
            port: self.port.into(),
            transport: self.transport as i32,
            kind: self.kind as i32,
            priority: self.priority.into(),
            confirmation: self.confirmation.as_deref().cloned(),
        }
    }

    /// `is_outer`: not among the addresses of a relay.
    fn parse(wire: wire::Address, is_outer: bool) -> Result<Self, RecordError> {
        let bad = |what: &str| RecordError::malformed(format!("address: {what}"));
        let relayed = matches!(wire.host, Some(WireHost::Relay(_)));
        let host = match wire.host.ok_or_else(|| bad("no host"))? {
            WireHost::Ip4(ip) => Host::Ip(Ipv4Addr::from(ip).into()),
            WireHost::Ip6(ip) => {
                let octets: [u8; 16] =
                    ip.as_ref().try_into().map_err(|_| bad("an IPv6 address has 16 bytes"))?;
                Host::Ip(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
            }
            WireHost::Dns(name) => Host::Dns(dns_name(&name)?),
            WireHost::Relay(_) if !is_outer => return Err(bad("relay addresses do not nest")),
            WireHost::Relay(relay) => {
                let peer = PeerId::from_slice(&relay.peer_id).map_err(RecordError::malformed)?;
                if relay.addresses.is_empty() || relay.addresses.len() > limits::RELAY_ADDRESSES {
                    return Err(bad("a relay has 1 to 4 addresses"));
                }
                let own =
                    relay.addresses.into_iter().map(|a| Self::parse(a, false)).collect::<Result<_, _>>()?;
                Host::Relay(peer, own)
            }
        };
        let port = u16::try_from(wire.port).map_err(|_| bad("the port is above 65535"))?;
        let transport = Transport::try_from(wire.transport).unwrap_or_default();
        let kind = AddressKind::try_from(wire.kind).unwrap_or_default();
        if relayed != (port == 0) || relayed != (transport == Transport::Unspecified) {
            return Err(bad("port and transport are needed, except through a relay"));
        }
        let priority = u16::try_from(wire.priority).map_err(|_| bad("the priority is above 65535"))?;
        let confirmation = wire.confirmation.map(Box::new);
        if confirmation.is_some() != (kind == AddressKind::Confirmed) || confirmation.is_some() && !is_outer {
            return Err(bad("a confirmed one says who reached it, and no other does"));
        }
        if confirmation.as_ref().is_some_and(|record| record.encoded_len() > limits::CONFIRMATION_BYTES) {
            return Err(bad("its confirmation is larger than 512 bytes"));
        }
        Ok(Self { host, port, transport, kind, priority, confirmation })
    }
}

impl TryFrom<wire::Address> for Address {
    type Error = RecordError;

    fn try_from(wire: wire::Address) -> Result<Self, RecordError> {
        Self::parse(wire, true)
    }
}

impl fmt::Display for Address {
    /// `203.0.113.7:7430 (observed)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            AddressKind::Unspecified => "unknown",
            AddressKind::Listen => "listen",
            AddressKind::Mapped => "mapped",
            AddressKind::Observed => "observed",
            AddressKind::Confirmed => "confirmed",
        };
        match (&self.host, self.authority()) {
            (_, Some(authority)) => write!(f, "{authority} ({kind})"),
            (Host::Relay(peer, _), None) => write!(f, "through {} (relayed)", peer.short()),
            (_, None) => f.write_str("nowhere"),
        }
    }
}

/// A host name within DNS's bounds. Underscores are allowed: container networks use them.
fn dns_name(name: &str) -> Result<String, RecordError> {
    let label = |l: &str| {
        (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let bare = name.strip_suffix('.').unwrap_or(name);
    if bare.len() > limits::DNS_NAME_BYTES || !bare.split('.').all(label) {
        return Err(RecordError::malformed(format!("{:?} is no DNS name", excerpt(name))));
    }
    Ok(bare.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Address {
        Address::ip(text.parse().unwrap(), Transport::Tls, AddressKind::Listen)
    }

    #[test]
    fn an_address_survives_the_wire() {
        let peer = PeerId::from_slice(&[1; 33]).unwrap();
        let relay = Address {
            host: Host::Relay(peer, vec![at("[2001:db8::1]:1")]),
            port: 0,
            transport: Transport::Unspecified,
            kind: AddressKind::Unspecified,
            priority: 9,
            confirmation: None,
        };
        let dns = Address::dns("Example.org.", 7400, Transport::Plaintext, AddressKind::Mapped).unwrap();
        for address in [at("127.0.0.1:80"), at("[::1]:65535"), dns, relay] {
            assert_eq!(Address::try_from(address.to_wire()), Ok(address));
        }
    }

    #[test]
    fn a_mapped_ipv4_address_becomes_ipv4() {
        assert_eq!(at("[::ffff:10.0.0.1]:5").authority().unwrap(), "10.0.0.1:5");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let good = at("127.0.0.1:80").to_wire();
        let relay = |addresses| {
            Some(WireHost::Relay(wire::RelayAddress { peer_id: Bytes::from_static(&[1; 33]), addresses }))
        };
        let nested = wire::Address { host: relay(vec![good.clone()]), port: 0, transport: 0, ..good.clone() };
        let confirmed = wire::Address {
            kind: AddressKind::Confirmed as i32,
            confirmation: Some(SignedRecord::default()),
            ..good.clone()
        };
        let large =
            SignedRecord { payload: vec![0; limits::CONFIRMATION_BYTES].into(), ..SignedRecord::default() };
        assert!(Address::try_from(confirmed.clone()).is_ok(), "whether it proves anything is asked later");
        for bad in [
            wire::Address { confirmation: None, ..confirmed.clone() },
            wire::Address { confirmation: Some(large), ..confirmed.clone() },
            wire::Address { kind: AddressKind::Observed as i32, ..confirmed.clone() },
            wire::Address { host: relay(vec![confirmed]), port: 0, transport: 0, ..good.clone() },
            wire::Address { host: None, ..good.clone() },
            wire::Address { port: 0, ..good.clone() },
            wire::Address { port: 65536, ..good.clone() },
            wire::Address { transport: 0, ..good.clone() },
            wire::Address { host: Some(WireHost::Ip6(Bytes::from_static(b"short"))), ..good.clone() },
            wire::Address { host: Some(WireHost::Dns("a..b".into())), ..good.clone() },
            wire::Address { host: Some(WireHost::Dns("x".repeat(254))), ..good.clone() },
            wire::Address { host: relay(vec![]), port: 0, transport: 0, ..good.clone() },
            wire::Address { host: relay(vec![nested]), port: 0, transport: 0, ..good },
        ] {
            assert!(Address::try_from(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
