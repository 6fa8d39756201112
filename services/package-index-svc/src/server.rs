//! The service put together.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use p2psb_client::session::Unregistered;
use p2psb_client::{
    ClientAuth, Identity, IdentityError, Provider, ProviderError, Registration, SessionKeeper,
};
use p2psb_proto::error::Reason;
use p2psb_proto::model::limits::MESSAGE_BYTES;
use p2psb_proto::model::name::NameError;
use p2psb_proto::model::{PeerId, ServiceName};
use p2psb_proto::wire::DESCRIPTORS;
use p2psb_proto::wire::package_index::v1::package_index_service_server::PackageIndexServiceServer;
use p2psb_runtime::serve::{ApiError, Listener, serve};
use p2psb_runtime::status::Component;
use p2psb_runtime::verbs::Identified;
use p2psb_runtime::{Api as Routes, NoFlags, Running, ServeOptions, Service, Status, telemetry};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::api::Api;
use crate::catalogue::Catalogue;
use crate::config::{Config, Settings};
use crate::store::{SqliteStore, StoreError};

/// Why the service can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity or the certificate.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
    /// The database's folder.
    #[error("cannot make the folder {}: {source}", path.display())]
    Folder {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The work on it ended without a result.
    #[error("opening the database ended by a fault of the program")]
    Lost,
    /// The served contract.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A name that the code itself gives.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl StartError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Provider(_) | Self::Folder { .. } | Self::Store(_) => Reason::StorageFailed,
            Self::Listen(_) => Reason::ListenFailed,
            Self::Lost | Self::Api(_) | Self::Name(_) => Reason::Internal,
        }
    }
}

/// A running package index.
pub struct Server {
    addr: SocketAddr,
    peer_id: PeerId,
    running: Running,
    catalogue: Arc<Catalogue>,
    status: Status,
    leave: CancellationToken,
    registered: AbortOnDropHandle<()>,
}

impl Server {
    /// The service's own id.
    #[must_use]
    pub const fn peer_id(&self) -> PeerId {
        self.peer_id
    }
}

impl Service for Server {
    type Settings = Settings;
    type Flags = NoFlags;
    type Error = StartError;

    async fn bind(config: Config) -> Result<Self, StartError> {
        let provider = Provider::load(&config.data_dir, &config.tls, ClientAuth::None, telemetry::inject)?;
        describe();
        let options = ServeOptions { http2: config.http2.clone(), ..ServeOptions::default() };
        let status = options.status.clone();
        let catalogue = open(&config, status.component("store")).await?;
        let listener = Listener::bind(config.listen)?;
        let addr = listener.addr();

        let api =
            Api { catalogue: Arc::clone(&catalogue), network: config.network, clock: config.clock.clone() };
        let service = PackageIndexServiceServer::new(api)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let routes = Routes::new(&[DESCRIPTORS]).add_service(service);
        let running =
            serve(routes, listener.incoming(&options.http2, provider.tls.clone().handshake()), options)?;

        let sessions = provider.register(Registration {
            network: config.network,
            software: concat!("package-index-svc/", env!("CARGO_PKG_VERSION")),
            service: ServiceName::PACKAGE_INDEX.parse()?,
            rendezvous: config.rendezvous,
            own_rendezvous: None,
            listen: addr,
            advertise: config.advertise,
        });
        let leave = CancellationToken::new();
        let registered = tokio::spawn(register(sessions, status.component("rendezvous"), leave.clone()));
        let registered = AbortOnDropHandle::new(registered);
        let peer_id = provider.identity.peer_id();
        Ok(Self { addr, peer_id, running, catalogue, status, leave, registered })
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

    async fn shutdown(self, deadline: Duration) {
        // Leave the rendezvous first, so that nobody is sent here any more.
        self.leave.cancel();
        if self.registered.await.is_err() {
            tracing::error!("the sessions with the rendezvous did not end well");
        }
        self.running.drain(deadline).await;
        self.catalogue.close().await;
    }
}

fn describe() {
    metrics::describe_histogram!(
        "index_transaction_seconds",
        "from the first write of a transaction to its commit"
    );
    metrics::describe_counter!(
        "index_writes_total",
        "publications and announcements that came to the database"
    );
    metrics::describe_counter!("index_entries_total", "entries appended to chains");
    metrics::describe_counter!("index_refusals_total", "calls that failed, by reason");
    metrics::describe_counter!("index_claims_refused_total", "single claims that were refused, by reason");
    metrics::describe_counter!("index_swept_rows_total", "rows that expired hosts left behind, removed");
}

/// Opens the database and starts its threads.
async fn open(config: &Config, store: Component) -> Result<Arc<Catalogue>, StartError> {
    let (path, bytes, quotas) = (config.database.clone(), config.database_bytes, config.quotas);
    let (readers, clock) = (config.readers, config.clock.clone());
    let work = move || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| StartError::Folder { path: folder.to_owned(), source })?;
        }
        let sqlite = SqliteStore::open(&path, bytes, quotas)?;
        store.ready();
        let watcher = move |ended: &Result<(), StoreError>| match ended {
            Ok(()) => store.ready(),
            // What is there can still be read.
            Err(error) => store.degraded(error.to_string()),
        };
        Ok(Arc::new(Catalogue::start(Box::new(sqlite), readers, clock, Box::new(watcher))?))
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| StartError::Lost)?
}

/// Keeps the service registered until it is told to leave, and says whether it can be found: without a session it still serves
/// whoever knows its address.
async fn register(sessions: SessionKeeper, component: Component, leave: CancellationToken) {
    let tell = |standing| match standing {
        Ok(()) => component.ready(),
        Err(why @ Unregistered::NowhereToGo) => {
            component.degraded(format!("{why}: only who knows the address finds this index"));
        }
        Err(why) => component.degraded(format!("not registered at any rendezvous: {why}")),
    };
    sessions.follow(&leave, tell).await;
    sessions.shutdown().await;
}

impl Identified for Server {
    type IdentityError = IdentityError;

    fn data_dir(settings: &Settings) -> &Path {
        &settings.data_dir
    }

    fn id(folder: &Path, make: bool) -> Result<String, IdentityError> {
        let identity = if make { Identity::load_or_create(folder) } else { Identity::load(folder) };
        identity.map(|identity| identity.peer_id().to_string())
    }
}
