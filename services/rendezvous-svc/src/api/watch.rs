//! `WatchPresence`: one task for each watch, which looks at the peers that changed when its reader has room for them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::proof::{ChallengeAction, ProofError, verify_answer};
use p2psb_proto::model::{Digest, PeerId, UnixMillis};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::watch_presence_response::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::Instrument as _;

use super::status::{draining, full, not_an_id};
use crate::convert;
use crate::core::directory::{Located, NotLocated};
use crate::core::presence::MARK_INTERVAL;
use crate::core::resume::{Resume, Told};
use crate::core::watch::{Begin, WATCH_PEERS};
use crate::core::watched::Watcher;
use crate::node::{Caller, Node};
use crate::watching::OpenWatch;

/// What a watch tells.
pub(super) type Outgoing = ReceiverStream<Result<wire::WatchPresenceResponse, Status>>;

/// Messages that may wait for the reader; the rest waits as ids.
const QUEUE: usize = 32;
/// Peers that are looked at in one go.
const STEP: usize = 32;
/// A reader that takes nothing for so long loses its watch.
const PATIENCE: Duration = Duration::from_secs(60);

/// Begins a watch; its task goes on by itself.
pub(super) fn watch(
    node: &Arc<Node>,
    caller: &Caller,
    request: wire::WatchPresenceRequest,
) -> Result<Outgoing, Failure> {
    if node.drain.has_begun() {
        return Err(draining());
    }
    let peers = watched(&request)?;
    let watcher = verify(node, caller, &request)?;
    let mut resume = Resume::new(node.id, node.epoch, &peers);
    let left = resume.parse(&request.resume_token);
    let slot = Slot::take(node, watcher, peers.len())?;
    let open = OpenWatch::new(node, peers, left.as_ref());
    let resync = !request.resume_token.is_empty() && open.begin == Begin::Whole;
    if let Some(left) = left.filter(|_| open.begin == Begin::Resumed) {
        resume.goes_on(&left);
    }
    let (outbound, answers) = Outbound::new(PATIENCE);
    let teller = Teller { node: Arc::clone(node), open, outbound, _slot: slot };
    tokio::spawn(teller.run(resume, resync).in_current_span());
    Ok(answers)
}

fn watched(request: &wire::WatchPresenceRequest) -> Result<Box<[PeerId]>, Failure> {
    let count = request.peer_ids.len();
    if !(1..=WATCH_PEERS).contains(&count) {
        let text = format!("a watch has 1 to {WATCH_PEERS} peers, this one {count}; open several");
        return Err(Failure::new(Reason::InvalidArgument, text).with("limit", "watch_peers"));
    }
    let mut seen = HashSet::with_capacity(count);
    let peers = request.peer_ids.iter().map(|id| {
        let peer = PeerId::from_slice(id).map_err(|error| not_an_id("peer_ids", &error))?;
        if seen.insert(peer) {
            return Ok(peer);
        }
        Err(Failure::new(Reason::InvalidArgument, format!("peer_ids: {peer} is named twice")))
    });
    peers.collect()
}

/// The watcher is who it says, and asked for just these peers.
fn verify(node: &Node, caller: &Caller, request: &wire::WatchPresenceRequest) -> Result<Watcher, Failure> {
    let watcher = PeerId::from_slice(&request.watcher_id).map_err(|error| not_an_id("watcher_id", &error))?;
    let proof = request.proof.as_ref().ok_or(ProofError::Missing)?;
    node.challenges.check(&proof.challenge, &watcher, caller.ip(), node.now().wall)?;
    let digest = Digest::of(&request.peer_ids.concat());
    verify_answer(&watcher, &node.id, proof, ChallengeAction::Watch, &digest)?;
    Ok(Watcher { id: watcher, from: caller.ip() })
}

/// A place among the watches, and for each of its peers; given back when dropped.
struct Slot {
    node: Arc<Node>,
    watcher: Watcher,
    peers: usize,
}

impl Slot {
    fn take(node: &Arc<Node>, watcher: Watcher, peers: usize) -> Result<Self, Failure> {
        node.watches.lock().enter(watcher.from).map_err(full)?;
        if let Err(reached) = node.watched.lock().enter(watcher, peers) {
            node.watches.lock().leave(watcher.from);
            return Err(full(reached));
        }
        Ok(Self { node: Arc::clone(node), watcher, peers })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.node.watched.lock().leave(self.watcher, self.peers);
        self.node.watches.lock().leave(self.watcher.from);
    }
}

struct Teller {
    node: Arc<Node>,
    open: OpenWatch,
    outbound: Outbound,
    _slot: Slot,
}

impl Teller {
    async fn run(self, resume: Resume, resync: bool) {
        let failure = tokio::select! {
            told = self.tell(resume, resync) => told.err(),
            () = self.node.time_to_leave() => Some(draining()),
            () = self.outbound.messages.closed() => None,
        };
        if let Some(failure) = failure {
            self.outbound.end(failure);
        }
    }

    async fn tell(&self, mut resume: Resume, resync: bool) -> Result<(), Failure> {
        if resync {
            self.outbound.send(Message::Resync(wire::WatchResync {})).await?;
        }
        self.open.settled().await;
        let mut marks = interval_at(Instant::now() + MARK_INTERVAL, MARK_INTERVAL);
        marks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first mark ends the beginning.
        let mut due = Some(self.open.known_up_to());
        loop {
            // What is promised was known before, so it is taken now or was told.
            let Some(taken) = self.open.take(STEP) else { return Ok(()) };
            for peer in &taken.peers {
                let found = self.look(peer);
                resume.told(peer, Told::of(&found));
                self.outbound.send(said(peer, found)?).await?;
            }
            for (peer, before) in &taken.unsure {
                let found = self.look(peer);
                let told = Told::of(&found);
                if told != *before {
                    resume.told(peer, told);
                    self.outbound.send(said(peer, found)?).await?;
                }
            }
            if !taken.unsure.is_empty() {
                // Nothing that was sent may have let others run.
                tokio::task::yield_now().await;
            }
            let Some(revision) = taken.complete else { continue };
            if let Some(as_of) = due.take() {
                let (resume_token, as_of_time) = (resume.to_token(revision), as_of.map(UnixMillis::to_wire));
                self.outbound
                    .send(Message::Progress(wire::WatchProgress { resume_token, as_of_time }))
                    .await?;
            }
            tokio::select! {
                biased;
                _ = marks.tick() => due = Some(self.open.known_up_to()),
                () = self.open.woken() => {}
            }
        }
    }

    /// How a peer is now.
    fn look(&self, peer: &PeerId) -> Result<Located, NotLocated> {
        let now = self.node.now();
        let directory = self.node.directory.read();
        let observed = directory.observe(peer, now);
        self.open.looked(peer, observed.home, observed.due);
        observed.found
    }
}

/// The way to the reader of a watch. One place is kept for the reason of its end: who has not read for too long learns it once it
/// does.
struct Outbound {
    messages: mpsc::Sender<Result<wire::WatchPresenceResponse, Status>>,
    last: Option<mpsc::OwnedPermit<Result<wire::WatchPresenceResponse, Status>>>,
    patience: Duration,
}

impl Outbound {
    /// To a reader that may take nothing for so long.
    fn new(patience: Duration) -> (Self, Outgoing) {
        let (messages, answers) = mpsc::channel(QUEUE + 1);
        let last = messages.clone().try_reserve_owned().ok();
        (Self { messages, last, patience }, ReceiverStream::new(answers))
    }

    async fn send(&self, message: Message) -> Result<(), Failure> {
        let response = wire::WatchPresenceResponse { message: Some(message) };
        match tokio::time::timeout(self.patience, self.messages.send(Ok(response))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::new(Reason::Unreachable, "the watcher left")),
            Err(_) => Err(Failure::new(Reason::LimitExceeded, "what a watch tells is not read")
                .with("limit", "watch.patience")),
        }
    }

    fn end(self, failure: Failure) {
        if let Some(last) = self.last {
            last.send(Err(failure.into()));
        }
    }
}

/// What is to be said of a peer.
fn said(peer: &PeerId, found: Result<Located, NotLocated>) -> Result<Message, Failure> {
    Ok(match found {
        Ok(found) => Message::Peer(convert::located(&found)?),
        Err(error) => {
            let error = Some(Failure::from(error).into());
            Message::Gone(wire::PeerGone { peer_id: peer.to_wire(), error })
        }
    })
}

#[cfg(test)]
mod tests {
    use p2psb_proto::error::{fact_of, reason_of};
    use tokio_stream::StreamExt as _;

    use super::*;

    fn message() -> Message {
        Message::Resync(wire::WatchResync {})
    }

    #[tokio::test]
    async fn who_reads_nothing_loses_its_watch_and_learns_why_once_it_reads() {
        let (outbound, mut answers) = Outbound::new(Duration::from_millis(50));
        for _ in 0..QUEUE {
            outbound.send(message()).await.unwrap();
        }
        let failure = outbound.send(message()).await.unwrap_err();
        outbound.end(failure);
        for _ in 0..QUEUE {
            assert!(answers.next().await.unwrap().is_ok(), "what waited is still told");
        }
        let status = answers.next().await.unwrap().unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::LimitExceeded));
        assert_eq!(fact_of(&status, "limit").as_deref(), Some("watch.patience"));
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn who_reads_slowly_keeps_its_watch() {
        let (outbound, mut answers) = Outbound::new(Duration::from_secs(20));
        let reading = tokio::spawn(async move {
            for _ in 0..3 * QUEUE {
                tokio::task::yield_now().await;
                answers.next().await.unwrap().unwrap();
            }
            answers
        });
        for _ in 0..3 * QUEUE {
            outbound.send(message()).await.unwrap();
        }
        drop(reading.await.unwrap());
        let gone = outbound.send(message()).await.unwrap_err();
        assert_eq!(gone.reason, Reason::Unreachable);
    }
}
