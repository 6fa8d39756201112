//! Where is this peer? Drives the [`walk`](crate::walk): asks whom it names, and tells it what they say.
//!
//! Promises: a lookup ends by its deadline, and so does every call that it makes, which tells its own; equal lookups at the same time share
//! one walk, which ends when nobody wants it any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use p2psb_proto::model::PeerId;
use p2psb_proto::wire::common::v1::LocatedPeer;
use p2psb_proto::wire::rendezvous::v1::LocateRequest;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tonic::{Request, Status};
use tracing::Instrument as _;

use super::{Client, LOOKUP, Locator};
use crate::endpoint::Endpoint;
use crate::session::now;
use crate::walk::answer::Word;
use crate::walk::budget::Budget;
use crate::walk::cache::{self, Cache, Look, Now};
use crate::walk::flights::{Flight, Flights};
use crate::walk::outcome::Outcome;
use crate::walk::{Action, Ask, CALL, Cached, Caller, LocateError, Located, Plan, Trace, Walk, Whom};

/// How many lookups may be under way.
const MAX_WALKS: usize = 4096;

/// How a peer is to be looked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// When it must be over; `None`: after [`LOOKUP`].
    pub deadline: Option<Instant>,
    /// Whether peers that this one knows may be asked in the end.
    pub ask_peers: bool,
    /// Whether what is remembered may answer.
    pub cached: bool,
    /// In whose name.
    pub caller: Caller,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadline: None, ask_peers: true, cached: true, caller: Caller::Own }
    }
}

/// What came of a lookup, and how.
#[derive(Clone, Debug)]
pub struct Walked {
    /// Where the peer is.
    pub answer: Result<Located, LocateError>,
    /// Who was asked, and what they said.
    pub trace: Trace,
}

/// Peers that this one knows: they are asked when no rendezvous has an answer.
pub trait Acquaintances: Send + Sync + 'static {
    /// Who may know `peer`, the likeliest first.
    fn who_may_know(&self, peer: &PeerId) -> Vec<PeerId>;

    /// Asks one of them, who asks nobody else. The answer is given up at `deadline`; it is verified, and counts only as far as the peer
    /// itself signed it.
    fn ask(
        &self,
        acquaintance: PeerId,
        peer: PeerId,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Option<LocatedPeer>, Status>>;
}

/// A lookup is known by whom it is for, and by whether peers may be asked and what is remembered may answer.
type Key = (PeerId, bool, bool);
type Told = watch::Sender<Option<Arc<Walked>>>;

/// What lookups share.
pub(super) struct Finding {
    cache: Cache,
    budget: Budget,
    flights: Flights<Key, Told>,
}

impl Default for Finding {
    fn default() -> Self {
        let (cache, budget) = (Cache::new(cache::ENTRIES), Budget::default());
        Self { cache, budget, flights: Flights::new(MAX_WALKS) }
    }
}

/// How a lookup goes on after a look at what is there.
enum Way {
    /// It has its answer already.
    Known(Box<Walked>),
    /// It shares a walk that is under way.
    Follow(watch::Receiver<Option<Arc<Walked>>>),
    /// It has a walk of its own.
    Lead(watch::Receiver<Option<Arc<Walked>>>),
}

impl Locator {
    /// Where `peer` is: of all backbones' answers the one with the newest record.
    pub async fn locate(&self, peer: &PeerId) -> Result<Located, LocateError> {
        self.walk(peer, Options::default()).await.answer
    }

    /// The same, with conditions, and with an account of how it was found or why not.
    pub async fn walk(&self, peer: &PeerId, options: Options) -> Walked {
        let begun = Instant::now();
        let deadline = options.deadline.unwrap_or(begun + LOOKUP);
        loop {
            let (mut told, leads) = match self.way(*peer, options, deadline) {
                Way::Known(walked) => return *walked,
                Way::Follow(told) => (told, false),
                Way::Lead(told) => (told, true),
            };
            // A walk of its own ends by this deadline; one that is shared by another one's.
            let until = if leads { deadline + CALL } else { deadline };
            let ended = timeout_at(until.into(), told.wait_for(Option::is_some)).await;
            let ended = ended.map(|told| told.ok().and_then(|walked| walked.clone()));
            let error = match ended {
                Ok(Some(walked)) if leads => return Walked::clone(&walked),
                Ok(Some(walked)) if !walked.trace.cut && !walked.trace.is_of_one_caller() => {
                    return walked.shared(begun.elapsed());
                }
                // Its time, or its caller's budget, was over before it had found anything, or nobody wanted it any more. This one
                // goes on.
                Ok(Some(_)) => continue,
                Ok(None) if !leads => continue,
                Ok(None) => LocateError::nobody("the lookup was given up".into()),
                Err(_) => LocateError::nobody("the time was over".into()),
            };
            let mut trace = Trace::without_steps(*peer, Cached::Nothing, begun.elapsed());
            (trace.shared, trace.cut) = (!leads, true);
            return Walked { answer: Err(error), trace };
        }
    }

    /// What this locator knows of `peer` led nowhere: the next lookup asks anew.
    pub fn doubt(&self, peer: &PeerId) {
        self.finding.lock().cache.doubt(peer);
    }

    /// Asks these, too, when no rendezvous has an answer. Once for all clones.
    pub fn acquaint(&self, acquaintances: Arc<dyn Acquaintances>) {
        // A second one changes nothing.
        let _ = self.acquaintances.set(acquaintances);
    }

    /// Looks at what there is, and begins a walk if one is needed.
    fn way(&self, peer: PeerId, options: Options, deadline: Instant) -> Way {
        let (wide, at) = (options.ask_peers && self.acquaintances.get().is_some(), Instant::now());
        let finding = &mut *self.finding.lock();
        let known = |answer, cache| {
            let trace = Trace::without_steps(peer, cache, at.elapsed());
            Way::Known(Box::new(Walked { answer, trace }))
        };
        let look = finding.cache.look(&peer, wide, Now { at, wall: now() });
        let old = match if options.cached { look } else { Look::Nothing } {
            Look::Found { located, age } => return known(Ok(located), Cached::Found { age }),
            Look::NotFound { error, age, left } => {
                let error = error.after(left, finding.load(at), fastrand::f64());
                return known(Err(error), Cached::NotFound { age });
            }
            Look::Old { located, age } => Some((located, age)),
            Look::Nothing => None,
        };
        let key = (peer, wide, options.cached);
        if let Some(walk) = finding.flights.find(&key) {
            return Way::Follow(walk.subscribe());
        }
        let (tell, told) = watch::channel(None);
        let Ok(flight) = finding.flights.lead(key, tell.clone()) else {
            let error = LocateError::busy(MAX_WALKS);
            let base = error.retry_after();
            return known(Err(error.after(base, 1.0, fastrand::f64())), Cached::Nothing);
        };
        let landing = Landing { locator: self.clone(), key, flight };
        let walk = async move {
            let walked = landing.locator.lead(peer, options, deadline, old);
            let walked = tokio::select! {
                biased;
                () = tell.closed() => None,
                walked = walked => Some(Arc::new(walked)),
            };
            // In this order: who is told that the time was over begins a walk of its own.
            drop(landing);
            tell.send_replace(walked);
        };
        tokio::spawn(walk.in_current_span());
        Way::Lead(told)
    }

    /// A walk from its begin to its end.
    async fn lead(
        &self,
        peer: PeerId,
        options: Options,
        deadline: Instant,
        old: Option<(Located, Duration)>,
    ) -> Walked {
        let begun = Instant::now();
        // Who belongs together is worth some of the time, if nobody has said it yet.
        let patience = (deadline.saturating_duration_since(begun) / 4).min(CALL);
        let _ = tokio::time::timeout(patience, self.refresh_within(Duration::ZERO)).await;
        let at = Instant::now();
        let acquaintances = self.acquaintances.get();
        let peers = options.ask_peers.then(|| acquaintances.map_or_else(Vec::new, |a| a.who_may_know(&peer)));
        let plan = Plan { backbones: self.known.lock().choices(at), peers, old };
        let outcome = self.drive(peer, Walk::new(peer, options.caller, plan, deadline, at)).await;
        let wide = options.ask_peers && acquaintances.is_some();
        let mut walked = self.conclude((peer, wide), outcome, begun);
        if !options.cached {
            walked.trace.cache = Cached::Declined;
        }
        walked
    }

    async fn drive(&self, peer: PeerId, mut walk: Walk) -> Outcome {
        let mut asking = FuturesUnordered::new();
        loop {
            let action = walk.next(Instant::now(), &mut self.finding.lock().budget);
            match action {
                Action::Ask(ask) => asking.push(self.ask(peer, ask)),
                Action::Wait(until) => tokio::select! {
                    biased;
                    Some((id, word)) = asking.next() => walk.heard(id, word, Instant::now()),
                    () = tokio::time::sleep_until(until.into()) => {}
                },
                Action::Done => return walk.finish(Instant::now()),
            }
        }
    }

    /// Asks one, by its deadline, and notes how it behaved.
    async fn ask(&self, peer: PeerId, ask: Ask) -> (usize, Word) {
        let begun = Instant::now();
        let answer = match &ask.whom {
            Whom::Rendezvous(endpoint) => {
                let mut waiting = Waiting { locator: self, endpoint, since: Some(begun) };
                let request = LocateRequest { peer_id: peer.to_wire() };
                let call = async |mut client: Client, request: Request<_>| client.locate(request).await;
                let answer = self.call_by(endpoint, ask.deadline, request, call).await;
                waiting.since = None;
                answer.map(|answer| answer.peer)
            }
            Whom::Peer(by) => match self.acquaintances.get() {
                Some(acquaintances) => {
                    let answer = acquaintances.ask(*by, peer, ask.deadline);
                    timeout_at(ask.deadline.into(), answer).await.unwrap_or_else(|_| Err(super::late()))
                }
                None => Err(Status::unavailable("no peers are known")),
            },
        };
        let word = Word::of(&peer, &self.network, now(), answer);
        if let Word::Lied(lie) = &word {
            tracing::warn!(asked = %ask.whom, %peer, %lie, "an untrue answer");
            metrics::counter!("locator_lies_total").increment(1);
        }
        if let Whom::Rendezvous(endpoint) = &ask.whom {
            let (mut known, took, now) = (self.known.lock(), begun.elapsed(), Instant::now());
            match &word {
                Word::TimedOut if ask.is_short => known.overtaken(endpoint, took, now),
                word => known.heard(endpoint, word, took, now),
            }
        }
        (ask.id, word)
    }

    /// Remembers what is worth it, of a walk that began then.
    fn conclude(&self, key: (PeerId, bool), outcome: Outcome, begun: Instant) -> Walked {
        let Outcome { answer, trace, is_news, is_sure } = outcome;
        let (at, wall) = (Instant::now(), now());
        let finding = &mut *self.finding.lock();
        let answer = match answer {
            Ok(located) => {
                if is_news {
                    finding.cache.found(located.clone(), Now { at, wall });
                }
                Ok(located)
            }
            Err(error) => {
                let base = error.retry_after();
                if is_sure {
                    finding.cache.not_found(key, error.clone(), base, begun, at);
                }
                Err(error.after(base, finding.load(at), fastrand::f64()))
            }
        };
        Walked { answer, trace }
    }
}

impl Finding {
    /// How much of what may be done is being done, 0 to 1.
    fn load(&self, now: Instant) -> f64 {
        self.budget.load(now).max(self.flights.load())
    }
}

impl Walked {
    /// As it is told to somebody who came later, and waited for `took`.
    fn shared(&self, took: Duration) -> Self {
        let mut walked = self.clone();
        (walked.trace.shared, walked.trace.took) = (true, took);
        walked
    }
}

/// A walk that is under way. Dropped, it is followed no more.
struct Landing {
    locator: Locator,
    key: Key,
    flight: Flight,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.locator.finding.lock().flights.land(&self.key, self.flight);
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
