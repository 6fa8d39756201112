//! The start of a program that provides a service to a community: its identity, what follows from it, and its registration.
//!
//! In this order: [`Provider::load`], bind and serve with [`Provider::tls`], then [`Provider::register`]. So a key or
//! certificate that can't be had is found out before anybody is told that the program is there, and nobody is sent to a
//! socket that does not answer yet.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderMap;
use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::{Address, NetworkId, ServiceName};

use crate::conn::Dialer;
use crate::endpoint::Endpoint;
use crate::identity::{Identity, IdentityError};
use crate::session::{Reachability, SessionConfig, SessionKeeper};
use crate::tls::{ClientAuth, ServerTls, TlsConfig, TlsError};

/// The file in the data folder with the identities of servers that were dialed without a pin.
const KNOWN_SERVERS: &str = "known_servers";
/// The file in the data folder with the rendezvous that others listed.
const KNOWN_RENDEZVOUS: &str = "known_rendezvous";
/// Homes in each backbone.
const MAX_HOMES: usize = 3;
/// Life of the provider's own signed record.
const RECORD_TTL: Duration = Duration::from_secs(60 * 60);

/// What a provider is made of; all of it lies in one data folder.
#[derive(Clone)]
pub struct Provider {
    /// Who it is.
    pub identity: Identity,
    /// How its listener speaks.
    pub tls: ServerTls,
    /// How it reaches others.
    pub dialer: Dialer,
    /// Where the rendezvous are remembered that others list.
    pub memory: PathBuf,
    /// Whether whoever connects proves an identity, too: only then rendezvous look whether it is reached.
    pub mutual: bool,
}

/// Why a provider can't start.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate, or the list of known servers.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What a provider tells the rendezvous.
pub struct Registration {
    /// The community.
    pub network: NetworkId,
    /// Program and version, for people: "discovery-svc/0.1.0".
    pub software: &'static str,
    /// What it provides.
    pub service: ServiceName,
    /// Rendezvous to try, all of them.
    pub rendezvous: Vec<Endpoint>,
    /// The rendezvous that the provider runs itself, with its id.
    pub own_rendezvous: Option<Endpoint>,
    /// The listening socket.
    pub listen: SocketAddr,
    /// Addresses that its operator states.
    pub advertise: Vec<Address>,
}

impl Provider {
    /// Loads what a data folder holds, and makes what is missing. `headers` are added to every call to others.
    pub fn load(
        data_dir: &Path,
        tls: &TlsConfig,
        auth: ClientAuth,
        headers: fn(&mut HeaderMap),
    ) -> Result<Self, ProviderError> {
        let identity = Identity::load_or_create(data_dir)?;
        let tls = ServerTls::load(tls, &identity, data_dir, auth)?;
        let dialer = Dialer::new(Some(&identity), Some(&data_dir.join(KNOWN_SERVERS)))?.with_headers(headers);
        let memory = data_dir.join(KNOWN_RENDEZVOUS);
        Ok(Self { identity, tls, dialer, memory, mutual: auth == ClientAuth::Required })
    }

    /// Registers, and stays registered while what is returned lives. Must be called inside a tokio runtime.
    #[must_use]
    pub fn register(&self, registration: Registration) -> SessionKeeper {
        SessionKeeper::start(SessionConfig {
            network: registration.network,
            identity: self.identity.clone(),
            software: registration.software.to_owned(),
            rendezvous: registration.rendezvous,
            own_rendezvous: registration.own_rendezvous,
            services: vec![ServiceOffer::new(registration.service)],
            reachability: Reachability {
                listen: Some(registration.listen),
                transport: self.tls.transport(),
                advertise: registration.advertise,
                confirm: self.mutual,
            },
            dialer: self.dialer.clone(),
            memory: Some(self.memory.clone()),
            max_homes: MAX_HOMES,
            record_ttl: RECORD_TTL,
        })
    }
}
