//! A server over a real ephemeral port: health, reflection, limits, the operators' endpoint, drain.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use p2psb_runtime::metrics::{self, Admin};
use p2psb_runtime::serve::{Drained, Http2Config, Listener, serve};
use p2psb_runtime::{Api, Running, ServeOptions, Status, probe};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// Long enough for anything that should happen; nothing waits this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

fn start(options: ServeOptions) -> (Running, SocketAddr) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.addr();
    let incoming = listener.plaintext(&options.http2);
    (serve(Api::new(&[]), incoming, options).unwrap(), addr)
}

async fn channel(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

async fn ask(client: &mut HealthClient<Channel>) -> ServingStatus {
    let request = HealthCheckRequest { service: String::new() };
    client.check(request).await.unwrap().into_inner().status()
}

/// The next thing a watcher hears that is not what it has heard already.
async fn until(stream: &mut tonic::Streaming<HealthCheckResponse>, wanted: ServingStatus) {
    let heard = async { while stream.message().await.unwrap().unwrap().status() != wanted {} };
    tokio::time::timeout(PATIENCE, heard).await.unwrap();
}

fn list_services() -> ServerReflectionRequest {
    let message_request = Some(MessageRequest::ListServices(String::new()));
    ServerReflectionRequest { host: String::new(), message_request }
}

fn names(response: ServerReflectionResponse) -> Vec<String> {
    match response.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            list.service.into_iter().map(|service| service.name).collect()
        }
        other => panic!("not a list of services: {other:?}"),
    }
}

#[tokio::test]
async fn health_says_what_the_status_says() {
    let status = Status::new();
    let store = status.component("store");
    let (_running, addr) = start(ServeOptions { status, ..ServeOptions::default() });
    let mut client = HealthClient::new(channel(addr).await);
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    until(&mut watch, ServingStatus::NotServing).await;
    store.degraded("slow");
    until(&mut watch, ServingStatus::Serving).await;
    assert_eq!(ask(&mut client).await, ServingStatus::Serving);
    store.not_ready("disk full");
    until(&mut watch, ServingStatus::NotServing).await;
}

#[tokio::test]
async fn draining_is_told_to_watchers_whose_streams_then_end() {
    let (running, addr) = start(ServeOptions::default());
    let mut client = HealthClient::new(channel(addr).await);
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    until(&mut watch, ServingStatus::Serving).await;
    let drained = tokio::spawn(running.drain(PATIENCE));
    until(&mut watch, ServingStatus::NotServing).await;
    assert!(watch.message().await.unwrap().is_none());
    assert_eq!(drained.await.unwrap(), Drained::Clean);
    assert!(TcpStream::connect(addr).await.is_err(), "the port is free again");
}

#[tokio::test]
async fn streams_that_do_not_end_are_cut_at_the_deadline() {
    let options = ServeOptions::default();
    let drain = options.drain.clone();
    let (running, addr) = start(options);
    let mut client = ServerReflectionClient::new(channel(addr).await);
    let endless =
        futures::StreamExt::chain(futures::stream::iter([list_services()]), futures::stream::pending());
    let mut answers = client.server_reflection_info(endless).await.unwrap().into_inner();
    let mut offered = names(answers.message().await.unwrap().unwrap());
    offered.sort();
    assert_eq!(offered, ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]);
    assert_eq!(running.connections(), 1);

    let begun = Instant::now();
    let deadline = Duration::from_millis(200);
    assert_eq!(running.drain(deadline).await, Drained::Cut { connections: 1 });
    assert!(drain.has_begun());
    assert!(begun.elapsed() >= deadline && begun.elapsed() < PATIENCE);
    assert!(answers.message().await.is_err());
}

#[tokio::test]
async fn connections_beyond_the_limit_and_silent_ones_are_closed() {
    let http2 = Http2Config {
        max_connections: 1,
        preface_timeout: Duration::from_millis(100),
        ..Http2Config::default()
    };
    http2.check("http2").unwrap();
    let (running, addr) = start(ServeOptions { http2, ..ServeOptions::default() });
    let mut client = HealthClient::new(channel(addr).await);
    assert_eq!(ask(&mut client).await, ServingStatus::Serving);

    let mut second = TcpStream::connect(addr).await.unwrap();
    let closed = tokio::time::timeout(PATIENCE, second.read(&mut [0; 64])).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
    assert_eq!(ask(&mut client).await, ServingStatus::Serving, "the first one is not disturbed");

    drop(client);
    while running.connections() > 0 {
        tokio::task::yield_now().await;
    }
    let mut silent = TcpStream::connect(addr).await.unwrap();
    let closed = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await;
    assert!(closed.is_ok(), "a client that says nothing is closed");
}

#[tokio::test]
async fn dropping_a_server_stops_it_at_once() {
    let (running, addr) = start(ServeOptions::default());
    let mut client = HealthClient::new(channel(addr).await);
    assert_eq!(ask(&mut client).await, ServingStatus::Serving);
    drop(running);
    let closed = async { while TcpStream::connect(addr).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
}

#[tokio::test]
async fn operators_see_metrics_status_and_health() {
    let recorder = metrics::install("sample", "1.2.3").unwrap();
    let status = Status::new();
    let store = status.component("store");
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let admin = Admin::serve(listener, recorder, status.clone());
    let health = probe::check(Some(admin.addr())).await.unwrap();
    assert!(!health.serves && health.body.contains("store: starting"), "{health:?}");
    store.ready();
    assert!(probe::check(Some(admin.addr())).await.unwrap().serves);

    let (running, addr) = start(ServeOptions { status, ..ServeOptions::default() });
    assert_eq!(ask(&mut HealthClient::new(channel(addr).await)).await, ServingStatus::Serving);
    running.drain(PATIENCE).await;
    assert!(!probe::check(Some(admin.addr())).await.unwrap().serves);
    let text = get(admin.addr(), "/metrics").await;
    for wanted in [
        "p2psb_build_info{name=\"sample\",version=\"1.2.3\"} 1",
        "grpc_server_handled_total{service=\"grpc.health.v1.Health\",method=\"Check\",code=\"OK\"}",
        "grpc_server_handling_seconds_bucket{service=\"grpc.health.v1.Health\",method=\"Check\"",
        "grpc_server_in_flight{service=\"grpc.health.v1.Health\",method=\"Check\"} 0",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    let text = get(admin.addr(), "/status").await;
    assert!(
        text.contains(r#""store":{"state":"ready"}"#) && text.contains("the service is stopping"),
        "{text}"
    );
}

async fn get(addr: SocketAddr, path: &str) -> String {
    use tokio::io::AsyncWriteExt;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}
