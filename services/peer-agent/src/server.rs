//! The daemon: what it is made of, in the order in which it starts and stops.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use p2psb_client::pool::Pool;
use p2psb_client::{
    ClientAuth, Identity, IdentityError, Locator, Provider, ProviderError, Registration, SessionKeeper,
    TlsConfig,
};
use p2psb_proto::error::Reason;
use p2psb_proto::model::{PublisherId, SecretKey, UnixMillis, limits};
use p2psb_proto::wire::DESCRIPTORS;
use p2psb_proto::wire::agent::v1::agent_service_server::AgentServiceServer;
use p2psb_runtime::serve::{ApiError, Http2Config, Listener, serve};
use p2psb_runtime::status::Component;
use p2psb_runtime::{Api, Clock, Drain, NoFlags, Running, ServeOptions, Service, Status, telemetry};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::announce::{Announcer, Changed};
use crate::api::Agent;
use crate::api::overview::Seen;
use crate::config::{AgentConfig, Config};
use crate::control::file::{Control, Published};
use crate::control::lock::{self, Lock, LockError};
use crate::control::token::{Guard, Token};
use crate::edge::{self, Edge, EdgeError, EdgeView};
use crate::exchange::accept::Peers;
use crate::exchange::dial::Caller;
use crate::exchange::{Ends, Gate};
use crate::failure::store_failed;
use crate::fetch::{Fetches, Means};
use crate::index::Indexes;
use crate::publish::Publisher;
use crate::store::Store;

/// Program and version.
pub const SOFTWARE: &str = concat!("peer-agent/", env!("CARGO_PKG_VERSION"));
/// The key that signs releases, in the data folder.
pub const PUBLISHER_KEY: &str = "publisher.key";
/// What agents register as.
pub const PEER_SERVICE: &str = "p2psb.peer";
/// How often new problems of shared files are looked for, to be logged.
const LOOK: Duration = Duration::from_secs(5);

/// Why the daemon can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder is in use, or can't be.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The identity or the certificate can't be had.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The rendezvous inside.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// The publisher's key can't be had.
    #[error(transparent)]
    PublisherKey(#[from] IdentityError),
    /// A socket.
    #[error("{0}")]
    Listen(std::io::Error),
    /// The control file.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The catalogue can't be used.
    #[error("{0}")]
    Store(String),
    /// No randomness for the token.
    #[error("no randomness from the operating system: {0}")]
    Random(getrandom::Error),
    /// The contract in the program is broken.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A name in the program is broken.
    #[error(transparent)]
    Name(#[from] p2psb_proto::model::name::NameError),
}

impl StartError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Lock(LockError::Taken(_)) => Reason::AgentRunning,
            Self::Lock(LockError::Io { .. })
            | Self::Provider(_)
            | Self::PublisherKey(_)
            | Self::Io(_)
            | Self::Store(_) => Reason::StorageFailed,
            Self::Edge(error) => error.reason(),
            Self::Listen(_) => Reason::ListenFailed,
            Self::Random(_) | Self::Api(_) | Self::Name(_) => Reason::Internal,
        }
    }
}

/// A running agent.
pub struct Server {
    addr: SocketAddr,
    control_addr: SocketAddr,
    identity: Identity,
    publisher: PublisherId,
    status: Status,
    peers: Running,
    control: Running,
    sessions: Arc<SessionKeeper>,
    edge: Option<Edge>,
    fetches: Fetches,
    stop: CancellationToken,
    tasks: TaskTracker,
    published: Published,
    _lock: Lock,
}

/// What other peers may take of a machine that is its user's, not theirs.
fn peers_http2() -> Http2Config {
    Http2Config {
        max_connections: 512,
        connections_per_ip: 64,
        connections_per_prefix: 128,
        max_concurrent_streams: 16,
        waiting_bytes: 64 << 20,
        waiting_bytes_per_ip: 16 << 20,
        waiting_bytes_per_prefix: 32 << 20,
        ..Http2Config::bulk()
    }
}

/// The parts that everything else is built from.
struct Parts {
    config: AgentConfig,
    provider: Provider,
    publisher_key: Arc<SecretKey>,
    store: Arc<Store>,
    sessions: Arc<SessionKeeper>,
    edge: Option<EdgeView>,
    locator: Locator,
    indexes: Indexes,
    ends: Ends,
    changed: Changed,
    clock: Clock,
}

impl Server {
    /// Where it listens for its user.
    #[must_use]
    pub const fn control_addr(&self) -> SocketAddr {
        self.control_addr
    }

    /// Own id.
    #[must_use]
    pub const fn peer_id(&self) -> p2psb_proto::model::PeerId {
        self.identity.peer_id()
    }

    /// Own publisher id.
    #[must_use]
    pub const fn publisher_id(&self) -> PublisherId {
        self.publisher
    }
}

impl Service for Server {
    type Settings = Config;
    type Flags = NoFlags;
    type Error = StartError;

    async fn bind(mut config: AgentConfig) -> Result<Self, StartError> {
        let lock = lock::take(&config.data_dir)?;
        let listen = |addr| Listener::bind(addr).map_err(StartError::Listen);
        let (peer_listener, control_listener) = (listen(config.listen)?, listen(config.control)?);
        let (addr, control_addr) = (peer_listener.addr(), control_listener.addr());
        // Whoever dials a peer proves who it is, by its certificate.
        let auth = ClientAuth::Required;
        let provider = Provider::load(&config.data_dir, &TlsConfig::default(), auth, telemetry::inject)?;
        let (status, drain) = (Status::new(), Drain::new());
        let edge = match config.edge.take() {
            Some(config) => Some(Edge::bind(config).await?),
            None => None,
        };
        let parts = Parts::make(config, provider, addr, edge.as_ref()).await?;

        let gate = Gate::default();
        let peers = parts.serve_peers(peer_listener, gate, &status, &drain)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let caller = Caller::new(parts.provider.dialer.clone(), parts.ends.clone());
        let fetches = Fetches::new(parts.means(caller), parts.changed.clone());
        parts.spawn_all(&status, &stop, &tasks);
        if let Some(edge) = &edge {
            tasks.spawn(edge::report(edge.status(), status.component("edge"), stop.clone()));
            let vouching =
                edge::vouch(edge.view(), parts.locator.clone(), Arc::clone(&parts.sessions), stop.clone());
            tasks.spawn(vouching);
        }

        let token = Token::generate().map_err(StartError::Random)?;
        let control = parts.serve_control(control_listener, addr, &fetches, token.clone(), &status)?;
        let published =
            Control { addr: control_addr, token, pid: std::process::id() }.publish(&parts.config.data_dir)?;
        if let Err(failure) = fetches.resume().await {
            tracing::error!(reason = %failure.reason, error = %failure.message, "unfinished fetches can't be resumed");
        }
        let publisher = PublisherId::new(parts.publisher_key.public());
        tracing::info!(peer = %parts.provider.identity.peer_id(), %publisher, control = %control_addr, "agent started");
        let (identity, sessions) = (parts.provider.identity, parts.sessions);
        Ok(Self {
            addr,
            control_addr,
            identity,
            publisher,
            status,
            peers,
            control,
            sessions,
            edge,
            fetches,
            stop,
            tasks,
            published,
            _lock: lock,
        })
    }

    fn reason(error: &StartError) -> &'static str {
        error.reason().as_str()
    }

    /// Where it listens for peers.
    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn status(&self) -> Status {
        self.status.clone()
    }

    async fn failed(&mut self) -> String {
        tokio::select! {
            reason = self.peers.closed() => format!("peers: {reason}"),
            reason = self.control.closed() => format!("control: {reason}"),
            reason = edge_failed(self.edge.as_mut()) => format!("edge: {reason}"),
        }
    }

    /// Fetches keep what they have, links and calls may end until `deadline`, the sessions say goodbye. Then the rendezvous inside goes,
    /// if there is one: it is to tell others that this agent left, and its peers need at least half of the time.
    async fn shutdown(self, deadline: Duration) {
        let end = Instant::now() + deadline;
        let deadline = if self.edge.is_some() { deadline / 2 } else { deadline };
        self.status.drain();
        self.stop.cancel();
        drop(self.published);
        self.fetches.shutdown().await;
        tokio::join!(self.peers.drain(deadline), self.control.drain(deadline));
        self.tasks.close();
        self.tasks.wait().await;
        // What showed the sessions is gone with the calls; if a call was cut, the sessions end without a goodbye.
        if let Some(sessions) = Arc::into_inner(self.sessions) {
            let _ = tokio::time::timeout(Duration::from_secs(2), sessions.shutdown()).await;
        }
        if let Some(edge) = self.edge {
            edge.shutdown(end.saturating_duration_since(Instant::now())).await;
        }
    }
}

impl Parts {
    async fn make(
        config: AgentConfig,
        provider: Provider,
        addr: SocketAddr,
        edge: Option<&Edge>,
    ) -> Result<Self, StartError> {
        let clock = Clock::system();
        let publisher_key = publisher_key(&config.data_dir)?;
        let folder = config.data_dir.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(&folder))
            .await
            .map_err(|error| StartError::Store(error.to_string()))?
            .map_err(|error| StartError::Store(store_failed(error).message))?;
        let store = Arc::new(store);
        let sessions = provider.register(Registration {
            network: config.network,
            software: SOFTWARE,
            service: PEER_SERVICE.parse()?,
            rendezvous: config.rendezvous.clone(),
            own_rendezvous: edge.map(Edge::endpoint),
            listen: addr,
            advertise: config.advertise.clone(),
        });
        let locator = Locator::new(config.network, &config.rendezvous, provider.dialer.clone());
        if let Some(edge) = edge {
            // It knows who is around, also while no other one is in reach.
            locator.ask_also(&edge.endpoint());
        }
        let pool = Pool::new(provider.dialer.clone());
        let directory = Arc::new(locator.clone());
        let indexes = Indexes::new(directory, pool, Arc::clone(&store), config.network, clock.clone());
        let source: Arc<dyn crate::exchange::ChunkSource> = Arc::clone(&store) as _;
        let (network, own) = (config.network, provider.identity.peer_id());
        let ends = Ends { network, own, software: SOFTWARE, source, clock: clock.clone() };
        let (sessions, changed) = (Arc::new(sessions), Changed::default());
        let edge = edge.map(Edge::view);
        Ok(Self {
            config,
            provider,
            publisher_key,
            store,
            sessions,
            edge,
            locator,
            indexes,
            ends,
            changed,
            clock,
        })
    }

    fn means(&self, caller: Caller) -> Means {
        Means {
            store: Arc::clone(&self.store),
            indexes: self.indexes.clone(),
            locator: self.locator.clone(),
            caller,
            own: self.provider.identity.peer_id(),
            clock: self.clock.clone(),
        }
    }

    fn serve_peers(
        &self,
        listener: Listener,
        gate: Gate,
        status: &Status,
        drain: &Drain,
    ) -> Result<Running, StartError> {
        let options = ServeOptions { http2: peers_http2(), status: status.clone(), drain: drain.clone() };
        let api =
            Api::new(&[DESCRIPTORS]).add_service(Peers::service(self.ends.clone(), gate, drain.clone()));
        let incoming = listener.incoming(&options.http2, self.provider.tls.clone().handshake());
        Ok(serve(api, incoming, options)?)
    }

    fn serve_control(
        &self,
        listener: Listener,
        listen: SocketAddr,
        fetches: &Fetches,
        token: Token,
        status: &Status,
    ) -> Result<Running, StartError> {
        let seen = Seen {
            peer_id: self.provider.identity.peer_id(),
            publisher_id: PublisherId::new(self.publisher_key.public()),
            network: self.config.network,
            software: SOFTWARE,
            sessions: Arc::clone(&self.sessions),
            edge: self.edge.clone(),
            store: Arc::clone(&self.store),
            started: UnixMillis(self.clock.unix_millis()),
            listen,
        };
        let publisher = Publisher {
            store: Arc::clone(&self.store),
            indexes: self.indexes.clone(),
            key: Arc::clone(&self.publisher_key),
            changed: self.changed.clone(),
        };
        let agent = Agent {
            seen: Arc::new(seen),
            publisher,
            fetches: fetches.clone(),
            indexes: self.indexes.clone(),
            locator: self.locator.clone(),
        };
        let service = AgentServiceServer::new(agent)
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES);
        let guarded = tonic::service::interceptor::InterceptedService::new(service, Guard(token));
        let http2 = Http2Config { max_connections: 64, ..Http2Config::default() };
        let options = ServeOptions { http2, status: status.clone(), drain: Drain::new() };
        let incoming = listener.plaintext(&options.http2);
        Ok(serve(Api::new(&[DESCRIPTORS]).add_service(guarded), incoming, options)?)
    }

    fn spawn_all(&self, status: &Status, stop: &CancellationToken, tasks: &TaskTracker) {
        let announcer = Announcer {
            indexes: self.indexes.clone(),
            store: Arc::clone(&self.store),
            identity: self.provider.identity.clone(),
            publisher: PublisherId::new(self.publisher_key.public()),
            network: self.config.network,
            clock: self.clock.clone(),
            changed: self.changed.clone(),
            component: status.component("announce"),
        };
        tasks.spawn(announcer.run(stop.clone()));
        let (sessions, locator) = (Arc::clone(&self.sessions), self.locator.clone());
        tasks.spawn(watch_sessions(sessions, locator, status.component("rendezvous"), stop.clone()));
        tasks.spawn(tell_problems(Arc::clone(&self.store), stop.clone()));
    }
}

async fn edge_failed(edge: Option<&mut Edge>) -> String {
    match edge {
        Some(edge) => edge.failed().await,
        None => std::future::pending().await,
    }
}

/// The key that signs releases; made once.
pub fn publisher_key(data_dir: &Path) -> Result<Arc<SecretKey>, IdentityError> {
    p2psb_client::identity::load_or_create_secret(&data_dir.join(PUBLISHER_KEY)).map(Arc::new)
}

/// Says in the status whether a rendezvous is reached, and lets those that are be asked.
async fn watch_sessions(
    sessions: Arc<SessionKeeper>,
    locator: Locator,
    component: Component,
    stop: CancellationToken,
) {
    let tell = |standing| {
        locator.ask_homes(&sessions);
        match standing {
            Ok(()) => component.ready(),
            Err(why) => component.not_ready(format!("no session with a rendezvous: {why}")),
        }
    };
    sessions.follow(&stop, tell).await;
}

/// Logs what is wrong with shared files: they changed, or can't be read any more.
async fn tell_problems(store: Arc<Store>, stop: CancellationToken) {
    loop {
        for problem in store.take_new_problems() {
            tracing::warn!(path = %problem.path.display(), problem = problem.detail, "a shared file is not served any more; publish or fetch it again");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
    }
}
