//! A member of the backbone that says on the wire exactly what a test wants.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use p2psb_client::{Connection, Endpoint};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::proof::{ProofRole, Transcript, nonce};
use p2psb_proto::model::{Address, AddressKind, PeerId, Transport};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use p2psb_proto::wire::rendezvous::v1::bridge_service_client::BridgeServiceClient;
use p2psb_proto::wire::rendezvous::v1::bridge_service_server::{BridgeService, BridgeServiceServer};
use p2psb_proto::wire::rendezvous::v1::link_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::link_response::Message as Down;
use p2psb_rendezvous_svc::backbone::trust::BridgeKey;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::peer::{Peer, network, now};

/// A bridge key in a file.
pub(crate) struct KeyFile {
    dir: tempfile::TempDir,
}

impl KeyFile {
    pub(crate) fn new() -> Self {
        let key = Self { dir: tempfile::tempdir().unwrap() };
        BridgeKey::load_or_create(&key.path()).unwrap();
        key
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("bridge.key")
    }

    pub(crate) fn bytes(&self) -> [u8; 32] {
        let text = std::fs::read_to_string(self.path()).unwrap();
        let mut key = [0; 32];
        hex::decode_to_slice(text.lines().last().unwrap(), &mut key).unwrap();
        key
    }
}

/// Both directions of a link that a test dialed.
#[derive(Debug)]
pub(crate) struct RawLink {
    up: mpsc::Sender<wire::LinkRequest>,
    down: Streaming<wire::LinkResponse>,
    /// Of the last batch that was sent.
    number: AtomicU64,
    _connection: Connection,
}

impl RawLink {
    /// Dials as `member`, with a bridge key or without.
    pub(crate) async fn dial(
        member: &Peer,
        connection: Connection,
        key: Option<[u8; 32]>,
    ) -> Result<Self, Status> {
        Self::dial_as(wire::BridgeRole::Member, member, connection, key).await
    }

    /// Dials as an edge.
    pub(crate) async fn dial_edge(edge: &Peer, connection: Connection) -> Result<Self, Status> {
        Self::dial_as(wire::BridgeRole::Edge, edge, connection, None).await
    }

    async fn dial_as(
        role: wire::BridgeRole,
        member: &Peer,
        connection: Connection,
        key: Option<[u8; 32]>,
    ) -> Result<Self, Status> {
        let (up, requests) = mpsc::channel(16);
        let client_nonce = [5; 32];
        let hello = wire::BridgeHello {
            hello: Some(Hello::own(network(), member.id(), "test/1", now())),
            nonce: Bytes::copy_from_slice(&client_nonce),
            link_seq: now().0,
            proof: None,
            record: Some(member.record(now().0).to_wire()),
            boot_id: 1,
            role: role as i32,
            ..wire::BridgeHello::default()
        };
        let link_seq = hello.link_seq;
        up.send(wire::LinkRequest { message: Some(Up::Hello(hello)) }).await.unwrap();
        let mut client = BridgeServiceClient::with_origin(connection.clone(), connection.origin());
        let mut down = client.link(ReceiverStream::new(requests)).await?.into_inner();
        let Some(Down::Hello(theirs)) = down.message().await?.unwrap().message else { panic!("no hello") };
        let transcript = Transcript {
            network: network(),
            peer: member.id(),
            server: PeerId::from_slice(&theirs.hello.unwrap().peer_id).unwrap(),
            client_nonce,
            server_nonce: nonce(&theirs.nonce).unwrap(),
            session_seq: link_seq,
        };
        let binding = connection.binding();
        let proof = transcript.prove(ProofRole::BridgeDialer, &binding, member.identity.key());
        let input = transcript.signing_input(ProofRole::BridgeDialer, &proof.channel_binding);
        let mac = key.map(|key| Bytes::copy_from_slice(blake3::keyed_hash(&key, &input).as_bytes()));
        let proof = wire::BridgeProof { proof: Some(proof), key_mac: mac.unwrap_or_default() };
        up.send(wire::LinkRequest { message: Some(Up::Authenticate(proof)) }).await.unwrap();
        let mut link = Self { up, down, number: AtomicU64::new(0), _connection: connection };
        link.batch().await?;
        Ok(link)
    }

    /// Passes on records of others.
    pub(crate) async fn records(&self, records: Vec<SignedRecord>) {
        self.send(wire::BridgeBatch { records, ..wire::BridgeBatch::default() }).await;
    }

    pub(crate) async fn send(&self, mut batch: wire::BridgeBatch) {
        batch.number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        self.up.send(wire::LinkRequest { message: Some(Up::Batch(batch)) }).await.unwrap();
    }

    /// Asks for a peer to be dialed, and gives the answer.
    pub(crate) async fn ask(&mut self, number: u64, peer: PeerId, at: SocketAddr) -> wire::BridgeAnswer {
        let address = Address::ip(at, Transport::Tls, AddressKind::Observed).to_wire();
        let question = wire::ConfirmQuestion { peer_id: peer.to_wire(), address: Some(address) };
        self.send_question(number, question).await;
        self.next_answer().await
    }

    /// Asks where a peer is, and gives the answer.
    pub(crate) async fn ask_where(&mut self, number: u64, peer: PeerId) -> wire::BridgeAnswer {
        let question = Some(Question::Locate(peer.to_wire()));
        self.question_of(wire::BridgeQuestion { number, question }).await;
        self.next_answer().await
    }

    /// Says anything.
    pub(crate) async fn say(&self, request: wire::LinkRequest) {
        self.up.send(request).await.unwrap();
    }

    /// Asks anything.
    pub(crate) async fn question_of(&self, question: wire::BridgeQuestion) {
        self.up.send(wire::LinkRequest { message: Some(Up::Question(question)) }).await.unwrap();
    }

    /// The next answer.
    pub(crate) async fn next_answer(&mut self) -> wire::BridgeAnswer {
        loop {
            if let Some(Down::Answer(answer)) = self.down.message().await.unwrap().unwrap().message {
                return answer;
            }
        }
    }

    pub(crate) async fn send_question(&self, number: u64, question: wire::ConfirmQuestion) {
        let question = Some(Question::Confirm(question));
        self.question_of(wire::BridgeQuestion { number, question }).await;
    }

    /// The next question.
    pub(crate) async fn question(&mut self) -> (u64, wire::ConfirmQuestion) {
        loop {
            if let Some(Down::Question(asked)) = self.down.message().await.unwrap().unwrap().message
                && let Some(Question::Confirm(question)) = asked.question
            {
                return (asked.number, question);
            }
        }
    }

    /// Answers a question, truly or not.
    pub(crate) async fn answer(&self, number: u64, answer: Answer) {
        let answer = wire::BridgeAnswer { number, answer: Some(answer) };
        self.up.send(wire::LinkRequest { message: Some(Up::Answer(answer)) }).await.unwrap();
    }

    /// The next batch.
    pub(crate) async fn batch(&mut self) -> Result<wire::BridgeBatch, Status> {
        loop {
            match self.down.message().await? {
                Some(wire::LinkResponse { message: Some(Down::Batch(batch)) }) => return Ok(batch),
                Some(_) => {}
                None => return Err(Status::cancelled("the link ended")),
            }
        }
    }
}

/// A listener that says it is somebody else, and proves nothing.
pub(crate) struct Impostor {
    pub(crate) endpoint: Endpoint,
    /// Resolves whenever somebody has been lied to.
    pub(crate) lied: mpsc::Receiver<()>,
}

impl Impostor {
    /// Claims to be whose record this is.
    pub(crate) async fn of(victim: PeerId, record: SignedRecord) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (tell, lied) = mpsc::channel(16);
        let service = BridgeServiceServer::new(Lie { victim, record, tell });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { endpoint, lied }
    }
}

struct Lie {
    victim: PeerId,
    record: SignedRecord,
    tell: mpsc::Sender<()>,
}

#[tonic::async_trait]
impl BridgeService for Lie {
    type LinkStream = BoxStream<'static, Result<wire::LinkResponse, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let hello = wire::BridgeHello {
            hello: Some(Hello::own(network(), self.victim, "test/1", now())),
            nonce: Bytes::from_static(&[6; 32]),
            link_seq: 1,
            proof: Some(wire::BridgeProof::default()),
            record: Some(self.record.clone()),
            ..wire::BridgeHello::default()
        };
        let answer = wire::LinkResponse { message: Some(Down::Hello(hello)) };
        let tell = self.tell.clone();
        // Stays open until the caller has had enough.
        let rest = request.into_inner().filter_map(async |_| None::<Result<wire::LinkResponse, Status>>);
        let told = futures::stream::once(async move {
            let _ = tell.try_send(());
            Ok(answer)
        });
        Ok(Response::new(told.chain(rest).boxed()))
    }
}
