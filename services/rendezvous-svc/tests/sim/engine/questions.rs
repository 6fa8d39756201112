//! Questions: somewhere somebody asks where a peer is.

use std::time::Duration;

use p2psb_rendezvous_svc::core::lookup::{Answer, Outcome, Patience, Step};

use super::member::Question;
use super::net::{Event, Message};
use super::store::Store;
use super::world::World;

/// How long after a peer told something a question has to find it.
const SETTLED: u64 = 2_000;

impl<S: Store> World<S> {
    /// Some member is asked for some peer, now and then for one that never was.
    pub(crate) fn ask_somewhere(&mut self) {
        if self.config.asks == 0 {
            return;
        }
        let at = self.now + self.rng.u64(0..2000 / self.config.asks) + 1;
        self.queue.put(at, Event::Ask);
        let up: Vec<usize> = self.up().into_iter().filter(|n| !self.members[*n].is_paused).collect();
        let Some(member) = self.rng.choice(up) else { return };
        let stranger = self.rng.u8(0..20) == 0;
        let Some(peer) = self.rng.choice(self.living.iter().copied()) else { return };
        self.ask(member, (!stranger).then_some(peer));
    }

    /// A member is asked for a peer.
    pub(crate) fn ask(&mut self, member: usize, about: Option<u32>) {
        let (instant, truth) = (self.instant(), self.truth());
        // Who never was has a key like everybody else.
        let stranger = super::ids::cheap(3, self.rng.u64(..));
        let key = about.map_or_else(
            || p2psb_rendezvous_svc::core::placement::Key::peer(&stranger),
            |about| self.ids.key(about),
        );
        let one = &self.members[member];
        let known = about.map(|about| one.answer(about, &self.ids, &self.names, (instant, truth)));
        let known = known.filter(|answer| matches!(answer, Answer::Found { .. }));
        let here = about.is_some_and(|about| one.sessions.contains(&about));
        let knows = here || about.is_some_and(|about| one.bridge.knows(&self.ids.id(about), key));
        let lookup = one.bridge.lookup(key, (known, knows), (Patience::default(), instant));
        let seq = about.map_or(0, |about| {
            let peer = &self.peers[about as usize];
            if self.now - peer.told >= SETTLED { peer.seq } else { peer.before }
        });
        self.next_question += 1;
        let question = self.next_question;
        self.members[member].questions.insert(question, Question { lookup, about, since: self.now, seq });
        self.step(member, question);
    }

    /// Goes on with a question.
    pub(crate) fn step(&mut self, member: usize, question: u64) {
        let (now, instant) = (self.now, self.instant());
        loop {
            let one = &mut self.members[member];
            let Some(open) = one.questions.get_mut(&question) else { return };
            match open.lookup.step(instant) {
                Step::Ask(owner) => {
                    let about = open.about;
                    self.report.hops += 1;
                    self.send(member, self.numbers[&owner], Message::Ask(question, about));
                }
                Step::Wait(until) => {
                    let wait = until.saturating_duration_since(instant).max(Duration::from_millis(1));
                    let life = self.members[member].life;
                    let at = now + wait.as_millis() as u64;
                    self.queue.put(at, Event::Poll { member, life, question });
                    return;
                }
                Step::Done(outcome) => {
                    let Some(open) = self.members[member].questions.remove(&question) else { return };
                    self.count(&open, outcome);
                    return;
                }
            }
        }
    }

    /// An owner is asked.
    pub(crate) fn answer(&mut self, member: usize, by: usize, question: u64, about: Option<u32>) {
        let moment = (self.instant(), self.truth());
        let answer = match about {
            Some(about) => self.members[member].answer(about, &self.ids, &self.names, moment),
            None => {
                let finished = self.members[member].bridge.is_finished();
                Answer::Unknown { finished, knowledge: self.members[member].bridge.knowledge(moment.0) }
            }
        };
        self.send(member, by, Message::Answer(question, answer));
    }

    fn count(&mut self, question: &Question, outcome: Outcome<super::member::Found>) {
        let Some(about) = question.about else {
            self.report.strangers.0 += 1;
            match outcome {
                Outcome::Unknown { .. } => self.report.strangers.1 += 1,
                Outcome::NotSure { .. } => {}
                Outcome::Found(_) => self.fail("somebody was found who never was"),
            }
            return;
        };
        if !self.peers[about as usize].is_living || question.seq == 0 {
            // It went, or had only just come, while it was looked for.
            return;
        }
        self.report.asked += 1;
        match outcome {
            Outcome::Found(found) => {
                let waited = self.now - question.since;
                self.report.waits.push(waited as u32);
                self.report.stale += u64::from(found.seq < question.seq);
                if waited == 0 {
                    self.report.at_hand += 1;
                } else {
                    self.report.one_hop += 1;
                }
            }
            Outcome::Unknown { .. } | Outcome::NotSure { .. } => self.report.missed += 1,
        }
    }
}
