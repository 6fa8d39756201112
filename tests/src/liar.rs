//! Hosts that lie. A liar is registered and claims content like any host; it passes an honest host's answers on, and
//! somewhere in between does what it should not.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use p2psb_client::tls::Certificate;
use p2psb_client::{ClientAuth, Connection, Dialer, Endpoint, Identity, ServerTls};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::{Digest, HostClaim, HostLease, PeerId, limits};
use p2psb_proto::wire::DESCRIPTORS;
use p2psb_proto::wire::package_index::v1::AnnounceHostRequest;
use p2psb_proto::wire::package_index::v1::package_index_service_client::PackageIndexServiceClient;
use p2psb_proto::wire::peer::v1 as wire;
use p2psb_proto::wire::peer::v1::exchange_frame::Message;
use p2psb_proto::wire::peer::v1::peer_service_client::PeerServiceClient;
use p2psb_proto::wire::peer::v1::peer_service_server::{PeerService, PeerServiceServer};
use p2psb_runtime::serve::{Listener, serve};
use p2psb_runtime::{Api, Running, ServeOptions};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::peer::{Peer, network, now, sign};
use crate::trouble::{Context as _, Result};

/// How long its lease runs.
const LEASE: Duration = Duration::from_secs(600);

/// Frames on their way.
const FRAMES: usize = 16;

/// What a liar does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Passes this many parts of chunks on as they are; in every later one a bit is wrong.
    WrongBytes {
        /// Honest parts before the first wrong one.
        after: u64,
    },
    /// Passes this many parts of chunks on, and then nothing any more, though the stream stays open.
    Stalls {
        /// Parts before the silence.
        after: u64,
    },
    /// Ends the stream at the first request.
    Resets,
    /// Says of every chunk that it is 4 GiB long.
    WrongSize,
}

/// A host that lies. It ends with the value.
pub struct Liar {
    peer: Peer,
    told: Arc<AtomicU64>,
    _running: Running,
}

impl Liar {
    /// A liar with sessions at `rendezvous`, in front of the honest host at `honest`.
    pub async fn start(lie: Lie, rendezvous: &[Endpoint], honest: Endpoint) -> Result<Self> {
        let identity = Identity::ephemeral().context("making a key")?;
        let told = Arc::new(AtomicU64::new(0));
        let dialer = Dialer::new(Some(&identity), None).context("preparing TLS")?;
        let service = Between { lie, honest, dialer, me: identity.peer_id(), told: Arc::clone(&told) };
        let (peer, running) = open(identity, rendezvous, service)?;
        Ok(Self { peer, told, _running: running })
    }

    /// The peer that lies.
    #[must_use]
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// How many lies were told.
    #[must_use]
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Claims at an index that it hosts this content.
    pub async fn claim(&self, index: &Endpoint, manifest: Digest) -> Result<()> {
        claim(&self.peer, index, manifest).await
    }
}

/// A peer with sessions at `rendezvous`, at which other peers reach this service.
pub(crate) fn open<S: PeerService>(
    identity: Identity,
    rendezvous: &[Endpoint],
    service: S,
) -> Result<(Peer, Running)> {
    let certificate = Certificate::ephemeral(&identity).context("a certificate")?;
    let tls = ServerTls::new(certificate, ClientAuth::Required).context("TLS")?;
    let listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).context("listening")?;
    let addr = listener.addr();
    let service = PeerServiceServer::new(service)
        .max_decoding_message_size(limits::EXCHANGE_FRAME_BYTES)
        .max_encoding_message_size(limits::EXCHANGE_FRAME_BYTES);
    let api = Api::new(&[DESCRIPTORS]).add_service(service);
    let options = ServeOptions::default();
    let running = serve(api, listener.incoming(&options.http2, tls.handshake()), options);
    let peer = Peer::start_as(identity, rendezvous, Vec::new(), Some(addr))?;
    Ok((peer, running.context("serving")?))
}

/// Claims at an index that a peer hosts some content.
pub(crate) async fn claim(peer: &Peer, index: &Endpoint, manifest: Digest) -> Result<()> {
    let (network, issued) = (network()?, now());
    let claim = HostClaim { network, manifest, seq: issued.0, issued, withdrawn: false };
    let lease = HostLease { network, seq: issued.0, issued, expires: issued.plus(LEASE) };
    let request = AnnounceHostRequest {
        lease: Some(sign(&lease, &peer.identity)?.to_wire()),
        claims: vec![sign(&claim, &peer.identity)?.to_wire()],
    };
    let connection = peer.dial(index).await?;
    let origin = connection.origin();
    let mut client = PackageIndexServiceClient::with_origin(connection, origin);
    let answer = client.announce_host(request).await.context("announcing")?.into_inner();
    match answer.errors.into_iter().next() {
        None => Ok(()),
        Some(error) => Err(format!("the claim was refused: {} {}", error.reason, error.detail).into()),
    }
}

/// The service between the one who fetches and the honest host.
#[derive(Clone)]
struct Between {
    lie: Lie,
    honest: Endpoint,
    dialer: Dialer,
    me: PeerId,
    told: Arc<AtomicU64>,
}

type Answers = Pin<Box<dyn Stream<Item = std::result::Result<wire::ExchangeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for Between {
    type ExchangeStream = Answers;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::ExchangeRequest>>,
    ) -> std::result::Result<Response<Answers>, Status> {
        let connection = self.dialer.dial(&self.honest).await?;
        let (up, requests) = mpsc::channel(FRAMES);
        let (down, answers) = mpsc::channel(FRAMES);
        let inbound = request.into_inner();
        tokio::spawn(self.clone().ask(inbound, up, down.clone()));
        tokio::spawn(self.clone().answer(connection, requests, down));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl Between {
    fn hello(&self) -> std::result::Result<Message, Status> {
        let network = network().map_err(|t| Status::internal(t.to_string()))?;
        Ok(Message::Hello(Hello::own(network, self.me, "liar/1", now())))
    }

    /// Passes requests on to the honest host.
    async fn ask(
        self,
        mut inbound: Streaming<wire::ExchangeRequest>,
        up: mpsc::Sender<wire::ExchangeRequest>,
        down: mpsc::Sender<std::result::Result<wire::ExchangeResponse, Status>>,
    ) {
        while let Some(Ok(request)) = inbound.next().await {
            let Some(message) = request.frame.and_then(|f| f.message) else { continue };
            let passed = match (self.lie, message) {
                (_, Message::Hello(_)) => match self.hello() {
                    Ok(hello) => hello,
                    Err(_) => return,
                },
                (Lie::Resets, Message::Request(_)) => {
                    self.told.fetch_add(1, Ordering::Relaxed);
                    let _ = down.send(Err(Status::aborted("no"))).await;
                    return;
                }
                (_, message) => message,
            };
            let frame = Some(wire::ExchangeFrame { message: Some(passed) });
            if up.send(wire::ExchangeRequest { frame }).await.is_err() {
                return;
            }
        }
    }

    /// Passes answers back, and lies.
    async fn answer(
        self,
        connection: Connection,
        requests: mpsc::Receiver<wire::ExchangeRequest>,
        down: mpsc::Sender<std::result::Result<wire::ExchangeResponse, Status>>,
    ) {
        let origin = connection.origin();
        let mut client = PeerServiceClient::with_origin(connection, origin)
            .max_decoding_message_size(limits::EXCHANGE_FRAME_BYTES)
            .max_encoding_message_size(limits::EXCHANGE_FRAME_BYTES);
        let answers = client.exchange(ReceiverStream::new(requests)).await;
        let Ok(answers) = answers else {
            let _ = down.send(Err(Status::unavailable("the honest host is gone"))).await;
            return;
        };
        let mut answers = answers.into_inner();
        let mut parts = 0;
        while let Some(Ok(answer)) = answers.next().await {
            let Some(message) = answer.frame.and_then(|f| f.message) else { continue };
            if matches!(self.lie, Lie::Stalls { after } if parts >= after) {
                self.told.fetch_add(1, Ordering::Relaxed);
                down.closed().await;
                return;
            }
            let passed = match message {
                Message::Hello(_) => match self.hello() {
                    Ok(hello) => hello,
                    Err(_) => return,
                },
                Message::Chunks(batch) => Message::Chunks(self.bend(batch, &mut parts)),
                other => other,
            };
            let frame = Some(wire::ExchangeFrame { message: Some(passed) });
            if down.send(Ok(wire::ExchangeResponse { frame })).await.is_err() {
                return;
            }
        }
    }

    fn bend(&self, mut batch: wire::ChunkBatch, parts: &mut u64) -> wire::ChunkBatch {
        for part in &mut batch.parts {
            *parts += 1;
            match self.lie {
                Lie::WrongBytes { after } if *parts > after => {
                    let mut bytes = part.data.to_vec();
                    if let Some(last) = bytes.last_mut() {
                        *last ^= 1;
                    }
                    part.data = bytes.into();
                }
                Lie::WrongSize => part.total_size = u32::MAX,
                _ => continue,
            }
            self.told.fetch_add(1, Ordering::Relaxed);
        }
        batch
    }
}
