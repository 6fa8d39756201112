//! Keeps sessions with the rendezvous: one worker for each server, up to `max_homes` homes in each backbone, the own record signed
//! anew whenever it changes or ages, jittered backoff, fail-over to rendezvous learnt from others.

pub(crate) mod handshake;
mod own;
mod plan;
mod standing;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::{NetworkId, PeerId, PeerRecord, RecordError, Signed, UnixMillis, limits, record};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use own::Reachability;
pub use standing::Unregistered;

use crate::conn::Dialer;
use crate::endpoint::Endpoint;
use crate::identity::Identity;
use own::{OwnRecord, Seen};
use plan::Plan;

/// How many rendezvous are kept that no configuration names.
const MAX_LEARNT: usize = 32;

/// What a session keeper needs.
#[derive(Clone)]
pub struct SessionConfig {
    /// The community.
    pub network: NetworkId,
    /// Who this peer is.
    pub identity: Identity,
    /// Program and version, for people: "peer-agent/0.1.0".
    pub software: String,
    /// Rendezvous to try, all of them.
    pub rendezvous: Vec<Endpoint>,
    /// What this peer provides.
    pub services: Vec<ServiceOffer>,
    /// How others can reach it.
    pub reachability: Reachability,
    /// Makes the connections.
    pub dialer: Dialer,
    /// Homes in each backbone. 3 is usual.
    pub max_homes: usize,
    /// Life of a signed record; at most 2 h.
    pub record_ttl: Duration,
}

/// How a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Being set up.
    Connecting,
    /// A home of this peer.
    Online,
    /// Reached, but enough homes are held in its backbone.
    Standby,
    /// Not reached; tried again.
    Failed {
        /// Why.
        error: String,
        /// When it is tried again.
        retry_at: tokio::time::Instant,
    },
}

/// One rendezvous, as the keeper sees it.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    /// How it is dialed.
    pub endpoint: Endpoint,
    /// Whether the configuration names it.
    pub configured: bool,
    /// Its proven id, once known.
    pub server_id: Option<PeerId>,
    /// How the session stands.
    pub state: SessionState,
    /// This peer's address as the server sees it.
    pub observed: Option<std::net::SocketAddr>,
}

/// Keeps the sessions until it is shut down or dropped.
pub struct SessionKeeper {
    shared: Arc<Shared>,
}

struct Shared {
    config: SessionConfig,
    state: Mutex<State>,
    /// The newest own record, for every session to send.
    record: watch::Sender<Option<Signed<PeerRecord>>>,
    /// Counts changes of what [`SessionKeeper::status`] says.
    changes: watch::Sender<u64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct State {
    plan: Plan,
    own: OwnRecord,
    sessions: BTreeMap<usize, SessionStatus>,
    /// Rendezvous that have a worker, by id once known.
    known: BTreeSet<PeerId>,
    learnt: usize,
    next_number: usize,
    last_session_seq: u64,
}

impl SessionKeeper {
    /// Starts the sessions. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(config: SessionConfig) -> Self {
        let own = OwnRecord {
            network: config.network,
            reachability: config.reachability.clone(),
            services: config.services.clone(),
            ttl: config.record_ttl,
            last_seq: 0,
            homes: BTreeMap::new(),
        };
        let state = State {
            plan: Plan::new(config.max_homes),
            own,
            sessions: BTreeMap::new(),
            known: config.rendezvous.iter().filter_map(Endpoint::pin).collect(),
            learnt: 0,
            next_number: 0,
            last_session_seq: 0,
        };
        let endpoints = config.rendezvous.clone();
        let shared = Arc::new(Shared {
            config,
            state: Mutex::new(state),
            record: watch::Sender::new(None),
            changes: watch::Sender::new(0),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        for endpoint in endpoints {
            shared.spawn(vec![endpoint], true, BTreeSet::new());
        }
        Self { shared }
    }

    /// All rendezvous, configured ones first.
    #[must_use]
    pub fn status(&self) -> Vec<SessionStatus> {
        self.shared.state.lock().sessions.values().cloned().collect()
    }

    /// Wakes whenever [`Self::status`] changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// The newest own record; `None` before the first session.
    #[must_use]
    pub fn record(&self) -> Option<Signed<PeerRecord>> {
        self.shared.record.borrow().clone()
    }

    /// How many homes are held.
    #[must_use]
    pub fn homes(&self) -> usize {
        self.shared.state.lock().plan.homes().count()
    }

    /// Says goodbye everywhere, and returns once all sessions have ended.
    pub async fn shutdown(self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for SessionKeeper {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    fn spawn(self: &Arc<Self>, endpoints: Vec<Endpoint>, configured: bool, backbone: BTreeSet<PeerId>) {
        let Some(first) = endpoints.first().cloned() else { return };
        let number = {
            let mut state = self.state.lock();
            let number = state.next_number;
            state.next_number += 1;
            let server_id = first.pin();
            let status = SessionStatus {
                endpoint: first,
                configured,
                server_id,
                state: if configured { SessionState::Connecting } else { SessionState::Standby },
                observed: None,
            };
            state.sessions.insert(number, status);
            number
        };
        let worker = worker::Worker { shared: Arc::clone(self), number, endpoints, configured, backbone };
        self.tasks.spawn(worker.run());
    }

    /// Takes note of the rendezvous that a server lists. Each that has no worker yet gets one.
    fn learn(self: &Arc<Self>, records: &[Signed<PeerRecord>]) {
        let backbone: BTreeSet<PeerId> = records.iter().map(Signed::peer_id).collect();
        let fresh: Vec<_> = {
            let mut state = self.state.lock();
            let mut fresh = Vec::new();
            for record in records {
                if state.learnt < MAX_LEARNT && state.known.insert(record.peer_id()) {
                    state.learnt += 1;
                    fresh.push(record);
                }
            }
            fresh
        };
        for record in fresh {
            let id = record.peer_id();
            let endpoints: Vec<_> =
                record.value().addresses.iter().filter_map(|a| Endpoint::of(a, id)).collect();
            self.spawn(endpoints, false, backbone.clone());
        }
    }

    /// A server has proven who it is. A worker that learnt of it from others is no longer needed beside a configured one.
    fn proven(&self, number: usize, server: PeerId) {
        let mut state = self.state.lock();
        state.known.insert(server);
        if state.sessions.get(&number).is_some_and(|s| s.configured) {
            let idle = |s: &SessionStatus| s.state == SessionState::Standby && s.server_id == Some(server);
            state.sessions.retain(|_, s| s.configured || !idle(s));
        }
    }

    fn set(&self, number: usize, change: impl FnOnce(&mut SessionStatus)) {
        if let Some(status) = self.state.lock().sessions.get_mut(&number) {
            change(status);
        }
        self.changes.send_modify(|n| *n += 1);
    }

    /// Makes a server a home if there is room, and signs a record that says so.
    fn join(
        &self,
        server: PeerId,
        backbone: BTreeSet<PeerId>,
        seen: Seen,
    ) -> Result<Option<Signed<PeerRecord>>, RecordError> {
        let mut state = self.state.lock();
        if !state.plan.join(server, backbone) {
            return Ok(None);
        }
        state.own.homes.insert(server, seen);
        match state.own.sign(self.config.identity.key(), now()) {
            Ok(record) => {
                self.record.send_replace(Some(record.clone()));
                Ok(Some(record))
            }
            Err(error) => {
                state.plan.leave(&server);
                state.own.homes.remove(&server);
                Err(error)
            }
        }
    }

    fn leave(&self, server: &PeerId) {
        let others = {
            let mut state = self.state.lock();
            state.plan.leave(server);
            state.own.homes.remove(server);
            !state.own.homes.is_empty()
        };
        if others && !self.stop.is_cancelled() {
            self.sign_anew(0);
        }
        self.changes.send_modify(|n| *n += 1);
    }

    /// Signs the record anew, past `floor`, for all sessions.
    fn sign_anew(&self, floor: u64) {
        let mut state = self.state.lock();
        // A stored record far ahead of the clock must not lead the own sequence into refusal.
        let horizon = now().plus(limits::CLOCK_SKEW).0;
        state.own.last_seq = state.own.last_seq.max(floor.min(horizon.saturating_sub(1)));
        match state.own.sign(self.config.identity.key(), now()) {
            Ok(record) => drop(self.record.send_replace(Some(record))),
            Err(error) => tracing::error!(%error, "the own record can't be signed"),
        }
    }

    /// A server holds a record of this peer with `seq`. If that is not one of this process (a restored backup, a second copy), the own
    /// record is signed past it; if it is, the server has it from elsewhere in its backbone and all is well.
    fn sign_past(&self, seq: u64) {
        let last = self.state.lock().own.last_seq;
        if seq > last {
            tracing::warn!(seq, last, "a newer record of this peer is known than this process signed");
            self.sign_anew(seq);
        }
    }

    fn next_session_seq(&self) -> u64 {
        let mut state = self.state.lock();
        state.last_session_seq = record::next_seq(state.last_session_seq, now());
        state.last_session_seq
    }

    /// Whether a configured rendezvous is still being tried for the first time or again.
    fn configured_pending(&self) -> bool {
        let pending = |s: &SessionStatus| s.configured && s.state == SessionState::Connecting;
        self.state.lock().sessions.values().any(pending)
    }
}

/// The wall clock.
pub(crate) fn now() -> UnixMillis {
    SystemTime::now().into()
}
