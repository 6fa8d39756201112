//! A peer that says on the wire exactly what a test wants.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use p2psb_client::{Connection, Identity};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::proof::{ChallengeAction, ProofRole, Transcript, answer_challenge, nonce};
use p2psb_proto::model::{
    Digest, Genesis, NetworkId, PeerId, PeerRecord, PeerWithdrawal, Signed, UnixMillis,
};
use p2psb_proto::wire::common::v1::{LiveProof, SignedRecord};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::anything::{self, Anything};
use crate::harness::{TestServer, client};

const CONNECT: &str = "/p2psb.rendezvous.v1.RendezvousService/Connect";

pub(crate) fn network() -> NetworkId {
    Genesis::open("p2psb").unwrap().network_id()
}

pub(crate) fn now() -> UnixMillis {
    SystemTime::now().into()
}

/// A key, and what it signs.
pub(crate) struct Peer {
    pub(crate) identity: Identity,
    pub(crate) network: NetworkId,
    pub(crate) services: Vec<ServiceOffer>,
}

impl Peer {
    pub(crate) fn new() -> Self {
        Self { identity: Identity::ephemeral().unwrap(), network: network(), services: Vec::new() }
    }

    pub(crate) fn offering(service: &str) -> Self {
        Self { services: vec![ServiceOffer::new(service.parse().unwrap())], ..Self::new() }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.identity.peer_id()
    }

    /// A record that lives for ten minutes.
    pub(crate) fn record(&self, seq: u64) -> Signed<PeerRecord> {
        self.record_until(seq, Duration::from_secs(600))
    }

    pub(crate) fn record_until(&self, seq: u64, life: Duration) -> Signed<PeerRecord> {
        let record = PeerRecord {
            network: self.network,
            seq,
            issued: now(),
            expires: now().plus(life),
            addresses: Vec::new(),
            services: self.services.clone(),
            homes: Vec::new(),
            endorsements: Vec::new(),
        };
        Signed::sign(&record, self.identity.key()).unwrap()
    }

    pub(crate) fn withdrawal(&self, seq: u64) -> Signed<PeerWithdrawal> {
        let withdrawal = PeerWithdrawal { network: self.network, seq, issued: now() };
        Signed::sign(&withdrawal, self.identity.key()).unwrap()
    }

    /// The first half of a session, over a connection.
    pub(crate) async fn greet(&self, connection: Connection, session_seq: u64) -> Result<Greeted, Status> {
        let hello = Hello::own(self.network, self.id(), "test/1", now());
        let client_nonce = [7; 32];
        let first = wire::SessionHello {
            hello: Some(hello),
            client_nonce: Bytes::copy_from_slice(&client_nonce),
            session_seq,
        };
        let mut session = RawSession::start(connection, Up::Hello(first)).await?;
        let hello = match session.next().await? {
            Some(Down::Hello(hello)) => hello,
            other => panic!("a hello was expected: {other:?}"),
        };
        let server = PeerId::from_slice(&hello.hello.as_ref().unwrap().peer_id).unwrap();
        let transcript = Transcript {
            network: self.network,
            peer: self.id(),
            server,
            client_nonce,
            server_nonce: nonce(&hello.server_nonce).unwrap(),
            session_seq,
        };
        let binding = session.connection.binding();
        transcript.verify(ProofRole::SessionServer, &binding, hello.proof.as_ref()).unwrap();
        let proof = transcript.prove(ProofRole::SessionPeer, &binding, self.identity.key());
        Ok(Greeted { session, proof, hello })
    }

    /// A whole session.
    pub(crate) async fn open(&self, server: &TestServer, session_seq: u64) -> Result<RawSession, Status> {
        self.open_over(server.connection().await, session_seq, self.record(session_seq).to_wire()).await
    }

    pub(crate) async fn open_over(
        &self,
        connection: Connection,
        session_seq: u64,
        record: SignedRecord,
    ) -> Result<RawSession, Status> {
        let greeted = self.greet(connection, session_seq).await?;
        let proof = greeted.proof.clone();
        greeted.authenticate(proof, record).await
    }

    /// A challenge, answered for a record.
    pub(crate) async fn proof(
        &self,
        connection: &Connection,
        action: ChallengeAction,
        digest: Digest,
    ) -> wire::ChallengeProof {
        let request = wire::GetChallengeRequest { peer_id: self.id().to_wire() };
        let given = client(connection).get_challenge(request).await.unwrap().into_inner();
        let server = PeerId::from_slice(&given.server_id).unwrap();
        answer_challenge(self.identity.key(), &server, &given.challenge, action, &digest)
    }

    pub(crate) async fn register_request(&self, server: &TestServer, seq: u64) -> wire::RegisterRequest {
        let record = self.record(seq);
        let proof = self.proof(&server.connection().await, ChallengeAction::Register, record.digest()).await;
        wire::RegisterRequest { record: Some(record.to_wire()), proof: Some(proof) }
    }

    pub(crate) async fn register(
        &self,
        server: &TestServer,
        seq: u64,
    ) -> Result<wire::RegisterResponse, Status> {
        let request = self.register_request(server, seq).await;
        Ok(server.client().await.register(request).await?.into_inner())
    }

    pub(crate) async fn unregister(&self, server: &TestServer, seq: u64) -> Result<(), Status> {
        self.unregister_by(server, &self.withdrawal(seq)).await
    }

    pub(crate) async fn unregister_by(
        &self,
        server: &TestServer,
        withdrawal: &Signed<PeerWithdrawal>,
    ) -> Result<(), Status> {
        let action = ChallengeAction::Unregister;
        let proof = self.proof(&server.connection().await, action, withdrawal.digest()).await;
        let request = wire::UnregisterRequest { withdrawal: Some(withdrawal.to_wire()), proof: Some(proof) };
        server.client().await.unregister(request).await.map(drop)
    }
}

/// A session before the peer proved itself.
pub(crate) struct Greeted {
    pub(crate) session: RawSession,
    pub(crate) proof: LiveProof,
    pub(crate) hello: wire::ServerHello,
}

impl Greeted {
    pub(crate) async fn authenticate(
        self,
        proof: LiveProof,
        record: SignedRecord,
    ) -> Result<RawSession, Status> {
        let mut session = self.session;
        let answer = wire::Authenticate { proof: Some(proof), record: Some(record) };
        session.send(Up::Authenticate(answer)).await;
        match session.next().await? {
            Some(Down::Lease(lease)) => session.lease = lease,
            other => panic!("a lease was expected: {other:?}"),
        }
        Ok(session)
    }
}

/// Both directions of a session.
#[derive(Debug)]
pub(crate) struct RawSession {
    up: mpsc::Sender<Anything>,
    down: Streaming<wire::ConnectResponse>,
    pub(crate) lease: wire::Lease,
    pub(crate) connection: Connection,
}

impl RawSession {
    pub(crate) async fn start(connection: Connection, first: Up) -> Result<Self, Status> {
        let (up, requests) = mpsc::channel(16);
        up.send(Anything::of(&wire::ConnectRequest { message: Some(first) })).await.unwrap();
        let down = anything::call(&connection, CONNECT, requests).await?;
        Ok(Self { up, down, lease: wire::Lease::default(), connection })
    }

    pub(crate) async fn send(&self, message: Up) {
        self.up.send(Anything::of(&wire::ConnectRequest { message: Some(message) })).await.unwrap();
    }

    /// Says what can't be read.
    pub(crate) async fn garbage(&self) {
        self.up.send(Anything::garbage()).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Down>, Status> {
        Ok(self.down.message().await?.map(|response| response.message.expect("a message")))
    }

    /// The answer to a record.
    pub(crate) async fn result(&mut self) -> wire::RecordResult {
        match self.next().await.unwrap() {
            Some(Down::RecordResult(result)) => result,
            other => panic!("the answer to a record was expected: {other:?}"),
        }
    }

    /// The end of the stream.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// Closes this half of the stream.
    pub(crate) fn close(self) -> (Streaming<wire::ConnectResponse>, Connection) {
        (self.down, self.connection)
    }
}
