//! Keeps sessions with the rendezvous: one worker for each server, up to `max_homes` homes in each backbone, the own record signed
//! anew whenever it changes or ages.
//!
//! A home that is lost is replaced by the best of the others that are known, configured or learnt, by latency and load; when that
//! may begin, the lost one said while it lived, so that the peers of a server that dies come back spread. A home that drains is
//! replaced before it is left. What fails is tried again with jittered backoff. Rendezvous that others list are remembered over restarts,
//! and tried when none that is configured answers.

mod confirm;
pub(crate) mod handshake;
mod memory;
mod own;
mod plan;
mod standing;
mod turns;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::{NetworkId, PeerId, PeerRecord, RecordError, Signed, UnixMillis, limits, record};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use confirm::{OwnAddress, Standing};
pub use own::Reachability;
pub use standing::Unregistered;

use crate::conn::Dialer;
use crate::endpoint::Endpoint;
use crate::identity::Identity;
use confirm::Confirming;
use handshake::Listed;
use memory::{Memory, Origin};
use own::{OwnRecord, Seen};
use plan::Plan;
use turns::Turns;

/// How many rendezvous are kept that no configuration names.
const MAX_LEARNT: usize = 32;
/// So long after the start those that were learnt give way to configured ones that have not answered yet.
const CONFIGURED_FIRST: Duration = Duration::from_secs(2);

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
    /// The rendezvous that this peer runs itself, with its id: a home beside `max_homes`, so that whoever comes there finds this peer
    /// also while no other rendezvous is in reach. It says nothing of where this peer is seen, and by it alone nobody is registered.
    pub own_rendezvous: Option<Endpoint>,
    /// What this peer provides.
    pub services: Vec<ServiceOffer>,
    /// How others can reach it.
    pub reachability: Reachability,
    /// Makes the connections.
    pub dialer: Dialer,
    /// A file to remember rendezvous in that others list. Without it they are forgotten when the program ends.
    pub memory: Option<PathBuf>,
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
    /// Whether this peer runs it itself.
    pub own: bool,
    /// Its proven id, once known.
    pub server_id: Option<PeerId>,
    /// How the session stands.
    pub state: SessionState,
    /// This peer's address as the server sees it.
    pub observed: Option<std::net::SocketAddr>,
    /// How long it took to answer when it was reached last.
    pub latency: Option<Duration>,
    /// How many sessions it has, as it or another rendezvous said last; 0 if that is not known.
    pub sessions: u64,
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

/// How a rendezvous came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// By the configuration.
    Configured,
    /// This peer runs it itself.
    Own,
    /// From others.
    Learnt,
}

struct State {
    plan: Plan,
    turns: Turns,
    own: OwnRecord,
    sessions: BTreeMap<usize, SessionStatus>,
    /// Rendezvous that have a worker, by id once known.
    known: BTreeSet<PeerId>,
    learnt: usize,
    /// What is remembered of those that others list.
    memory: Memory,
    /// Those whose last attempt failed.
    failed: BTreeSet<usize>,
    started: Instant,
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
            confirming: Confirming::new(config.network, config.identity.peer_id(), &config.reachability),
        };
        let own_rendezvous = config.own_rendezvous.clone();
        let origin = Origin { network: config.network, configured: config.rendezvous.clone() };
        let file = config.memory.clone();
        let state = State {
            plan: Plan::new(config.max_homes, own_rendezvous.as_ref().and_then(Endpoint::pin)),
            turns: Turns::default(),
            own,
            sessions: BTreeMap::new(),
            known: config.rendezvous.iter().chain(&own_rendezvous).filter_map(Endpoint::pin).collect(),
            learnt: 0,
            memory: file.as_ref().map(|file| Memory::read(file, &origin)).unwrap_or_default(),
            failed: BTreeSet::new(),
            started: Instant::now(),
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
            shared.spawn(vec![endpoint], Kind::Configured, BTreeSet::new());
        }
        if let Some(endpoint) = own_rendezvous {
            shared.spawn(vec![endpoint], Kind::Own, BTreeSet::new());
        }
        shared.tasks.spawn(memory::keep_recalling(Arc::clone(&shared)));
        if let Some(file) = file {
            shared.tasks.spawn(memory::keep_writing(Arc::clone(&shared), file, origin));
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
    fn spawn(self: &Arc<Self>, endpoints: Vec<Endpoint>, kind: Kind, backbone: BTreeSet<PeerId>) {
        let Some(first) = endpoints.first().cloned() else { return };
        let number = {
            let mut state = self.state.lock();
            let number = state.next_number;
            state.next_number += 1;
            let server_id = first.pin();
            let status = SessionStatus {
                endpoint: first,
                configured: kind == Kind::Configured,
                own: kind == Kind::Own,
                server_id,
                state: if kind == Kind::Learnt { SessionState::Standby } else { SessionState::Connecting },
                observed: None,
                latency: None,
                sessions: 0,
            };
            state.sessions.insert(number, status);
            number
        };
        let worker = worker::Worker { shared: Arc::clone(self), number, endpoints, kind, backbone };
        self.tasks.spawn(worker.run());
    }

    /// Takes note of the rendezvous that a server lists. Each that has no worker yet gets one.
    fn learn(self: &Arc<Self>, records: &[Signed<PeerRecord>]) {
        let backbone: BTreeSet<PeerId> = records.iter().map(Signed::peer_id).collect();
        let fresh: Vec<_> = {
            let mut state = self.state.lock();
            let own = self.config.own_rendezvous.as_ref().and_then(Endpoint::pin);
            state.memory.listed(records, own);
            let mut fresh = Vec::new();
            for record in records {
                let id = record.peer_id();
                let endpoints: Vec<_> =
                    record.value().addresses.iter().filter_map(|a| Endpoint::of(a, id)).collect();
                if !endpoints.is_empty() && state.learnt < MAX_LEARNT && state.known.insert(id) {
                    state.learnt += 1;
                    fresh.push(endpoints);
                }
            }
            fresh
        };
        for endpoints in fresh {
            self.spawn(endpoints, Kind::Learnt, backbone.clone());
        }
    }

    /// Takes note of the rendezvous that a server lists, and of how many sessions each has.
    fn learn_listed(self: &Arc<Self>, listed: &Listed) {
        {
            let mut state = self.state.lock();
            for status in state.sessions.values_mut() {
                let told = status.server_id.and_then(|id| listed.sessions.get(&id));
                status.sessions = told.copied().unwrap_or(status.sessions);
            }
        }
        self.learn(&listed.records);
    }

    /// A rendezvous that was learnt from others answers no more: whoever names it again makes it known again.
    fn forget(&self, number: usize) {
        let mut state = self.state.lock();
        state.failed.remove(&number);
        if let Some(id) = state.sessions.remove(&number).and_then(|status| status.server_id) {
            state.known.remove(&id);
            // Where nobody answers, it is this machine that is cut off.
            if state.is_home() {
                state.memory.forget(&id);
            }
            state.learnt = state.learnt.saturating_sub(1);
        }
    }

    /// A server has proven who it is. A worker that learnt of it from others is no longer needed beside a configured one.
    fn proven(&self, number: usize, server: PeerId) {
        let mut state = self.state.lock();
        state.known.insert(server);
        state.memory.proven(&server);
        state.failed.remove(&number);
        if state.sessions.get(&number).is_some_and(|s| s.configured) {
            let idle = |s: &SessionStatus| s.state == SessionState::Standby && s.server_id == Some(server);
            let before = state.sessions.len();
            state.sessions.retain(|_, s| s.configured || s.own || !idle(s));
            state.learnt = state.learnt.saturating_sub(before - state.sessions.len());
        }
    }

    /// A home is about to be left: another one may take its place. It stays in the record until it is left.
    fn retire(&self, server: &PeerId) {
        self.state.lock().plan.leave(server);
        self.changes.send_modify(|n| *n += 1);
    }

    /// Whether a backbone has room for a home, and somebody who may become it.
    fn is_filling(&self, backbone: &BTreeSet<PeerId>) -> bool {
        let state = self.state.lock();
        state.plan.room(None, backbone) > 0 && state.turns.any(backbone)
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
        state.own.observe();
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
            state.own.confirming.left(server);
            state.own.observe();
            !state.own.homes.is_empty()
        };
        if others && !self.stop.is_cancelled() {
            self.sign_anew(0);
        }
        self.changes.send_modify(|n| *n += 1);
    }

    /// This machine's address beside the rendezvous that the peer runs itself may be another one by now.
    fn moved_to(&self, own: PeerId, local: IpAddr) {
        if let Some(seen) = self.state.lock().own.homes.get_mut(&own) {
            seen.local = local;
        }
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
}

impl State {
    /// Whether a configured rendezvous may still become a home before those that were learnt.
    fn configured_pending(&self) -> bool {
        let pending = |s: &SessionStatus| s.configured && s.state == SessionState::Connecting;
        self.started.elapsed() < CONFIGURED_FIRST && self.sessions.values().any(pending)
    }
}

/// The wall clock.
pub(crate) fn now() -> UnixMillis {
    SystemTime::now().into()
}
