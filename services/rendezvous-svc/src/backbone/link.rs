//! A link that is up: one half tells, the other listens; the first to end ends it.
//!
//! Invariant: while a link is open the directory has it as the one link with its member, and the hub its mailbox; when it
//! ends both forget it, unless a newer one took its place.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use p2psb_proto::error::{Failure, Reason, reason_of};
use p2psb_proto::model::PeerId;
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::Status;

use super::batch;
use super::frame::Frame;
use super::handshake::{Inbound, Outbound};
use super::hub::Mailbox;
use crate::core::directory::Directory;
use crate::core::members::{DialedBy, LinkRefused, LinkTicket};
use crate::core::presence::{MARK_INTERVAL, MARKS_MISSED};
use crate::node::Node;

/// Batches with at most so many statements are verified at once; larger ones beside the runtime.
const SMALL_BATCH: usize = 8;
/// When the server drains, how long the last changes may take to be told.
const DRAIN_GRACE: Duration = Duration::from_secs(4);
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
        None => Failure::new(Reason::Unreachable, format!("the link broke: {}", status.message())),
    }
}

/// A link that is up.
pub(super) struct Link {
    node: Arc<Node>,
    peer: PeerId,
    ticket: LinkTicket,
    mailbox: Arc<Mailbox>,
    since: Instant,
}

impl Link {
    /// Makes a link with a member that proved itself the one link with it.
    pub(super) fn open(
        node: &Arc<Node>,
        peer: PeerId,
        dialed_by: DialedBy,
        seq: u64,
        record: SignedRecord,
    ) -> Result<Self, Failure> {
        node.merge(record, peer)?;
        let now = node.now().mono;
        let (ticket, mailbox) = {
            let mut directory = node.directory.write();
            let linked = directory.members.link(peer, dialed_by, seq, now)?;
            directory.presence.begin(peer, now);
            (linked.ticket, node.hub.join(peer, linked.ticket))
        };
        {
            let directory = node.directory.read();
            mailbox.fill(directory.table.peers(), directory.sessions.present(now));
        }
        node.hub.members_changed();
        node.hub.watching.home_changed(&peer);
        metrics::counter!("rendezvous_links_total").increment(1);
        tracing::info!(member = %peer, dialed_by = ?dialed_by, "linked");
        Ok(Self { node: Arc::clone(node), peer, ticket, mailbox, since: Instant::now() })
    }

    /// Keeps the link until it ends. `first` came with the handshake.
    pub(super) async fn run(self, first: Option<Frame>, inbound: Inbound, outbound: Outbound) -> Ended {
        let result = tokio::select! {
            result = self.listen(first, inbound) => result,
            result = self.tell(&outbound) => result,
            () = self.mailbox.replaced() => Err(LinkRefused::Duplicate.into()),
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

    /// Tells all there is, then what changes, with a mark every 5 s.
    async fn tell(&self, outbound: &Outbound) -> Result<(), Failure> {
        let mut marks = interval(MARK_INTERVAL);
        marks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut synced = false;
        loop {
            if let Some(batch) = batch::next(&self.node, &self.mailbox) {
                self.send(outbound, Frame::Batch(batch)).await?;
            } else if !synced {
                synced = true;
                let last = wire::BridgeBatch { synced, ..wire::BridgeBatch::default() };
                self.send(outbound, Frame::Batch(last)).await?;
            } else {
                tokio::select! {
                    () = self.mailbox.filled() => {}
                    _ = marks.tick() => self.mark(outbound).await?,
                    () = self.node.drain.begun() => return self.drain(outbound).await,
                }
            }
        }
    }

    async fn mark(&self, outbound: &Outbound) -> Result<(), Failure> {
        let sessions = self.node.sessions.lock().total();
        let sessions = u64::try_from(sessions).unwrap_or(u64::MAX);
        let mark = wire::BridgeMark { time: Some(self.node.now().wall.to_wire()), sessions };
        self.send(outbound, Frame::Mark(mark)).await
    }

    async fn send(&self, outbound: &Outbound, frame: Frame) -> Result<(), Failure> {
        match timeout(MARKS_MISSED, outbound.send(Ok(frame))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::new(Reason::Unreachable, "the link broke")),
            Err(_) => Err(Failure::new(Reason::SessionLost, "the other member does not read")),
        }
    }

    /// Sessions end first; what becomes of their peers is told before the link ends.
    async fn drain(&self, outbound: &Outbound) -> Result<(), Failure> {
        let until = Instant::now() + DRAIN_GRACE;
        while Instant::now() < until {
            while let Some(batch) = batch::next(&self.node, &self.mailbox) {
                self.send(outbound, Frame::Batch(batch)).await?;
            }
            if self.node.sessions.lock().total() == 0 && self.mailbox.is_empty() {
                break;
            }
            tokio::time::sleep(DRAIN_CHECK).await;
        }
        Ok(())
    }

    async fn listen(&self, first: Option<Frame>, mut inbound: Inbound) -> Result<(), Failure> {
        let mut synced = false;
        if let Some(frame) = first {
            self.heard(frame, &mut synced).await?;
        }
        loop {
            match timeout(MARKS_MISSED, inbound.next()).await {
                Err(_) => return Err(Failure::new(Reason::SessionLost, "the other member is silent")),
                Ok(None) => return Ok(()),
                Ok(Some(Err(status))) => return Err(from_stream(&status)),
                Ok(Some(Ok(None))) => {}
                Ok(Some(Ok(Some(frame)))) => self.heard(frame, &mut synced).await?,
            }
        }
    }

    async fn heard(&self, frame: Frame, synced: &mut bool) -> Result<(), Failure> {
        self.node.directory.write().members.heard(&self.peer, self.node.now().mono);
        match frame {
            Frame::Mark(_) if *synced => {
                self.say(|directory, now| directory.presence.mark(&self.peer, now));
            }
            Frame::Mark(_) => {}
            Frame::Batch(batch) => {
                batch::check(&batch)?;
                let last = batch.synced;
                self.apply(batch).await?;
                if last && !*synced {
                    *synced = true;
                    self.say(|directory, now| directory.presence.synced(&self.peer, now));
                    // Whom it did not name again is gone.
                    self.node.hub.watching.home_changed(&self.peer);
                    tracing::debug!(member = %self.peer, "knows all the member knows");
                }
            }
            Frame::Hello(_) | Frame::Authenticate(_) => {
                return Err(Failure::new(Reason::UnexpectedMessage, "the link is open already"));
            }
        }
        Ok(())
    }

    /// Takes the member's word, unless another link took the place of this one.
    fn say(&self, said: impl FnOnce(&mut Directory, std::time::Instant)) {
        let now = self.node.now().mono;
        let mut directory = self.node.directory.write();
        if directory.members.is_current(&self.peer, self.ticket) {
            said(&mut directory, now);
        }
    }

    async fn apply(&self, batch: wire::BridgeBatch) -> Result<(), Failure> {
        let (node, home, link) = (Arc::clone(&self.node), self.peer, self.ticket);
        let applied = if batch.records.len() + batch.presence.len() + batch.members.len() <= SMALL_BATCH {
            batch::apply(&node, home, link, batch)
        } else {
            tokio::task::spawn_blocking(move || batch::apply(&node, home, link, batch))
                .await
                .map_err(|error| Failure::new(Reason::Internal, format!("a batch was not taken: {error}")))?
        };
        if applied.new_members {
            self.node.hub.heard_of_members();
        }
        if let Some(failure) = applied.first {
            let count = u64::try_from(applied.refused).unwrap_or(u64::MAX);
            metrics::counter!("rendezvous_bridged_refused_total").increment(count);
            tracing::debug!(member = %self.peer, count, reason = %failure.reason, problem = failure.message, "passed over what proves nothing");
        }
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let was_current = self.node.directory.write().members.unlink(&self.peer, self.ticket);
        if was_current {
            self.node.hub.leave(&self.peer, self.ticket);
            self.node.hub.members_changed();
            self.node.hub.watching.home_changed(&self.peer);
        }
    }
}
