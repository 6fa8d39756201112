//! The walk that finds a peer, as a machine: it says whom to ask and until when to wait, and is told what they say. It knows no clock, no
//! chance and no network; [`crate::Locator`] drives it.
//!
//! What was found a moment ago is in the `cache`. Else the walk takes these steps, each only while nothing is found:
//! 1. each backbone at once, inside it one rendezvous after the other, each with a head start (`lane`);
//! 2. every other rendezvous of all backbones;
//! 3. unless the caller declines, peers that this one knows: one hop.
//!
//! A step begins when the one before has failed, or its share of the time is over; who was asked before may answer still. The second and
//! the third need `budget`, once for both. Of several answers the one with the newest record counts, then the freshest.
//!
//! Invariant: nobody is asked twice, nobody after the deadline; what comes out was verified when it was heard (`answer`).

pub(crate) mod answer;
pub(crate) mod budget;
pub(crate) mod cache;
pub(crate) mod flights;
pub(crate) mod lane;
pub(crate) mod outcome;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod trace;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use p2psb_proto::model::PeerId;

use self::answer::{Word, rank};
use self::budget::Budget;
use self::lane::{Choice, Effect, Lane};

pub use self::answer::Lie;
pub use self::budget::{Caller, Scope};
pub use self::outcome::{LocateError, Located};
pub use self::trace::{AskTrace, Cached, Said, Skipped, Step, StepTrace, Trace, Whom};

/// When somebody has answered, so long the others are waited for.
const OTHERS: Duration = Duration::from_millis(100);
/// How long a rendezvous may take to answer one call.
pub(crate) const CALL: Duration = Duration::from_secs(5);
/// The same for one that failed lately, and for one whose backbone has said for sure that it does not know the peer.
pub(crate) const DOUBTFUL_CALL: Duration = Duration::from_secs(1);
/// A step that can be followed by another is waited for no longer than that.
const STEP: Duration = Duration::from_secs(2);
/// How many peers are asked.
pub(crate) const PEERS: usize = 8;
/// How many are asked at a time when every rendezvous is.
const AT_ONCE: usize = 64;

/// Whom there is to ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// By backbone, in each the best first.
    pub(crate) backbones: Vec<Vec<Choice>>,
    /// The likeliest first; `None` if the caller declines.
    pub(crate) peers: Option<Vec<PeerId>>,
    /// A former answer: better than none.
    pub(crate) old: Option<(Located, Duration)>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask, and say what came of it.
    Ask(Ask),
    /// Nothing before that moment, unless somebody answers.
    Wait(Instant),
    /// It is over.
    Done,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) id: usize,
    pub(crate) whom: Whom,
    /// When it is answered too late.
    pub(crate) deadline: Instant,
    /// The walk has less time than an answer may take: who is late did not fail.
    pub(crate) is_short: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The step is under way; another one begins when it has failed, at that moment at the latest.
    In(Step, Instant),
    /// The step begins at that moment.
    Before(Step, Instant),
    /// There are no more steps.
    Last,
}

/// One who was asked.
#[derive(Debug)]
struct Asked {
    whom: Whom,
    lane: Option<usize>,
    step: Step,
    begun: Instant,
    deadline: Instant,
    sound: bool,
    /// When it answered, and what.
    said: Option<(Instant, Said)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Walk {
    peer: PeerId,
    caller: Caller,
    begun: Instant,
    deadline: Instant,
    stage: Stage,
    lanes: Vec<Lane>,
    /// Rendezvous for the second step, with their lanes.
    others: VecDeque<(usize, Choice)>,
    /// Peers for the third.
    peers: Option<VecDeque<PeerId>>,
    old: Option<(Located, Duration)>,
    /// It has taken budget.
    is_wide: bool,
    asked: Vec<Asked>,
    steps: Vec<StepTrace>,
    best: Option<Located>,
    /// When the first answer came.
    found_at: Option<Instant>,
    heard: outcome::Heard,
}

impl Walk {
    /// A walk that finds `peer` in the name of `caller`, before `deadline`.
    pub(crate) fn new(peer: PeerId, caller: Caller, plan: Plan, deadline: Instant, now: Instant) -> Self {
        let lanes: Vec<Lane> = plan.backbones.into_iter().map(|members| Lane::new(members, now)).collect();
        let peers =
            plan.peers.map(|peers| peers.into_iter().filter(|one| *one != peer).take(PEERS).collect());
        let mut walk = Self {
            peer,
            caller,
            begun: now,
            deadline,
            stage: Stage::Last,
            lanes,
            others: VecDeque::new(),
            peers,
            old: plan.old,
            is_wide: false,
            asked: Vec::new(),
            steps: Vec::new(),
            best: None,
            found_at: None,
            heard: outcome::Heard::default(),
        };
        walk.begin(Step::Backbones, now);
        walk
    }

    /// What is to be done at `now`. To be called again after each answer and whenever the time has come that it says.
    pub(crate) fn next(&mut self, now: Instant, budget: &mut Budget) -> Action {
        self.expire(now);
        while !self.is_done(now) {
            if let Some(ask) = self.due(now) {
                return Action::Ask(ask);
            }
            if !self.advance(now, budget) {
                return Action::Wait(self.wake(now));
            }
        }
        Action::Done
    }

    /// One who was asked says this.
    pub(crate) fn heard(&mut self, id: usize, word: Word, now: Instant) {
        let Some(asked) = self.asked.get_mut(id).filter(|asked| asked.said.is_none()) else { return };
        asked.said = Some((now, Said::from(&word)));
        let (lane, step, whom) = (asked.lane, asked.step, asked.whom.clone());
        let effect = match &word {
            Word::Found(_) => Effect::Found,
            Word::Unknown { settled: false, .. } => Effect::Unsure,
            Word::Unknown { .. } | Word::Offline { .. } => Effect::Unknown,
            Word::Lied(_) | Word::Early(_) | Word::Refused { .. } | Word::Failed(_) | Word::TimedOut => {
                Effect::Nothing
            }
        };
        match lane.and_then(|lane| self.lanes.get_mut(lane)) {
            Some(lane) if step == Step::Backbones => lane.heard(effect, now),
            Some(lane) => lane.judge(effect),
            None => {}
        }
        self.heard.add(&whom, &word);
        if let Word::Found(peer) = word {
            let found = Located { peer: *peer, answered_by: whom };
            self.found_at.get_or_insert(now);
            if self.best.as_ref().is_none_or(|best| rank(&best.peer) < rank(&found.peer)) {
                self.best = Some(found);
            }
        }
    }

    /// Whether there is nothing more to do: with an answer in hand those in doubt are not waited for, and the others not for long.
    fn is_done(&self, now: Instant) -> bool {
        now >= self.deadline
            || (self.best.is_some() && self.others_until().is_none_or(|until| now >= until))
            || (self.stage == Stage::Last && self.others.is_empty() && !self.is_anyone_open())
    }

    /// With an answer in hand: until when somebody is waited for who has still to answer, and usually does soon.
    fn others_until(&self) -> Option<Instant> {
        let most = self.found_at? + OTHERS;
        if let Stage::In(Step::Backbones, _) = self.stage {
            let is_expected = |lane: &Lane| lane.is_sound() && !lane.is_over();
            return self.lanes.iter().any(is_expected).then_some(most);
        }
        let expected = self.asked.iter().filter(|asked| asked.said.is_none() && asked.sound);
        expected.map(|asked| asked.begun + OTHERS).max().map(|until| until.min(most))
    }

    fn is_anyone_open(&self) -> bool {
        self.asked.iter().any(|asked| asked.said.is_none())
    }

    /// Gives up those whose time is over.
    fn expire(&mut self, now: Instant) {
        let is_late = |asked: &Asked| asked.said.is_none() && asked.deadline <= now;
        let late: Vec<usize> =
            self.asked.iter().enumerate().filter(|(_, asked)| is_late(asked)).map(|(id, _)| id).collect();
        for id in late {
            self.heard(id, Word::TimedOut, now);
        }
    }

    /// Whom to ask now.
    fn due(&mut self, now: Instant) -> Option<Ask> {
        if let Stage::In(Step::Backbones, _) | Stage::Before(Step::EveryRendezvous, _) = self.stage {
            let mut lanes = self.lanes.iter_mut().enumerate();
            let (lane, choice) = lanes.find_map(|(nth, lane)| Some((nth, lane.due(now)?)))?;
            return Some(self.ask_rendezvous(Step::Backbones, lane, choice, now));
        }
        if let (Stage::In(Step::Peers, _), Some(peers)) = (self.stage, &mut self.peers)
            && let Some(peer) = peers.pop_front()
        {
            return Some(self.ask(Step::Peers, Whom::Peer(peer), None, CALL, true, now));
        }
        let open = |asked: &&Asked| asked.said.is_none() && asked.step == Step::EveryRendezvous;
        if self.best.is_some() || self.asked.iter().filter(open).count() >= AT_ONCE {
            return None;
        }
        let (lane, choice) = self.others.pop_front()?;
        Some(self.ask_rendezvous(Step::EveryRendezvous, lane, choice, now))
    }

    fn ask_rendezvous(&mut self, step: Step, lane: usize, choice: Choice, now: Instant) -> Ask {
        let settled = self.lanes.get(lane).is_some_and(Lane::is_settled);
        let bound = if choice.doubtful || settled { DOUBTFUL_CALL } else { CALL };
        self.ask(step, Whom::Rendezvous(choice.endpoint), Some(lane), bound, !choice.doubtful, now)
    }

    fn ask(
        &mut self,
        step: Step,
        whom: Whom,
        lane: Option<usize>,
        bound: Duration,
        sound: bool,
        now: Instant,
    ) -> Ask {
        let deadline = (now + bound).min(self.deadline);
        let is_short = deadline < now + bound;
        let ask = Ask { id: self.asked.len(), whom: whom.clone(), deadline, is_short };
        self.asked.push(Asked { whom, lane, step, begun: now, deadline, sound, said: None });
        ask
    }

    /// Goes on to the next step, if its time has come.
    fn advance(&mut self, now: Instant, budget: &mut Budget) -> bool {
        match self.stage {
            _ if self.best.is_some() => return false,
            Stage::In(step, until) => {
                let failed = match step {
                    Step::Backbones => self.lanes.iter().all(Lane::is_over),
                    Step::EveryRendezvous | Step::Peers => !self.is_anyone_open() && self.others.is_empty(),
                };
                if !failed && now < until {
                    return false;
                }
                match step {
                    Step::Backbones => self.grow_wide(now),
                    Step::EveryRendezvous => self.stage = Stage::Before(Step::Peers, now),
                    Step::Peers => self.stage = Stage::Last,
                }
            }
            Stage::Before(step, at) if now >= at => self.enter(step, now, budget),
            Stage::Before(..) | Stage::Last => return false,
        }
        true
    }

    /// After the backbones everybody else comes into question. Those of a backbone that does not know the peer for sure are waited for no
    /// longer than it takes to hear another opinion.
    fn grow_wide(&mut self, now: Instant) {
        for asked in self.asked.iter_mut().filter(|asked| asked.said.is_none()) {
            if asked.lane.and_then(|lane| self.lanes.get(lane)).is_some_and(Lane::is_settled) {
                asked.deadline = asked.deadline.min(now + DOUBTFUL_CALL);
            }
        }
        self.stage = Stage::Before(Step::EveryRendezvous, now);
    }

    /// Begins a step that needs budget, once for the whole walk, or leaves it out. Who does not know anything yet waits for budget, others do without.
    fn enter(&mut self, step: Step, now: Instant, budget: &mut Budget) {
        let skipped = match self.left(step) {
            None => Skipped::Declined,
            Some(0) => Skipped::Nobody,
            Some(_) => match if self.is_wide { Ok(()) } else { budget.take(self.caller, now) } {
                Ok(()) => {
                    self.is_wide = true;
                    return self.begin(step, now);
                }
                Err(spent) if spent.until < self.deadline && !self.is_settled() => {
                    self.stage = Stage::Before(step, spent.until);
                    return;
                }
                Err(spent) => {
                    let retry_after = spent.until.duration_since(now);
                    Skipped::NoBudget { scope: spent.scope, retry_after }
                }
            },
        };
        self.steps.push(StepTrace::begun(step, now.duration_since(self.begun), Some(skipped)));
        self.stage = match step {
            Step::Backbones | Step::EveryRendezvous => Stage::Before(Step::Peers, now),
            Step::Peers => Stage::Last,
        };
    }

    /// How many there are still to ask in a step; `None` if the caller declines it.
    fn left(&self, step: Step) -> Option<usize> {
        match step {
            Step::Backbones => Some(self.lanes.iter().map(Lane::left).sum()),
            Step::EveryRendezvous => {
                Some(self.others.len() + self.lanes.iter().map(Lane::left).sum::<usize>())
            }
            Step::Peers => self.peers.as_ref().map(VecDeque::len),
        }
    }

    /// Begins a step, with its share of the time if others may follow.
    fn begin(&mut self, step: Step, now: Instant) {
        if step == Step::EveryRendezvous {
            for (nth, lane) in self.lanes.iter_mut().enumerate() {
                self.others.extend(lane.take_rest().into_iter().map(|choice| (nth, choice)));
            }
            self.others.make_contiguous().sort_by_key(|(_, choice)| choice.doubtful);
        }
        let peers = u32::from(self.left(Step::Peers).is_some_and(|left| left > 0));
        let later = match step {
            Step::Backbones => peers + u32::from(self.lanes.iter().any(|lane| lane.left() > 1)),
            Step::EveryRendezvous => peers,
            Step::Peers => 0,
        };
        let left = self.deadline.saturating_duration_since(now);
        let share = if later == 0 { left } else { (left / (later + 1)).min(STEP) };
        self.stage = Stage::In(step, now + share);
        self.steps.push(StepTrace::begun(step, now.duration_since(self.begun), None));
    }

    /// Whether every backbone that can be expected to answer says for sure that it does not know the peer.
    fn is_settled(&self) -> bool {
        self.lanes.iter().any(Lane::is_settled)
            && self.lanes.iter().all(|lane| lane.is_settled() || !lane.is_sound())
    }

    /// Whether every backbone says for sure that it does not know the peer.
    fn is_certain(&self) -> bool {
        !self.lanes.is_empty() && self.lanes.iter().all(Lane::is_settled)
    }

    /// When something is to be done by itself.
    fn wake(&self, now: Instant) -> Instant {
        let step = match self.stage {
            Stage::In(_, until) | Stage::Before(_, until) => Some(until),
            Stage::Last => None,
        };
        let lanes = self.lanes.iter().filter_map(Lane::wake).filter(|at| *at > now);
        let open = self.asked.iter().filter(|asked| asked.said.is_none()).map(|asked| asked.deadline);
        let all = lanes.chain(open).chain(step.filter(|at| *at > now)).chain(self.others_until());
        all.fold(self.deadline, Instant::min)
    }
}
