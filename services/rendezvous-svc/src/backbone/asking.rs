//! Questions between members: this server asks the owners of a peer for its own callers, and answers those that ask it.
//!
//! Promise: who is asked by a member does not ask others, so that a question never goes further than one hop. An edge owns nothing
//! and knows no owners: whom it asks asks them.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::aliveness;
use p2psb_proto::model::time::{duration_from_wire, duration_to_wire};
use p2psb_proto::model::{PeerId, PeerStatement, UnixMillis};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer as Arm;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use prost::Message as _;
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::frame::Frame;
use super::mailbox::Mailbox;
use super::{finding, stating};
use crate::api::status;
use crate::convert;
use crate::core::Now;
use crate::core::directory::{Directory, Located, NotLocated};
use crate::core::lookup::{Answer, Lookup, Outcome, Patience, Step};
use crate::core::members::Role;
use crate::core::placement::Key;
use crate::core::presence::Said;
use crate::node::Node;

/// Homes that an answer tells of at most.
const HOMES: usize = 8;

/// How long an edge waits: its members may have to ask owners first.
const EDGE_PATIENCE: Patience =
    Patience { hedge: Duration::from_millis(150), deadline: Duration::from_millis(1500) };

/// How long this server waits for those that it asks.
pub(super) fn patience(node: &Node) -> Patience {
    match node.role {
        Role::Member => Patience::default(),
        Role::Edge => EDGE_PATIENCE,
    }
}

/// A peer that was found, here or elsewhere.
#[derive(Clone)]
struct Found {
    located: Located,
    /// What homes say of it, as another member told; `None`: it was found here.
    said: Option<Arc<[Said]>>,
}

/// A peer was not found.
struct Missing {
    /// Those that ought to know it said so.
    is_certain: bool,
    /// When somebody saw it last.
    last_seen: Option<UnixMillis>,
    /// How far back the knowledge of those reaches that were asked.
    knowledge: Duration,
}

impl Missing {
    fn into_failure(self, peer: PeerId, now: UnixMillis) -> Failure {
        match self.last_seen {
            Some(last_seen) => NotLocated::Offline { peer, last_seen }.into(),
            None if self.is_certain => NotLocated::Unknown { peer, since: now.minus(self.knowledge) }.into(),
            None => incomplete(&peer),
        }
    }

    fn into_answer(self) -> Arm {
        Arm::Unknown(wire::BridgeUnknown {
            finished: self.is_certain,
            knowledge_age: Some(duration_to_wire(self.knowledge)),
            last_seen_time: self.last_seen.map(UnixMillis::to_wire),
        })
    }
}

/// What is known of a peer, and what that is worth.
pub(crate) struct Known {
    key: Key,
    found: Result<Located, NotLocated>,
    /// Of what was found.
    seq: u64,
    /// Some home has said how the peer is.
    by_home: bool,
    /// This server's word counts.
    counts: bool,
}

/// What this server itself knows of a peer; what it is worth depends on who owns it.
pub(crate) fn look(node: &Node, directory: &Directory, peer: &PeerId, now: Now) -> Known {
    let (found, key) = (directory.locate(peer, now), Key::peer(peer));
    let seq = directory.table.seq(peer).unwrap_or_default();
    let by_home = directory.is_spoken_of(peer, now);
    let counts = directory.is_here(peer, now) || node.hub.bridge.lock().knows(peer, key);
    Known { key, found, seq, by_home, counts }
}

impl Known {
    /// The answer, if nobody else has to be asked.
    pub(crate) fn settled(&self) -> Option<&Located> {
        self.found.as_ref().ok().filter(|_| self.counts && self.by_home)
    }
}

/// Asks the owners.
pub(crate) async fn ask(node: &Arc<Node>, peer: PeerId, known: Known) -> Result<Located, Failure> {
    let found = ask_for(node, peer, known).await;
    found.map(|found| found.located).map_err(|missing| missing.into_failure(peer, node.now().wall))
}

async fn ask_for(node: &Arc<Node>, peer: PeerId, known: Known) -> Result<Found, Missing> {
    let Known { key, found, seq, by_home, counts } = known;
    let last_seen = last_seen(&found);
    let here = found.map(|located| Found { located, said: None });
    let answer = here.as_ref().ok().map(|found| Answer::Found { found: found.clone(), seq, by_home });
    let timing = (patience(node), node.now().mono);
    let lookup = node.hub.bridge.lock().lookup(key, (answer, counts), timing);
    let mut asking = Asking { node, peer, lookup, last_seen };
    let (is_certain, knowledge) = match (asking.run().await, here) {
        (Outcome::Found(found), _) | (Outcome::NotSure { .. }, Ok(found)) => return Ok(found),
        (Outcome::Unknown { knowledge }, _) => (true, knowledge),
        (Outcome::NotSure { knowledge }, Err(_)) => (false, knowledge),
    };
    Err(Missing { is_certain, last_seen: asking.last_seen, knowledge })
}

fn last_seen(found: &Result<Located, NotLocated>) -> Option<UnixMillis> {
    match found {
        Err(NotLocated::Offline { last_seen, .. }) => Some(*last_seen),
        Err(NotLocated::Unknown { .. }) | Ok(_) => None,
    }
}

fn incomplete(peer: &PeerId) -> Failure {
    status::incomplete(format!("not enough of the rendezvous that ought to know {peer} can be asked now"))
}

struct Asking<'a> {
    node: &'a Arc<Node>,
    peer: PeerId,
    lookup: Lookup<Found>,
    /// When somebody saw it last, if it is not there.
    last_seen: Option<UnixMillis>,
}

impl Asking<'_> {
    async fn run(&mut self) -> Outcome<Found> {
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
            Some(Arm::Page(_) | Arm::Confirmation(_) | Arm::Error(_)) | None => self.lookup.failed(by),
        }
    }

    /// An owner can keep silent about a peer, not forge it: the peer signed its record, and its sessions with its homes.
    fn verify(&self, by: &PeerId, said: wire::BridgeFound) -> Result<Answer<Found>, Failure> {
        let missing = || Failure::new(Reason::InvalidArgument, "an answer without a record");
        let record = said.record.ok_or_else(missing)?;
        let bytes = bytes::Bytes::from(record.encode_to_vec());
        let statement = self.node.verify(record)?;
        let PeerStatement::Record(record) = &statement else { return Err(missing()) };
        if statement.peer_id() != self.peer {
            return Err(Failure::new(Reason::InvalidArgument, "an answer about somebody else"));
        }
        let now = self.node.now();
        let (mut views, mut all) = (Vec::new(), Vec::new());
        for one in said.presence.iter().take(HOMES) {
            let one = stating::read(one, *by, now)?;
            if one.peer == self.peer {
                stating::verify(&one, self.node.network)?;
                views.push(self.node.directory.read().presence.follow(&one, now.mono));
                all.push(Said { is_direct: false, ..one });
            }
        }
        let seq = record.value().seq;
        let by_home = !views.is_empty();
        let presence = crate::core::directory::presence(views, record.value().issued, now);
        let located = Located { peer: self.peer, bytes, presence };
        Ok(Answer::Found { found: Found { located, said: Some(all.into()) }, seq, by_home })
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

/// Answers an edge that asks: for what is not known here the owners are asked. Of the questions that are `under_way` there are only
/// so many at once.
pub(super) fn answer_edge(
    node: &Arc<Node>,
    mailbox: &Arc<Mailbox>,
    under_way: &Arc<Semaphore>,
    question: wire::BridgeQuestion,
) {
    let wire::BridgeQuestion { number, question } = question;
    let (node, mailbox) = (Arc::clone(node), Arc::clone(mailbox));
    let say = move |answer, place| {
        mailbox.say_and_give_back(Frame::Answer(wire::BridgeAnswer { number, answer }), place);
    };
    let Ok(place) = Arc::clone(under_way).try_acquire_owned() else {
        let text = "an edge has asked too much that was not answered yet";
        let failure = Failure::new(Reason::LimitExceeded, text).with("limit", "bridge.edge_questions");
        return say(Some(Arm::Error(failure.into())), None);
    };
    let task = async move {
        let answer = match question {
            Some(Question::Locate(id)) => match PeerId::from_slice(&id) {
                Ok(peer) => Some(locate_for_edge(&node, peer).await),
                Err(_) => None,
            },
            Some(Question::Find(asked)) => finding::answer_edge(&node, asked).await.ok(),
            Some(Question::Confirm(_)) => {
                // Anybody may be an edge, and would send this server wherever it likes.
                let text = "of an edge it is not believed from where its peers came";
                Some(Arm::Error(Failure::new(Reason::NotDialed, text).into()))
            }
            None => None,
        };
        say(answer, Some(place));
    };
    tokio::spawn(task.in_current_span());
}

async fn locate_for_edge(node: &Arc<Node>, peer: PeerId) -> Arm {
    let known = look(node, &node.directory.read(), &peer, node.now());
    if known.settled().is_some() {
        return locate(node, &peer);
    }
    match ask_for(node, peer, known).await {
        Ok(Found { said: None, .. }) => locate(node, &peer),
        Ok(Found { located, said: Some(said) }) => {
            let now = node.now();
            let record = convert::signed(&located.bytes).ok();
            let presence = said.iter().map(|said| stating::to_wire(said, now)).collect();
            Arm::Found(wire::BridgeFound { record, presence })
        }
        Err(missing) => missing.into_answer(),
    }
}

fn locate(node: &Node, peer: &PeerId) -> Arm {
    let now = node.now();
    let directory = node.directory.read();
    if let Some(entry) = directory.table.valid(peer, now.wall)
        && let Ok(record) = convert::signed(&entry.bytes())
    {
        let presence = homes_of(&directory, peer, HOMES, now);
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

/// What homes say of a peer, `most` of them, the liveliest first.
pub(super) fn homes_of(
    directory: &Directory,
    peer: &PeerId,
    most: usize,
    now: Now,
) -> Vec<wire::HomePresence> {
    let stated = directory.stated(peer, now.mono);
    // Nothing is told to anybody's memory by this: the number is as good as the next one.
    let own = stated.and_then(|stated| Some((stated, stating::own(directory, peer, now.wall.0, now)?)));
    let own = own.map(|(stated, own)| ((aliveness(stated.state), stated.heard), own));
    let others = directory.presence.said(peer, now.mono).map(|said| {
        let view = directory.presence.follow(&said, now.mono);
        ((aliveness(view.state), view.last_seen), stating::to_wire(&said, now))
    });
    let mut all: Vec<_> = own.into_iter().chain(others).collect();
    all.sort_by_key(|(liveliness, _)| std::cmp::Reverse(*liveliness));
    all.into_iter().take(most).map(|(_, said)| said).collect()
}
