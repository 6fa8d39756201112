//! The service put together.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use p2psb_client::{
    ClientAuth, Identity, IdentityError, Locator, Provider, ProviderError, Registration, SessionKeeper,
};
use p2psb_proto::error::Reason;
use p2psb_proto::model::name::NameError;
use p2psb_proto::model::{PeerId, ServiceName};
use p2psb_proto::wire::DESCRIPTORS;
use p2psb_proto::wire::discovery::v1::discovery_service_server::DiscoveryServiceServer;
use p2psb_runtime::serve::{ApiError, Listener, serve};
use p2psb_runtime::verbs::Identified;
use p2psb_runtime::{Api as Routes, NoFlags, Running, ServeOptions, Service, Status, telemetry};
use tokio_util::task::AbortOnDropHandle;

use crate::api::Api;
use crate::config::{Config, Settings};

/// How often the lists of rendezvous are looked at.
const REFRESH: Duration = Duration::from_secs(15);

/// Why the service can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity or the certificate.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] std::io::Error),
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
            Self::Provider(_) => Reason::StorageFailed,
            Self::Listen { .. } => Reason::ListenFailed,
            Self::Api(_) | Self::Name(_) => Reason::Internal,
        }
    }
}

/// A running discovery service.
pub struct Server {
    addr: SocketAddr,
    peer_id: PeerId,
    running: Running,
    sessions: SessionKeeper,
    status: Status,
    _refresh: AbortOnDropHandle<()>,
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
        let listener = Listener::bind(config.listen)?;
        let addr = listener.addr();
        let locator = Locator::new(config.network, &config.rendezvous, provider.dialer.clone());

        let options = ServeOptions { http2: config.http2.clone(), ..ServeOptions::default() };
        let status = options.status.clone();
        let routes = Routes::new(&[DESCRIPTORS]).add_service(DiscoveryServiceServer::new(Api {
            locator: locator.clone(),
            shared_sources: config.http2.shared_sources.clone(),
        }));
        let running =
            serve(routes, listener.incoming(&options.http2, provider.tls.clone().handshake()), options)?;

        let sessions = provider.register(Registration {
            network: config.network,
            software: concat!("discovery-svc/", env!("CARGO_PKG_VERSION")),
            service: ServiceName::DISCOVERY.parse()?,
            rendezvous: config.rendezvous,
            own_rendezvous: None,
            listen: addr,
            advertise: config.advertise,
        });
        let refresh = AbortOnDropHandle::new(tokio::spawn(keep_fresh(locator, status.clone())));
        Ok(Self { addr, peer_id: provider.identity.peer_id(), running, sessions, status, _refresh: refresh })
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
        self.sessions.shutdown().await;
        self.running.drain(deadline).await;
    }
}

/// Keeps the lists of rendezvous young, and says whether any of them answers.
async fn keep_fresh(locator: Locator, status: Status) {
    let rendezvous = status.component("rendezvous");
    loop {
        locator.refresh().await;
        let all = locator.rendezvous();
        let answering = all.iter().filter(|r| r.error.is_none() && r.latency.is_some()).count();
        if answering > 0 {
            rendezvous.ready();
        } else {
            let why = all.iter().find_map(|r| r.error.clone()).unwrap_or_else(|| "not asked yet".into());
            rendezvous.degraded(format!("no rendezvous answers: {why}"));
        }
        tokio::time::sleep(REFRESH).await;
    }
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
