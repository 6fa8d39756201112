//! What is seen of each call: a span (only while traces are exported), a counter by outcome, a
//! histogram of durations, a gauge of calls in flight.
//!
//! Invariant: every call is counted exactly once, when its last byte was handed over or it was
//! dropped. Metrics exist only for methods that are served, so callers can't make up series; their
//! handles are looked up when a service starts and not in a call.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body, Frame, SizeHint};
use metrics::{Counter, Gauge, Histogram};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{context, is_tracing};

/// The name under which calls of methods that are not served are counted.
const OTHER: &str = "other";

/// gRPC has 17 codes, 0 to 16.
const CODES: usize = 17;

/// A method's handles.
#[derive(Debug)]
struct Method {
    service: String,
    method: String,
    handled: [OnceLock<Counter>; CODES],
    seconds: Histogram,
    in_flight: Gauge,
}

impl Method {
    fn new(service: &str, method: &str) -> Self {
        let (service, method) = (service.to_owned(), method.to_owned());
        let labels = [("service", service.clone()), ("method", method.clone())];
        let seconds = metrics::histogram!("grpc_server_handling_seconds", &labels);
        let in_flight = metrics::gauge!("grpc_server_in_flight", &labels);
        Self { service, method, handled: Default::default(), seconds, in_flight }
    }

    fn count(&self, code: Code) {
        let Some(slot) = self.handled.get(code as usize) else { return };
        let counter = slot.get_or_init(|| {
            metrics::counter!("grpc_server_handled_total",
                "service" => self.service.clone(), "method" => self.method.clone(), "code" => code_name(code))
        });
        counter.increment(1);
    }
}

/// Observes the calls of a server.
#[derive(Debug, Clone)]
pub struct RpcLayer {
    methods: Arc<HashMap<String, Arc<Method>>>,
    other: Arc<Method>,
}

impl RpcLayer {
    /// For the methods given as (full service name, method name). Install the metrics recorder first.
    pub fn new<'a>(methods: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let methods = methods
            .into_iter()
            .map(|(service, method)| (format!("/{service}/{method}"), Arc::new(Method::new(service, method))))
            .collect();
        Self { methods: Arc::new(methods), other: Arc::new(Method::new(OTHER, OTHER)) }
    }

    fn begin(&self, path: &str, headers: &HeaderMap) -> Call {
        let method = Arc::clone(self.methods.get(path).unwrap_or(&self.other));
        method.in_flight.increment(1.0);
        let span = if is_tracing() { call_span(&method, headers) } else { Span::none() };
        Call { method, span, start: Instant::now(), done: false }
    }
}

fn call_span(method: &Method, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        "rpc",
        otel.name = format!("{}/{}", method.service, method.method),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        rpc.system = "grpc",
        rpc.service = method.service,
        rpc.method = method.method,
        rpc.grpc.status_code = tracing::field::Empty,
    );
    // Fails only if the span is filtered out, and then there is nothing to be a child.
    let _ = span.set_parent(context::extract(headers));
    span
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService { inner, layer: self.clone() }
    }
}

/// A server whose calls are observed.
#[derive(Debug, Clone)]
pub struct RpcService<S> {
    inner: S,
    layer: RpcLayer,
}

impl<S, B, ResBody> Service<Request<B>> for RpcService<S>
where
    S: Service<Request<B>, Response = Response<ResBody>, Future: Unpin>,
{
    type Response = Response<Outcome<ResBody>>;
    type Error = S::Error;
    type Future = RpcFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = self.layer.begin(request.uri().path(), request.headers());
        let inner = call.within(|| self.inner.call(request));
        RpcFuture { inner, call: Some(call) }
    }
}

/// A call until its answer begins.
#[derive(Debug)]
pub struct RpcFuture<F> {
    inner: F,
    /// `None` once it was answered.
    call: Option<Call>,
}

impl<F, ResBody, E> Future for RpcFuture<F>
where
    F: Future<Output = Result<Response<ResBody>, E>> + Unpin,
{
    type Output = Result<Response<Outcome<ResBody>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(call) = &this.call else { return Poll::Pending };
        let inner = Pin::new(&mut this.inner);
        let Poll::Ready(answered) = call.within(|| inner.poll(cx)) else { return Poll::Pending };
        let Some(mut call) = this.call.take() else { return Poll::Pending };
        Poll::Ready(answered.map(|response| {
            // An answer without messages says its outcome in the headers.
            if let Some(code) = code_in(response.headers()) {
                call.end(code);
            }
            response.map(|body| Outcome { body, call })
        }))
    }
}

/// One call; counted when it ends, or as cancelled when it is dropped before.
#[derive(Debug)]
struct Call {
    method: Arc<Method>,
    span: Span,
    start: Instant,
    done: bool,
}

impl Call {
    /// Does something in the span of the call, if there is one.
    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.span.is_none() { work() } else { self.span.in_scope(work) }
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.method.in_flight.decrement(1.0);
        self.method.count(code);
        self.method.seconds.record(self.start.elapsed().as_secs_f64());
        if !self.span.is_none() {
            self.span.record("rpc.grpc.status_code", code as i32);
            if is_server_fault(code) {
                self.span.record("otel.status_code", "ERROR");
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// A response body that watches for the outcome in its trailers.
#[derive(Debug)]
pub struct Outcome<B> {
    body: B,
    call: Call,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Outcome<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let body = Pin::new(&mut this.body);
        let polled = this.call.within(|| body.poll_frame(cx));
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.call.end(code_in(trailers).unwrap_or(Code::Unknown));
                }
            }
            Poll::Ready(Some(Err(_))) => this.call.end(Code::Internal),
            Poll::Ready(None) => this.call.end(Code::Unknown),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// Whether a code says that the server, not the caller, is at fault (OpenTelemetry's list).
fn is_server_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
