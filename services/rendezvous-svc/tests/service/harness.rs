//! Servers to test, a wire that can be cut, and patience.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use p2psb_client::{Connection, Dialer, Endpoint};
use p2psb_proto::error::{Reason, reason_of};
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use p2psb_rendezvous_svc::core::ring::Timing;
use p2psb_rendezvous_svc::{Config, Server};
use p2psb_runtime::config::MetricsConfig;
use p2psb_runtime::{Clock, Service as _, Settings as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the condition holds.
macro_rules! eventually {
    ($what:expr, $condition:expr) => {{
        let mut patience = $crate::harness::Patience::new($what);
        while !$condition {
            patience.wait().await;
        }
    }};
}
pub(crate) use eventually;

/// Looks again and again, but not for ever.
pub(crate) struct Patience {
    what: String,
    ticks: tokio::time::Interval,
    until: tokio::time::Instant,
}

impl Patience {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let ticks = tokio::time::interval(Duration::from_millis(20));
        Self { what: what.into(), ticks, until: tokio::time::Instant::now() + PATIENCE }
    }

    pub(crate) async fn wait(&mut self) {
        assert!(tokio::time::Instant::now() < self.until, "not within {PATIENCE:?}: {}", self.what);
        self.ticks.tick().await;
    }
}

/// A server with a folder of its own.
pub(crate) struct TestServer {
    pub(crate) server: Option<Server>,
    pub(crate) config: Config,
    pub(crate) endpoint: Endpoint,
    pub(crate) id: PeerId,
    ring: Timing,
    dir: Arc<tempfile::TempDir>,
}

impl TestServer {
    pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_at(Clock::system(), change).await
    }

    pub(crate) async fn start_at(clock: Clock, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_by(clock, Timing::default(), change).await
    }

    /// One that takes so long to join a ring and to leave it.
    pub(crate) async fn start_turning(ring: Timing, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_by(Clock::system(), ring, change).await
    }

    async fn start_by(clock: Clock, ring: Timing, change: impl FnOnce(&mut Config)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            data_dir: dir.path().join("data"),
            metrics: MetricsConfig { listen: None },
            ..Config::default()
        };
        config.dial.allow_private = true;
        // A killed server knows nothing any more, unless a test says otherwise.
        config.snapshot.enabled = false;
        change(&mut config);
        Self::bind(config, (clock, ring), dir).await
    }

    async fn bind(config: Config, (clock, ring): (Clock, Timing), dir: Arc<tempfile::TempDir>) -> Self {
        let mut meant = config.clone().meant().unwrap();
        (meant.clock, meant.ring) = (clock, ring);
        let server = Server::bind(meant).await.unwrap();
        let scheme = if config.tls.mode == p2psb_client::TlsMode::Plaintext { "http" } else { "https" };
        let endpoint = format!("{scheme}://{}", server.addr()).parse().unwrap();
        let id = server.peer_id();
        Self { server: Some(server), config, endpoint, id, ring, dir }
    }

    /// Gone without a word.
    pub(crate) fn kill(&mut self) {
        self.server = None;
    }

    /// Gone, with all it has to do before.
    pub(crate) async fn drain(&mut self) {
        self.server.take().unwrap().shutdown(PATIENCE).await;
    }

    /// The same server again, at another address.
    pub(crate) async fn restart_elsewhere(mut self) -> Self {
        self.kill();
        Self::bind(self.config.clone(), (Clock::system(), self.ring), Arc::clone(&self.dir)).await
    }

    /// The same server again, at the same address.
    pub(crate) async fn restart(mut self) -> Self {
        self.kill();
        let addr: SocketAddr = self.endpoint.authority().parse().unwrap();
        let config = Config { listen: addr, ..self.config.clone() };
        // The old socket closes when its task has noticed.
        eventually!("the port is free again", std::net::TcpListener::bind(addr).is_ok());
        Self::bind(config, (Clock::system(), self.ring), Arc::clone(&self.dir)).await
    }

    pub(crate) fn pinned(&self) -> Endpoint {
        self.endpoint.clone().pinned(self.id)
    }

    pub(crate) async fn connection(&self) -> Connection {
        dialer().dial(&self.pinned()).await.unwrap()
    }

    pub(crate) async fn client(&self) -> RendezvousServiceClient<Connection> {
        client(&self.connection().await)
    }

    pub(crate) async fn locate(&self, peer: &PeerId) -> Result<LocatedPeer, Status> {
        let request = wire::LocateRequest { peer_id: peer.to_wire() };
        let answer = self.client().await.locate(request).await?.into_inner();
        Ok(LocatedPeer::try_from(answer.peer.unwrap()).unwrap())
    }

    /// What the server believes of a peer; `None` if it knows none.
    pub(crate) async fn state(&self, peer: &PeerId) -> Option<PresenceState> {
        self.locate(peer).await.ok().map(|located| located.presence.state)
    }

    pub(crate) async fn knows(&self, peer: &PeerId, state: PresenceState) {
        eventually!(format!("{peer} is {state:?}"), self.state(peer).await == Some(state));
    }

    /// How many other members it has a link with.
    pub(crate) async fn links(&self) -> usize {
        let listed = self.client().await.list_rendezvous(wire::ListRendezvousRequest {}).await.unwrap();
        listed.into_inner().rendezvous.iter().filter(|one| one.connected).count() - 1
    }
}

pub(crate) fn dialer() -> Dialer {
    Dialer::new(None, None).unwrap()
}

pub(crate) fn client(connection: &Connection) -> RendezvousServiceClient<Connection> {
    RendezvousServiceClient::with_origin(connection.clone(), connection.origin())
}

/// The reason of a refusal.
#[track_caller]
pub(crate) fn reason<T: std::fmt::Debug>(result: Result<T, Status>) -> Reason {
    let status = result.unwrap_err();
    reason_of(&status).unwrap_or_else(|| panic!("no reason: {status:?}"))
}

/// A wire to a server that can be cut without either end being told.
pub(crate) struct Wire {
    pub(crate) endpoint: Endpoint,
    cut: CancellationToken,
}

impl Wire {
    pub(crate) async fn to(server: &TestServer) -> Self {
        Self::from([127, 0, 0, 1], server).await
    }

    /// One that comes out at another of the many addresses of loopback.
    pub(crate) async fn from(ip: [u8; 4], server: &TestServer) -> Self {
        let target = server.server.as_ref().unwrap().addr();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint: Endpoint = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        let cut = CancellationToken::new();
        let token = cut.clone();
        tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((ip, 0).into()).unwrap();
            let mut far = socket.connect(target).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = token.cancelled() => {}
            }
        });
        Self { endpoint: endpoint.pinned(server.id), cut }
    }

    pub(crate) fn cut(&self) {
        self.cut.cancel();
    }
}
