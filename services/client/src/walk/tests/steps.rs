//! Each step, when it begins, and what it costs.

use std::time::{Duration, Instant};

use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_proto::model::{PeerId, UnixMillis};

use super::{Reply, drive};
use crate::walk::answer::Word;
use crate::walk::budget::{Budget, Scope};
use crate::walk::lane::{Choice, MOST};
use crate::walk::outcome::Outcome;
use crate::walk::testing::{NOW, answer, endpoint, located, peer};
use crate::walk::{
    Ask, CALL, Cached, Caller, DOUBTFUL_CALL, LocateError, Located, OTHERS, PEERS, Plan, Said, Skipped, Step,
    Walk, Whom,
};

const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_millis(50);
const TIME: Duration = Duration::from_secs(10);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Backbones of so many rendezvous: the first one's are at ports 101, 102…, the second one's at 201…
fn plan(sizes: &[u16]) -> Plan {
    let choice = |port| Choice { endpoint: endpoint(port), patience: PATIENCE, doubtful: false };
    let backbone = |(nth, size): (u16, &u16)| (1..=*size).map(|n| choice((nth + 1) * 100 + n)).collect();
    Plan { backbones: (0..).zip(sizes).map(backbone).collect(), peers: None, old: None }
}

fn found(seq: u64) -> Word {
    Word::Found(Box::new(located(1, seq, NOW, HOUR)))
}

fn unknown() -> Word {
    Word::Unknown { since: None, settled: true, retry_after: None }
}

fn offline(last_seen: UnixMillis) -> Word {
    Word::Offline { last_seen: Some(last_seen), retry_after: Some(Duration::from_secs(10)) }
}

fn port(ask: &Ask) -> u16 {
    match &ask.whom {
        Whom::Rendezvous(endpoint) => endpoint.port(),
        Whom::Peer(_) => 0,
    }
}

fn walk(plan: Plan, reply: impl FnMut(&Ask, Instant) -> Reply) -> Outcome {
    walk_within(TIME, plan, &mut Budget::default(), reply).0
}

fn walk_within(
    time: Duration,
    plan: Plan,
    budget: &mut Budget,
    reply: impl FnMut(&Ask, Instant) -> Reply,
) -> (Outcome, Duration) {
    let start = Instant::now();
    let walk = Walk::new(peer(1), Caller::Own, plan, start + time, start);
    let (outcome, end) = drive(walk, start, budget, reply);
    (outcome, end - start)
}

fn asked(outcome: &Outcome, step: Step) -> Vec<u16> {
    let step = outcome.trace.steps.iter().find(|one| one.step == step);
    let ports = step.iter().flat_map(|step| &step.asks).map(|ask| match &ask.whom {
        Whom::Rendezvous(endpoint) => endpoint.port(),
        Whom::Peer(_) => 0,
    });
    ports.collect()
}

fn skipped(outcome: &Outcome, step: Step) -> Option<Skipped> {
    outcome.trace.steps.iter().find(|one| one.step == step).and_then(|step| step.skipped)
}

#[test]
fn every_backbone_is_asked_at_once_and_the_newest_record_counts() {
    let outcome = walk(plan(&[3, 3, 3]), |ask, _| match port(ask) {
        101 => vec![(ms(5), found(7))],
        201 => vec![(ms(20), found(9))],
        _ => vec![(ms(5), unknown())],
    });
    let best = outcome.answer.unwrap();
    assert_eq!((best.peer.record.value().seq, best.answered_by), (9, Whom::Rendezvous(endpoint(201))));
    assert_eq!(outcome.trace.took, ms(20), "all have said what they have");
    assert_eq!(outcome.trace.asks().count(), 4, "two are enough not to know it: {:?}", outcome.trace);
}

#[test]
fn of_equal_records_the_fresher_word_counts() {
    let fresher = || {
        let mut fresher = located(1, 7, NOW, HOUR);
        fresher.presence.as_of = NOW.plus(ms(1));
        fresher.presence.state = PresenceState::Suspect;
        Word::Found(Box::new(fresher))
    };
    let outcome = walk(plan(&[1, 1]), |ask, _| match port(ask) {
        101 => vec![(ms(1), fresher())],
        _ => vec![(ms(2), found(7))],
    });
    assert_eq!(outcome.answer.unwrap().peer.presence.state, PresenceState::Suspect);
}

#[test]
fn with_an_answer_in_hand_others_are_not_waited_for_long_and_those_in_doubt_not_at_all() {
    let mut plan = plan(&[1, 1]);
    let silent = |ask: &Ask, _| if port(ask) == 101 { vec![(ms(5), found(7))] } else { Vec::new() };
    assert_eq!(walk(plan.clone(), silent).trace.took, ms(5) + OTHERS);
    plan.backbones[1][0].doubtful = true;
    let outcome = walk(plan, silent);
    assert_eq!(outcome.trace.took, ms(5));
    assert_eq!(outcome.trace.asks().last().unwrap().said, Said::Nothing);
}

#[test]
fn a_slow_rendezvous_costs_no_more_than_the_hedge() {
    let outcome = walk(plan(&[3]), |ask, _| match port(ask) {
        101 => vec![(Duration::from_secs(2), found(7))],
        _ => vec![(ms(5), found(7))],
    });
    assert_eq!((outcome.trace.took, outcome.trace.asks().count()), (PATIENCE + ms(5), 2));
}

#[test]
fn when_some_of_each_backbone_fail_every_other_one_is_asked() {
    let knows = |ask: &Ask, _: Instant| match port(ask) {
        120 => vec![(ms(5), found(7))],
        202 => vec![(ms(5), unknown())],
        _ => vec![(ms(1), Word::Failed("it is gone".into()))],
    };
    let outcome = walk(plan(&[20, 2]), knows);
    assert_eq!(outcome.answer.as_ref().unwrap().answered_by, Whom::Rendezvous(endpoint(120)));
    assert_eq!(asked(&outcome, Step::Backbones).len(), MOST + 2);
    assert_eq!(asked(&outcome, Step::EveryRendezvous).len(), 20 - MOST);
}

#[test]
fn two_that_do_not_know_it_do_not_hide_the_third_that_does() {
    let third = |ask: &Ask, _: Instant| match port(ask) {
        103 => vec![(ms(5), found(7))],
        _ => vec![(ms(5), unknown())],
    };
    let outcome = walk(plan(&[3]), third);
    assert_eq!(outcome.answer.unwrap().answered_by, Whom::Rendezvous(endpoint(103)));
    assert_eq!(outcome.trace.steps[1].step, Step::EveryRendezvous);
}

#[test]
fn peers_are_asked_last_eight_of_them_and_never_the_one_who_is_looked_for() {
    let mut plan = plan(&[1]);
    plan.peers = Some((1..=20).map(peer).collect());
    let outcome = walk(plan.clone(), |ask, _| match &ask.whom {
        Whom::Rendezvous(_) => vec![(ms(1), Word::Failed("it is gone".into()))],
        Whom::Peer(by) if *by == peer(5) => vec![(ms(9), found(7))],
        Whom::Peer(_) => vec![(ms(1), unknown())],
    });
    assert_eq!(outcome.answer.unwrap().answered_by, Whom::Peer(peer(5)));
    let by = |nth: usize| outcome.trace.steps[nth].step;
    assert_eq!((by(0), by(1), by(2)), (Step::Backbones, Step::EveryRendezvous, Step::Peers));
    assert_eq!(outcome.trace.steps[1].skipped, Some(Skipped::Nobody));
    let peers: Vec<Whom> = outcome.trace.steps[2].asks.iter().map(|ask| ask.whom.clone()).collect();
    assert_eq!(peers, (2..=9).map(|n| Whom::Peer(peer(n))).collect::<Vec<_>>());
    assert_eq!(peers.len(), PEERS);

    plan.peers = None;
    let declined = walk(plan.clone(), |_, _| vec![(ms(1), unknown())]);
    assert_eq!(skipped(&declined, Step::Peers), Some(Skipped::Declined));
    plan.peers = Some(Vec::new());
    let nobody = walk(plan, |_, _| vec![(ms(1), unknown())]);
    assert_eq!(skipped(&nobody, Step::Peers), Some(Skipped::Nobody));
}

#[test]
fn who_answers_nothing_leaves_the_later_steps_their_time() {
    for time in [ms(200), Duration::from_secs(1), TIME] {
        let mut plan = plan(&[3, 30]);
        plan.peers = Some(vec![peer(2)]);
        let reply = |ask: &Ask, _: Instant| match &ask.whom {
            Whom::Peer(_) => vec![(ms(20), found(7))],
            Whom::Rendezvous(_) => Vec::new(),
        };
        let (outcome, took) = walk_within(time, plan, &mut Budget::default(), reply);
        assert!(took < time && outcome.answer.is_ok(), "{time:?}: {:?}", outcome.trace);
    }
}

#[test]
fn who_was_asked_early_may_answer_late() {
    let outcome = walk(plan(&[6]), |ask, _| match port(ask) {
        102 => vec![(Duration::from_secs(4), found(7))],
        _ => Vec::new(),
    });
    assert_eq!((outcome.answer.is_ok(), outcome.trace.took), (true, PATIENCE + Duration::from_secs(4)));
}

#[test]
fn a_third_that_is_silent_does_not_keep_a_sure_not_found_for_long() {
    let reply = |ask: &Ask, _: Instant| if port(ask) == 101 { Vec::new() } else { vec![(ms(5), unknown())] };
    let outcome = walk(plan(&[3]), reply);
    assert!(matches!(outcome.answer, Err(LocateError::Unknown { asked: 2, .. })));
    assert_eq!((outcome.trace.took, outcome.is_sure), (PATIENCE + ms(10) + DOUBTFUL_CALL, true));
}

#[test]
fn nobody_knows_and_nobody_answers_are_two_answers_and_only_one_is_sure() {
    let outcome = walk(plan(&[2, 1]), |_, _| vec![(ms(1), unknown())]);
    assert!(outcome.is_sure && matches!(outcome.answer, Err(LocateError::Unknown { asked: 3, .. })));

    let unsure = || Word::Unknown { since: Some(NOW), settled: false, retry_after: None };
    let outcome = walk(plan(&[2, 1]), |_, _| vec![(ms(1), unsure())]);
    assert!(!outcome.is_sure && matches!(outcome.answer, Err(LocateError::Unknown { asked: 3, .. })));

    let outcome = walk(plan(&[2, 1]), |ask, _| match port(ask) {
        201 => vec![(ms(1), Word::Failed("it is gone".into()))],
        _ => vec![(ms(1), unknown())],
    });
    assert!(!outcome.is_sure, "a whole backbone says nothing");

    let outcome = walk(plan(&[2]), |_, _| Vec::new());
    assert!(!outcome.is_sure && outcome.trace.took <= CALL + PATIENCE);
    let Err(LocateError::NoRendezvous { detail, .. }) = outcome.answer else { panic!("nobody answered") };
    assert_eq!(detail.matches("no answer in time").count(), 2, "{detail}");
    let outcome = walk(plan(&[]), |_, _| Vec::new());
    assert_eq!((outcome.trace.took, outcome.trace.asks().count()), (Duration::ZERO, 0));
}

#[test]
fn who_was_seen_is_offline_and_when_to_ask_again_is_bounded() {
    let outcome = walk(plan(&[2, 1]), |ask, _| match port(ask) {
        201 => vec![(ms(1), offline(NOW.minus(HOUR)))],
        101 => vec![(ms(1), offline(NOW.minus(ms(5))))],
        _ => vec![(ms(1), Word::Unknown { since: None, settled: true, retry_after: Some(HOUR) })],
    });
    let (last_seen, retry_after) = (NOW.minus(ms(5)), Duration::from_secs(10));
    assert_eq!(outcome.answer, Err(LocateError::Offline { peer: peer(1), last_seen, asked: 3, retry_after }));
    let after = |after| {
        let word = Word::Unknown { since: None, settled: true, retry_after: Some(after) };
        walk(plan(&[1]), |_, _| vec![(ms(1), word.clone())]).answer.unwrap_err().retry_after()
    };
    assert_eq!((after(HOUR), after(Duration::ZERO)), (Duration::from_secs(30), Duration::from_secs(1)));
}

#[test]
fn a_search_that_is_sure_does_without_budget_and_one_that_is_not_waits_for_it() {
    let mut budget = Budget::default();
    budget.take(Caller::Own, Instant::now()).unwrap();
    let (sure, took) = walk_within(TIME, plan(&[3]), &mut budget, |_, _| vec![(ms(1), unknown())]);
    assert!(took < ms(10) && !sure.is_sure);
    let why = skipped(&sure, Step::EveryRendezvous);
    assert!(matches!(why, Some(Skipped::NoBudget { scope: Scope::Caller, .. })), "{why:?}");
    assert_eq!(sure.trace.steps[1].left, 1);

    let mut budget = Budget::default();
    budget.take(Caller::Own, Instant::now()).unwrap();
    let last = |ask: &Ask, _: Instant| match port(ask) {
        120 => vec![(ms(1), found(7))],
        _ => vec![(ms(1), Word::Failed("it is gone".into()))],
    };
    let (found, took) = walk_within(TIME, plan(&[20]), &mut budget, last);
    assert!(found.answer.is_ok() && took > ms(900) && took < ms(1100), "{took:?}");

    let mut budget = Budget::default();
    budget.take(Caller::Own, Instant::now()).unwrap();
    let (none, _) = walk_within(ms(500), plan(&[20]), &mut budget, last);
    let why = skipped(&none, Step::EveryRendezvous);
    assert!(matches!(why, Some(Skipped::NoBudget { .. })), "it would be too late: {why:?}");
}

#[test]
fn a_lie_is_named_and_never_the_answer() {
    let lie = || Word::Lied(crate::walk::Lie::OtherPeer(peer(9)));
    let outcome = walk(plan(&[3]), |ask, _| match port(ask) {
        101 => vec![(ms(1), lie())],
        _ => vec![(ms(1), found(7))],
    });
    assert_eq!(outcome.answer.unwrap().answered_by, Whom::Rendezvous(endpoint(102)));
    assert!(matches!(outcome.trace.asks().next().unwrap().said, Said::Lied(_)));
    let Err(LocateError::NoRendezvous { detail, .. }) = walk(plan(&[1]), |_, _| vec![(ms(1), lie())]).answer
    else {
        panic!("a liar's word is none")
    };
    assert!(detail.contains(&peer(9).to_string()), "{detail}");
}

#[test]
fn a_former_answer_is_better_than_none_yields_to_a_departure_and_keeps_a_newer_record() {
    let with_old = |seq| {
        let mut plan = plan(&[1]);
        plan.old = Some((answer(1, seq, NOW, HOUR, 7), ms(6000)));
        plan
    };
    let by = |plan: Plan, word: Word| {
        let outcome = walk(plan, |_, _| vec![(ms(1), word.clone())]);
        (outcome.answer, outcome.trace.cache)
    };
    let age = ms(6000);
    for word in [unknown(), Word::Failed("it is gone".into())] {
        let (old, cache): (Result<Located, _>, _) = by(with_old(7), word);
        let old = old.unwrap();
        assert_eq!(
            (old.answered_by, cache),
            (Whom::Rendezvous(endpoint(7)), Cached::Old { age, given: true })
        );
        let presence = old.peer.presence;
        assert_eq!((presence.state, presence.source), (PresenceState::Offline, PresenceSource::Record));
        assert_eq!(presence.as_of, NOW, "as old as it is");
    }
    let (gone, cache) = by(with_old(7), offline(NOW));
    assert!(matches!(gone, Err(LocateError::Offline { .. })));
    assert_eq!(cache, Cached::Old { age, given: false });
    // Who left before the former answer was given may have come back since.
    let (before, cache) = by(with_old(7), offline(NOW.minus(HOUR)));
    assert!(before.is_ok());
    assert_eq!(cache, Cached::Old { age, given: true });
    let (found_one, cache) = by(with_old(7), found(7));
    assert_eq!(found_one.unwrap().peer.presence.state, PresenceState::Online);
    assert_eq!(cache, Cached::Old { age, given: false });
    let (newer, cache) = by(with_old(8), found(7));
    let newer = newer.unwrap();
    assert_eq!((newer.peer.record.value().seq, newer.peer.presence.state), (8, PresenceState::Online));
    assert_eq!(cache, Cached::Old { age, given: true });
}

#[test]
fn what_a_walk_did_not_find_itself_is_no_news_and_who_has_little_time_blames_nobody() {
    let mut plan_with_old = plan(&[1]);
    plan_with_old.old = Some((answer(1, 7, NOW, HOUR, 7), ms(6000)));
    let outcome = walk(plan_with_old, |_, _| vec![(ms(1), unknown())]);
    assert!(outcome.answer.is_ok() && !outcome.is_news);
    assert!(walk(plan(&[1]), |_, _| vec![(ms(1), found(7))]).is_news);

    for (time, is_short) in [(ms(100), true), (Duration::from_secs(60), false)] {
        let mut shorts = Vec::new();
        walk_within(time, plan(&[1]), &mut Budget::default(), |ask, _| {
            shorts.push(ask.is_short);
            vec![(ms(1), unknown())]
        });
        assert_eq!(shorts, [is_short], "{time:?}");
    }
}

#[test]
fn a_backbone_that_is_silent_leaves_it_unsure_also_when_nobody_expects_it_to_answer() {
    let mut doubtful = plan(&[2, 1]);
    doubtful.backbones[1].iter_mut().for_each(|choice| choice.doubtful = true);
    let outcome = walk(doubtful, |ask, _| match port(ask) {
        201 => Vec::new(),
        _ => vec![(ms(1), unknown())],
    });
    assert!(!outcome.is_sure && matches!(outcome.answer, Err(LocateError::Unknown { asked: 2, .. })));
}

#[test]
fn peers_that_know_nothing_leave_it_at_nobody_having_answered() {
    let mut plan = plan(&[1]);
    plan.peers = Some(vec![peer(2)] as Vec<PeerId>);
    let outcome = walk(plan, |ask, _| match &ask.whom {
        Whom::Peer(_) => vec![(ms(1), unknown())],
        Whom::Rendezvous(_) => vec![(ms(1), Word::Failed("it is gone".into()))],
    });
    assert!(matches!(outcome.answer, Err(LocateError::NoRendezvous { .. })), "{:?}", outcome.answer);
}

#[test]
fn what_was_not_reached_for_lack_of_time_is_named() {
    let mut plan = plan(&[3]);
    plan.peers = Some(vec![peer(2)] as Vec<PeerId>);
    let (outcome, took) = walk_within(ms(100), plan, &mut Budget::default(), |_, _| Vec::new());
    assert_eq!((took, outcome.trace.cut), (ms(100), true));
    let steps: Vec<Step> = outcome.trace.steps.iter().map(|step| step.step).collect();
    assert_eq!(steps, [Step::Backbones, Step::EveryRendezvous, Step::Peers]);
}
