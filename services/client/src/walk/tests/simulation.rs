//! Communities with dead, slow, silent, lying and flooding rendezvous, in virtual time: what is promised holds for each of them.
//!
//! A seed is printed; `WALK_SEED` in the environment repeats one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::{PeerId, PeerRecord, Signed, UnixMillis};
use p2psb_proto::wire::common::v1 as wire;
use tonic::Status;

use super::{Reply, drive};
use crate::endpoint::Endpoint;
use crate::locator::known::Table;
use crate::walk::answer::Word;
use crate::walk::budget::Budget;
use crate::walk::outcome::Outcome;
use crate::walk::testing::{NOW, endpoint, located, network, peer};
use crate::walk::{Caller, PEERS, Plan, Said, Walk, Whom};

const TIME: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// How one behaves who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It answers as it should, after about so many milliseconds.
    Honest(u64),
    /// It answers as it should, but knows only what the peers said an hour ago.
    Behind,
    /// It began a moment ago and knows nothing.
    Fresh,
    /// It is cut off from those who know the peers, and is sure that there are none.
    CutOff,
    /// It refuses connections.
    Dead,
    /// It takes a question and says nothing, be it that answers do not come back.
    Silent,
    /// It has no time now.
    Busy,
    /// It answers with the record of somebody else.
    OtherPeer,
    /// It answers with a record that has run out.
    Expired,
    /// It answers with a record of its own making.
    Forger,
    /// It answers a hundred times, and differently.
    Flooder,
}

const MANNERS: [Manner; 14] = [
    Manner::Honest(1),
    Manner::Honest(5),
    Manner::Honest(20),
    Manner::Honest(150),
    Manner::Honest(2000),
    Manner::Behind,
    Manner::Fresh,
    Manner::CutOff,
    Manner::Dead,
    Manner::Silent,
    Manner::Busy,
    Manner::OtherPeer,
    Manner::Expired,
    Manner::Forger,
];

impl Manner {
    /// Whether it says the truth, soon.
    fn is_of_help(self) -> bool {
        matches!(self, Self::Honest(ms) if ms <= 150)
    }
}

/// A community as one looks at it from outside.
struct World {
    rng: fastrand::Rng,
    members: BTreeMap<Endpoint, Manner>,
    acquaintances: BTreeMap<PeerId, Manner>,
    table: Table,
    budget: Budget,
    now: Instant,
    begun: Instant,
    asks: usize,
}

impl World {
    /// These backbones, which list themselves to those who ask.
    fn new(seed: u64, backbones: &[Vec<Manner>], acquaintances: &[Manner]) -> Self {
        let now = Instant::now();
        let mut members = BTreeMap::new();
        let mut lists = Vec::new();
        for (nth, manners) in (1_u16..).zip(backbones) {
            let endpoints: Vec<Endpoint> = (1_u16..)
                .zip(manners)
                .map(|(n, _)| endpoint(nth * 100 + n).pinned(peer(u32::from(nth * 100 + n))))
                .collect();
            members.extend(endpoints.iter().cloned().zip(manners.iter().copied()));
            lists.push(endpoints);
        }
        let mut table = Table::new(&members.keys().cloned().collect::<Vec<_>>());
        for list in &lists {
            let record = |endpoint: &Endpoint| -> Signed<PeerRecord> {
                located(u32::from(endpoint.port()), 1, NOW, HOUR).record
            };
            for own in list {
                let others = list.iter().filter(|other| *other != own);
                let records: Vec<_> = std::iter::once(own).chain(others).map(record).collect();
                table.list(own, &records, now);
            }
        }
        let acquaintances = (1000..).map(peer).zip(acquaintances.iter().copied()).collect();
        let (rng, budget) = (fastrand::Rng::with_seed(seed), Budget::default());
        Self { rng, members, acquaintances, table, budget, now, begun: now, asks: 0 }
    }

    fn wall(&self) -> UnixMillis {
        NOW.plus(self.now - self.begun)
    }

    /// Looks for peer `n`, which is online if `online`.
    fn locate(&mut self, n: u32, online: bool) -> Outcome {
        let mut peers: Vec<PeerId> = self.acquaintances.keys().copied().collect();
        self.rng.shuffle(&mut peers);
        let plan = Plan { backbones: self.table.choices(self.now), peers: Some(peers), old: None };
        let truth = located(n, 100, self.wall().minus(ms(60_000)), HOUR);
        let (start, wall) = (self.now, self.wall());
        let walk = Walk::new(peer(n), Caller::Own, plan, start + TIME, start);
        let mut budget = std::mem::take(&mut self.budget);
        let (outcome, end) = drive(walk, start, &mut budget, |ask, _| {
            let manner = match &ask.whom {
                Whom::Rendezvous(endpoint) => self.members[endpoint],
                Whom::Peer(peer) => self.acquaintances[peer],
            };
            reply(&mut self.rng, manner, online.then_some(&truth), n, wall)
        });
        (self.budget, self.now) = (budget, end);
        self.asks += outcome.trace.asks().count();
        self.learn(&outcome, start);
        outcome
    }

    /// Notes what the locator notes.
    fn learn(&mut self, outcome: &Outcome, start: Instant) {
        for ask in outcome.trace.asks() {
            let Whom::Rendezvous(endpoint) = &ask.whom else { continue };
            let at = start + ask.begun + ask.took;
            match &ask.said {
                Said::Nothing => self.table.overtaken(endpoint, ask.took, at),
                Said::Found { .. } | Said::Unknown { .. } | Said::Offline { .. } => {
                    self.table.answered(endpoint, ask.took);
                }
                Said::Lied(lie) => self.table.heard(endpoint, &Word::Lied(lie.clone()), ask.took, at),
                Said::Refused { detail, .. } | Said::Failed(detail) => {
                    self.table.failed(endpoint, detail, at);
                }
                Said::Early(error) => self.table.heard(endpoint, &Word::Early(error.clone()), ask.took, at),
                Said::TimedOut => self.table.heard(endpoint, &Word::TimedOut, ask.took, at),
            }
        }
    }
}

/// What one of that manner says of peer `n`.
fn reply(
    rng: &mut fastrand::Rng,
    manner: Manner,
    truth: Option<&LocatedPeer>,
    n: u32,
    now: UnixMillis,
) -> Reply {
    let soon = ms(rng.u64(1..30));
    let word =
        |answer: Result<Option<wire::LocatedPeer>, Status>| Word::of(&peer(n), &network(), now, answer);
    let status = |reason, since: UnixMillis| {
        Failure::new(reason, "no")
            .with("knowledge_since", since)
            .retry_after(Duration::from_secs(30))
            .into_status()
    };
    let unknown = |since| word(Err(status(Reason::PeerUnknown, since)));
    let known = |found: &LocatedPeer| word(Ok(Some(found.to_wire())));
    let one = |after, word| vec![(after, word)];
    let forged = || {
        let mut forged = located(n, 1_000_000, now, HOUR).to_wire();
        if let Some(record) = &mut forged.record {
            record.signature = vec![n as u8; 64].into();
        }
        word(Ok(Some(forged)))
    };
    let expired = || known(&located(n, 1_000_000, now.minus(HOUR * 2), HOUR));
    let long_ago = now.minus(HOUR);
    match manner {
        Manner::Honest(usual) => {
            let after = ms(usual) + Duration::from_micros(rng.u64(..usual * 200 + 1));
            one(after, truth.map_or_else(|| unknown(long_ago), known))
        }
        Manner::Behind => {
            let old = |_: &LocatedPeer| known(&located(n, 99, now.minus(HOUR / 2), HOUR));
            one(soon, truth.map_or_else(|| unknown(long_ago), old))
        }
        Manner::Fresh => one(soon, unknown(now)),
        Manner::CutOff => one(soon, unknown(long_ago)),
        Manner::Dead => one(ms(1), word(Err(Status::unavailable("connection refused")))),
        Manner::Silent => Vec::new(),
        Manner::Busy => one(soon, word(Err(status(Reason::LookupIncomplete, now)))),
        Manner::OtherPeer => one(soon, known(&located(n + 1, 1_000_000, now, HOUR))),
        Manner::Expired => one(soon, expired()),
        Manner::Forger => one(soon, forged()),
        Manner::Flooder => {
            (0..100).map(|nth| (soon + ms(nth), if nth % 2 == 0 { forged() } else { expired() })).collect()
        }
    }
}

fn seed() -> u64 {
    let seed = std::env::var("WALK_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("WALK_SEED={seed}");
    seed
}

fn some(rng: &mut fastrand::Rng, count: usize) -> Vec<Manner> {
    let mut manners: Vec<Manner> = (0..count).filter_map(|_| rng.choice(MANNERS)).collect();
    if rng.u8(..4) == 0 {
        manners.push(Manner::Flooder);
    }
    manners
}

#[test]
fn whatever_is_broken_the_answer_is_true_and_who_helps_is_heard() {
    let first = seed();
    for seed in (0..150).map(|n| first.wrapping_add(n)) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let backbones: Vec<_> = (0..rng.usize(1..5))
            .map(|_| {
                let most = rng.usize(1..12);
                some(&mut rng, most)
            })
            .collect();
        let acquaintances = {
            let most = rng.usize(..6);
            some(&mut rng, most)
        };
        let mut world = World::new(seed, &backbones, &acquaintances);
        for n in 1..8 {
            let online = rng.u8(..4) > 0;
            let outcome = world.locate(n, online);
            let at =
                format!("seed {seed}, peer {n}, online {online}, {:?}: {:#?}", world.members, outcome.trace);
            check(&world, &outcome, n, online, &at);
            world.now += ms(rng.u64(..3000));
        }
    }
}

fn check(world: &World, outcome: &Outcome, n: u32, online: bool, at: &str) {
    let trace = &outcome.trace;
    assert!(trace.took <= TIME, "in time; {at}");
    let whom: BTreeSet<&Whom> = trace.asks().map(|ask| &ask.whom).collect();
    assert_eq!(whom.len(), trace.asks().count(), "nobody is asked twice; {at}");
    assert!(whom.len() <= world.members.len() + PEERS, "{at}");

    let manner = |whom: &Whom| match whom {
        Whom::Rendezvous(endpoint) => world.members[endpoint],
        Whom::Peer(peer) => world.acquaintances[peer],
    };
    let helped = |whom: &Whom| manner(whom).is_of_help();
    match &outcome.answer {
        Ok(found) => {
            assert!(online, "nobody is where it is not; {at}");
            assert_eq!(found.peer.peer_id(), peer(n), "{at}");
            let record = found.peer.record.value();
            assert!(record.check(&network(), world.wall()).is_ok() && record.seq <= 100, "it is true; {at}");
            let says_so = matches!(manner(&found.answered_by), Manner::Honest(_) | Manner::Behind);
            assert!(says_so, "{at}");
        }
        Err(_) if online => {
            assert!(!whom.iter().any(|whom| helped(whom)), "who was asked knew it; {at}");
            let unasked = world.members.iter().filter(|(_, manner)| manner.is_of_help()).count();
            assert_eq!(unasked, 0, "somebody who knows it was not even asked; {at}");
        }
        Err(_) => {}
    }
    for ask in trace.asks() {
        let lied = matches!(ask.said, Said::Lied(_));
        let is_liar = matches!(
            manner(&ask.whom),
            Manner::OtherPeer | Manner::Expired | Manner::Forger | Manner::Flooder
        );
        assert!(lied == is_liar || ask.said == Said::Nothing, "a lie is named, and nothing else; {at}");
    }
}

#[test]
fn when_no_rendezvous_lives_a_common_acquaintance_answers() {
    let seed = seed();
    for (nth, dead) in [Manner::Dead, Manner::Silent, Manner::Forger, Manner::Fresh].into_iter().enumerate() {
        let acquaintances = [Manner::Silent, Manner::Flooder, Manner::Honest(20), Manner::CutOff];
        let mut world = World::new(seed + nth as u64, &[vec![dead; 3], vec![dead; 2]], &acquaintances);
        let outcome = world.locate(1, true);
        let found = outcome.answer.unwrap_or_else(|error| panic!("seed {seed}, {dead:?}: {error}"));
        assert!(matches!(found.answered_by, Whom::Peer(_)));
    }
}

/// Looks for peers for a minute, and measures all but the first seconds: each latency, and the calls of a lookup on average.
fn minute(world: &mut World, mut before: impl FnMut(&mut World, Duration)) -> (Vec<Duration>, f64) {
    let (mut all, mut asks_before) = (Vec::new(), 0);
    while world.now - world.begun < Duration::from_secs(60) {
        let at = world.now - world.begun;
        before(world, at);
        let outcome = world.locate(1, true);
        assert!(outcome.answer.is_ok());
        if at < Duration::from_secs(5) {
            asks_before = world.asks;
        } else {
            all.push(outcome.trace.took);
        }
        world.now += ms(5);
    }
    all.sort_unstable();
    let calls = (world.asks - asks_before) as f64 / all.len() as f64;
    (all, calls)
}

fn p99(all: &[Duration]) -> Duration {
    all[all.len() * 99 / 100]
}

#[test]
fn one_slow_of_three_costs_a_hedge_now_and_then_and_few_calls() {
    let seed = seed();
    let healthy = minute(&mut World::new(seed, &[vec![Manner::Honest(20); 3]], &[]), |_, _| {});
    assert!(healthy.1 <= 1.1, "seed {seed}: {} calls a lookup where all are well", healthy.1);

    let mut world = World::new(seed, &[vec![Manner::Honest(20); 3]], &[]);
    let slow = world.members.keys().next().unwrap().clone();
    let (all, calls) = minute(&mut world, |world, at| {
        if at > Duration::from_secs(3) {
            world.members.insert(slow.clone(), Manner::Honest(2000));
        }
    });
    assert!(p99(&all) <= p99(&healthy.0).mul_f64(1.5), "seed {seed}: {:?}, {:?}", p99(&all), p99(&healthy.0));
    assert!(calls <= 1.1, "seed {seed}: {calls} calls a lookup");
    assert!(*all.last().unwrap() <= ms(150 + 25), "seed {seed}: no more than the hedge: {:?}", all.last());
}

#[test]
fn a_liar_is_asked_once_and_then_only_when_the_others_have_failed() {
    let seed = seed();
    let mut world = World::new(seed, &[vec![Manner::Forger, Manner::Honest(20), Manner::Honest(20)]], &[]);
    let (_, calls) = minute(&mut world, |_, _| {});
    assert!(calls <= 1.1, "seed {seed}: {calls} calls a lookup");
    let lies: u32 = world.table.statuses().iter().map(|status| status.lies).sum();
    assert_eq!(lies, 1, "seed {seed}");
}
