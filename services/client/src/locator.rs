//! The walk that finds a peer: every known backbone is asked at once, inside a backbone one rendezvous after the other, each with a
//! head start before the next. Answers are verified here; whoever answered is trusted for freshness only.
//!
//! Nobody waits for a rendezvous that is dead: a call that breaks goes to the next at once, one that takes longer than usual is put to
//! the next beside it, and who failed or was overtaken is asked last for a while.
//!
//! Rendezvous are those of the configuration and those that they list. Endorsements count only from configured ones.

mod confirmed;
mod endorsed;
mod hedge;
pub(crate) mod known;
pub(crate) mod latency;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use p2psb_proto::error::{self, Failure, Reason};
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::{NetworkId, PeerId, PeerRecord, ServiceQuery, Signed, UnixMillis, limits};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use parking_lot::Mutex;
use tonic::Status;

use self::hedge::{Answer, Word, hedged};
use self::known::Table;
use crate::conn::{Connection, Dialer};
use crate::endpoint::Endpoint;
use crate::pool::Pool;
use crate::session::{SessionKeeper, SessionState, handshake, now};
use crate::walk::lane::Choice;

/// When a backbone has answered, so long the others are waited for.
const OTHERS: Duration = Duration::from_millis(100);
/// With lists to go on, so long newer ones are waited for.
const NEWER_LISTS: Duration = Duration::from_millis(250);
/// How long a lookup may take when the caller sets no deadline.
pub const LOOKUP: Duration = Duration::from_secs(10);
/// How long a rendezvous may take to answer one call.
const CALL: Duration = Duration::from_secs(5);
/// The same for one that failed lately.
const DOUBTFUL_CALL: Duration = Duration::from_secs(1);
/// How many pages of one service are read from one backbone.
const MAX_PAGES: usize = 100;
/// A page is large: so long the next rendezvous waits at least.
const PAGE_PATIENCE: Duration = Duration::from_millis(250);
/// Who began to know less than that ago may have to learn of a peer still.
const SETTLED: Duration = Duration::from_secs(60);

/// Why a lookup has no answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LocateError {
    /// Everyone who answered does not know the peer.
    #[error("no rendezvous knows {peer}: it was never online here as far as they remember ({asked} asked)")]
    Unknown {
        /// Who was looked for.
        peer: PeerId,
        /// How many rendezvous answered.
        asked: usize,
    },
    /// It was seen, but nobody who answered has a valid record of it.
    #[error("{peer} is offline, last seen at {last_seen}: it left, or its record ran out ({asked} asked)")]
    Offline {
        /// Who was looked for.
        peer: PeerId,
        /// The latest moment that anybody names.
        last_seen: UnixMillis,
        /// How many rendezvous answered.
        asked: usize,
    },
    /// Nobody answered.
    #[error("no rendezvous answered: {detail}")]
    NoRendezvous {
        /// What each of them failed with.
        detail: String,
    },
}

impl LocateError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Unknown { .. } => Reason::PeerUnknown,
            Self::Offline { .. } => Reason::PeerOffline,
            Self::NoRendezvous { .. } => Reason::NoRendezvous,
        }
    }
}

impl From<LocateError> for Failure {
    fn from(error: LocateError) -> Self {
        let failure = Self::new(error.reason(), error.to_string());
        match error {
            LocateError::Offline { last_seen, .. } => failure.with("last_seen_time", last_seen),
            LocateError::Unknown { .. } | LocateError::NoRendezvous { .. } => failure,
        }
    }
}

/// A located peer, and who answered.
#[derive(Clone, Debug)]
pub struct Located {
    /// The peer.
    pub peer: LocatedPeer,
    /// The rendezvous whose answer this is.
    pub answered_by: Endpoint,
}

/// The providers of a service.
#[derive(Clone, Debug, Default)]
pub struct Providers {
    /// Each once, in order of their ids.
    pub peers: Vec<LocatedPeer>,
    /// There may be more: some rendezvous does not keep them all.
    pub sampled: bool,
}

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
}

pub(crate) type Client = RendezvousServiceClient<Connection>;

impl Locator {
    /// A locator that starts from these rendezvous.
    #[must_use]
    pub fn new(network: NetworkId, rendezvous: &[Endpoint], dialer: Dialer) -> Self {
        let known = Arc::new(Mutex::new(Table::new(rendezvous)));
        Self { network, pool: Pool::new(dialer), known }
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

    /// Where `peer` is: of all backbones' answers the one with the newest record.
    pub async fn locate(&self, peer: &PeerId) -> Result<Located, LocateError> {
        self.refresh_within(Duration::ZERO).await;
        let seen = Mutex::new(None);
        let choices = self.known.lock().choices(Instant::now());
        let is_sound = |members: &[Choice]| members.iter().any(|one| !one.doubtful);
        let mut awaited = choices.iter().filter(|members| is_sound(members)).count();
        let walk = |members: Vec<Choice>| async {
            (is_sound(&members), self.locate_in(members, *peer, &seen).await)
        };
        let mut walks: FuturesUnordered<_> = choices.into_iter().map(walk).collect();
        let mut best: Option<Located> = None;
        let (mut asked, mut failures) = (0, Vec::new());
        let mut others_until = None;
        // With an answer in hand those that may be dead are not waited for, and the others not for long.
        while best.is_none() || awaited > 0 {
            let next = match others_until {
                None => walks.next().await,
                Some(until) => tokio::time::timeout_at(until, walks.next()).await.ok().flatten(),
            };
            let Some((was_awaited, (answer, failed))) = next else { break };
            awaited -= usize::from(was_awaited);
            failures.extend(failed);
            match answer {
                Answer::Found(found) if best.as_ref().is_none_or(|b| rank(&found.peer) > rank(&b.peer)) => {
                    best = Some(found);
                    others_until.get_or_insert_with(|| tokio::time::Instant::now() + OTHERS);
                }
                Answer::Found(_) | Answer::None => {}
                Answer::Unknown(by) => asked += by,
            }
        }
        match best {
            Some(found) => Ok(found),
            None if asked > 0 => Err(match *seen.lock() {
                Some(last_seen) => LocateError::Offline { peer: *peer, last_seen, asked },
                None => LocateError::Unknown { peer: *peer, asked },
            }),
            None => Err(LocateError::NoRendezvous { detail: shown(&failures) }),
        }
    }

    /// Asks one backbone: its first rendezvous, and the next ones beside it when they fail or are slow. Of those that have seen the peer
    /// but have no valid record of it, `seen` keeps the latest word.
    async fn locate_in(
        &self,
        members: Vec<Choice>,
        peer: PeerId,
        seen: &Mutex<Option<UnixMillis>>,
    ) -> (Answer<Located>, Vec<String>) {
        let ask = |endpoint: Endpoint| async move {
            let request = wire::LocateRequest { peer_id: peer.to_wire() };
            let mut waiting = Waiting { locator: self, endpoint: &endpoint, since: Some(Instant::now()) };
            let answer = self
                .call(&endpoint, async |mut client: Client| {
                    client.locate(request).await.map(tonic::Response::into_inner)
                })
                .await;
            waiting.since = None;
            match answer {
                Ok(answer) => self.believe(peer, answer, &endpoint).map(Word::Found),
                Err(s) if is_not_located(&s) => {
                    let mut seen = seen.lock();
                    *seen = (*seen).max(last_seen(&s));
                    Ok(if is_settled(&s) { Word::Unknown } else { Word::Unsure })
                }
                Err(s) => Err(format!("{}: {}", endpoint.url(), s.message())),
            }
        };
        hedged(members, ask).await
    }

    fn believe(
        &self,
        peer: PeerId,
        answer: wire::LocateResponse,
        endpoint: &Endpoint,
    ) -> Result<Located, String> {
        let refuse = |why: String| format!("{}: {why}", endpoint.url());
        let located = answer.peer.ok_or_else(|| refuse("an answer without a peer".into()))?;
        let located = LocatedPeer::try_from(located).map_err(|e| refuse(e.to_string()))?;
        if located.peer_id() != peer {
            return Err(refuse(format!("answered with the record of {}", located.peer_id())));
        }
        located.record.value().check(&self.network, now()).map_err(|e| refuse(e.to_string()))?;
        Ok(Located { peer: located, answered_by: endpoint.clone() })
    }

    /// The providers that are wanted, over all backbones. An error if nobody answered.
    pub async fn find_by_service(&self, wanted: &ServiceQuery) -> Result<Providers, LocateError> {
        self.refresh().await;
        let choices = self.known.lock().choices(Instant::now());
        let mut walks: FuturesUnordered<_> =
            choices.into_iter().map(|members| self.find_in(members, wanted)).collect();
        let mut found: BTreeMap<PeerId, LocatedPeer> = BTreeMap::new();
        let (mut answered, mut sampled, mut failures) = (false, false, Vec::new());
        while let Some((answer, failed)) = walks.next().await {
            failures.extend(failed);
            let some = match answer {
                Answer::None => continue,
                Answer::Unknown(_) => Providers::default(),
                Answer::Found(providers) => providers,
            };
            answered = true;
            sampled |= some.sampled;
            for peer in some.peers {
                let id = peer.peer_id();
                if found.get(&id).is_none_or(|known| rank(&peer) > rank(known)) {
                    found.insert(id, peer);
                }
            }
        }
        if answered {
            Ok(Providers { peers: found.into_values().collect(), sampled })
        } else {
            Err(LocateError::NoRendezvous { detail: shown(&failures) })
        }
    }

    async fn find_in(
        &self,
        mut members: Vec<Choice>,
        wanted: &ServiceQuery,
    ) -> (Answer<Providers>, Vec<String>) {
        members.iter_mut().for_each(|one| one.patience = one.patience.max(PAGE_PATIENCE));
        let ask = |endpoint: Endpoint| async move {
            let mut all = Providers::default();
            let mut page_token = String::new();
            for _ in 0..MAX_PAGES {
                let request = wire::FindByServiceRequest {
                    service: wanted.service().to_string(),
                    page_size: 1000,
                    page_token: std::mem::take(&mut page_token),
                    filters: wanted.filters_to_wire(),
                };
                let page = self
                    .call(&endpoint, async |mut client: Client| {
                        client.find_by_service(request).await.map(tonic::Response::into_inner)
                    })
                    .await
                    .map_err(|s| format!("{}: {}", endpoint.url(), s.message()))?;
                all.peers.extend(page.peers.into_iter().filter_map(|p| self.offering(p, wanted)));
                all.sampled |= page.sampled;
                if page.next_page_token.is_empty() {
                    break;
                }
                page_token = page.next_page_token;
            }
            Ok(if all.peers.is_empty() && !all.sampled { Word::Unknown } else { Word::Found(all) })
        };
        hedged(members, ask).await
    }

    /// A provider that verifies, counts now, and says itself that it offers what is wanted: whoever answered may know no filters.
    fn offering(
        &self,
        wire: p2psb_proto::wire::common::v1::LocatedPeer,
        wanted: &ServiceQuery,
    ) -> Option<LocatedPeer> {
        let peer = LocatedPeer::try_from(wire).ok()?;
        let record = peer.record.value();
        (record.check(&self.network, now()).is_ok() && wanted.is_met_by(record)).then_some(peer)
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
        let answer = self
            .call(endpoint, async |mut client: Client| {
                client.list_rendezvous(wire::ListRendezvousRequest {}).await.map(tonic::Response::into_inner)
            })
            .await;
        let Ok(answer) = answer else { return };
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
    async fn call<T>(
        &self,
        endpoint: &Endpoint,
        call: impl AsyncFnOnce(Client) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let start = Instant::now();
        let bound = if self.known.lock().is_doubtful(endpoint, start) { DOUBTFUL_CALL } else { CALL };
        let bounded = tokio::time::timeout(bound, async { call(self.client(endpoint).await?).await });
        let answer = bounded.await.unwrap_or_else(|_| {
            Err(Failure::new(Reason::Unreachable, format!("no answer within {} s", bound.as_secs())).into())
        });
        match &answer {
            Err(status) if !is_not_located(status) => {
                self.failed(endpoint, status.message());
            }
            _ => self.known.lock().answered(endpoint, start.elapsed()),
        }
        answer
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

/// A call that is given up when another one has answered: then it is noted how long it had waited.
struct Waiting<'a> {
    locator: &'a Locator,
    endpoint: &'a Endpoint,
    /// `None` once it was answered.
    since: Option<Instant>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.since {
            self.locator.known.lock().overtaken(self.endpoint, since.elapsed(), Instant::now());
        }
    }
}

impl Locator {
    /// The rendezvous of the backbone that this one belongs to, the quickest first; itself, if it is known no more.
    pub(crate) fn backbone_of(&self, endpoint: &Endpoint) -> Vec<Endpoint> {
        let mine = self.backbones().into_iter().find(|members| members.contains(endpoint));
        mine.unwrap_or_else(|| vec![endpoint.clone()])
    }
}

/// Whether a rendezvous says that it has no valid record of the peer, which is an answer.
fn is_not_located(status: &Status) -> bool {
    matches!(error::reason_of(status), Some(Reason::PeerUnknown | Reason::PeerOffline))
}

/// Whether a rendezvous that does not know a peer has known what happens for long enough to know better.
fn is_settled(status: &Status) -> bool {
    let since = error::fact_of(status, "knowledge_since").and_then(|since| UnixMillis::parse(&since));
    since.is_none_or(|since| now().since(since) >= SETTLED)
}

/// When the peer was last seen, as far as a rendezvous says so; never in the future.
fn last_seen(status: &Status) -> Option<UnixMillis> {
    UnixMillis::parse(&error::fact_of(status, "last_seen_time")?).map(|seen| seen.min(now()))
}

/// Of two records the newer one counts.
fn rank(peer: &LocatedPeer) -> (u64, p2psb_proto::model::Digest, u64) {
    (peer.record.value().seq, peer.record.digest(), peer.presence.as_of.0)
}

fn shown(failures: &[String]) -> String {
    match failures {
        [] => "none is configured".to_owned(),
        some => some.iter().take(5).cloned().collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_began_a_moment_ago_is_not_sure_that_it_knows_no_peer() {
        let unknown = |since: UnixMillis| {
            Failure::new(Reason::PeerUnknown, "unknown").with("knowledge_since", since).into_status()
        };
        assert!(!is_settled(&unknown(now())));
        assert!(!is_settled(&unknown(now().plus(Duration::from_secs(300)))), "its clock is ahead");
        assert!(is_settled(&unknown(now().minus(SETTLED))));
        assert!(is_settled(&Failure::new(Reason::PeerOffline, "gone").into_status()));
        assert_eq!(shown(&[]), "none is configured");
    }
}
