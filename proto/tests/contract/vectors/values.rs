//! One value of each record type. They never change: golden vectors hang on them.

use p2psb_proto::model::peer::{Endorsement, ServiceOffer};
use p2psb_proto::model::proof::Transcript;
use p2psb_proto::model::publisher::{Delegation, PackageHead, Succession};
use p2psb_proto::model::{
    Action, Address, AddressConfirmation, AddressKind, Digest, Genesis, Host, HostClaim, HostLease,
    NetworkId, PackageEntry, PeerId, PeerRecord, PeerWithdrawal, PublisherId, Release, Signed, Transport,
    UnixMillis,
};

use super::key;

/// 2026-01-02T03:04:05.678Z.
pub(crate) const ISSUED: UnixMillis = UnixMillis(1_767_323_045_678);
/// One hour later.
pub(crate) const EXPIRES: UnixMillis = UnixMillis(1_767_326_645_678);
const SEQ: u64 = 1_767_323_045_679;

fn network() -> NetworkId {
    Genesis::open("p2psb").unwrap().network_id()
}

fn peer_id(seed: u8) -> PeerId {
    PeerId::new(key(seed).public())
}

fn publisher_id(seed: u8) -> PublisherId {
    PublisherId::new(key(seed).public())
}

fn at(text: &str, transport: Transport, kind: AddressKind) -> Address {
    Address::ip(text.parse().unwrap(), transport, kind)
}

/// A record that uses everything a peer record has.
pub(crate) fn peer() -> PeerRecord {
    let relay = Address {
        host: Host::Relay(peer_id(5), vec![at("198.51.100.9:7400", Transport::Tls, AddressKind::Listen)]),
        port: 0,
        transport: Transport::Unspecified,
        kind: AddressKind::Unspecified,
        priority: 9,
        confirmation: None,
    };
    PeerRecord {
        network: network(),
        seq: SEQ,
        issued: ISSUED,
        expires: EXPIRES,
        addresses: vec![
            at("203.0.113.7:7430", Transport::Tls, AddressKind::Listen),
            at("[2001:db8::7]:7430", Transport::Tls, AddressKind::Observed),
            Address::dns("r1.example.org", 7400, Transport::Plaintext, AddressKind::Mapped).unwrap(),
            relay,
        ],
        services: vec![ServiceOffer {
            name: "p2psb.package-index".parse().unwrap(),
            attributes: vec![("region".into(), "eu".into()), ("empty".into(), String::new())],
        }],
        homes: vec![peer_id(3), peer_id(4)],
        endorsements: vec![Endorsement { service: "p2psb.discovery".parse().unwrap(), peer: peer_id(6) }],
    }
}

/// The record of an ordinary peer.
pub(crate) fn small_peer() -> PeerRecord {
    PeerRecord {
        addresses: vec![at("203.0.113.7:7430", Transport::Tls, AddressKind::Listen)],
        services: Vec::new(),
        homes: vec![peer_id(3)],
        endorsements: Vec::new(),
        ..peer()
    }
}

/// A rendezvous reached the ordinary peer.
pub(crate) fn confirmation() -> AddressConfirmation {
    AddressConfirmation {
        network: network(),
        peer: peer_id(1),
        at: "203.0.113.7:7430".parse().unwrap(),
        issued: UnixMillis(ISSUED.0 / 1000 * 1000),
        expires: UnixMillis(EXPIRES.0 / 1000 * 1000),
    }
}

/// The ordinary peer, which another rendezvous than its home has reached.
pub(crate) fn confirmed_peer() -> PeerRecord {
    let confirmed = Signed::sign(&confirmation(), &key(4)).unwrap().to_address();
    PeerRecord { addresses: vec![confirmed], ..small_peer() }
}

pub(crate) fn withdrawal() -> PeerWithdrawal {
    PeerWithdrawal { network: network(), seq: SEQ + 1, issued: ISSUED }
}

fn entry(seq: u64, prev: Option<Digest>, action: Action) -> PackageEntry {
    PackageEntry {
        publisher: publisher_id(2),
        name: "demo".parse().unwrap(),
        seq,
        prev,
        issued: ISSUED,
        action,
    }
}

pub(crate) fn release() -> PackageEntry {
    let release = Release {
        version: "1.2.3-rc.1".parse().unwrap(),
        manifest: Digest::of(b"manifest"),
        total_size: 123_456_789,
        file_count: 42,
        title: "Demo".into(),
        description: "Zwei Zeilen,\nmit Ümläuten.".into(),
        tags: vec!["demo".into(), "golden".into()],
        license: "MIT OR Apache-2.0".into(),
    };
    entry(1, None, Action::Release(release))
}

pub(crate) fn yank() -> PackageEntry {
    let version = "1.2.3-rc.1".parse().unwrap();
    entry(2, Some(Digest::of(b"entry 1")), Action::Yank { version, reason: "broken".into() })
}

pub(crate) fn unyank() -> PackageEntry {
    entry(3, Some(Digest::of(b"entry 2")), Action::Unyank { version: "1.2.3-rc.1".parse().unwrap() })
}

pub(crate) fn head() -> PackageHead {
    PackageHead {
        publisher: publisher_id(2),
        name: "demo".parse().unwrap(),
        seq: 3,
        digest: Digest::of(b"entry 3"),
        issued: ISSUED,
    }
}

pub(crate) fn claim() -> HostClaim {
    HostClaim {
        network: network(),
        manifest: Digest::of(b"manifest"),
        seq: SEQ,
        issued: ISSUED,
        withdrawn: true,
    }
}

pub(crate) fn lease() -> HostLease {
    HostLease { network: network(), seq: SEQ, issued: ISSUED, expires: EXPIRES }
}

pub(crate) fn delegation() -> Delegation {
    Delegation {
        delegate: publisher_id(7),
        names: vec!["demo".parse().unwrap(), "other".parse().unwrap()],
        seq: 1,
        issued: ISSUED,
        expires: Some(UnixMillis(1_798_859_045_678)),
        revoked: true,
    }
}

pub(crate) fn succession() -> Succession {
    Succession { successor: publisher_id(8), issued: ISSUED }
}

/// A session of peer 1 with server 3.
pub(crate) fn transcript() -> Transcript {
    Transcript {
        network: network(),
        peer: peer_id(1),
        server: peer_id(3),
        client_nonce: [0x11; 32],
        server_nonce: [0x22; 32],
        session_seq: SEQ,
    }
}
