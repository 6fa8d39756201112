//! Readers that do not read: what waits for them is bounded, and everybody else is served.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as _, Frame};
use p2psb_runtime::serve::{Http2Config, Listener, serve};
use p2psb_runtime::{Api, Running, ServeOptions};
use tokio::net::{TcpListener, TcpStream};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::ServiceExt as _;

/// Long enough for anything that should happen; nothing waits this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);
/// One message of an answer.
const MESSAGE: usize = 64 << 10;
/// All that may wait.
const BUDGET: usize = 1 << 20;
/// The largest window that HTTP/2 knows.
const ANY_WINDOW: u32 = (1 << 31) - 1;

/// Answers every call with messages without end, for as long as they are taken from it.
#[derive(Clone, Default)]
struct Endless {
    produced: Arc<AtomicUsize>,
}

impl NamedService for Endless {
    const NAME: &'static str = "sample.Endless";
}

impl tower::Service<Request<Body>> for Endless {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let response = Response::builder().header("content-type", "application/grpc");
        std::future::ready(Ok(response.body(Body::new(self.clone())).unwrap()))
    }
}

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.produced.fetch_add(MESSAGE, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(vec![0; MESSAGE].into()))))
    }
}

/// Everything from loopback counts.
fn strict() -> Http2Config {
    Http2Config {
        shared_sources: Vec::new(),
        waiting_bytes: BUDGET,
        waiting_bytes_per_ip: BUDGET / 2,
        waiting_bytes_per_prefix: BUDGET,
        write_timeout: LONG,
        ..Http2Config::default()
    }
}

struct Sample {
    running: Running,
    addr: SocketAddr,
    produced: Arc<AtomicUsize>,
}

fn start(http2: Http2Config) -> Sample {
    http2.check("http2").unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (addr, endless) = (listener.addr(), Endless::default());
    let produced = Arc::clone(&endless.produced);
    let incoming = listener.plaintext(&http2);
    let api = Api::new(&[]).add_service(endless);
    let running = serve(api, incoming, ServeOptions { http2, ..ServeOptions::default() }).unwrap();
    Sample { running, addr, produced }
}

impl Sample {
    fn produced(&self) -> usize {
        self.produced.load(Ordering::Relaxed)
    }

    async fn until_empty(&self) {
        let empty = async {
            while self.running.connections() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, empty).await.unwrap();
    }
}

/// A client that leaves so much room for an answer.
async fn client(ip: &str, to: SocketAddr, window: u32) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{to}")).unwrap();
    let endpoint = endpoint.local_address(Some(ip.parse().unwrap())).initial_stream_window_size(window);
    endpoint.initial_connection_window_size(ANY_WINDOW).connect().await.unwrap()
}

/// Begins a call whose answer never ends. What is not read of it waits at the server.
async fn begin(client: &Channel) -> Response<Body> {
    let request = Request::builder().method("POST").uri("http://sample/sample.Endless/Answer");
    let request = request.header("content-type", "application/grpc").body(Body::empty()).unwrap();
    let call = client.clone().oneshot(request);
    tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap()
}

/// Reads on: what came, or the trailers.
async fn next(body: &mut Body) -> Option<Frame<Bytes>> {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
    tokio::time::timeout(PATIENCE, frame).await.unwrap().transpose().ok().flatten()
}

/// Reads until the end, which is to be a refusal, and returns its trailers.
async fn refusal(body: &mut Body) -> Option<HeaderMap> {
    while let Some(frame) = next(body).await {
        if let Ok(trailers) = frame.into_trailers() {
            return Some(trailers);
        }
    }
    None
}

async fn is_served(ip: &str, to: SocketAddr) -> bool {
    let mut client = HealthClient::new(client(ip, to, ANY_WINDOW).await);
    let checked = client.check(HealthCheckRequest { service: String::new() });
    tokio::time::timeout(PATIENCE, checked).await.unwrap().is_ok()
}

/// Calls until one is refused; those before wait for ever.
async fn fill(client: &Channel) -> (Vec<Response<Body>>, HeaderMap) {
    let mut waiting = Vec::new();
    loop {
        let mut response = begin(client).await;
        // Of an answer that waits comes what fits into the window; of one that is refused the trailers.
        let Some(frame) = next(response.body_mut()).await else { panic!("the answer broke") };
        match frame.into_trailers() {
            Ok(trailers) => return (waiting, trailers),
            Err(_) => waiting.push(response),
        }
    }
}

#[tokio::test]
async fn what_waits_for_slow_readers_is_bounded_by_source_and_a_refusal_says_so() {
    let sample = start(strict());
    let slow = client("127.0.0.1", sample.addr, 1).await;
    let (waiting, refused) = fill(&slow).await;
    assert_eq!(refused["grpc-status"], "8", "{refused:?}");
    assert!(refused["grpc-message"].to_str().unwrap().contains("http2.waiting_bytes_per_ip"), "{refused:?}");
    assert!(refused.contains_key("grpc-status-details-bin"));
    // The share, what is free, and what the last of them went over it.
    assert!(sample.produced() <= BUDGET / 2 + 3 * MESSAGE, "{} bytes", sample.produced());
    assert!(waiting.len() >= 4, "{} wait", waiting.len());

    // Small answers go on there, and large ones for everybody else.
    assert!(is_served("127.0.0.1", sample.addr).await);
    let other = client("127.0.0.2", sample.addr, 1 << 20).await;
    let mut answer = begin(&other).await;
    for _ in 0..100 {
        assert!(next(answer.body_mut()).await.unwrap().is_data());
    }
    drop((answer, other));

    // Who gives up gives back.
    drop((waiting, slow));
    sample.until_empty().await;
    let again = client("127.0.0.1", sample.addr, 1 << 20).await;
    let mut answer = begin(&again).await;
    assert!(next(answer.body_mut()).await.unwrap().is_data());
}

#[tokio::test]
async fn an_answer_whose_reader_reads_on_goes_on_also_under_pressure() {
    let sample = start(strict());
    let slow = client("127.0.0.1", sample.addr, 1).await;
    let mut waiting = Vec::new();
    // More than half of the share of one address waits.
    while sample.produced() < BUDGET / 3 {
        waiting.push(begin(&slow).await);
    }
    let other = client("127.0.0.1", sample.addr, MESSAGE as u32 / 4).await;
    let mut answer = begin(&other).await;
    let mut read = 0;
    while read < 100 * MESSAGE {
        read += next(answer.body_mut()).await.unwrap().into_data().unwrap().len();
    }
    assert!(
        sample.produced() - read <= BUDGET,
        "{} bytes beside those that were read",
        sample.produced() - read
    );
}

#[tokio::test]
async fn readers_that_take_nothing_are_cut_when_their_memory_is_needed() {
    let short = Duration::from_millis(100);
    let sample = start(Http2Config { write_timeout: short, keep_alive_interval: short, ..strict() });
    let slow = client("127.0.0.1", sample.addr, 1).await;
    let (mut waiting, _) = fill(&slow).await;
    sample.until_empty().await;
    assert!(refusal(waiting[0].body_mut()).await.is_none(), "it was cut, not ended");
}

#[tokio::test]
async fn a_connection_whose_socket_takes_nothing_is_cut() {
    let sample = start(Http2Config { write_timeout: Duration::from_millis(200), ..Http2Config::default() });
    // Between them somebody passes on what the client says, and takes nothing of what the server says.
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = between.local_addr().unwrap();
    let server = sample.addr;
    let passing = tokio::spawn(async move {
        let (mut near, _) = between.accept().await.unwrap();
        let mut far = TcpStream::connect(server).await.unwrap();
        let (mut said, _near) = near.split();
        let (_far, mut passed) = far.split();
        tokio::io::copy(&mut said, &mut passed).await
    });
    let client = client("127.0.0.1", addr, ANY_WINDOW).await;
    let calling = tokio::spawn(async move { begin(&client).await });
    let begun = async {
        while sample.produced() == 0 {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(PATIENCE, begun).await.unwrap();
    sample.until_empty().await;
    calling.abort();
    passing.abort();
}
