//! What all parts of a running server share.
//!
//! Locks: the directory is taken before the hub's list of links, never the other way round; no lock is held across an await.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use p2psb_client::{ConnectInfo, Identity};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::proof::{ChannelBinding, Nonce};
use p2psb_proto::model::{Address, AddressKind, NetworkId, PeerId, Transport, UnixMillis};
use p2psb_proto::wire::common::v1 as common;
use p2psb_runtime::serve::Arrived;
use p2psb_runtime::{Clock, Drain};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::backbone::hub::Hub;
use crate::backbone::trust::Trust;
use crate::confirm::Confirming;
use crate::core::Now;
use crate::core::admission::Admission;
use crate::core::challenge::Challenges;
use crate::core::directory::Directory;
use crate::core::members::Role;
use crate::core::reconnect::{Leaving, spread};
use crate::core::session::Ticket;
use crate::core::watched::WatchedLedger;
use crate::own_record::OwnSigner;

/// Program and version, as every hello says it.
pub(crate) const SOFTWARE: &str = concat!("rendezvous-svc/", env!("CARGO_PKG_VERSION"));

/// The shared state.
pub(crate) struct Node {
    pub(crate) id: PeerId,
    pub(crate) network: NetworkId,
    /// Names this life of the server.
    pub(crate) epoch: u64,
    pub(crate) identity: Identity,
    pub(crate) clock: Clock,
    /// A proxy stands in front: who calls is known only if it says so.
    pub(crate) behind_proxy: bool,
    /// What this server is in its backbone.
    pub(crate) role: Role,
    /// Edges may have links with it.
    pub(crate) takes_edges: bool,
    pub(crate) directory: RwLock<Directory>,
    /// How many edges have a link, and from where.
    pub(crate) edges: Mutex<Admission>,
    /// How many sessions, and from where.
    pub(crate) sessions: Mutex<Admission>,
    /// How many have found no place among the sessions and may be peers that have one.
    pub(crate) returning: Mutex<Admission>,
    /// How many unary registrations, and from where.
    pub(crate) registrations: Mutex<Admission>,
    /// How many watches, and from where.
    pub(crate) watches: Mutex<Admission>,
    /// How many peers these watch, by whom, and from where.
    pub(crate) watched: Mutex<WatchedLedger>,
    pub(crate) challenges: Challenges,
    /// The streams of live sessions, to be told that they are replaced.
    pub(crate) streams: Mutex<HashMap<Ticket, CancellationToken>>,
    pub(crate) hub: Hub,
    /// Who may bridge; `None`: nobody.
    pub(crate) trust: Option<Trust>,
    pub(crate) own: OwnSigner,
    /// Whom this server dials for others.
    pub(crate) confirming: Confirming,
    /// Somebody holds a newer record of this server than it signed in this life.
    pub(crate) sign_anew: Notify,
    pub(crate) drain: Drain,
    /// When who is here leaves; set before the drain begins. Without it everybody leaves at once.
    pub(crate) leaving: Mutex<Option<Leaving>>,
}

impl Node {
    /// The moment it is.
    pub(crate) fn now(&self) -> Now {
        Now { mono: self.clock.now(), wall: UnixMillis(self.clock.unix_millis()) }
    }

    /// Resolves when this server drains and it is time for somebody to leave who has no session.
    pub(crate) async fn time_to_leave(&self) {
        self.drain.begun().await;
        let moment = self.leaving.lock().as_ref().map_or(Duration::ZERO, |l| l.any(fastrand::f64()));
        tokio::time::sleep(moment).await;
    }

    /// When one more peer of this draining server is to leave, counted from the beginning, and how long past that it is served.
    pub(crate) fn next_to_leave(&self) -> (Duration, Duration) {
        let mut leaving = self.leaving.lock();
        leaving.as_mut().map_or_else(Default::default, |l| (l.next(fastrand::f64()), l.patience()))
    }

    /// How long the leaving takes.
    pub(crate) fn leaving_ends(&self) -> Duration {
        self.leaving.lock().as_ref().map_or(Duration::ZERO, Leaving::end)
    }

    /// Over how long peers come back from here if this server dies.
    pub(crate) fn reconnect_spread(&self) -> Duration {
        spread(self.sessions.lock().total())
    }

    /// This server's hello.
    pub(crate) fn hello(&self) -> common::Hello {
        Hello::own(self.network, self.id, SOFTWARE, self.now().wall)
    }
}

/// Who calls, as far as the connection tells.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Where from; unknown behind a proxy that does not say it.
    pub(crate) addr: Option<SocketAddr>,
    /// What proofs on the connection are bound to.
    pub(crate) binding: ChannelBinding,
}

impl Caller {
    /// Of a request.
    pub(crate) fn of<T>(request: &tonic::Request<T>, node: &Node) -> Result<Self, Failure> {
        let arrived = request.extensions().get::<Arrived<ConnectInfo>>().ok_or_else(|| {
            Failure::new(Reason::Internal, "the listener does not tell where a call comes from")
        })?;
        let is_known = !node.behind_proxy || arrived.info.is_named;
        let addr = is_known.then_some(arrived.info.remote_addr);
        Ok(Self { addr, binding: arrived.info.binding })
    }

    /// The IP address.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.addr.map(|addr| addr.ip())
    }

    /// The address for the peer's record. Peers speak TLS whatever this server does.
    pub(crate) fn observed(&self) -> Option<common::Address> {
        self.addr.map(|addr| Address::ip(addr, Transport::Tls, AddressKind::Observed).to_wire())
    }
}

/// 32 random bytes.
pub(crate) fn random() -> Result<Nonce, Failure> {
    let mut bytes = Nonce::default();
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Reason::Internal, format!("no randomness from the system: {error}")))?;
    Ok(bytes)
}
