//! Serves the calls of one connection.
//!
//! tonic gives every call boxes, layers and a task of its own. Most calls of small messages are answered when they are begun: here
//! the task of the connection sends such an answer itself, and only a call that has to wait gets a task. Promises: a caller can't
//! tell the difference; the end of a call's `grpc-timeout` ends it with CANCELLED.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::{BoxError, Service};

use super::api::Answering;
use super::http2::Http2Config;

/// What answers the calls of a server.
pub(super) trait Answerer<B>:
    Service<
        Request<Body>,
        Response = Response<B>,
        Error = Infallible,
        Future: Answering + Send + Unpin + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<S, B> Answerer<B> for S where
    S: Service<
            Request<Body>,
            Response = Response<B>,
            Error = Infallible,
            Future: Answering + Send + Unpin + 'static,
        > + Clone
        + Send
        + 'static
{
}

/// Serves a connection to its end. Once `stop` is cancelled its client is asked to leave.
pub(super) async fn serve<IO, S, B>(io: IO, service: S, settings: &Http2Config, stop: CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    S: Answerer<B>,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let at_once = AtOnce::default();
    let calls = Calls { service, info: io.connect_info(), at_once: at_once.clone() };
    let mut connection = pin!(settings.builder(at_once).serve_connection(TokioIo::new(io), calls));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection failed");
    }
}

impl Http2Config {
    fn builder<E>(&self, executor: E) -> http2::Builder<E>
    where
        E: Clone,
    {
        let mut builder = http2::Builder::new(executor);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.max_concurrent_streams)
            .max_header_list_size(self.max_header_list_bytes)
            .max_frame_size(self.max_frame_bytes)
            .initial_stream_window_size(self.stream_window_bytes)
            .initial_connection_window_size(self.connection_window_bytes)
            .keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout);
        builder
    }
}

/// Where calls are run: at once, if it was said of the last one that was begun that it is answered; else in a task. A connection
/// begins its calls one after the other, and gives each to its executor before the next.
#[derive(Clone, Default)]
struct AtOnce(Arc<AtomicBool>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for AtOnce {
    fn execute(&self, call: F) {
        if !self.0.swap(false, Ordering::Relaxed) {
            tokio::spawn(call);
            return;
        }
        let mut call = Box::pin(call);
        // A reader that has no room for the answer makes it wait.
        if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            tokio::spawn(call);
        }
    }
}

/// The calls of a connection.
struct Calls<S, C> {
    service: S,
    info: C,
    at_once: AtOnce,
}

impl<S, C, B> hyper::service::Service<Request<Incoming>> for Calls<S, C>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Answering + Unpin> + Clone,
    C: Clone + Send + Sync + 'static,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<Outgoing<B>>;
    type Error = Infallible;
    type Future = Call<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.info.clone());
        let timeout = grpc_timeout(request.headers());
        let answering = self.service.clone().call(request);
        let is_answered = answering.is_answered();
        self.at_once.0.store(is_answered, Ordering::Relaxed);
        let limit = timeout.filter(|_| !is_answered).map(|timeout| Box::pin(tokio::time::sleep(timeout)));
        Call { answering, limit }
    }
}

/// A call until its answer begins.
struct Call<F> {
    answering: F,
    limit: Option<Pin<Box<Sleep>>>,
}

impl<F, B> Future for Call<F>
where
    F: Future<Output = Result<Response<B>, Infallible>> + Unpin,
{
    type Output = Result<Response<Outgoing<B>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(answered) = Pin::new(&mut self.answering).poll(cx) {
            return Poll::Ready(answered.map(|answer| answer.map(Outgoing::Answer)));
        }
        match &mut self.limit {
            Some(limit) => ready!(limit.as_mut().poll(cx)),
            None => return Poll::Pending,
        }
        Poll::Ready(Ok(Status::cancelled("Timeout expired").into_http::<()>().map(|()| Outgoing::Nothing)))
    }
}

/// The body of an answer.
enum Outgoing<B> {
    Answer(B),
    Nothing,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Outgoing<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut *self {
            Self::Answer(body) => Pin::new(body).poll_frame(cx),
            Self::Nothing => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Answer(body) => body.is_end_stream(),
            Self::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Answer(body) => body.size_hint(),
            Self::Nothing => SizeHint::with_exact(0),
        }
    }
}

/// After how long the caller does not wait any more: at most eight digits and a unit. What is no time is none.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, count) = headers.get("grpc-timeout")?.as_bytes().split_last()?;
    if count.len() > 8 || !count.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(count).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 60 * 60),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use super::*;

    #[tokio::test]
    async fn a_call_that_has_to_wait_ends_when_its_time_is_over() {
        let limit = Some(Box::pin(tokio::time::sleep_until(tokio::time::Instant::now())));
        let answering = Box::pin(pending::<Result<Response<Body>, Infallible>>());
        let answer = Call { answering, limit }.await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "1");
        assert!(answer.body().is_end_stream());
    }

    #[test]
    fn what_is_answered_runs_at_once_and_no_other_call_with_it() {
        let (executor, has_run) = (AtOnce::default(), Arc::new(AtomicBool::new(false)));
        executor.0.store(true, Ordering::Relaxed);
        let ran = Arc::clone(&has_run);
        // Without a runtime nothing could be spawned.
        executor.execute(async move { ran.store(true, Ordering::Relaxed) });
        assert!(has_run.load(Ordering::Relaxed) && !executor.0.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn what_finds_no_room_for_its_answer_goes_on_in_a_task() {
        let (executor, mut polls) = (AtOnce::default(), 0);
        let (done, is_done) = tokio::sync::oneshot::channel();
        let mut done = Some(done);
        executor.0.store(true, Ordering::Relaxed);
        executor.execute(poll_fn(move |cx| {
            polls += 1;
            if polls == 3 {
                done.take().unwrap().send(()).unwrap();
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        is_done.await.unwrap();
    }

    #[test]
    fn a_timeout_is_at_most_eight_digits_and_a_unit() {
        let timeout = |text: &'static str| {
            let value = http::HeaderValue::from_static(text);
            grpc_timeout(&HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), value)]))
        };
        for (text, seconds) in
            [("2H", 7200.0), ("3M", 180.0), ("4S", 4.0), ("5m", 0.005), ("6u", 6e-6), ("7n", 7e-9)]
        {
            assert_eq!(timeout(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "5", "+5S", "-5S", "5s", "123456789S", "5.5S"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
