//! The server put together: identity, listener, services, and the tasks beside them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use p2psb_client::tls::TlsError;
use p2psb_client::{ClientAuth, Dialer, Identity, IdentityError, ServerTls};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::name::NameError;
use p2psb_proto::model::peer::Endorsement;
use p2psb_proto::model::{Address, AddressKind, PeerId, Transport, UnixMillis, limits};
use p2psb_proto::wire::DESCRIPTORS;
use p2psb_proto::wire::rendezvous::v1::bridge_service_server::BridgeServiceServer;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_server::RendezvousServiceServer;
use p2psb_runtime::serve::{ApiError, Conversing, Listener, Prompt, serve};
use p2psb_runtime::{Api, Flags, Running, ServeOptions, Service, Status, telemetry};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{self, Located, Rendezvous, locate_at_once};
use crate::backbone::dial::Work;
use crate::backbone::hub::Hub;
use crate::backbone::trust::Trust;
use crate::config::{Config, ServerConfig, own_service};
use crate::confirm::Confirming;
use crate::core::Now;
use crate::core::admission::Admission;
use crate::core::bridge::Bridge;
use crate::core::challenge::Challenges;
use crate::core::directory::{Capacity, Directory};
use crate::core::members::Role;
use crate::core::own::OwnRecord;
use crate::core::placement::Operator;
use crate::core::reconnect::Leaving;
use crate::core::watched::WatchedLedger;
use crate::node::{Node, random};
use crate::own_record::{OwnRecordError, OwnSigner, keep_fresh, sign};
use crate::sessions::RETURNING;
use crate::snapshots::{Snapshots, Start};
use crate::{backbone, sweeper};

/// Requests above this are not read. It lies far above every bound of the contract, so that who asks for ten times too much, such
/// as a watch of 10,000 peers, is refused by its own reason.
const REQUEST_BYTES: usize = 512 * 1024;

/// Why the server can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The socket.
    #[error("{0}")]
    Listen(#[from] std::io::Error),
    /// The own record.
    #[error(transparent)]
    OwnRecord(#[from] OwnRecordError),
    /// The served contract.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A name that the code itself gives.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No randomness.
    #[error("{}", .0.message)]
    Random(Failure),
}

impl StartError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Identity(_) | Self::Tls(_) => Reason::StorageFailed,
            Self::Listen(_) => Reason::ListenFailed,
            Self::OwnRecord(_) => Reason::InvalidArgument,
            Self::Api(_) | Self::Name(_) | Self::Random(_) => Reason::Internal,
        }
    }
}

/// Flags that stand for configuration keys.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServerFlags {
    /// Where to listen; sets listen.
    #[arg(long, value_name = "ADDR:PORT", global = true, help_heading = "Configuration")]
    pub listen: Option<String>,

    /// Where identity and certificate lie; sets data_dir.
    #[arg(long, value_name = "DIR", global = true, help_heading = "Configuration")]
    pub data_dir: Option<String>,
}

impl Flags for ServerFlags {
    fn overrides(&self) -> Vec<(String, String, String)> {
        let given = [("--listen", "listen", &self.listen), ("--data-dir", "data_dir", &self.data_dir)];
        let set = |(flag, key, value): (&str, &str, &Option<String>)| {
            Some((flag.to_owned(), key.to_owned(), value.clone()?))
        };
        given.into_iter().filter_map(set).collect()
    }
}

/// A running rendezvous.
pub struct Server {
    addr: SocketAddr,
    node: Arc<Node>,
    running: Running,
    status: Status,
    /// Ends when the dialed links have ended.
    dialing: Option<JoinHandle<()>>,
    /// Writes snapshots until the server drains.
    snapshots: Option<(Snapshots, AbortOnDropHandle<()>)>,
    _tasks: [AbortOnDropHandle<()>; 3],
}

impl Server {
    /// Who it is.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.node.id
    }

    /// A look at it, for a program that runs it beside something else.
    #[must_use]
    pub fn look(&self) -> Look {
        Look(Arc::clone(&self.node))
    }
}

/// How a running rendezvous is. Clones look at the same one.
#[derive(Clone)]
pub struct Look(Arc<Node>);

impl Look {
    /// How many peers have a session, or are about to.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.0.sessions.lock().total()
    }

    /// With how many members it is linked.
    #[must_use]
    pub fn links(&self) -> usize {
        self.0.directory.read().members.links()
    }

    /// Lets it vouch for these providers, beside those in `endorse_dir`, in the place of those before.
    pub fn endorse(&self, endorsed: Vec<Endorsement>) {
        if self.0.own.endorse(endorsed) {
            self.0.sign_anew.notify_one();
        }
    }
}

impl Service for Server {
    type Settings = Config;
    type Flags = ServerFlags;
    type Error = StartError;

    async fn bind(config: ServerConfig) -> Result<Self, StartError> {
        let identity = Identity::load_or_create(&config.data_dir)?;
        let snapshots = config.snapshot.map(|interval| Snapshots::new(&config.data_dir, &identity, interval));
        // Before anybody can ask: who is not known yet would be called unknown.
        let start = start(&config, &identity, snapshots.clone()).await;
        let tls = ServerTls::load(&config.tls, &identity, &config.data_dir, ClientAuth::None)?;
        let listener = Listener::bind(config.listen)?;
        let addr = listener.addr();
        let options = ServeOptions { http2: config.http2.clone(), ..ServeOptions::default() };
        let status = options.status.clone();
        let node =
            Arc::new(node(&config, identity, own_record(&config, addr, tls.transport())?, start, &options)?);
        sign(&node)?;
        backbone::turning::step(&node);

        let rendezvous = RendezvousServiceServer::new(Rendezvous(Arc::clone(&node)))
            .max_decoding_message_size(REQUEST_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES);
        let (known, all) = (Arc::clone(&node), Arc::clone(&node));
        let rendezvous =
            Conversing::new(rendezvous, "LocateStream", REQUEST_BYTES, move || Located::by(&all));
        let api = Api::new(&[DESCRIPTORS])
            .add_service(Prompt::new(rendezvous, "Locate", move |request| locate_at_once(&known, request)))
            .add_service(
                BridgeServiceServer::new(api::Bridge(Arc::clone(&node)))
                    .max_decoding_message_size(backbone::MESSAGE_BYTES)
                    .max_encoding_message_size(backbone::MESSAGE_BYTES),
            );
        let running = serve(api, listener.incoming(&options.http2, tls.handshake()), options)?;
        let sweeping =
            sweeper::sweep(Arc::clone(&node), status.component("bridge"), config.bridge_peers.len());
        let tasks = [
            AbortOnDropHandle::new(tokio::spawn(sweeping)),
            AbortOnDropHandle::new(tokio::spawn(keep_fresh(Arc::clone(&node)))),
            AbortOnDropHandle::new(tokio::spawn(backbone::turning::turn(Arc::clone(&node)))),
        ];
        let dialing = dialing(&config, &node)?;
        let snapshots = snapshots.map(|snapshots| {
            let keeping = tokio::spawn(snapshots.clone().keep(Arc::clone(&node)));
            (snapshots, AbortOnDropHandle::new(keeping))
        });
        tracing::info!(id = %node.id, role = ?node.role, bridged = config.trust.is_some(), "rendezvous bound");
        Ok(Self { addr, node, running, status, dialing, snapshots, _tasks: tasks })
    }

    fn reason(error: &StartError) -> &'static str {
        error.reason().as_str()
    }

    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn status(&self) -> Status {
        self.status.clone()
    }

    async fn failed(&mut self) -> String {
        self.running.closed().await
    }

    /// Sessions are told when to leave and where to go, links what became of them; what is left at the deadline is cut. What is
    /// known then is kept for the next life.
    async fn shutdown(mut self, deadline: Duration) {
        let peers = self.node.sessions.lock().total();
        *self.node.leaving.lock() = Some(Leaving::new(peers, deadline));
        let dialing = self.dialing.take();
        self.running.drain(deadline).await;
        if let Some(dialing) = dialing {
            let mut dialing = AbortOnDropHandle::new(dialing);
            let _ = tokio::time::timeout(deadline, &mut dialing).await;
        }
        if let Some((snapshots, keeping)) = self.snapshots.take() {
            // Two at once would be in each other's way.
            let _ = keeping.await;
            snapshots.finish(&self.node).await;
        }
    }
}

/// What the server starts with: what the snapshot holds, or nothing.
async fn start(config: &ServerConfig, identity: &Identity, snapshots: Option<Snapshots>) -> Start {
    let now = Now { mono: config.clock.now(), wall: UnixMillis(config.clock.unix_millis()) };
    let (id, timing, limits, network) =
        (identity.peer_id(), config.timing, config.limits.clone(), config.network);
    let empty = move || {
        let (records, services) = (limits.of_records(), limits.of_services());
        let (edges, _) = limits.of_edges().total;
        let capacity = Capacity { records, services, members: limits::MEMBERS, edges };
        let mut directory = Directory::new(id, timing, capacity);
        directory.knowledge_since = now.wall;
        (directory, Admission::new(limits.of_registrations()))
    };
    let Some(snapshots) = snapshots else { return empty() };
    let (identity, nothing) = (identity.clone(), empty.clone());
    let restoring = tokio::task::spawn_blocking(move || snapshots.restore(empty, &identity, network, now));
    restoring.await.unwrap_or_else(|error| {
        tracing::error!(%error, "the snapshot was not read; nothing is known yet");
        nothing()
    })
}

fn own_record(
    config: &ServerConfig,
    addr: SocketAddr,
    transport: Transport,
) -> Result<OwnRecord, StartError> {
    Ok(OwnRecord {
        network: config.network,
        addresses: addresses(&config.advertise, addr, transport),
        services: vec![own_service(config.operator.as_deref())?],
    })
}

fn node(
    config: &ServerConfig,
    identity: Identity,
    own: OwnRecord,
    (directory, registrations): Start,
    options: &ServeOptions,
) -> Result<Node, StartError> {
    let confirming = Confirming::new(&identity, config.allow_private)?;
    let (id, epoch, now) = (identity.peer_id(), config.clock.unix_millis(), config.clock.now());
    let operator = Operator::of(&id, config.operator.as_deref());
    let known_for = UnixMillis(epoch).since(directory.knowledge_since);
    let bridge = Bridge::new(id, operator, epoch, config.ring, now).remembering(known_for);
    // Who knows of no other member is the first one, or the only one: nobody tells it anything before it is asked.
    let knows_others = !config.bridge_peers.is_empty() || !directory.members.all().is_empty();
    let bridge = match config.role {
        Role::Edge => bridge.edge(now),
        Role::Member if config.trust.is_some() && knows_others => bridge,
        Role::Member => bridge.alone(now),
    };
    Ok(Node {
        id,
        network: config.network,
        epoch,
        identity,
        clock: config.clock.clone(),
        behind_proxy: config.behind_proxy,
        role: config.role,
        takes_edges: config.takes_edges,
        edges: Mutex::new(Admission::new(config.limits.of_edges())),
        directory: RwLock::new(directory),
        sessions: Mutex::new(Admission::new(config.limits.of_sessions())),
        returning: Mutex::new(Admission::new(RETURNING)),
        registrations: Mutex::new(registrations),
        // Who may have a session may watch.
        watches: Mutex::new(Admission::new(config.limits.of_sessions())),
        watched: Mutex::new(WatchedLedger::new(config.limits.of_watched())),
        challenges: Challenges::new(random().map_err(StartError::Random)?),
        streams: Mutex::default(),
        hub: Hub::new(bridge),
        trust: config.trust.clone(),
        own: OwnSigner::new(own, config.endorse.clone(), config.endorse_dir.clone()),
        confirming,
        sign_anew: Notify::new(),
        drain: options.drain.clone(),
        leaving: Mutex::default(),
    })
}

/// What stands in the own record: what is advertised, else where the server listens.
fn addresses(advertise: &[Address], addr: SocketAddr, transport: Transport) -> Vec<Address> {
    if !advertise.is_empty() {
        return advertise.to_vec();
    }
    if addr.ip().is_unspecified() {
        tracing::warn!(%addr, "nobody learns where this server is: set advertise, or listen on one address");
        return Vec::new();
    }
    vec![Address::ip(addr, transport, AddressKind::Listen)]
}

fn dialing(config: &ServerConfig, node: &Arc<Node>) -> Result<Option<JoinHandle<()>>, StartError> {
    let trust = match config.role {
        Role::Edge => Some(Trust::nobody()),
        Role::Member => config.trust.clone(),
    };
    let Some(trust) = trust else { return Ok(None) };
    // Members prove themselves by key or id, so their addresses need not be remembered.
    let dialer = Dialer::new(None, None)?.with_headers(telemetry::inject);
    let work = Work::new(node, dialer, trust, config.allow_private);
    Ok(Some(tokio::spawn(work.run(config.bridge_peers.clone()))))
}
