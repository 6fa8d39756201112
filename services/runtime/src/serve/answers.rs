//! Bounds what answers hold in memory while their readers do not read.
//!
//! HTTP/2 takes a message before there is room for it at the reader, and then keeps it. Here every byte of an answer is charged to its
//! connection when it is produced, and given back when the connection has sent or dropped it. What a connection has of it beyond
//! [`FREE_BYTES`] is charged to a budget of the whole server, of which each source has a share.
//!
//! Invariants: over half of a budget, an answer goes on only when what it produced before was taken; over the whole of it, it ends with
//! `LIMIT_EXCEEDED`. The first message of an answer is free while it is small, since the number of calls bounds those: an ordinary call
//! costs nothing here, and is served while others are refused.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::task::AtomicWaker;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::{Layer, Service};

use crate::admission::{Admission, LimitReached};

/// The largest first message that is free.
const SMALL_BYTES: usize = 1024;
/// What a connection may have waiting without being charged for it, beside first messages.
const FREE_BYTES: usize = 16 * 1024;
/// After how long a server whose budget is used up may have room again.
const RETRY: Duration = Duration::from_secs(10);

/// What waits for the reader of one connection.
#[derive(Debug)]
pub(super) struct Account {
    budget: Arc<Mutex<Admission>>,
    from: Option<IpAddr>,
    waiting: AtomicUsize,
    /// How often something was taken; it wraps.
    taken: AtomicUsize,
}

impl Account {
    pub(super) const fn new(budget: Arc<Mutex<Admission>>, from: Option<IpAddr>) -> Self {
        Self { budget, from, waiting: AtomicUsize::new(0), taken: AtomicUsize::new(0) }
    }

    /// Whether anything waits.
    pub(super) fn waits(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Changes whenever something was taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether half of a budget is used up.
    pub(super) fn is_pressed(&self) -> bool {
        self.budget.lock().is_half_full(self.from)
    }

    /// Charges, also what goes over a limit: whoever gets the error gives it back at once.
    fn charge(&self, bytes: usize) -> Result<(), LimitReached> {
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let charged = beyond(before.saturating_add(bytes)) - beyond(before);
        if charged == 0 {
            return Ok(());
        }
        let mut budget = self.budget.lock();
        let room = budget.has_room().and_then(|()| budget.has_room_for(self.from));
        budget.count_many(self.from, charged);
        room
    }

    fn give_back(&self, bytes: usize) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        let before = self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        let charged = beyond(before) - beyond(before.saturating_sub(bytes));
        if charged > 0 {
            self.budget.lock().leave_many(self.from, charged);
        }
    }
}

/// What of so many waiting bytes is charged to the budgets.
const fn beyond(waiting: usize) -> usize {
    waiting.saturating_sub(FREE_BYTES)
}

/// What of one answer waits.
#[derive(Debug, Default)]
struct Own {
    waiting: AtomicUsize,
    /// Who produces more of it.
    producer: AtomicWaker,
}

impl Own {
    fn waits(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }
}

/// Bytes that wait. Dropping them gives them back.
struct Waiting {
    data: Bytes,
    account: Arc<Account>,
    own: Arc<Own>,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let bytes = self.data.len();
        self.account.give_back(bytes);
        if self.own.waiting.fetch_sub(bytes, Ordering::AcqRel) == bytes {
            self.own.producer.wake();
        }
    }
}

/// What a handler may know of its connection: in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Arrived<C> {
    /// What the listener knows.
    pub info: C,
    pub(super) account: Arc<Account>,
}

/// Charges the answers of a server; `C` is what its connections tell of themselves.
pub(super) struct AnswerLayer<C>(std::marker::PhantomData<fn() -> C>);

impl<C> AnswerLayer<C> {
    pub(super) const fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<C> Clone for AnswerLayer<C> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<C, S> Layer<S> for AnswerLayer<C> {
    type Service = AnswerService<C, S>;

    fn layer(&self, inner: S) -> Self::Service {
        AnswerService { inner, layer: self.clone() }
    }
}

/// A server whose answers are charged.
pub(super) struct AnswerService<C, S> {
    inner: S,
    layer: AnswerLayer<C>,
}

impl<C, S: Clone> Clone for AnswerService<C, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<C, S, B, ResBody> Service<Request<B>> for AnswerService<C, S>
where
    C: Clone + Send + Sync + 'static,
    S: Service<Request<B>, Response = Response<ResBody>>,
    ResBody: Body<Data = Bytes> + Unpin,
{
    type Response = Response<Answer<ResBody>>;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let account = request.extensions().get::<Arrived<C>>().map(|arrived| Arc::clone(&arrived.account));
        Answering { inner: self.inner.call(request), account }
    }
}

pin_project! {
    /// An answer on its way.
    pub(super) struct Answering<F> {
        #[pin]
        inner: F,
        account: Option<Arc<Account>>,
    }
}

impl<F, ResBody, E> Future for Answering<F>
where
    F: Future<Output = Result<Response<ResBody>, E>>,
{
    type Output = Result<Response<Answer<ResBody>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        let account = this.account.take();
        Poll::Ready(Ok(response.map(|body| Answer { body: Some(body), account, own: None, begun: false })))
    }
}

/// The body of an answer.
pub(super) struct Answer<B> {
    /// `None` once it was refused.
    body: Option<B>,
    account: Option<Arc<Account>>,
    /// Made with the first bytes that are charged.
    own: Option<Arc<Own>>,
    begun: bool,
}

impl<B> Answer<B> {
    /// Whether more has to wait; then the producer is woken once nothing of this answer waits any more.
    fn must_wait(&self, cx: &Context<'_>) -> bool {
        let (Some(own), Some(account)) = (&self.own, &self.account) else { return false };
        if !own.waits() || !account.is_pressed() {
            return false;
        }
        own.producer.register(cx.waker());
        // It may have been taken before the waker was there.
        own.waits()
    }

    fn charged(&mut self, data: Bytes) -> Result<Bytes, LimitReached> {
        let is_first = !std::mem::replace(&mut self.begun, true);
        let Some(account) = &self.account else { return Ok(data) };
        if is_first && data.len() <= SMALL_BYTES {
            return Ok(data);
        }
        let own = Arc::clone(self.own.get_or_insert_default());
        own.waiting.fetch_add(data.len(), Ordering::AcqRel);
        let charged = account.charge(data.len());
        let waiting = Waiting { data, account: Arc::clone(account), own };
        charged.map(|()| Bytes::from_owner(waiting))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.must_wait(cx) {
            return Poll::Pending;
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let frame = match frame.into_data().map(|data| self.charged(data)) {
            Ok(Ok(data)) => Frame::data(data),
            Ok(Err(reached)) => {
                self.body = None;
                Frame::trailers(refusal(&reached))
            }
            Err(frame) => frame,
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// The typed refusal, as trailers of an answer.
fn refusal(reached: &LimitReached) -> HeaderMap {
    metrics::counter!("grpc_server_answers_refused_total", "limit" => reached.limit).increment(1);
    let facts = [("limit".to_owned(), reached.limit.to_owned())];
    let mut details = ErrorDetails::with_error_info("LIMIT_EXCEEDED", "p2psb", facts);
    details.set_retry_info(Some(RETRY));
    let problem = format!("answers wait for readers that do not read, and {reached}");
    let status = Status::with_error_details(Code::ResourceExhausted, problem, details);
    let mut trailers = HeaderMap::new();
    // Fails only on a message that is no header value; percent-encoded ones always are.
    let _ = status.add_header(&mut trailers);
    trailers
}
