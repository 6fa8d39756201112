//! What a member grants an edge. Anybody may be one, so everything that it costs is bounded.
//!
//! Promises: an edge has a place among those from its address for as long as its link lasts, and some seconds more, so that coming
//! and going has a pace, too. Whatever it says costs time in proportion to the work that it makes, beyond a first burst; what it says
//! meanwhile waits in its own buffers. Records that come too soon, or find no room, are not kept: it is asked for them once more when
//! they may be taken. As many questions as it may have under way it may have answers waiting.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::PeerId;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::sleep;

use super::frame::Frame;
use super::hearing;
use crate::core::admission::LimitReached;
use crate::core::again::{Again, Why};
use crate::core::ledger::Bringer;
use crate::core::members::Role;
use crate::core::pace::Pace;
use crate::node::Node;
use crate::records::Teller;

/// Questions of an edge that may be under way, or answered and not read: its members ask owners for it.
const QUESTIONS: usize = 64;
/// So many bytes of records are one thing more: those with many services go to many owners.
const RECORD_STEP: usize = 128;
/// So long a place stays taken after its link.
const COOLING: Duration = Duration::from_secs(5);
/// An edge counts as having so many sessions at most: how long its loss is waited for follows from that.
pub(super) const SESSIONS: u64 = 10_000;

/// What is at the other end of a link.
pub(super) enum OtherEnd {
    /// A member: it is trusted to be asked.
    Member,
    /// An edge, which has a place among those that come from there.
    Edge(EdgePlace),
}

impl OtherEnd {
    pub(super) const fn role(&self) -> Role {
        match self {
            Self::Member => Role::Member,
            Self::Edge(_) => Role::Edge,
        }
    }

    pub(super) const fn teller(&self) -> Teller {
        match self {
            Self::Member => Teller::Member,
            Self::Edge(place) => Teller::Edge(place.from),
        }
    }

    /// Waits until there is time for what was said.
    pub(super) async fn pace(&self, frame: &Frame) -> Result<(), Failure> {
        let Self::Edge(place) = self else { return Ok(()) };
        if let Frame::Batch(batch) = frame
            && (batch.begins && place.began.swap(true, Ordering::Relaxed)
                || batch.synced && place.synced.swap(true, Ordering::Relaxed))
        {
            let text = "an edge tells all of its peers once over each link";
            return Err(Failure::new(Reason::UnexpectedMessage, text));
        }
        place.spend(cost(frame)).await;
        Ok(())
    }
}

/// How many things are said.
fn cost(frame: &Frame) -> usize {
    let Frame::Batch(batch) = frame else { return 1 };
    let records = batch.records.iter().map(|record| record.encoded_len() / RECORD_STEP);
    1 + hearing::size(batch) + records.sum::<usize>()
}

/// A place among the edges, given back some time after it was dropped.
pub(super) struct EdgePlace {
    node: Arc<Node>,
    from: Option<IpAddr>,
    /// Its questions that may be under way.
    pub(super) questions: Arc<Semaphore>,
    pace: Mutex<Pace>,
    began: AtomicBool,
    synced: AtomicBool,
    /// Whom it is to be asked for once more.
    again: Mutex<Again>,
    was_put_off: Notify,
}

impl EdgePlace {
    /// Takes one.
    pub(super) fn take(node: &Arc<Node>, from: Option<IpAddr>) -> Result<Self, LimitReached> {
        node.edges.lock().enter(from)?;
        Ok(Self {
            node: Arc::clone(node),
            from,
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            pace: Mutex::default(),
            began: AtomicBool::new(false),
            synced: AtomicBool::new(false),
            again: Mutex::default(),
            was_put_off: Notify::new(),
        })
    }

    /// Records of these peers were not taken that the edge brought, and may be later.
    pub(super) fn put_off(&self, edge: &PeerId, peers: Vec<(PeerId, Why)>) {
        if peers.is_empty() {
            return;
        }
        let now = self.node.now().mono;
        self.report(edge, &peers, now);
        let mut again = self.again.lock();
        peers.into_iter().for_each(|(peer, why)| again.put_off(peer, why, now));
        self.was_put_off.notify_one();
    }

    /// Who runs this server may give edges more room, or knows why not.
    fn report(&self, edge: &PeerId, peers: &[(PeerId, Why)], now: Instant) {
        let limits = peers.iter().filter_map(|(_, why)| match why {
            Why::NoRoom(limit) => Some(limit),
            Why::TooSoon(_) => None,
        });
        let (mut records, mut last) = (0, None);
        for limit in limits {
            metrics::counter!("rendezvous_edge_records_without_room_total", "limit" => limit.limit)
                .increment(1);
            (records, last) = (records + 1, Some(limit));
        }
        if let Some(LimitReached { limit, most }) = last
            && let Some(records) = self.node.hub.had_no_room(records, now)
        {
            tracing::warn!(%edge, limit, most, records, "no room for records that edges bring; they are asked for them again when there is");
        }
    }

    /// Whom it is to be asked for once more, when it is time.
    pub(super) async fn put_off_until_now(&self) -> Vec<PeerId> {
        loop {
            let next = self.again.lock().next();
            let wait = next.map(|next| next.saturating_duration_since(self.node.now().mono));
            tokio::select! {
                () = self.was_put_off.notified() => continue,
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
            let has_room = self.node.directory.read().table.has_room(Bringer::Peer(self.from));
            let peers = self.again.lock().take(has_room, self.node.now().mono);
            if !peers.is_empty() {
                return peers;
            }
        }
    }

    async fn spend(&self, things: usize) {
        let wait = self.pace.lock().spend(things, Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

impl Drop for EdgePlace {
    fn drop(&mut self) {
        let (node, from) = (Arc::clone(&self.node), self.from);
        match Handle::try_current() {
            Ok(handle) => drop(handle.spawn(async move {
                sleep(COOLING).await;
                node.edges.lock().leave(from);
            })),
            Err(_) => node.edges.lock().leave(from),
        }
    }
}
