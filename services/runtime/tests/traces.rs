//! W3C context through a server and out to a collector. Alone in its process, since telemetry is
//! started once for all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use p2psb_runtime::config::{LogConfig, TelemetryConfig};
use p2psb_runtime::serve::{Listener, serve};
use p2psb_runtime::{Api, Running, ServeOptions, telemetry};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tracing::Instrument;

/// Takes every export and answers with an empty message.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl tower::Service<Request<Body>> for Collector {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let taken = Arc::clone(&self.0);
        Box::pin(async move {
            let body =
                axum::body::to_bytes(axum::body::Body::new(request.into_body()), 1 << 20).await.unwrap();
            taken.lock().unwrap().extend_from_slice(&body);
            let mut empty = BytesMut::new();
            empty.put_u8(0);
            empty.put_u32(0);
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let frames = [
                Ok::<_, Infallible>(hyper::body::Frame::data(empty.freeze())),
                Ok(hyper::body::Frame::trailers(trailers)),
            ];
            let body = Frames(frames.into_iter());
            Ok(Response::builder().header("content-type", "application/grpc").body(Body::new(body)).unwrap())
        })
    }
}

struct Frames<I>(I);

impl<I: Iterator<Item = Result<hyper::body::Frame<Bytes>, Infallible>> + Unpin> hyper::body::Body
    for Frames<I>
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.0.next())
    }
}

fn start(api: Api) -> (Running, SocketAddr) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.addr();
    let options = ServeOptions::default();
    (serve(api, listener.plaintext(&options.http2), options).unwrap(), addr)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_spans_the_caller_and_the_server() {
    let collector = Collector::default();
    let (_collecting, addr) = start(Api::new(&[]).add_service(collector.clone()));
    let config = TelemetryConfig {
        otlp_endpoint: Some(format!("http://{addr}")),
        log: LogConfig { filter: "off".into(), ..LogConfig::default() },
        ..TelemetryConfig::default()
    };
    config.check().unwrap();
    let telemetry = telemetry::init("sample", "1.2.3", &config).unwrap();

    let (_serving, addr) = start(Api::new(&[]));
    let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    let mut client = HealthClient::with_interceptor(channel, telemetry::inject_request);
    let caller = tracing::info_span!("caller");
    let mut headers = HeaderMap::new();
    caller.in_scope(|| telemetry::inject(&mut headers));
    client.check(HealthCheckRequest::default()).instrument(caller).await.unwrap();
    telemetry.shutdown().await;

    let parent = headers["traceparent"].to_str().unwrap();
    let mut parts = parent.split('-').skip(1);
    let (trace, span) = (unhex(parts.next().unwrap()), unhex(parts.next().unwrap()));
    let exported = collector.0.lock().unwrap().clone();
    assert!(contains(&exported, b"grpc.health.v1.Health/Check"), "the call has a span");
    assert!(contains(&exported, b"rpc.grpc.status_code"), "its outcome is told");
    let traces = exported.windows(trace.len()).filter(|window| *window == trace).count();
    assert_eq!(traces, 2, "caller and call belong to the same trace");
    let spans = exported.windows(span.len()).filter(|window| *window == span).count();
    assert_eq!(spans, 2, "the caller's span is its own and the call's parent");
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
