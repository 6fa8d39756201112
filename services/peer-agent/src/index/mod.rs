//! The package indexes: up to three providers that the configured rendezvous endorse, asked and told beside each other.
//!
//! Promises: what an index says is believed only as far as it is signed; an index that goes back on a chain is not believed; one
//! that is down or slow costs at most [`CALL`], and nothing if another answers as well.

mod chain;
mod query;
mod verify;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use p2psb_client::locator::Locator;
use p2psb_client::pool::Pool;
use p2psb_client::{Connection, Endpoint};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::{NetworkId, PeerId, ServiceName, limits};
use p2psb_proto::wire::package_index::v1 as wire;
use p2psb_proto::wire::package_index::v1::package_index_service_client::PackageIndexServiceClient;
use p2psb_runtime::Clock;
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

pub use chain::{Draft, Published};
pub use query::Resolved;

use crate::core::hosts::dial_order;
use crate::failure::{from_status, internal, store_failed};
use crate::reach;
use crate::store::{Store, StoreError};

/// How many indexes are used at a time.
pub const MAX_INDEXES: usize = 3;
/// How long one call may take.
pub const CALL: Duration = Duration::from_secs(15);
/// How long providers that were found are used before they are looked up anew.
const FRESH: Duration = Duration::from_secs(60);

/// The client of one index.
pub type Client = PackageIndexServiceClient<Connection>;

/// Who knows where the indexes are.
#[tonic::async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Providers of the package index that may be believed, best first.
    async fn indexes(&self) -> Result<Vec<LocatedPeer>, Failure>;
}

#[tonic::async_trait]
impl Directory for Locator {
    async fn indexes(&self) -> Result<Vec<LocatedPeer>, Failure> {
        let service = ServiceName::PACKAGE_INDEX.parse::<ServiceName>().map_err(internal)?;
        Ok(self.endorsed(&service).await?)
    }
}

/// A connected index.
#[derive(Clone, Debug)]
pub struct Index {
    /// Its id.
    pub id: PeerId,
    /// To it.
    pub connection: Connection,
}

impl Index {
    fn client(&self) -> Client {
        Client::with_origin(self.connection.clone(), self.connection.origin())
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES)
    }

    /// One call under its deadline.
    async fn call<Q, A, F>(
        &self,
        request: Q,
        call: impl FnOnce(Client, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(request);
        request.set_timeout(CALL);
        match tokio::time::timeout(CALL, call(self.client(), request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(from_status(&status)),
            Err(_) => {
                let problem =
                    format!("the index {} gave no answer within {} s", self.id.short(), CALL.as_secs());
                Err(Failure::new(Reason::Unreachable, problem))
            }
        }
    }

    /// Tells what this host holds.
    pub async fn announce(
        &self,
        request: wire::AnnounceHostRequest,
    ) -> Result<wire::AnnounceHostResponse, Failure> {
        self.call(request, |mut client, request| async move { client.announce_host(request).await }).await
    }
}

#[derive(Debug, Default)]
struct Found {
    at: Option<Instant>,
    providers: Vec<LocatedPeer>,
    /// Those that answered last.
    in_use: Vec<PeerId>,
}

/// The indexes. Clones are the same.
#[derive(Clone)]
pub struct Indexes {
    shared: Arc<Shared>,
}

struct Shared {
    directory: Arc<dyn Directory>,
    pool: Pool,
    store: Arc<Store>,
    network: NetworkId,
    clock: Clock,
    found: Mutex<Found>,
    looking: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Indexes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Indexes").field("in_use", &self.in_use()).finish_non_exhaustive()
    }
}

impl Indexes {
    /// Indexes of a network, as `directory` names them.
    #[must_use]
    pub fn new(
        directory: Arc<dyn Directory>,
        pool: Pool,
        store: Arc<Store>,
        network: NetworkId,
        clock: Clock,
    ) -> Self {
        let (found, looking) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { shared: Arc::new(Shared { directory, pool, store, network, clock, found, looking }) }
    }

    /// Those that answered last.
    #[must_use]
    pub fn in_use(&self) -> Vec<PeerId> {
        self.shared.found.lock().in_use.clone()
    }

    /// How many indexes would be in use if all that are known were there.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.shared.found.lock().providers.len().min(MAX_INDEXES)
    }

    /// Connections to the indexes in use: at least one.
    pub async fn connect(&self) -> Result<Vec<Index>, Failure> {
        let providers = self.providers().await?;
        let mut connected = Vec::new();
        let mut problems = Vec::new();
        // Beside each other, but never more than are needed; a failed one is replaced out of the rest.
        let mut rest = providers.into_iter();
        while connected.len() < MAX_INDEXES {
            let batch: Vec<LocatedPeer> = rest.by_ref().take(MAX_INDEXES - connected.len()).collect();
            if batch.is_empty() {
                break;
            }
            for outcome in join_all(batch.iter().map(|provider| self.reach(provider))).await {
                match outcome {
                    Ok(index) => connected.push(index),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        let mut found = self.shared.found.lock();
        found.in_use = connected.iter().map(|index| index.id).collect();
        if connected.is_empty() {
            found.at = None;
            return Err(Failure::new(
                Reason::NoProvider,
                format!("no package index can be reached: {}", problems.join("; ")),
            ));
        }
        Ok(connected)
    }

    async fn providers(&self) -> Result<Vec<LocatedPeer>, Failure> {
        // One look-up for all who wait.
        let _looking = self.shared.looking.lock().await;
        let now = self.shared.clock.now();
        {
            let found = self.shared.found.lock();
            if found.at.is_some_and(|at| now.saturating_duration_since(at) < FRESH) {
                return Ok(found.providers.clone());
            }
        }
        let looked_up = self.shared.directory.indexes().await.and_then(|providers| {
            let none = "no rendezvous in reach endorses a package index that is there; `peer-agent status` shows the sessions";
            if providers.is_empty() { Err(Failure::new(Reason::NoProvider, none)) } else { Ok(providers) }
        });
        let providers = match looked_up {
            Ok(providers) => providers,
            Err(failure) => {
                // An index does not depend on the rendezvous that it was found through: the last good list still holds.
                let known = self.shared.found.lock().providers.clone();
                return if known.is_empty() { Err(failure) } else { Ok(known) };
            }
        };
        let mut found = self.shared.found.lock();
        found.providers.clone_from(&providers);
        found.at = Some(now);
        Ok(providers)
    }

    async fn reach(&self, provider: &LocatedPeer) -> Result<Index, String> {
        let id = provider.peer_id();
        let endpoints: Vec<Endpoint> = dial_order(&provider.record.value().addresses)
            .into_iter()
            .filter_map(|address| Endpoint::of(address, id))
            .collect();
        let pool = &self.shared.pool;
        let attempt =
            |endpoint: Endpoint| async move { pool.get(&endpoint).await.map_err(|error| error.to_string()) };
        match reach::first(endpoints, attempt).await {
            Ok(connection) => Ok(Index { id, connection }),
            Err(problems) if problems.is_empty() => Err(format!("{} names no address", id.short())),
            Err(problems) => Err(problems.join("; ")),
        }
    }

    /// Blocking work on the catalogue.
    async fn store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = Arc::clone(&self.shared.store);
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(done) => done.map_err(store_failed),
            Err(error) => Err(internal(error)),
        }
    }
}

/// Of several failures the one that tells most: what an index knows before what it could not do.
fn most_telling(failures: Vec<Failure>) -> Failure {
    let rank = |failure: &Failure| match failure.reason {
        Reason::ChainForked => 0,
        Reason::NameAmbiguous => 1,
        Reason::Unreachable | Reason::Draining | Reason::LimitExceeded | Reason::Internal => 4,
        Reason::PackageUnknown => 3,
        _ => 2,
    };
    failures
        .into_iter()
        .min_by_key(rank)
        .unwrap_or_else(|| Failure::new(Reason::NoProvider, "no package index is connected"))
}
