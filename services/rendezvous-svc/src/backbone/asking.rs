//! Questions between members: this server asks the owners of a peer for its own callers, and answers those that ask it.
//!
//! Promise: who is asked does not ask others, so that a question never goes further than one hop.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::time::{duration_from_wire, duration_to_wire};
use p2psb_proto::model::{PeerId, PeerStatement, UnixMillis};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer as Arm;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use prost::Message as _;

use super::{finding, stating};
use crate::convert;
use crate::core::directory::{Located, NotLocated};
use crate::core::lookup::{Answer, Lookup, Outcome, Patience, Step};
use crate::core::placement::Key;
use crate::node::Node;

/// Homes that an answer tells of at most.
const HOMES: usize = 8;

/// What is known of a peer, and what that is worth.
pub(crate) struct Known {
    key: Key,
    found: Result<Located, NotLocated>,
    /// What was found, as an answer.
    answer: Option<Answer<Located>>,
    /// This server's word counts.
    counts: bool,
}

/// What this server itself knows of a peer; what it is worth depends on who owns it.
pub(crate) fn look(node: &Node, peer: &PeerId) -> Known {
    let (now, key) = (node.now(), Key::peer(peer));
    let (found, seq, by_home, is_here) = {
        let directory = node.directory.read();
        let found = directory.locate(peer, now);
        let seq = directory.table.seq(peer).unwrap_or_default();
        (found, seq, directory.is_spoken_of(peer, now), directory.is_here(peer, now))
    };
    let counts = is_here || node.hub.bridge.lock().knows(peer, key);
    let answer = found.as_ref().ok().map(|found| Answer::Found { found: found.clone(), seq, by_home });
    Known { key, found, answer, counts }
}

impl Known {
    /// The answer, if nobody else has to be asked.
    pub(crate) fn settled(&self) -> Option<Located> {
        let by_home = matches!(self.answer, Some(Answer::Found { by_home: true, .. }));
        self.found.as_ref().ok().filter(|_| self.counts && by_home).cloned()
    }
}

/// Asks the owners.
pub(crate) async fn ask(node: &Arc<Node>, peer: PeerId, known: Known) -> Result<Located, Failure> {
    let Known { key, found, answer, counts } = known;
    let timing = (Patience::default(), node.now().mono);
    let lookup = node.hub.bridge.lock().lookup(key, (answer, counts), timing);
    let mut asking = Asking { node, peer, lookup, last_seen: last_seen(&found) };
    match (asking.run().await, found) {
        (Outcome::Found(found), _) | (Outcome::NotSure { .. }, Ok(found)) => Ok(found),
        (Outcome::Unknown { knowledge }, _) => Err(asking.unknown(knowledge).into()),
        (Outcome::NotSure { knowledge }, Err(_)) => Err(match asking.last_seen {
            Some(_) => asking.unknown(knowledge).into(),
            None => incomplete(&peer),
        }),
    }
}

fn last_seen(found: &Result<Located, NotLocated>) -> Option<UnixMillis> {
    match found {
        Err(NotLocated::Offline { last_seen, .. }) => Some(*last_seen),
        Err(NotLocated::Unknown { .. }) | Ok(_) => None,
    }
}

fn incomplete(peer: &PeerId) -> Failure {
    let text = format!("not enough of the rendezvous that ought to know {peer} can be asked now");
    Failure::new(Reason::LookupIncomplete, text).retry_after(crate::core::directory::INCOMPLETE_RETRY)
}

struct Asking<'a> {
    node: &'a Arc<Node>,
    peer: PeerId,
    lookup: Lookup<Located>,
    /// When somebody saw it last, if it is not there.
    last_seen: Option<UnixMillis>,
}

impl Asking<'_> {
    fn unknown(&self, knowledge: Duration) -> NotLocated {
        let peer = self.peer;
        match self.last_seen {
            Some(last_seen) => NotLocated::Offline { peer, last_seen },
            None => NotLocated::Unknown { peer, since: self.node.now().wall.minus(knowledge) },
        }
    }

    async fn run(&mut self) -> Outcome<Located> {
        let mut asked = FuturesUnordered::new();
        loop {
            match self.lookup.step(self.node.now().mono) {
                Step::Done(outcome) => return outcome,
                Step::Ask(member) => {
                    match self.node.hub.ask(&member, Question::Locate(self.peer.to_wire())) {
                        Some(answer) => asked.push(async move { (member, answer.await) }),
                        None => self.lookup.failed(&member),
                    }
                }
                Step::Wait(until) => tokio::select! {
                    Some((member, answer)) = asked.next() => self.answered(&member, answer.ok()),
                    () = tokio::time::sleep(until.saturating_duration_since(self.node.now().mono)) => {}
                },
            }
        }
    }

    fn answered(&mut self, by: &PeerId, answer: Option<wire::BridgeAnswer>) {
        match answer.and_then(|answer| answer.answer) {
            Some(Arm::Unknown(said)) => {
                let seen = said.last_seen_time.as_ref().and_then(UnixMillis::from_wire);
                self.last_seen = self.last_seen.max(seen.map(|seen| seen.min(self.node.now().wall)));
                let knowledge = duration_from_wire(said.knowledge_age.as_ref());
                self.lookup.answered(by, Answer::Unknown { finished: said.finished, knowledge });
            }
            Some(Arm::Found(said)) => match self.verify(by, said) {
                Ok(answer) => self.lookup.answered(by, answer),
                Err(failure) => {
                    metrics::counter!("rendezvous_bridged_refused_total").increment(1);
                    tracing::debug!(member = %by, reason = %failure.reason, problem = failure.message, "an answer proves nothing");
                    self.lookup.failed(by);
                }
            },
            // The link ended, or the member did not understand the question, or answers another one.
            Some(Arm::Providers(_) | Arm::Confirmation(_) | Arm::Error(_)) | None => self.lookup.failed(by),
        }
    }

    /// An owner can keep silent about a peer, not forge it: the peer signed its record, and its sessions with its homes.
    fn verify(&self, by: &PeerId, said: wire::BridgeFound) -> Result<Answer<Located>, Failure> {
        let missing = || Failure::new(Reason::InvalidArgument, "an answer without a record");
        let record = said.record.ok_or_else(missing)?;
        let bytes = bytes::Bytes::from(record.encode_to_vec());
        let statement = self.node.verify(record)?;
        let PeerStatement::Record(record) = &statement else { return Err(missing()) };
        if statement.peer_id() != self.peer {
            return Err(Failure::new(Reason::InvalidArgument, "an answer about somebody else"));
        }
        let now = self.node.now();
        let mut views = Vec::new();
        for one in said.presence.iter().take(HOMES) {
            let one = stating::read(one, *by, now)?;
            if one.peer == self.peer {
                stating::verify(&one, self.node.network)?;
                views.push(self.node.directory.read().presence.follow(&one, now.mono));
            }
        }
        let seq = record.value().seq;
        let by_home = !views.is_empty();
        let presence = crate::core::directory::presence(views, record.value().issued, now);
        Ok(Answer::Found { found: Located { peer: self.peer, bytes, presence }, seq, by_home })
    }
}

/// Answers a member that asks.
pub(super) fn answer(node: &Node, question: wire::BridgeQuestion) -> wire::BridgeAnswer {
    let answer = match question.question {
        Some(Question::Locate(id)) => PeerId::from_slice(&id).ok().map(|peer| locate(node, &peer)),
        Some(Question::Find(asked)) => finding::answer(node, asked).ok(),
        // What takes time is answered elsewhere.
        Some(Question::Confirm(_)) | None => None,
    };
    wire::BridgeAnswer { number: question.number, answer }
}

fn locate(node: &Node, peer: &PeerId) -> Arm {
    let now = node.now();
    let directory = node.directory.read();
    if let Some(entry) = directory.table.valid(peer, now.wall)
        && let Ok(record) = convert::signed(&entry.bytes())
    {
        // Nothing is told to anybody's memory by this: the number is as good as the next one.
        let own = stating::own(&directory, peer, now.wall.0, now);
        let others = directory.presence.said(peer).map(|said| stating::to_wire(&said, now));
        let presence = own.into_iter().chain(others).take(HOMES).collect();
        return Arm::Found(wire::BridgeFound { record: Some(record), presence });
    }
    let seen = last_seen(&directory.locate(peer, now));
    let (finished, knowledge) = node.hub.bridge.lock().ignorance(Key::peer(peer), now.mono);
    Arm::Unknown(wire::BridgeUnknown {
        finished,
        knowledge_age: Some(duration_to_wire(knowledge)),
        last_seen_time: seen.map(UnixMillis::to_wire),
    })
}
