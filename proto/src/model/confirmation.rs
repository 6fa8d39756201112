//! What a rendezvous says of an address that it dialed and at which the peer answered.

use std::net::SocketAddr;

use super::address::{Address, AddressKind, Host, Transport};
use super::id::PeerId;
use super::key::PublicKey;
use super::limits;
use super::network::NetworkId;
use super::record::{Payload, RecordError, RecordType, Signed, check_clock, check_lifetime, time};
use super::time::UnixMillis;
use crate::wire::common::v1 as wire;

/// The signer dialed the address, and by mutual TLS the peer answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressConfirmation {
    /// The community.
    pub network: NetworkId,
    /// Who answered.
    pub peer: PeerId,
    /// Where; never an IPv4-mapped address, nor port 0.
    pub at: SocketAddr,
    /// When.
    pub issued: UnixMillis,
    /// When it stops counting; at most 2 h later.
    pub expires: UnixMillis,
}

impl AddressConfirmation {
    /// `peer` answered at `at` just now. It counts for as long as it may, from the last full second on.
    #[must_use]
    pub fn new(network: NetworkId, peer: PeerId, at: SocketAddr, now: UnixMillis) -> Self {
        let at = SocketAddr::new(at.ip().to_canonical(), at.port());
        let issued = UnixMillis(now.0 / 1000 * 1000);
        Self { network, peer, at, issued, expires: issued.plus(limits::RECORD_LIFETIME) }
    }

    /// Whether it counts in `network` at `now`.
    pub fn check(&self, network: &NetworkId, now: UnixMillis) -> Result<(), RecordError> {
        if self.network != *network {
            return Err(RecordError::Network { expected: *network, found: self.network });
        }
        check_clock(0, self.issued, now)?;
        if self.expires <= now {
            return Err(RecordError::Expired { expired: self.expires, now });
        }
        Ok(())
    }
}

impl Signed<AddressConfirmation> {
    /// Who dialed.
    #[must_use]
    pub const fn attested_by(&self) -> PeerId {
        PeerId::new(*self.signer())
    }

    /// The address for the peer's record.
    #[must_use]
    pub fn to_address(&self) -> Address {
        let address = Address::ip(self.value().at, Transport::Tls, AddressKind::Confirmed);
        Address { confirmation: Some(Box::new(self.to_wire())), ..address }
    }
}

impl Address {
    /// The address as whoever dials `peer` may take it: one whose confirmation proves nothing is an observed one. It must be of
    /// this network, peer and address, count at `now`, and be signed by whom `is_member` knows as a rendezvous of a backbone in use.
    #[must_use]
    pub fn believed(
        &self,
        peer: &PeerId,
        network: &NetworkId,
        now: UnixMillis,
        is_member: impl Fn(&PeerId) -> bool,
    ) -> Self {
        let proves = |confirmation: &Signed<AddressConfirmation>| {
            let said = confirmation.value();
            said.peer == *peer
                && Some(said.at) == self.socket_addr()
                && self.transport == Transport::Tls
                && said.check(network, now).is_ok()
                && is_member(&confirmation.attested_by())
        };
        let Some(confirmation) = &self.confirmation else { return self.clone() };
        if Signed::verify(confirmation.as_ref().clone()).is_ok_and(|confirmation| proves(&confirmation)) {
            return self.clone();
        }
        Self { kind: AddressKind::Observed, confirmation: None, ..self.clone() }
    }
}

impl Payload for AddressConfirmation {
    const TYPE: RecordType = RecordType::AddressConfirmation;
    const MAX_BYTES: usize = limits::CONFIRMATION_BYTES;
    type Wire = wire::AddressConfirmation;

    fn parse(wire: wire::AddressConfirmation, _: &PublicKey) -> Result<Self, RecordError> {
        let issued = time(wire.issue_time.as_ref(), "issue_time")?;
        let expires = time(wire.expire_time.as_ref(), "expire_time")?;
        check_lifetime(issued, expires)?;
        let address = Address::try_from(
            wire.address.ok_or_else(|| RecordError::malformed("a confirmation without an address"))?,
        )?;
        let fits = address.transport == Transport::Tls && address.kind == AddressKind::Observed;
        let Host::Ip(ip) = address.host else {
            return Err(RecordError::malformed("a confirmed address is an IP address"));
        };
        if !fits {
            return Err(RecordError::malformed("what is confirmed is an observed address with TLS"));
        }
        Ok(Self {
            network: NetworkId::from_slice(&wire.network_id).map_err(RecordError::malformed)?,
            peer: PeerId::from_slice(&wire.peer_id).map_err(RecordError::malformed)?,
            at: SocketAddr::new(ip, address.port),
            issued,
            expires,
        })
    }

    fn to_wire(&self) -> wire::AddressConfirmation {
        wire::AddressConfirmation {
            network_id: self.network.to_wire(),
            peer_id: self.peer.to_wire(),
            address: Some(Address::ip(self.at, Transport::Tls, AddressKind::Observed).to_wire()),
            issue_time: Some(self.issued.to_wire()),
            expire_time: Some(self.expires.to_wire()),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::{Genesis, PeerRecord, SecretKey};
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_767_323_045_678);

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn peer(seed: u8) -> PeerId {
        PeerId::new(key(seed).public())
    }

    fn network() -> NetworkId {
        Genesis::open("test").unwrap().network_id()
    }

    fn confirmation() -> AddressConfirmation {
        AddressConfirmation::new(network(), peer(1), "[2001:db8::7]:7430".parse().unwrap(), NOW)
    }

    fn signed(value: &AddressConfirmation) -> Signed<AddressConfirmation> {
        Signed::sign(value, &key(9)).unwrap()
    }

    fn kind(address: &Address, at: UnixMillis) -> AddressKind {
        address.believed(&peer(1), &network(), at, |member| *member == peer(9)).kind
    }

    #[test]
    fn what_a_member_confirmed_is_believed_until_it_expires() {
        let address = signed(&confirmation()).to_address();
        assert_eq!(kind(&address, NOW), AddressKind::Confirmed);
        assert_eq!(address.believed(&peer(1), &network(), NOW, |_| true), address);
        let last = UnixMillis(confirmation().expires.0 - 1);
        assert_eq!(kind(&address, last), AddressKind::Confirmed);
        assert_eq!(kind(&address, confirmation().expires), AddressKind::Observed);
        let early = NOW.minus(limits::CLOCK_SKEW + std::time::Duration::from_secs(1));
        assert_eq!(kind(&address, early), AddressKind::Observed, "it is signed in the future");
    }

    #[test]
    fn a_confirmation_that_proves_nothing_leaves_an_observed_address() {
        let good = signed(&confirmation()).to_address();
        let of = |change: fn(&mut AddressConfirmation)| {
            let mut value = confirmation();
            change(&mut value);
            Address { confirmation: signed(&value).to_address().confirmation, ..good.clone() }
        };
        let mut forged = good.clone();
        forged.confirmation.as_mut().unwrap().key = bytes::Bytes::copy_from_slice(key(8).public().as_bytes());
        for lie in [
            of(|c| c.peer = peer(2)),
            of(|c| c.at.set_port(7431)),
            of(|c| c.network = Genesis::open("other").unwrap().network_id()),
            Address { transport: Transport::Plaintext, ..good.clone() },
            forged,
        ] {
            let believed = lie.believed(&peer(1), &network(), NOW, |_| true);
            assert_eq!((believed.kind, believed.confirmation), (AddressKind::Observed, None), "{lie:?}");
        }
        let by_a_stranger = good.believed(&peer(1), &network(), NOW, |member| *member == peer(8));
        assert_eq!(by_a_stranger.kind, AddressKind::Observed);
    }

    #[test]
    fn a_record_of_another_type_confirms_nothing() {
        let good = signed(&confirmation());
        let mut other = good.to_wire();
        other.r#type = RecordType::Peer as i32;
        assert!(Signed::<AddressConfirmation>::verify(other.clone()).is_err());
        assert!(Signed::<PeerRecord>::verify(other).is_err(), "the type is signed, too");
        assert!(Signed::<PeerRecord>::verify(good.to_wire()).is_err());
    }

    #[test]
    fn what_breaks_its_bounds_is_not_signed() {
        for change in [
            (|c| c.at.set_port(0)) as fn(&mut AddressConfirmation),
            |c| c.expires = c.issued,
            |c| c.expires = UnixMillis(c.issued.0 + 2 * 60 * 60 * 1000 + 1),
        ] {
            let mut value = confirmation();
            change(&mut value);
            assert!(Signed::sign(&value, &key(9)).is_err());
        }
    }

    #[test]
    fn a_peer_record_with_one_confirmation_stays_far_below_a_kibibyte() {
        let size = signed(&confirmation()).to_wire().encoded_len();
        assert!(size <= 256, "{size} bytes");
        let mapped =
            AddressConfirmation::new(network(), peer(1), "[::ffff:192.0.2.1]:1".parse().unwrap(), NOW);
        assert_eq!(mapped.at.to_string(), "192.0.2.1:1");
    }
}
