//! A member of the backbone that says on the wire exactly what a test wants.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use p2psb_client::{Connection, Endpoint};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::proof::{ProofRole, Transcript, nonce};
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{Address, AddressKind, PeerId, Transport};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use p2psb_proto::wire::rendezvous::v1::bridge_service_server::{BridgeService, BridgeServiceServer};
use p2psb_proto::wire::rendezvous::v1::link_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::link_response::Message as Down;
use p2psb_rendezvous_svc::backbone::trust::BridgeKey;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use crate::anything::{self, Anything};
use crate::peer::{Peer, network, now};

const LINK: &str = "/p2psb.rendezvous.v1.BridgeService/Link";

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

/// Both directions of a link that a test dialed, before it proved itself.
#[derive(Debug)]
pub(crate) struct HalfLink {
    up: mpsc::Sender<Anything>,
    down: Streaming<wire::LinkResponse>,
    transcript: Transcript,
    oldest_up_for: Duration,
    pub(crate) connection: Connection,
}

impl HalfLink {
    /// A link on which nothing was said yet; it is kept as long as the second value.
    pub(crate) async fn open(
        connection: Connection,
    ) -> (Streaming<wire::LinkResponse>, mpsc::Sender<Anything>) {
        let (up, requests) = mpsc::channel(16);
        (anything::call(&connection, LINK, requests).await.unwrap(), up)
    }

    /// Says hello as whoever it likes to be.
    pub(crate) async fn greet(
        claimed: PeerId,
        record: SignedRecord,
        connection: Connection,
    ) -> Result<Self, Status> {
        Self::greet_as(wire::BridgeRole::Member, claimed, record, connection).await
    }

    async fn greet_as(
        role: wire::BridgeRole,
        claimed: PeerId,
        record: SignedRecord,
        connection: Connection,
    ) -> Result<Self, Status> {
        let (up, requests) = mpsc::channel(16);
        let client_nonce = [5; 32];
        let hello = wire::BridgeHello {
            hello: Some(Hello::own(network(), claimed, "test/1", now())),
            nonce: Bytes::copy_from_slice(&client_nonce),
            link_seq: now().0,
            proof: None,
            record: Some(record),
            boot_id: 1,
            role: role as i32,
            ..wire::BridgeHello::default()
        };
        let session_seq = hello.link_seq;
        up.send(Anything::of(&wire::LinkRequest { message: Some(Up::Hello(hello)) })).await.unwrap();
        let mut down: Streaming<wire::LinkResponse> = anything::call(&connection, LINK, requests).await?;
        let Some(Down::Hello(theirs)) = down.message().await?.unwrap().message else { panic!("no hello") };
        let oldest_up_for = duration_from_wire(theirs.oldest_up_for.as_ref());
        let transcript = Transcript {
            network: network(),
            peer: claimed,
            server: PeerId::from_slice(&theirs.hello.unwrap().peer_id).unwrap(),
            client_nonce,
            server_nonce: nonce(&theirs.nonce).unwrap(),
            session_seq,
        };
        Ok(Self { up, down, transcript, oldest_up_for, connection })
    }

    /// What `by` signs to prove that it is who was claimed.
    pub(crate) fn prove(&self, by: &Peer, key: Option<[u8; 32]>) -> wire::BridgeProof {
        let (role, binding) = (ProofRole::BridgeDialer, self.connection.binding());
        let proof = self.transcript.prove(role, &binding, by.identity.key());
        let input = self.transcript.signing_input(role, &proof.channel_binding);
        let mac = key.map(|key| Bytes::copy_from_slice(blake3::keyed_hash(&key, &input).as_bytes()));
        wire::BridgeProof { proof: Some(proof), key_mac: mac.unwrap_or_default() }
    }

    pub(crate) async fn authenticate(self, proof: wire::BridgeProof) -> Result<RawLink, Status> {
        let proof = wire::LinkRequest { message: Some(Up::Authenticate(proof)) };
        self.up.send(Anything::of(&proof)).await.unwrap();
        let mut link = RawLink {
            up: self.up,
            down: self.down,
            number: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            oldest_up_for: self.oldest_up_for,
            first: wire::BridgeBatch::default(),
            mark: wire::BridgeMark::default(),
            received: 0,
            told_all: false,
            _connection: self.connection,
        };
        link.first = link.batch().await?;
        Ok(link)
    }

    /// How the other end ends it.
    pub(crate) async fn end(mut self) -> Result<(), Status> {
        while self.down.message().await?.is_some() {}
        Ok(())
    }
}

/// Both directions of a link that a test dialed.
#[derive(Debug)]
pub(crate) struct RawLink {
    up: mpsc::Sender<Anything>,
    down: Streaming<wire::LinkResponse>,
    /// Of the last batch that was sent.
    number: AtomicU64,
    /// Of the last peer that was asked for.
    asked: AtomicU64,
    /// How long the oldest member had been up that the other end knew when the link opened.
    pub(crate) oldest_up_for: Duration,
    /// What the other end told first.
    pub(crate) first: wire::BridgeBatch,
    /// The last mark that came.
    pub(crate) mark: wire::BridgeMark,
    /// Of the last batch that came.
    pub(crate) received: u64,
    /// The other end said that it told all that this one owns.
    pub(crate) told_all: bool,
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
        let record = member.record(now().0).to_wire();
        let half = HalfLink::greet_as(role, member.id(), record, connection).await?;
        let proof = half.prove(member, key);
        half.authenticate(proof).await
    }

    /// Says anything.
    pub(crate) async fn say(&self, request: &wire::LinkRequest) {
        self.up.send(Anything::of(request)).await.unwrap();
    }

    /// Says what can't be read.
    pub(crate) async fn garbage(&self) {
        self.up.send(Anything::garbage()).await.unwrap();
    }

    /// How the other end ends it.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        loop {
            self.message().await?;
        }
    }

    /// Passes on records of others.
    pub(crate) async fn records(&self, records: Vec<SignedRecord>) {
        self.send(wire::BridgeBatch { records, ..wire::BridgeBatch::default() }).await;
    }

    pub(crate) async fn send(&self, mut batch: wire::BridgeBatch) {
        batch.number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        self.say(&wire::LinkRequest { message: Some(Up::Batch(batch)) }).await;
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

    /// Asks anything.
    pub(crate) async fn question_of(&self, question: wire::BridgeQuestion) {
        self.say(&wire::LinkRequest { message: Some(Up::Question(question)) }).await;
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

    /// Owns: answers each question for providers as `says` does, and hears everything else, until the link ends. `finished` is
    /// what it says of itself.
    pub(crate) async fn own(mut self, finished: bool, says: impl Says) {
        loop {
            let (sent, received) = (self.number.load(Ordering::Relaxed), self.received);
            let mark = wire::BridgeMark { received, sent, finished, ..wire::BridgeMark::default() };
            let mark = Anything::of(&wire::LinkRequest { message: Some(Up::Mark(mark)) });
            if self.up.send(mark).await.is_err() {
                return;
            }
            let heard = match self.down.message().await {
                Ok(Some(wire::LinkResponse { message: Some(heard) })) => heard,
                Ok(Some(_)) => continue,
                Ok(None) | Err(_) => return,
            };
            match heard {
                Down::Batch(batch) => self.received = batch.number,
                Down::Question(asked) => {
                    let Some(Question::Find(question)) = asked.question else { continue };
                    let Some(answer) = says.say(question).await else { continue };
                    self.answer(asked.number, answer).await;
                }
                _ => {}
            }
        }
    }

    /// Answers a question, truly or not.
    pub(crate) async fn answer(&self, number: u64, answer: Answer) {
        let answer = wire::BridgeAnswer { number, answer: Some(answer) };
        self.say(&wire::LinkRequest { message: Some(Up::Answer(answer)) }).await;
    }

    /// The next batch.
    pub(crate) async fn batch(&mut self) -> Result<wire::BridgeBatch, Status> {
        loop {
            if let Down::Batch(batch) = self.message().await? {
                return Ok(batch);
            }
        }
    }

    /// In whom the other end is interested next, or no longer.
    pub(crate) async fn interest(&mut self) -> Vec<(PeerId, bool)> {
        loop {
            let interest = self.batch().await.unwrap().interest;
            if !interest.is_empty() {
                let said =
                    |one: wire::PresenceInterest| (PeerId::from_slice(&one.peer_id).unwrap(), one.wanted);
                return interest.into_iter().map(said).collect();
            }
        }
    }

    /// The next message that is no mark.
    async fn message(&mut self) -> Result<Down, Status> {
        loop {
            match self.down.message().await? {
                Some(wire::LinkResponse { message: Some(Down::Mark(mark)) }) => self.mark = mark,
                Some(wire::LinkResponse { message: Some(Down::Batch(batch)) }) => {
                    self.received = batch.number;
                    self.told_all |= batch.synced;
                    return Ok(Down::Batch(batch));
                }
                Some(wire::LinkResponse { message }) => return Ok(message.expect("a message")),
                None => return Err(Status::cancelled("the link ended")),
            }
        }
    }

    /// Says that all batches up to this one arrived.
    pub(crate) async fn acknowledge(&self, received: u64) {
        let sent = self.number.load(Ordering::Relaxed);
        let mark = wire::BridgeMark { received, sent, finished: true, ..wire::BridgeMark::default() };
        self.say(&wire::LinkRequest { message: Some(Up::Mark(mark)) }).await;
    }

    /// What the other end knows of a peer by itself, whoever else may know more. Passes over batches.
    pub(crate) async fn locate(&mut self, peer: &PeerId) -> Result<Answer, Status> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let question = wire::BridgeQuestion { number, question: Some(Question::Locate(peer.to_wire())) };
        self.say(&wire::LinkRequest { message: Some(Up::Question(question)) }).await;
        loop {
            match self.message().await? {
                Down::Answer(answer) if answer.number == number => return Ok(answer.answer.unwrap()),
                _ => {}
            }
        }
    }
}

/// What an owner answers to who asks for providers.
pub(crate) trait Says: Send + Sync + 'static {
    fn say(&self, question: wire::FindByServiceRequest) -> impl Future<Output = Option<Answer>> + Send;
}

impl<F, T> Says for F
where
    F: Fn(wire::FindByServiceRequest) -> T + Send + Sync + 'static,
    T: Future<Output = Option<Answer>> + Send,
{
    async fn say(&self, question: wire::FindByServiceRequest) -> Option<Answer> {
        self(question).await
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
