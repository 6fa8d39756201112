//! A link that is up: one half tells, the other listens; the first to end ends it.
//!
//! Invariants: while a link is open the directory has it as the one link with its member, and the hub its mailbox; when it
//! ends both forget it, unless a newer one took its place. Batches are applied in the order of their numbers, and what was not
//! acknowledged goes out again over the next link.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use p2psb_proto::error::{Failure, Reason, reason_of};
use p2psb_proto::model::time::{duration_from_wire, duration_to_wire};
use p2psb_proto::model::{PeerId, limits};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::Status;

use super::edges::{self, OtherEnd};
use super::frame::Frame;
use super::handshake::{Inbound, Outbound, Theirs};
use super::hearing::{self, Hearing};
use super::mailbox::{Mailbox, Saying, Says};
use super::{asking, batch, confirming};
use crate::convert;
use crate::core::bridge::Mark;
use crate::core::delivery::{ACKNOWLEDGE_AFTER, Arrived, OutOfWindow};
use crate::core::marks::Pulse;
use crate::core::members::{DialedBy, LinkRefused, LinkTicket, Role};
use crate::core::presence::{MARK_INTERVAL, MARKS_MISSED};
use crate::core::ring::Introduction;
use crate::node::Node;
use crate::records::Teller;

/// Batches with at most so many statements are verified at once; larger ones beside the runtime.
const SMALL_BATCH: usize = 8;
/// When the server drains, how long the last changes may take to be told after the last session.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// How often a draining link looks whether it is done.
const DRAIN_CHECK: Duration = Duration::from_millis(50);

/// How a link ended.
pub(super) struct Ended {
    /// With whom it was.
    pub(super) peer: PeerId,
    /// How long it held.
    pub(super) held: Duration,
    /// Why, if not by the will of an end.
    pub(super) reason: Option<Failure>,
}

/// A failure that the other end names keeps its reason; any other is a broken stream.
pub(super) fn from_stream(status: &Status) -> Failure {
    match reason_of(status) {
        Some(reason) => Failure::new(reason, status.message()),
        None => convert::unreadable(status).unwrap_or_else(|| {
            Failure::new(Reason::Unreachable, format!("the link broke: {}", status.message()))
        }),
    }
}

/// A link that is up.
pub(super) struct Link {
    node: Arc<Node>,
    peer: PeerId,
    other: OtherEnd,
    ticket: LinkTicket,
    mailbox: Arc<Mailbox>,
    since: Instant,
    arrived: Mutex<Arrived<wire::BridgeBatch>>,
    /// The other end waits to hear what arrived.
    owes: Notify,
    /// When nothing waited to be told.
    complete_at: Mutex<Instant>,
}

impl Link {
    /// Makes a link with a member that proved itself the one link with it.
    pub(super) fn open(
        node: &Arc<Node>,
        dialed_by: DialedBy,
        seq: u64,
        (theirs, other): (Theirs, OtherEnd),
    ) -> Result<(Self, Says), Failure> {
        let (peer, role) = (theirs.peer, other.role());
        if role == Role::Member {
            node.merge(theirs.record, peer, Teller::Member)?;
        }
        let operator = hearing::operator(node, &peer);
        let Theirs { boot, up_for, oldest_up_for, .. } = theirs;
        let said = Introduction { operator, boot, up_for, oldest_up_for };
        let now = node.now().mono;
        let (ticket, (mailbox, says)) = {
            let mut directory = node.directory.write();
            if role == Role::Edge && node.hub.bridge.lock().is_member(&peer) {
                return Err(LinkRefused::Duplicate.into());
            }
            let linked = directory.links_with(role).link(peer, dialed_by, seq, now)?;
            if role == Role::Member {
                directory.presence.linked(peer, now);
            }
            (linked.ticket, node.hub.join((peer, role), linked.ticket, &said, now))
        };
        node.hub.links_changed(role);
        if role == Role::Member {
            node.hub.watching.home_changed(&peer);
        }
        metrics::counter!("rendezvous_links_total").increment(1);
        tracing::info!(member = %peer, ?role, ?dialed_by, "linked");
        let since = Instant::now();
        let link = Self {
            node: Arc::clone(node),
            peer,
            other,
            ticket,
            mailbox,
            since,
            arrived: Mutex::default(),
            owes: Notify::new(),
            complete_at: Mutex::new(since),
        };
        Ok((link, says))
    }

    /// Keeps the link until it ends. `first` came with the handshake.
    pub(super) async fn run(
        self,
        first: Option<Frame>,
        inbound: Inbound,
        (outbound, says): (Outbound, Says),
    ) -> Ended {
        let result = tokio::select! {
            result = self.listen(first, inbound) => result,
            result = self.tell(&outbound, says) => result,
            () = self.mailbox.replaced() => Err(LinkRefused::Duplicate.into()),
            never = self.ask_again() => match never {},
        };
        let (peer, held) = (self.peer, self.since.elapsed());
        let reason = result.err();
        match &reason {
            None => tracing::info!(member = %peer, ?held, "link ended"),
            Some(failure) => {
                tracing::info!(member = %peer, ?held, reason = %failure.reason, problem = failure.message, "link ended");
            }
        }
        Ended { peer, held, reason }
    }

    /// Asks an edge once more how peers are whose records were not taken.
    async fn ask_again(&self) -> Infallible {
        let OtherEnd::Edge(place) = &self.other else { return std::future::pending().await };
        loop {
            let peers = place.put_off_until_now().await;
            self.node.hub.tell(|bridge| bridge.ask_again(self.peer, peers));
        }
    }

    /// Tells what there is to tell, what is to be said at once, and a mark every 5 s. The first frame is a mark: it shows a dialer
    /// that its proof was accepted.
    async fn tell(&self, outbound: &Outbound, mut says: Says) -> Result<(), Failure> {
        let mut marks = interval(MARK_INTERVAL);
        marks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.send(outbound, self.mark()).await?;
        let mut checks = interval(DRAIN_CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // When this server drains: sessions end first, and what becomes of their peers is told before the link ends.
        let mut ends_by: Option<Instant> = None;
        loop {
            let frame = tokio::select! {
                _ = marks.tick() => self.mark(),
                () = self.owes.notified() => self.mark(),
                Some(saying) = says.recv() => {
                    let Saying { frame, held } = saying;
                    self.send(outbound, frame).await?;
                    drop(held);
                    continue;
                }
                batch = self.next_batch() => Frame::Batch(batch),
                () = self.node.drain.begun(), if ends_by.is_none() => {
                    ends_by = Some(Instant::now() + self.node.leaving_ends() + DRAIN_GRACE);
                    continue;
                }
                _ = checks.tick(), if ends_by.is_some() => {
                    let is_over = ends_by.is_some_and(|ends_by| Instant::now() >= ends_by);
                    if is_over || self.has_told_the_end() {
                        return Ok(());
                    }
                    continue;
                }
            };
            self.send(outbound, frame).await?;
        }
    }

    /// No session is left, and everything of them was told.
    fn has_told_the_end(&self) -> bool {
        self.node.sessions.lock().total() == 0 && self.node.hub.has_told(&self.peer)
    }

    /// The next batch, once there is one.
    async fn next_batch(&self) -> wire::BridgeBatch {
        loop {
            if let Some(batch) = batch::next(&self.node, (&self.peer, self.other.role()), self.ticket) {
                return batch;
            }
            if self.node.hub.has_told(&self.peer) {
                *self.complete_at.lock() = Instant::now();
            }
            self.mailbox.filled().await;
        }
    }

    fn mark(&self) -> Frame {
        let received = self.arrived.lock().acknowledge();
        let sessions = u64::try_from(self.node.sessions.lock().total()).unwrap_or(u64::MAX);
        let is_complete = self.node.hub.has_told(&self.peer);
        let mark = self.node.hub.bridge.lock().mark(&self.peer, received, sessions);
        let age = if is_complete { Duration::ZERO } else { self.complete_at.lock().elapsed() };
        Frame::Mark(wire::BridgeMark {
            time: Some(self.node.now().wall.to_wire()),
            sessions,
            sent: mark.sent,
            received,
            finished: mark.finished,
            ring_digest: mark.ring_digest,
            as_of_age: Some(duration_to_wire(age)),
        })
    }

    async fn send(&self, outbound: &Outbound, frame: Frame) -> Result<(), Failure> {
        match timeout(MARKS_MISSED, outbound.send(Ok(frame))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::new(Reason::Unreachable, "the link broke")),
            Err(_) => Err(Failure::new(Reason::SessionLost, "the other member does not read")),
        }
    }

    async fn listen(&self, first: Option<Frame>, mut inbound: Inbound) -> Result<(), Failure> {
        if let Some(frame) = first {
            self.heard(frame).await?;
        }
        loop {
            match timeout(MARKS_MISSED, inbound.next()).await {
                Err(_) => return Err(Failure::new(Reason::SessionLost, "the other member is silent")),
                Ok(None) => return Ok(()),
                Ok(Some(Err(status))) => return Err(from_stream(&status)),
                Ok(Some(Ok(None))) => {}
                Ok(Some(Ok(Some(frame)))) => self.heard(frame).await?,
            }
        }
    }

    async fn heard(&self, frame: Frame) -> Result<(), Failure> {
        self.other.pace(&frame).await?;
        let now = self.node.now().mono;
        self.node.directory.write().links_with(self.other.role()).heard(&self.peer, now);
        match frame {
            Frame::Mark(mark) => self.marked(&mark, now),
            Frame::Batch(batch) => {
                hearing::check(&batch)?;
                let batches = self.arrived.lock().take(batch.number, batch, now).map_err(out_of_window)?;
                for batch in batches {
                    self.apply(batch).await?;
                }
                if self.arrived.lock().unacknowledged() >= ACKNOWLEDGE_AFTER {
                    self.owes.notify_one();
                }
            }
            Frame::Question(question) => self.asked(question),
            Frame::Answer(answer) => self.mailbox.answered(answer),
            Frame::Hello(_) | Frame::Authenticate(_) => {
                return Err(Failure::new(Reason::UnexpectedMessage, "the link is open already"));
            }
        }
        Ok(())
    }

    fn asked(&self, question: wire::BridgeQuestion) {
        match (&self.other, question) {
            (OtherEnd::Edge(place), question) => {
                asking::answer_edge(&self.node, &self.mailbox, &place.questions, question);
            }
            (OtherEnd::Member, wire::BridgeQuestion { number, question: Some(Question::Confirm(asked)) }) => {
                confirming::answer(&self.node, &self.mailbox, number, &asked)
            }
            (OtherEnd::Member, question) => {
                self.mailbox.say(Frame::Answer(asking::answer(&self.node, question)));
            }
        }
    }

    /// Takes the member's mark, unless another link took the place of this one.
    fn marked(&self, said: &wire::BridgeMark, now: std::time::Instant) {
        let age = duration_from_wire(said.as_of_age.as_ref()).min(limits::RECORD_LIFETIME);
        let as_of = now.checked_sub(age).unwrap_or(now);
        let mut directory = self.node.directory.write();
        let links = directory.links_with(self.other.role());
        if !links.is_current(&self.peer, self.ticket) {
            return;
        }
        let is_edge = self.other.role() == Role::Edge;
        let sessions = if is_edge { said.sessions.min(edges::SESSIONS) } else { said.sessions };
        let mark = Pulse { as_of, alive: now };
        directory.presence.mark(&self.peer, sessions, mark);
        let heard = Mark {
            sent: said.sent,
            received: said.received,
            sessions,
            finished: said.finished,
            ring_digest: said.ring_digest,
        };
        self.node.hub.tell(|bridge| {
            bridge.marked(self.peer, &heard);
            if is_edge {
                return;
            }
            // Of homes that only the other end hears it is known a mark of theirs later.
            let through = mark.before(MARK_INTERVAL);
            directory.presence.mark_through(&self.peer, bridge.ring().reached_by(&self.peer), through);
        });
    }

    async fn apply(&self, batch: wire::BridgeBatch) -> Result<(), Failure> {
        let (node, from, link) = (Arc::clone(&self.node), self.peer, self.ticket);
        // What a member said before may have to be looked at as a whole.
        let is_small = hearing::size(&batch) <= SMALL_BATCH && !batch.synced;
        let teller = self.other.teller();
        let hear = move || Hearing { node: &node, from, teller, link }.take(batch);
        let heard = if is_small {
            hear()
        } else {
            tokio::task::spawn_blocking(hear)
                .await
                .map_err(|error| Failure::new(Reason::Internal, format!("a batch was not taken: {error}")))?
        };
        if heard.new_members {
            self.node.hub.heard_of_members();
        }
        if let OtherEnd::Edge(place) = &self.other {
            place.put_off(&self.peer, heard.put_off);
        }
        if let Some(failure) = heard.first {
            let count = u64::try_from(heard.refused).unwrap_or(u64::MAX);
            metrics::counter!("rendezvous_bridged_refused_total").increment(count);
            tracing::debug!(member = %self.peer, count, reason = %failure.reason, problem = failure.message, "passed over what proves nothing");
        }
        Ok(())
    }
}

fn out_of_window(error: OutOfWindow) -> Failure {
    Failure::new(Reason::UnexpectedMessage, error.to_string())
}

impl Drop for Link {
    fn drop(&mut self) {
        self.mailbox.end();
        let now = self.node.now().mono;
        let (was_current, silent_for) = {
            let mut directory = self.node.directory.write();
            let links = directory.links_with(self.other.role());
            let heard = links.view(&self.peer).and_then(|member| member.heard);
            let silent_for = heard.map(|heard| now.saturating_duration_since(heard)).unwrap_or_default();
            let was_current = links.unlink(&self.peer, self.ticket);
            if was_current {
                directory.presence.unlinked(&self.peer);
            }
            (was_current, silent_for)
        };
        if was_current {
            let role = self.other.role();
            // An edge that said nothing is nobody's home.
            let is_home = role == Role::Member || self.node.hub.bridge.lock().far().is_linked(&self.peer);
            self.node.hub.leave((&self.peer, role), self.ticket, silent_for, now);
            self.node.hub.links_changed(role);
            if is_home {
                self.node.hub.watching.home_changed(&self.peer);
            }
        }
    }
}
