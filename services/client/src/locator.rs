//! The walk that finds a peer: every known backbone is asked at once, inside a backbone one rendezvous after the other, each with a
//! head start before the next. Answers are verified here; whoever answered is trusted for freshness only.
//!
//! Rendezvous are those of the configuration and those that they list. Endorsements count only from configured ones.

mod endorsed;

use std::collections::{BTreeMap, BTreeSet};
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

use crate::conn::{Connection, Dialer};
use crate::endpoint::Endpoint;
use crate::pool::Pool;
use crate::session::{handshake, now};

/// How long a rendezvous may take before the next of its backbone is asked beside it.
const HEDGE: Duration = Duration::from_millis(250);
/// How long a lookup may take when the caller sets no deadline.
pub const LOOKUP: Duration = Duration::from_secs(10);
/// How long a rendezvous may take to answer one call.
const CALL: Duration = Duration::from_secs(5);
/// How long what a rendezvous lists is used before it is asked again.
const LIST_AGE: Duration = Duration::from_secs(30);
/// How long a rendezvous that failed is asked only after the others.
const FAILED_AGE: Duration = Duration::from_secs(10);
/// How many rendezvous are kept.
const MAX_RENDEZVOUS: usize = 512;
/// How many pages of one service are read from one backbone.
const MAX_PAGES: usize = 100;

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
    /// Why its last call failed.
    pub error: Option<String>,
}

#[derive(Clone, Debug)]
struct Known {
    status: RendezvousStatus,
    /// Everyone in its backbone, as it lists them.
    backbone: BTreeSet<PeerId>,
    listed_at: Option<Instant>,
    failed_at: Option<Instant>,
    /// Its list is being asked for.
    asking: bool,
}

/// Finds peers and services. Clones share connections and what is known.
#[derive(Clone)]
pub struct Locator {
    network: NetworkId,
    pool: Pool,
    known: Arc<Mutex<BTreeMap<Endpoint, Known>>>,
}

pub(crate) type Client = RendezvousServiceClient<Connection>;

impl Locator {
    /// A locator that starts from these rendezvous.
    #[must_use]
    pub fn new(network: NetworkId, rendezvous: &[Endpoint], dialer: Dialer) -> Self {
        let known = rendezvous.iter().map(|e| (e.clone(), Known::new(e.clone(), true))).collect();
        Self { network, pool: Pool::new(dialer), known: Arc::new(Mutex::new(known)) }
    }

    /// Where `peer` is: of all backbones' answers the one with the newest record.
    pub async fn locate(&self, peer: &PeerId) -> Result<Located, LocateError> {
        self.refresh().await;
        let seen = Mutex::new(None);
        let mut walks: FuturesUnordered<_> =
            self.backbones().into_iter().map(|members| self.locate_in(members, *peer, &seen)).collect();
        let mut best: Option<Located> = None;
        let (mut asked, mut failures) = (0, Vec::new());
        while let Some((answer, failed)) = walks.next().await {
            failures.extend(failed);
            match answer {
                Answer::Found(found) if best.as_ref().is_none_or(|b| rank(&found.peer) > rank(&b.peer)) => {
                    best = Some(found);
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
        members: Vec<Endpoint>,
        peer: PeerId,
        seen: &Mutex<Option<UnixMillis>>,
    ) -> (Answer<Located>, Vec<String>) {
        let ask = |endpoint: Endpoint| async move {
            let request = wire::LocateRequest { peer_id: peer.to_wire() };
            let answer = self
                .call(&endpoint, async |mut client: Client| {
                    client.locate(request).await.map(tonic::Response::into_inner)
                })
                .await;
            match answer {
                Ok(answer) => self.believe(peer, answer, &endpoint).map(Some),
                Err(s) if is_not_located(&s) => {
                    let mut seen = seen.lock();
                    *seen = (*seen).max(last_seen(&s));
                    Ok(None)
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
        let mut walks: FuturesUnordered<_> =
            self.backbones().into_iter().map(|members| self.find_in(members, wanted)).collect();
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
        members: Vec<Endpoint>,
        wanted: &ServiceQuery,
    ) -> (Answer<Providers>, Vec<String>) {
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
            Ok((!all.peers.is_empty() || all.sampled).then_some(all))
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
        let mut all: Vec<_> = self.known.lock().values().map(|k| k.status.clone()).collect();
        all.sort_by_key(|s| !s.configured);
        all
    }

    /// Asks every rendezvous whose list is old for a new one, and learns from it.
    pub async fn refresh(&self) {
        let (due, fresh) = {
            let mut known = self.known.lock();
            let fresh = known.values().any(|k| k.listed_at.is_some() && k.failed_at.is_none());
            let mut due = Vec::new();
            for (endpoint, entry) in known.iter_mut().filter(|(_, k)| k.is_due()) {
                entry.asking = true;
                due.push(endpoint.clone());
            }
            (due, fresh)
        };
        // Tasks of their own: a slow one is waited for no longer than it is needed, and still notes what became of it.
        let asking = due.into_iter().map(|endpoint| {
            let locator = self.clone();
            tokio::spawn(async move {
                locator.ask_list(&endpoint).await;
                if let Some(entry) = locator.known.lock().get_mut(&endpoint) {
                    entry.asking = false;
                }
            })
        });
        // With something to go on, a slow rendezvous must not hold up the lookup.
        let patience = if fresh { HEDGE } else { CALL };
        let _ = tokio::time::timeout(patience, futures::future::join_all(asking)).await;
    }

    async fn ask_list(&self, endpoint: &Endpoint) {
        let answer = self
            .call(endpoint, async |mut client: Client| {
                client.list_rendezvous(wire::ListRendezvousRequest {}).await.map(tonic::Response::into_inner)
            })
            .await;
        let Ok(answer) = answer else { return };
        let records: Vec<Signed<PeerRecord>> = answer
            .rendezvous
            .into_iter()
            .take(limits::MEMBERS)
            .filter_map(|r| Signed::<PeerRecord>::verify_field(r.record).ok())
            .filter(|r| r.value().check(&self.network, now()).is_ok())
            .collect();
        let Some(own) = records.first().filter(|own| endpoint.pin().is_none_or(|pin| pin == own.peer_id()))
        else {
            self.failed(endpoint, "it is not who it must be, or belongs to another network");
            return;
        };
        let backbone: BTreeSet<PeerId> = records.iter().map(Signed::peer_id).collect();
        let mut known = self.known.lock();
        if let Some(entry) = known.get_mut(endpoint) {
            entry.status.record = Some(own.clone());
            entry.backbone = backbone.clone();
            entry.listed_at = Some(Instant::now());
            if entry.status.configured {
                // It may have been learnt from another one before it said itself who it is.
                known.retain(|_, k| k.status.configured || k.status.endpoint.pin() != Some(own.peer_id()));
            }
        }
        for record in records.iter().skip(1) {
            learn(&mut known, record, &backbone);
        }
    }

    /// One call with its bound; notes latency and failure.
    async fn call<T>(
        &self,
        endpoint: &Endpoint,
        call: impl AsyncFnOnce(Client) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let start = Instant::now();
        let bounded = tokio::time::timeout(CALL, async { call(self.client(endpoint).await?).await });
        let answer = bounded
            .await
            .unwrap_or_else(|_| Err(Failure::new(Reason::Unreachable, "no answer within 5 s").into()));
        match &answer {
            Err(status) if !is_not_located(status) => {
                self.failed(endpoint, status.message());
            }
            _ => {
                if let Some(entry) = self.known.lock().get_mut(endpoint) {
                    entry.status.latency = Some(start.elapsed());
                    (entry.status.error, entry.failed_at) = (None, None);
                }
            }
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
        if let Some(entry) = self.known.lock().get_mut(endpoint) {
            entry.status.error = Some(why.to_owned());
            entry.failed_at = Some(Instant::now());
        }
    }

    /// The rendezvous by backbone, in each the quickest first and those that failed lately last.
    pub(crate) fn backbones(&self) -> Vec<Vec<Endpoint>> {
        let known = self.known.lock();
        let mut groups: Vec<(BTreeSet<PeerId>, Vec<&Known>)> = Vec::new();
        for entry in known.values() {
            let mut ids = entry.backbone.clone();
            ids.extend(entry.status.endpoint.pin());
            let related = |(theirs, _): &(BTreeSet<PeerId>, _)| !ids.is_empty() && !theirs.is_disjoint(&ids);
            match groups.iter_mut().find(|g| related(g)) {
                Some((theirs, members)) => {
                    theirs.extend(ids);
                    members.push(entry);
                }
                None => groups.push((ids, vec![entry])),
            }
        }
        let order = |k: &&Known| (k.recently_failed(), k.status.latency.unwrap_or(CALL));
        groups
            .into_iter()
            .map(|(_, mut members)| {
                members.sort_by_key(order);
                members.into_iter().map(|k| k.status.endpoint.clone()).collect()
            })
            .collect()
    }
}

impl Locator {
    /// The rendezvous of the backbone that this one belongs to, the quickest first; itself, if it is known no more.
    pub(crate) fn backbone_of(&self, endpoint: &Endpoint) -> Vec<Endpoint> {
        let mine = self.backbones().into_iter().find(|members| members.contains(endpoint));
        mine.unwrap_or_else(|| vec![endpoint.clone()])
    }
}

impl Known {
    const fn new(endpoint: Endpoint, configured: bool) -> Self {
        let status = RendezvousStatus { endpoint, record: None, configured, latency: None, error: None };
        Self { status, backbone: BTreeSet::new(), listed_at: None, failed_at: None, asking: false }
    }

    fn recently_failed(&self) -> bool {
        self.failed_at.is_some_and(|at| at.elapsed() < FAILED_AGE)
    }

    fn is_due(&self) -> bool {
        !self.asking && !self.recently_failed() && self.listed_at.is_none_or(|at| at.elapsed() > LIST_AGE)
    }
}

/// Adds a rendezvous that another one lists, unless it is known already.
fn learn(known: &mut BTreeMap<Endpoint, Known>, record: &Signed<PeerRecord>, backbone: &BTreeSet<PeerId>) {
    let id = record.peer_id();
    let is_it = |k: &Known| {
        k.status.endpoint.pin() == Some(id) || k.status.record.as_ref().is_some_and(|r| r.peer_id() == id)
    };
    if known.len() >= MAX_RENDEZVOUS || known.values().any(is_it) {
        return;
    }
    // All its addresses: which of them can be reached from here is found out by trying.
    for endpoint in record.value().addresses.iter().filter_map(|a| Endpoint::of(a, id)) {
        let mut entry = Known::new(endpoint.clone(), false);
        entry.backbone.clone_from(backbone);
        entry.status.record = Some(record.clone());
        known.entry(endpoint).or_insert(entry);
    }
}

/// What a backbone says.
#[derive(Debug, PartialEq, Eq)]
enum Answer<T> {
    /// It has what was asked for.
    Found(T),
    /// So many of its rendezvous answered that they have not.
    Unknown(usize),
    /// Nobody answered.
    None,
}

/// How many rendezvous of a backbone must not know something before that is believed: one may have restarted a moment ago, be cut
/// off, or lie.
const UNKNOWN_BY: usize = 2;

/// Whether a rendezvous says that it has no valid record of the peer, which is an answer.
fn is_not_located(status: &Status) -> bool {
    matches!(error::reason_of(status), Some(Reason::PeerUnknown | Reason::PeerOffline))
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

/// Asks the members in order, each beside the ones before after a head start, a failure or a "not known", until one has the answer or
/// enough have not.
async fn hedged<T, F>(members: Vec<Endpoint>, ask: impl Fn(Endpoint) -> F) -> (Answer<T>, Vec<String>)
where
    F: Future<Output = Result<Option<T>, String>>,
{
    let mut members = members.into_iter();
    let mut running = FuturesUnordered::new();
    let (mut unknown, mut failures) = (0, Vec::new());
    running.extend(members.next().map(&ask));
    while !running.is_empty() && unknown < UNKNOWN_BY {
        tokio::select! {
            Some(answer) = running.next() => {
                match answer {
                    Ok(Some(answer)) => return (Answer::Found(answer), failures),
                    Ok(None) => unknown += 1,
                    Err(failure) => failures.push(failure),
                }
                running.extend(members.next().map(&ask));
            }
            () = tokio::time::sleep(HEDGE), if members.len() > 0 => running.extend(members.next().map(&ask)),
        }
    }
    (if unknown > 0 { Answer::Unknown(unknown) } else { Answer::None }, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        format!("http://127.0.0.1:{port}").parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_rendezvous_is_hedged() {
        let ask = |e: Endpoint| async move {
            if e.port() == 1 {
                std::future::pending::<()>().await;
            }
            Ok(Some(e.port()))
        };
        let start = tokio::time::Instant::now();
        let (answer, failures) = hedged(vec![endpoint(1), endpoint(2)], ask).await;
        assert_eq!((answer, failures.len(), start.elapsed()), (Answer::Found(2), 0, HEDGE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_rendezvous_is_followed_at_once_by_the_next() {
        let ask = |e: Endpoint| async move { if e.port() < 3 { Err(e.url()) } else { Ok(Some(e.port())) } };
        let start = tokio::time::Instant::now();
        let (answer, failures) = hedged(vec![endpoint(1), endpoint(2), endpoint(3)], ask).await;
        assert_eq!((answer, failures.len(), start.elapsed()), (Answer::Found(3), 2, Duration::ZERO));
    }

    #[tokio::test]
    async fn one_that_does_not_know_is_not_the_last_word() {
        let knows = |port: u16| move |e: Endpoint| async move { Ok((e.port() == port).then_some(port)) };
        let all = || vec![endpoint(1), endpoint(2), endpoint(3)];
        assert_eq!(hedged(all(), knows(2)).await.0, Answer::Found(2));
        assert_eq!(hedged(all(), knows(9)).await.0, Answer::Unknown(2));
        assert_eq!(hedged(vec![endpoint(1)], knows(9)).await.0, Answer::Unknown(1));
    }

    #[tokio::test]
    async fn nobody_to_ask_is_an_answer() {
        let (answer, failures) =
            hedged::<u16, _>(Vec::new(), |e: Endpoint| async move { Ok(Some(e.port())) }).await;
        assert!(answer == Answer::None && failures.is_empty());
        assert_eq!(shown(&[]), "none is configured");
    }
}
