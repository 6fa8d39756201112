//! A peer made of the SDK alone: it registers and asks, and does nothing else.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use p2psb_client::session::{Reachability, SessionState};
use p2psb_client::{Connection, Dialer, Endpoint, Identity, SessionConfig, SessionKeeper};
use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::proof::{ChallengeAction, answer_challenge};
use p2psb_proto::model::record::{Payload, next_seq};
use p2psb_proto::model::{Digest, Genesis, NetworkId, PeerId, PeerRecord, Signed, Transport, UnixMillis};
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use p2psb_proto::wire::rendezvous::v1::{
    GetChallengeRequest, LocateRequest, WatchPresenceRequest, WatchPresenceResponse,
};
use tonic::Streaming;

use crate::trouble::{Context as _, Result};

/// The community of all tests and of the demo.
pub const NETWORK: &str = "demo";

/// Life of the records that are signed here.
const RECORD_TTL: Duration = Duration::from_secs(600);

/// The id of the tests' community.
pub fn network() -> Result<NetworkId> {
    Ok(Genesis::open(NETWORK).context(NETWORK)?.network_id())
}

/// The time now.
#[must_use]
pub fn now() -> UnixMillis {
    UnixMillis::from(SystemTime::now())
}

/// A peer with sessions at some rendezvous. It goes offline, not cleanly, when it is dropped.
pub struct Peer {
    /// Its key.
    pub identity: Identity,
    /// Its sessions.
    pub sessions: SessionKeeper,
    dialer: Dialer,
}

impl Peer {
    /// A new peer that provides nothing and listens nowhere.
    pub fn start(rendezvous: &[Endpoint]) -> Result<Self> {
        let identity = Identity::ephemeral().context("making a key")?;
        Self::start_as(identity, rendezvous, Vec::new(), None)
    }

    /// A peer with a key, services, and a listening socket that somebody else serves.
    pub fn start_as(
        identity: Identity,
        rendezvous: &[Endpoint],
        services: Vec<ServiceOffer>,
        listen: Option<SocketAddr>,
    ) -> Result<Self> {
        Self::start_lasting(RECORD_TTL, identity, rendezvous, services, listen)
    }

    /// The same with another life of its records.
    pub fn start_lasting(
        record_ttl: Duration,
        identity: Identity,
        rendezvous: &[Endpoint],
        services: Vec<ServiceOffer>,
        listen: Option<SocketAddr>,
    ) -> Result<Self> {
        let reachability =
            Reachability { listen, transport: Transport::Tls, advertise: Vec::new(), confirm: false };
        let config = Self::config(identity, rendezvous)?;
        Ok(Self::start_by(SessionConfig { services, reachability, record_ttl, ..config }))
    }

    /// A new peer that has so many homes in each backbone and not three.
    pub fn start_with_homes(max_homes: usize, rendezvous: &[Endpoint]) -> Result<Self> {
        let config = Self::config(Identity::ephemeral().context("making a key")?, rendezvous)?;
        Ok(Self::start_by(SessionConfig { max_homes, ..config }))
    }

    fn config(identity: Identity, rendezvous: &[Endpoint]) -> Result<SessionConfig> {
        let dialer = Dialer::new(Some(&identity), None).context("preparing TLS")?;
        Ok(SessionConfig {
            network: network()?,
            identity,
            software: "test/1".into(),
            rendezvous: rendezvous.to_vec(),
            memory: None,
            own_rendezvous: None,
            services: Vec::new(),
            reachability: Reachability {
                listen: None,
                transport: Transport::Tls,
                advertise: Vec::new(),
                confirm: false,
            },
            dialer,
            max_homes: 3,
            record_ttl: RECORD_TTL,
        })
    }

    fn start_by(config: SessionConfig) -> Self {
        let (identity, dialer) = (config.identity.clone(), config.dialer.clone());
        Self { identity, dialer, sessions: SessionKeeper::start(config) }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> PeerId {
        self.identity.peer_id()
    }

    /// At how many rendezvous it is online.
    #[must_use]
    pub fn online(&self) -> usize {
        self.sessions.status().iter().filter(|s| s.state == SessionState::Online).count()
    }

    /// A connection to a server.
    pub async fn dial(&self, endpoint: &Endpoint) -> Result<Connection> {
        self.dialer.dial(endpoint).await.context("dialing")
    }
}

/// A client of a rendezvous that is no peer.
pub async fn client(endpoint: &Endpoint) -> Result<RendezvousServiceClient<Connection>> {
    let dialer = Dialer::new(None, None).context("preparing TLS")?;
    let connection = dialer.dial(endpoint).await.context("dialing")?;
    let origin = connection.origin();
    Ok(RendezvousServiceClient::with_origin(connection, origin))
}

/// Asks one rendezvous for a peer.
pub async fn locate(endpoint: &Endpoint, peer: &PeerId) -> std::result::Result<LocatedPeer, tonic::Status> {
    let mut client = client(endpoint).await.map_err(|t| tonic::Status::unavailable(t.to_string()))?;
    let answer = client.locate(LocateRequest { peer_id: peer.to_wire() }).await?;
    let peer = answer.into_inner().peer.ok_or_else(|| tonic::Status::internal("an answer without a peer"))?;
    LocatedPeer::try_from(peer).map_err(|e| tonic::Status::internal(e.to_string()))
}

/// Watches peers at one rendezvous, as somebody who is no peer otherwise.
pub async fn watch(endpoint: &Endpoint, peers: &[PeerId]) -> Result<Streaming<WatchPresenceResponse>> {
    let (watcher, mut client) = (Identity::ephemeral().context("making a key")?, client(endpoint).await?);
    let watcher_id = watcher.peer_id().to_wire();
    let request = GetChallengeRequest { peer_id: watcher_id.clone() };
    let given = client.get_challenge(request).await.context("a challenge")?.into_inner();
    let server = PeerId::from_slice(&given.server_id).context("the server's id")?;
    let peer_ids: Vec<_> = peers.iter().map(PeerId::to_wire).collect();
    let digest = Digest::of(&peer_ids.concat());
    let proof = answer_challenge(watcher.key(), &server, &given.challenge, ChallengeAction::Watch, &digest);
    let request =
        WatchPresenceRequest { peer_ids, watcher_id, proof: Some(proof), resume_token: String::new() };
    Ok(client.watch_presence(request).await.context("watching")?.into_inner())
}

/// A record of a peer that listens nowhere, signed now.
pub fn record(identity: &Identity, last_seq: u64) -> Result<Signed<PeerRecord>> {
    let issued = now();
    let record = PeerRecord {
        network: network()?,
        seq: next_seq(last_seq, issued),
        issued,
        expires: issued.plus(RECORD_TTL),
        addresses: Vec::new(),
        services: Vec::new(),
        homes: Vec::new(),
        endorsements: Vec::new(),
    };
    sign(&record, identity)
}

/// Signs anything with a peer's key.
pub fn sign<T: Payload>(value: &T, identity: &Identity) -> Result<Signed<T>> {
    Signed::sign(value, identity.key()).context("signing")
}
