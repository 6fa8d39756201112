//! One link: a task that owns both directions of an `Exchange` stream.
//!
//! Invariant: the task never waits for one direction while it could serve another. What it can't hand on at once waits in queues
//! with a bound, and nothing is read from the stream while news for the local user waits; so neither two full pipes nor a slow user
//! can lock a link up, and neither end can make the other hold more than the bounds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::hello::{Hello, HelloError};
use p2psb_proto::model::{Digest, NetworkId, PeerId, UnixMillis, limits};
use p2psb_proto::wire::peer::v1 as wire;
use p2psb_runtime::Clock;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::frame::{Message, frame, parts};
use super::serve::{self, ChunkSource, Gone, Outbound, Task};
use crate::core::incoming::{IdOrder, Incoming};
use crate::core::outgoing::{Arrived, Ended, Outgoing, Violation, Want};
use crate::failure::from_status;

/// Frames on their way out of a link: what the serving side reads ahead.
pub const OUT_FRAMES: usize = 4;
/// Small frames (requests, cancels) that wait for room.
const MAX_QUEUED: usize = 128;
/// News for the local user.
const EVENTS: usize = 16;
/// A link on which nothing was asked for this long is closed.
const IDLE: Duration = Duration::from_secs(120);

/// What an end of a link says of itself, and what it serves.
#[derive(Clone)]
pub struct Ends {
    /// The community.
    pub network: NetworkId,
    /// Own id.
    pub own: PeerId,
    /// Program and version.
    pub software: &'static str,
    /// What is served over the link.
    pub source: Arc<dyn ChunkSource>,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ends").field("own", &self.own).field("network", &self.network).finish_non_exhaustive()
    }
}

impl Ends {
    fn hello(&self) -> Message {
        Message::Hello(Hello::own(
            self.network,
            self.own,
            self.software,
            UnixMillis(self.clock.unix_millis()),
        ))
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end's hello does not fit.
    #[error("{0}")]
    Hello(#[from] HelloError),
    /// The other end calls itself somebody else.
    #[error("the other end proved to be {proven} and says it is {said}")]
    Impostor {
        /// By its certificate.
        proven: PeerId,
        /// By its hello.
        said: PeerId,
    },
    /// No hello in time.
    #[error("the other end said no hello within {} s", limits::HANDSHAKE.as_secs())]
    Silent,
    /// It answered wrongly.
    #[error("the other end broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// It asked wrongly.
    #[error("the other end broke the protocol: {0}")]
    IdOrder(#[from] IdOrder),
    /// A second hello, or anything before the first.
    #[error("the other end broke the protocol: {0}")]
    Unexpected(&'static str),
    /// The stream failed.
    #[error("the link failed: {}", .0.message)]
    Failed(Failure),
    /// The stream ended.
    #[error("the other end closed the link")]
    Closed,
    /// It reads nothing.
    #[error("the other end takes no data")]
    Stalled,
}

impl LinkError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Hello(error) => error.reason(),
            Self::Impostor { .. } => Reason::IdentityMismatch,
            Self::Silent => Reason::HandshakeTimeout,
            Self::Violation(_) | Self::IdOrder(_) | Self::Unexpected(_) => Reason::UnexpectedMessage,
            Self::Failed(failure) => failure.reason,
            Self::Closed | Self::Stalled => Reason::Unreachable,
        }
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Hello(error) => error.into(),
            LinkError::Failed(failure) => failure,
            other => Self::new(other.reason(), other.to_string()),
        }
    }
}

/// News of a link for who asks over it.
#[derive(Debug)]
pub enum Event {
    /// Chunks came, still to be verified.
    Chunks(Vec<Arrived>),
    /// A request ended.
    Ended(Ended),
}

/// The asking end of a link. Dropping it closes the link.
#[derive(Debug)]
pub struct Link {
    asks: mpsc::Sender<(Digest, Vec<Want>)>,
    events: mpsc::Receiver<Event>,
    task: AbortOnDropHandle<LinkError>,
    peer: PeerId,
}

impl Link {
    /// Who is at the other end.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// Asks for chunks. At most `limits::OPEN_REQUESTS` may be open; the caller counts.
    pub async fn ask(&mut self, manifest: Digest, wants: Vec<Want>) -> Result<(), LinkError> {
        match self.asks.send((manifest, wants)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.why().await),
        }
    }

    /// The next news.
    pub async fn next(&mut self) -> Result<Event, LinkError> {
        match self.events.recv().await {
            Some(event) => Ok(event),
            None => Err(self.why().await),
        }
    }

    async fn why(&mut self) -> LinkError {
        (&mut self.task).await.unwrap_or(LinkError::Closed)
    }
}

/// Starts the dialing end: the hello is on its way, the stream is open.
pub(super) async fn dialed(
    ends: &Ends,
    peer: PeerId,
    out: Outbound,
    mut inbound: impl Stream<Item = Result<wire::ExchangeFrame, Status>> + Send + Unpin + 'static,
) -> Result<Link, LinkError> {
    meet(ends, peer, &mut inbound).await?;
    let (asks, asked) = mpsc::channel(1);
    let (tell, events) = mpsc::channel(EVENTS);
    let task = tokio::spawn(Driver::new(ends, out, Some(Local { asked, tell })).run(inbound));
    Ok(Link { asks, events, task: AbortOnDropHandle::new(task), peer })
}

/// Runs the dialed end until it ends; it only serves.
pub(super) async fn accepted(
    ends: &Ends,
    peer: PeerId,
    out: Outbound,
    mut inbound: impl Stream<Item = Result<wire::ExchangeFrame, Status>> + Send + Unpin + 'static,
) -> LinkError {
    if let Err(error) = greet(ends, &out).await {
        return error;
    }
    match meet(ends, peer, &mut inbound).await {
        Ok(()) => Driver::new(ends, out, None).run(inbound).await,
        Err(error) => error,
    }
}

/// Says hello.
pub(super) async fn greet(ends: &Ends, out: &Outbound) -> Result<(), LinkError> {
    out.send(Ok(frame(ends.hello()))).await.map_err(|_| LinkError::Closed)
}

/// Waits for the other end's hello, and checks it.
async fn meet(
    ends: &Ends,
    peer: PeerId,
    inbound: &mut (impl Stream<Item = Result<wire::ExchangeFrame, Status>> + Unpin),
) -> Result<(), LinkError> {
    let first =
        tokio::time::timeout(limits::HANDSHAKE, inbound.next()).await.map_err(|_| LinkError::Silent)?;
    let first = first.ok_or(LinkError::Closed)?.map_err(|status| LinkError::Failed(from_status(&status)))?;
    let Some(Message::Hello(hello)) = first.message else { return Err(HelloError::Missing.into()) };
    let hello = Hello::accept(Some(hello), &ends.network, UnixMillis(ends.clock.unix_millis()))?;
    if hello.peer != peer {
        return Err(LinkError::Impostor { proven: peer, said: hello.peer });
    }
    tracing::debug!(%peer, software = hello.software, "link open");
    Ok(())
}

/// Who asks on this end.
struct Local {
    asked: mpsc::Receiver<(Digest, Vec<Want>)>,
    tell: mpsc::Sender<Event>,
}

struct Driver {
    outgoing: Outgoing,
    incoming: Arc<Mutex<Incoming>>,
    tasks: mpsc::Sender<Task>,
    worker: JoinHandle<Result<(), Gone>>,
    out: Outbound,
    queue: VecDeque<Message>,
    news: VecDeque<Event>,
    local: Option<Local>,
}

/// What happened on a link.
enum Happened {
    /// A frame went out, or there is room again.
    Sent,
    Told,
    Came(Option<Result<wire::ExchangeFrame, Status>>),
    Asked(Option<(Digest, Vec<Want>)>),
    WorkerGone,
    Idle,
}

impl Driver {
    fn new(ends: &Ends, out: Outbound, local: Option<Local>) -> Self {
        let incoming = Arc::new(Mutex::new(Incoming::default()));
        // One more than can be open, for refusals; a flood of those waits in the stream.
        let (tasks, queue) = mpsc::channel(limits::OPEN_REQUESTS + 1);
        let worker =
            tokio::spawn(serve::run(queue, out.clone(), Arc::clone(&incoming), Arc::clone(&ends.source)));
        let (outgoing, queue, news) = (Outgoing::default(), VecDeque::new(), VecDeque::new());
        Self { outgoing, incoming, tasks, worker, out, queue, news, local }
    }

    async fn run(
        mut self,
        mut inbound: impl Stream<Item = Result<wire::ExchangeFrame, Status>> + Unpin,
    ) -> LinkError {
        let mut idle_at = Instant::now() + IDLE;
        loop {
            let happened = self.happen(&mut inbound, idle_at).await;
            if !matches!(happened, Happened::Idle) {
                idle_at = Instant::now() + IDLE;
            }
            let went = match happened {
                Happened::Sent | Happened::Told => Ok(()),
                Happened::Came(Some(Ok(frame))) => self.on_frame(frame),
                Happened::Came(Some(Err(status))) => Err(LinkError::Failed(from_status(&status))),
                Happened::Came(None) | Happened::Asked(None) => Err(LinkError::Closed),
                Happened::Asked(Some((manifest, wants))) => {
                    self.on_ask(&manifest, wants);
                    Ok(())
                }
                Happened::WorkerGone => Err(LinkError::Stalled),
                Happened::Idle if self.is_idle() => Err(LinkError::Closed),
                Happened::Idle => {
                    idle_at = Instant::now() + IDLE;
                    Ok(())
                }
            };
            if let Err(error) = went {
                return error;
            }
        }
    }

    async fn happen(
        &mut self,
        inbound: &mut (impl Stream<Item = Result<wire::ExchangeFrame, Status>> + Unpin),
        idle_at: Instant,
    ) -> Happened {
        // Refusals wait for the worker as well, so reading stops while its queue is full.
        let may_read = self.news.is_empty() && self.queue.len() < MAX_QUEUED && self.tasks.capacity() > 0;
        let (has_queued, has_news) = (!self.queue.is_empty(), !self.news.is_empty());
        let may_ask = self.queue.len() < MAX_QUEUED;
        let (tell, asked) = match &mut self.local {
            Some(local) => (Some(&local.tell), Some(&mut local.asked)),
            None => (None, None),
        };
        tokio::select! {
            permit = self.out.reserve(), if has_queued => {
                if let (Ok(permit), Some(message)) = (permit, self.queue.pop_front()) {
                    permit.send(Ok(frame(message)));
                    return Happened::Sent;
                }
                Happened::Came(None)
            }
            permit = reserve(tell), if has_news => {
                if let (Some(permit), Some(event)) = (permit, self.news.pop_front()) {
                    permit.send(event);
                    return Happened::Told;
                }
                Happened::Asked(None)
            }
            asked = receive(asked), if may_ask => Happened::Asked(asked),
            came = inbound.next(), if may_read => Happened::Came(came),
            _ = &mut self.worker => Happened::WorkerGone,
            _ = self.tasks.reserve(), if self.tasks.capacity() == 0 => Happened::Sent,
            () = tokio::time::sleep_until(idle_at) => Happened::Idle,
        }
    }

    fn is_idle(&self) -> bool {
        self.outgoing.is_empty() && self.incoming.lock().is_empty()
    }

    fn on_ask(&mut self, manifest: &Digest, wants: Vec<Want>) {
        match self.outgoing.open(wants.clone()) {
            Ok(request_id) => self.queue.push_back(Message::Request(wire::ChunkRequest {
                request_id,
                manifest_digest: manifest.to_wire(),
                digests: wants.iter().map(|want| want.digest.to_wire()).collect(),
            })),
            // The caller lost count; it is told that nothing came.
            Err(_) => self.news.push_back(Event::Ended(Ended { id: 0, missing: wants, refusal: None })),
        }
    }

    fn on_frame(&mut self, frame: wire::ExchangeFrame) -> Result<(), LinkError> {
        match frame.message {
            Some(Message::Hello(_)) => return Err(LinkError::Unexpected("a second hello")),
            Some(Message::Request(request)) => {
                let wire::ChunkRequest { request_id, manifest_digest, digests } = request;
                let task = match self.incoming.lock().accept(request_id, &manifest_digest, &digests)? {
                    Ok(asked) => Task::Serve(asked),
                    Err(refused) => Task::Refuse(refused),
                };
                // There was room when the frame was read, and only this task puts work in.
                self.tasks.try_send(task).map_err(|_| LinkError::Stalled)?;
            }
            Some(Message::Chunks(batch)) => {
                let arrived = self.outgoing.on_chunks(batch.request_id, parts(batch))?;
                if !arrived.is_empty() {
                    self.news.push_back(Event::Chunks(arrived));
                }
            }
            Some(Message::Done(done)) => {
                let ended = self.outgoing.on_done(done.request_id, done.reason, done.detail)?;
                self.news.extend(ended.map(Event::Ended));
            }
            Some(Message::Cancel(cancel)) => self.incoming.lock().cancel(cancel.request_id),
            // A newer version says what this one does not know.
            None => {}
        }
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

async fn reserve(tell: Option<&mpsc::Sender<Event>>) -> Option<mpsc::Permit<'_, Event>> {
    match tell {
        Some(tell) => tell.reserve().await.ok(),
        None => std::future::pending().await,
    }
}

async fn receive(asked: Option<&mut mpsc::Receiver<(Digest, Vec<Want>)>>) -> Option<(Digest, Vec<Want>)> {
    match asked {
        Some(asked) => asked.recv().await,
        None => std::future::pending().await,
    }
}
