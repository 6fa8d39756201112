//! The peer's own record: what goes into it, and when it is signed anew.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::{
    Address, AddressKind, NetworkId, PeerId, PeerRecord, RecordError, SecretKey, Signed, Transport,
    UnixMillis, limits, record,
};

use super::confirm::Confirming;

/// How others can reach this peer.
#[derive(Clone, Debug)]
pub struct Reachability {
    /// The listening socket; `None` if the peer does not listen. An unspecified IP stands for whatever the sessions show.
    pub listen: Option<SocketAddr>,
    /// How it speaks there.
    pub transport: Transport,
    /// Addresses that its operator states; they come first.
    pub advertise: Vec<Address>,
    /// Whether the listening socket speaks mutual TLS, and the homes are to have others look whether it is reached.
    pub confirm: bool,
}

/// What a session shows of this peer's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// This end of the session's socket.
    pub(crate) local: IpAddr,
    /// This peer as the server sees it.
    pub(crate) observed: Option<IpAddr>,
}

/// This machine's own address in the network that leads elsewhere; unspecified if there is none. Nothing is sent.
pub(crate) fn local_ip() -> IpAddr {
    // Addresses that belong to nobody: the system only says which of its own it would come from.
    let routes: [(SocketAddr, SocketAddr); 2] = [
        (([0; 4], 0).into(), ([192, 0, 2, 1], 9).into()),
        (([0; 8], 0).into(), ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9).into()),
    ];
    let from = |(any, elsewhere): &(SocketAddr, SocketAddr)| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(elsewhere).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
    };
    routes.iter().find_map(from).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// Everything the record is made of.
#[derive(Debug)]
pub(crate) struct OwnRecord {
    pub(crate) network: NetworkId,
    pub(crate) reachability: Reachability,
    pub(crate) services: Vec<ServiceOffer>,
    pub(crate) ttl: Duration,
    pub(crate) last_seq: u64,
    pub(crate) homes: BTreeMap<PeerId, Seen>,
    pub(crate) confirming: Confirming,
}

impl OwnRecord {
    /// Signs the record as it is now, with a higher `seq` than ever before.
    pub(crate) fn sign(
        &mut self,
        key: &SecretKey,
        now: UnixMillis,
    ) -> Result<Signed<PeerRecord>, RecordError> {
        let seq = record::next_seq(self.last_seq, now);
        let record = PeerRecord {
            network: self.network,
            seq,
            issued: now,
            expires: now.plus(self.ttl.min(limits::RECORD_LIFETIME)),
            addresses: self.addresses(now),
            services: self.services.clone(),
            homes: self.homes.keys().copied().take(limits::HOMES).collect(),
            endorsements: Vec::new(),
        };
        let signed = Signed::sign(&record, key)?;
        self.last_seq = seq;
        Ok(signed)
    }

    /// Confirmed addresses, stated ones, then the listening socket's as the sessions show it, then where servers see this peer with the
    /// listening port: a port mapping or an open firewall makes that reachable.
    fn addresses(&self, now: UnixMillis) -> Vec<Address> {
        let mut all: Vec<Address> = self.confirming.granted(now).collect();
        let mut add = |address: Address| {
            if !all.iter().any(|a| a.host == address.host && a.port == address.port) {
                all.push(address);
            }
        };
        self.reachability.advertise.iter().cloned().for_each(&mut add);
        if let Some(listen) = self.reachability.listen {
            let at =
                |ip: IpAddr, kind| Address::ip((ip, listen.port()).into(), self.reachability.transport, kind);
            if listen.ip().is_unspecified() {
                let reachable = |ip: &IpAddr| !ip.is_unspecified();
                let local = self.homes.values().map(|s| s.local).filter(reachable);
                local.for_each(|ip| add(at(ip, AddressKind::Listen)));
                let observed = self.homes.values().filter_map(|s| s.observed).filter(reachable);
                observed.for_each(|ip| add(at(ip, AddressKind::Observed)));
            } else {
                add(at(listen.ip(), AddressKind::Listen));
            }
        }
        all.truncate(limits::ADDRESSES);
        all
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::{Genesis, PublicKey};

    use super::*;

    fn own(listen: &str) -> OwnRecord {
        let network = Genesis::open("test").unwrap().network_id();
        let reachability = Reachability {
            listen: Some(listen.parse().unwrap()),
            transport: Transport::Tls,
            advertise: Vec::new(),
            confirm: false,
        };
        OwnRecord {
            network,
            confirming: Confirming::new(network, PeerId::new(PublicKey::from_bytes([0; 32])), &reachability),
            reachability,
            services: Vec::new(),
            ttl: Duration::from_secs(3600),
            last_seq: 0,
            homes: BTreeMap::new(),
        }
    }

    fn shown(own: &OwnRecord) -> Vec<String> {
        own.addresses(UnixMillis(0)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_specific_listener_is_the_only_address() {
        assert_eq!(shown(&own("127.0.0.1:9")), ["127.0.0.1:9 (listen)"]);
    }

    #[test]
    fn an_unspecified_listener_is_known_by_its_sessions() {
        let mut own = own("0.0.0.0:9");
        assert!(shown(&own).is_empty());
        let seen = Seen { local: [10, 0, 0, 1].into(), observed: Some([203, 0, 113, 7].into()) };
        own.homes.insert(PeerId::new(PublicKey::from_bytes([1; 32])), seen);
        own.homes.insert(
            PeerId::new(PublicKey::from_bytes([2; 32])),
            Seen { observed: Some([10, 0, 0, 1].into()), ..seen },
        );
        assert_eq!(shown(&own), ["10.0.0.1:9 (listen)", "203.0.113.7:9 (observed)"]);
    }

    #[test]
    fn seq_rises_with_every_signature_even_when_the_clock_stands() {
        let key = SecretKey::from_seed(&[1; 32]);
        let mut own = own("127.0.0.1:9");
        let now = UnixMillis(1000);
        assert_eq!(own.sign(&key, now).unwrap().value().seq, 1000);
        assert_eq!(own.sign(&key, now).unwrap().value().seq, 1001);
        own.last_seq = now.plus(limits::CLOCK_SKEW).0 + 1;
        assert_eq!(own.sign(&key, now).unwrap().value().seq, 1000, "the clock was wrong before");
        own.last_seq = 5000;
        assert_eq!(own.sign(&key, now).unwrap().value().seq, 5001);
    }
}
