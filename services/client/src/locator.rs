//! Finds peers and services: asks the rendezvous of every known backbone, and verifies what they say; whoever answered is trusted for
//! freshness only.
//!
//! Nobody waits for a rendezvous that is dead: a call that breaks goes to the next at once, one that takes longer than usual is put to
//! the next beside it, and who failed, lied or was overtaken is asked last for a while.
//!
//! Rendezvous are those of the configuration and those that they list. Endorsements count only from configured ones.

mod confirmed;
mod endorsed;
mod hedge;
pub(crate) mod known;
pub(crate) mod latency;
mod locate;
mod providers;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use p2psb_proto::model::{NetworkId, PeerRecord, Signed, limits};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

pub use self::locate::{Acquaintances, Options, Walked};
pub use self::providers::Providers;
pub use crate::walk::{Caller, LocateError, Located};

use self::known::Table;
use self::locate::Finding;
use crate::conn::{Connection, Dialer};
use crate::endpoint::Endpoint;
use crate::pool::Pool;
use crate::session::{SessionKeeper, SessionState, handshake, now};
use crate::walk::{CALL, DOUBTFUL_CALL};

/// With lists to go on, so long newer ones are waited for.
const NEWER_LISTS: Duration = Duration::from_millis(250);
/// How long a lookup may take when the caller sets no deadline.
pub const LOOKUP: Duration = Duration::from_secs(10);

/// A rendezvous as the locator sees it.
#[derive(Clone, Debug)]
pub struct RendezvousStatus {
    /// How it is dialed.
    pub endpoint: Endpoint,
    /// Its own record, once it was reached.
    pub record: Option<Signed<PeerRecord>>,
    /// Whether the configuration names it.
    pub configured: bool,
    /// How long its last answer took.
    pub latency: Option<Duration>,
    /// Why its last call failed, or what it lied.
    pub error: Option<String>,
    /// How many times it said what no honest one says.
    pub lies: u32,
}

/// Finds peers and services. Clones share connections and what is known.
#[derive(Clone)]
pub struct Locator {
    network: NetworkId,
    pool: Pool,
    known: Arc<Mutex<Table>>,
    finding: Arc<Mutex<Finding>>,
    acquaintances: Arc<OnceLock<Arc<dyn Acquaintances>>>,
}

pub(crate) type Client = RendezvousServiceClient<Connection>;

impl Locator {
    /// A locator that starts from these rendezvous.
    #[must_use]
    pub fn new(network: NetworkId, rendezvous: &[Endpoint], dialer: Dialer) -> Self {
        let known = Arc::new(Mutex::new(Table::new(rendezvous)));
        let (finding, acquaintances) = (Arc::default(), Arc::default());
        Self { network, pool: Pool::new(dialer), known, finding, acquaintances }
    }

    /// Asks this rendezvous as well, which no configuration names: whom it vouches for has no weight.
    pub fn ask_also(&self, endpoint: &Endpoint) {
        self.known.lock().ask_also(endpoint);
    }

    /// Asks the homes of a peer as well, also those that no configuration names.
    pub fn ask_homes(&self, sessions: &SessionKeeper) {
        let homes =
            sessions.status().into_iter().filter(|one| !one.configured && one.state == SessionState::Online);
        for home in homes {
            if let Some(id) = home.server_id {
                self.ask_also(&home.endpoint.pinned(id));
            }
        }
    }

    /// All rendezvous as they were when last asked, configured ones first.
    #[must_use]
    pub fn rendezvous(&self) -> Vec<RendezvousStatus> {
        self.known.lock().statuses()
    }

    /// Asks those whose list is old for a new one, and learns from it.
    pub async fn refresh(&self) {
        self.refresh_within(NEWER_LISTS).await;
    }

    /// The same; with lists to go on, newer ones are waited for no longer than `patience`.
    async fn refresh_within(&self, patience: Duration) {
        let (due, fresh) = {
            let mut known = self.known.lock();
            let fresh = known.is_fresh();
            (known.due(Instant::now()), fresh)
        };
        // Tasks of their own: a slow one is waited for no longer than it is needed, and still notes what became of it.
        let mut asking: FuturesUnordered<_> = due
            .into_iter()
            .map(|endpoint| {
                let locator = self.clone();
                tokio::spawn(async move {
                    locator.ask_list(&endpoint).await;
                    locator.known.lock().asked(&endpoint);
                })
            })
            .collect();
        if !fresh {
            let first = async { while !self.known.lock().is_fresh() && asking.next().await.is_some() {} };
            let _ = tokio::time::timeout(CALL, first).await;
        }
        let patience = if fresh { patience } else { NEWER_LISTS };
        if !patience.is_zero() {
            let rest = async { while asking.next().await.is_some() {} };
            let _ = tokio::time::timeout(patience, rest).await;
        }
    }

    async fn ask_list(&self, endpoint: &Endpoint) {
        let call = async |mut client: Client, request: Request<_>| client.list_rendezvous(request).await;
        let Ok(answer) = self.call(endpoint, wire::ListRendezvousRequest {}, call).await else { return };
        let mut sessions = BTreeMap::new();
        let mut records: Vec<Signed<PeerRecord>> = Vec::new();
        for one in answer.rendezvous.into_iter().take(limits::MEMBERS) {
            let Ok(record) = Signed::<PeerRecord>::verify_field(one.record) else { continue };
            if record.value().check(&self.network, now()).is_ok() {
                sessions.insert(record.peer_id(), one.sessions);
                records.push(record);
            }
        }
        let is_it = |own: &Signed<PeerRecord>| endpoint.pin().is_none_or(|pin| pin == own.peer_id());
        if records.first().is_some_and(is_it) {
            let mut known = self.known.lock();
            known.list(endpoint, &records, Instant::now());
            known.loaded(&sessions);
        } else {
            self.failed(endpoint, "it is not who it must be, or belongs to another network");
        }
    }

    /// One call with its bound; notes latency and failure.
    async fn call<Q, A>(
        &self,
        endpoint: &Endpoint,
        request: Q,
        call: impl AsyncFnOnce(Client, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Status> {
        let start = Instant::now();
        let doubtful = self.known.lock().is_doubtful(endpoint, start);
        let bound = if doubtful { DOUBTFUL_CALL } else { CALL };
        let answer = self.call_by(endpoint, start + bound, request, call).await;
        match &answer {
            Ok(_) => self.known.lock().answered(endpoint, start.elapsed()),
            Err(status) => self.failed(endpoint, status.message()),
        }
        answer
    }

    /// One call that ends by `deadline`, and tells so.
    async fn call_by<Q, A>(
        &self,
        endpoint: &Endpoint,
        deadline: Instant,
        request: Q,
        call: impl AsyncFnOnce(Client, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Status> {
        let call = async {
            let client = self.client(endpoint).await?;
            let mut request = Request::new(request);
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            call(client, request).await.map(Response::into_inner)
        };
        tokio::time::timeout_at(deadline.into(), call).await.unwrap_or_else(|_| Err(late()))
    }

    /// A client of a rendezvous that is who it must be.
    pub(crate) async fn client(&self, endpoint: &Endpoint) -> Result<Client, Status> {
        let connection = self.pool.get_by(endpoint, async |dialer| self.dial(dialer, endpoint).await).await?;
        let origin = connection.origin();
        Ok(Client::with_origin(connection, origin).max_decoding_message_size(limits::MESSAGE_BYTES))
    }

    /// The community.
    pub(crate) const fn network(&self) -> &NetworkId {
        &self.network
    }

    /// A rendezvous that is pinned or remembered must prove itself: by its certificate, or live.
    async fn dial(&self, dialer: &Dialer, endpoint: &Endpoint) -> Result<Connection, Status> {
        let connection = dialer.dial_unproven(endpoint).await?;
        if connection.expected().is_some() && connection.server_id().is_none() {
            handshake::prove(&connection, endpoint, self.network).await?;
        }
        Ok(connection)
    }

    /// Notes that a rendezvous failed: others come first for a while.
    pub(crate) fn failed(&self, endpoint: &Endpoint, why: &str) {
        self.known.lock().failed(endpoint, why, Instant::now());
    }

    /// How many sessions a rendezvous has, as far as anybody said.
    pub(crate) fn sessions(&self, endpoint: &Endpoint) -> u64 {
        self.known.lock().sessions(endpoint)
    }

    /// The rendezvous by backbone, in each the quickest first and those that failed lately last.
    pub(crate) fn backbones(&self) -> Vec<Vec<Endpoint>> {
        let choices = self.known.lock().choices(Instant::now());
        choices.into_iter().map(|members| members.into_iter().map(|one| one.endpoint).collect()).collect()
    }
}

impl Locator {
    /// The rendezvous of the backbone that this one belongs to, the quickest first; itself, if it is known no more.
    pub(crate) fn backbone_of(&self, endpoint: &Endpoint) -> Vec<Endpoint> {
        let mine = self.backbones().into_iter().find(|members| members.contains(endpoint));
        mine.unwrap_or_else(|| vec![endpoint.clone()])
    }
}

/// The time is over.
fn late() -> Status {
    Status::deadline_exceeded("no answer in time")
}

fn shown(failures: &[String]) -> String {
    match failures {
        [] => "none is configured".to_owned(),
        some => some.iter().take(5).cloned().collect::<Vec<_>>().join("; "),
    }
}
