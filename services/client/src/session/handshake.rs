//! The peer's side of `Connect`, up to the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::proof::{self, ProofRole, Transcript};
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{Address, NetworkId, PeerId, PeerRecord, SecretKey, Signed, limits};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{SessionConfig, now};
use crate::conn::Connection;
use crate::endpoint::Endpoint;

/// Messages that may wait to be sent.
const OUTBOX: usize = 16;
/// The longest that a server may ask its peers to spread over, when they come back.
const LONGEST_SPREAD: Duration = Duration::from_secs(600);
/// Heartbeat intervals that a server may ask for; others are moved to the nearest.
const HEARTBEAT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));

/// A session that is open but not yet authenticated: the server has proven itself.
pub(super) struct Greeted {
    pub(super) server: PeerId,
    pub(super) observed: Option<SocketAddr>,
    pub(super) local: IpAddr,
    up: mpsc::Sender<wire::ConnectRequest>,
    down: Streaming<wire::ConnectResponse>,
    transcript: Transcript,
    connection: Connection,
}

/// A session with its lease.
pub(super) struct Open {
    pub(super) up: mpsc::Sender<wire::ConnectRequest>,
    pub(super) down: Streaming<wire::ConnectResponse>,
    pub(super) heartbeat: Duration,
    pub(super) refresh_after: Duration,
    pub(super) rendezvous: Vec<Signed<PeerRecord>>,
    /// Over how long to come back if the session is lost.
    pub(super) reconnect_spread: Duration,
    /// An older session of this peer had to end.
    pub(super) replaced: bool,
    /// The connection lives as long as the session.
    pub(super) connection: Connection,
}

/// The rendezvous of a backbone, the answering one first, and how many sessions each has.
pub(super) struct Listed {
    pub(super) records: Vec<Signed<PeerRecord>>,
    pub(super) sessions: BTreeMap<PeerId, u64>,
}

/// Runs one step within the handshake's bound.
async fn within<T>(step: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(limits::HANDSHAKE, step).await {
        Ok(done) => done,
        Err(_) => Err(Failure::new(Reason::HandshakeTimeout, "the server did not answer within 5 s").into()),
    }
}

/// The rendezvous of the backbone behind a connection.
pub(super) async fn backbone(connection: &Connection) -> Result<Listed, Status> {
    let mut client = client(connection);
    let answer = within(client.list_rendezvous(wire::ListRendezvousRequest {})).await?.into_inner();
    let mut listed = Listed { records: Vec::new(), sessions: BTreeMap::new() };
    for one in answer.rendezvous.into_iter().take(limits::MEMBERS) {
        let Ok(record) = Signed::verify_field(one.record) else { continue };
        listed.sessions.insert(record.peer_id(), one.sessions);
        listed.records.push(record);
    }
    Ok(listed)
}

/// How long a server asks its peers to spread over when they come back; zero if it does not.
pub(super) fn reconnect_spread(asked: Duration) -> Duration {
    asked.min(LONGEST_SPREAD)
}

/// Records that verify; others are dropped, they prove nothing.
fn verified(
    records: impl Iterator<Item = p2psb_proto::wire::common::v1::SignedRecord>,
) -> Vec<Signed<PeerRecord>> {
    records.take(limits::MEMBERS).filter_map(|r| Signed::verify(r).ok()).collect()
}

fn client(connection: &Connection) -> RendezvousServiceClient<Connection> {
    RendezvousServiceClient::with_origin(connection.clone(), connection.origin())
        .max_decoding_message_size(limits::MESSAGE_BYTES)
}

/// The ids in a list of records.
pub(super) fn ids(records: &[Signed<PeerRecord>]) -> BTreeSet<PeerId> {
    records.iter().map(Signed::peer_id).collect()
}

/// Opens the stream and lets the server prove itself.
pub(super) async fn greet(
    connection: Connection,
    endpoint: &Endpoint,
    network: NetworkId,
    peer: PeerId,
    software: &str,
    session_seq: u64,
) -> Result<Greeted, Status> {
    let mut client_nonce = [0; limits::NONCE_BYTES];
    getrandom::fill(&mut client_nonce).map_err(|e| {
        Failure::new(Reason::Internal, format!("no randomness from the operating system: {e}"))
    })?;
    let (up, outbox) = mpsc::channel(OUTBOX);
    let hello = wire::SessionHello {
        hello: Some(Hello::own(network, peer, software, now())),
        client_nonce: client_nonce.to_vec().into(),
        session_seq,
    };
    send(&up, Up::Hello(hello)).await?;
    let mut client = client(&connection).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES * 4);
    let mut down = within(client.connect(ReceiverStream::new(outbox))).await?.into_inner();
    let Some(Down::Hello(answer)) = within(next(&mut down)).await? else {
        return Err(Failure::new(Reason::UnexpectedMessage, "the server must say hello first").into());
    };
    let theirs = Hello::accept(answer.hello, &network, now()).map_err(Failure::from)?;
    expect_identity(endpoint, &connection, theirs.peer)?;
    let transcript = Transcript {
        network,
        peer,
        server: theirs.peer,
        client_nonce,
        server_nonce: proof::nonce(&answer.server_nonce).map_err(Failure::from)?,
        session_seq,
    };
    transcript
        .verify(ProofRole::SessionServer, &connection.binding(), answer.proof.as_ref())
        .map_err(Failure::from)?;
    let observed =
        answer.observed_address.and_then(|a| Address::try_from(a).ok()).and_then(|a| a.socket_addr());
    let local = connection.local_addr().ip().to_canonical();
    Ok(Greeted { server: theirs.peer, observed, local, up, down, transcript, connection })
}

/// Lets the rendezvous behind a connection prove that it is who was pinned, without becoming its peer: it proves itself before the caller
/// has to.
pub(crate) async fn prove(
    connection: &Connection,
    endpoint: &Endpoint,
    network: NetworkId,
) -> Result<(), Status> {
    let nobody = SecretKey::generate().map_err(|e| {
        Failure::new(Reason::Internal, format!("no randomness from the operating system: {e}"))
    })?;
    let peer = PeerId::new(nobody.public());
    greet(connection.clone(), endpoint, network, peer, "locator", now().0).await.map(drop)
}

/// The server must be who was pinned, who its certificate proved, and who it was before.
fn expect_identity(endpoint: &Endpoint, connection: &Connection, found: PeerId) -> Result<(), Status> {
    let is_remembered = endpoint.pin().or(connection.server_id()).is_none();
    let reason = if is_remembered { Reason::IdentityChanged } else { Reason::IdentityMismatch };
    match connection.expected().filter(|expected| *expected != found) {
        None => Ok(()),
        Some(expected) => Err(Failure::new(
            reason,
            format!("{}: {expected} must answer there, {found} did", endpoint.url()),
        )
        .into()),
    }
}

impl Greeted {
    /// Proves this peer, hands in its record, and takes the lease.
    pub(super) async fn authenticate(
        mut self,
        config: &SessionConfig,
        record: &Signed<PeerRecord>,
    ) -> Result<Open, Status> {
        let binding = self.connection.binding();
        let proof = self.transcript.prove(ProofRole::SessionPeer, &binding, config.identity.key());
        let message = wire::Authenticate { proof: Some(proof), record: Some(record.to_wire()) };
        send(&self.up, Up::Authenticate(message)).await?;
        let Some(Down::Lease(lease)) = within(next(&mut self.down)).await? else {
            return Err(Failure::new(Reason::UnexpectedMessage, "the server must grant a lease now").into());
        };
        Ok(Open {
            up: self.up,
            down: self.down,
            heartbeat: duration_from_wire(lease.heartbeat_interval.as_ref()).clamp(HEARTBEAT.0, HEARTBEAT.1),
            refresh_after: duration_from_wire(lease.refresh_after.as_ref())
                .clamp(Duration::from_secs(1), limits::RECORD_LIFETIME),
            rendezvous: verified(lease.rendezvous.into_iter()),
            reconnect_spread: reconnect_spread(duration_from_wire(lease.reconnect_spread.as_ref())),
            replaced: lease.replaced,
            connection: self.connection,
        })
    }
}

/// Queues a message; the stream has ended if that fails.
pub(super) async fn send(up: &mpsc::Sender<wire::ConnectRequest>, message: Up) -> Result<(), Status> {
    up.send(wire::ConnectRequest { message: Some(message) })
        .await
        .map_err(|_| Failure::new(Reason::Unreachable, "the session ended").into())
}

/// The next message that is known; `None` at the end of the stream.
pub(super) async fn next(down: &mut Streaming<wire::ConnectResponse>) -> Result<Option<Down>, Status> {
    while let Some(response) = down.message().await? {
        if let Some(message) = response.message {
            return Ok(Some(message));
        }
    }
    Ok(None)
}
