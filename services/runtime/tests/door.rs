//! The door of a listener over real sockets: floods, silence, and clients that vanished.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use p2psb_runtime::admission::Source;
use p2psb_runtime::metrics::{self, Admin};
use p2psb_runtime::serve::{Http2Config, Listener, serve};
use p2psb_runtime::{Api, Running, ServeOptions, Status, open_files, probe};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Long enough for anything that should happen; nothing waits this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

/// How many handshakes a listener has room for.
const HANDSHAKES: usize = 512;
/// How many of them for one address.
const HANDSHAKES_OF_ONE: usize = 64;

fn start(http2: Http2Config) -> (Running, SocketAddr) {
    http2.check("http2").unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.addr();
    let incoming = listener.plaintext(&http2);
    (serve(Api::new(&[]), incoming, ServeOptions { http2, ..ServeOptions::default() }).unwrap(), addr)
}

/// Loopback is a source like any other here.
fn strict() -> Http2Config {
    Http2Config { shared_sources: Vec::new(), preface_timeout: LONG, ..Http2Config::default() }
}

/// A connection from one of the many addresses of loopback.
async fn from(ip: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 64])).await.unwrap();
    matches!(read, Ok(0) | Err(_))
}

async fn channel(ip: &str, to: SocketAddr) -> Result<Channel, tonic::transport::Error> {
    let local: IpAddr = ip.parse().unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{to}")).unwrap().local_address(Some(local));
    tokio::time::timeout(PATIENCE, endpoint.connect()).await.unwrap()
}

/// Whether a caller from there is served. The connection is closed again.
async fn is_served(ip: &str, to: SocketAddr) -> bool {
    let Ok(channel) = channel(ip, to).await else { return false };
    let request = HealthCheckRequest { service: String::new() };
    let answered = tokio::time::timeout(PATIENCE, HealthClient::new(channel).check(request)).await;
    answered.unwrap().is_ok()
}

/// Waits until so many are connected.
async fn until(running: &Running, connections: usize) {
    let there = async {
        while running.connections() != connections {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.unwrap();
}

#[tokio::test]
async fn a_flood_from_one_address_is_closed_and_others_are_served() {
    let (running, addr) = start(Http2Config { connections_per_ip: 3, connections_per_prefix: 5, ..strict() });
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(channel("127.0.0.1", addr).await.unwrap());
    }
    for _ in 0..100 {
        assert!(is_closed(&mut from("127.0.0.1", addr).await).await, "one more from there");
    }
    assert!(is_served("127.0.0.2", addr).await, "another address of the same network");
    until(&running, 3).await;
    held.push(channel("127.0.0.2", addr).await.unwrap());
    held.push(channel("127.0.0.3", addr).await.unwrap());
    until(&running, 5).await;
    assert!(is_closed(&mut from("127.0.0.4", addr).await).await, "the network has its share, too");
    assert!(is_served("127.0.1.1", addr).await, "another network");

    held.clear();
    let served = async { while !is_served("127.0.0.1", addr).await {} };
    tokio::time::timeout(PATIENCE, served).await.expect("who leaves makes room");
}

#[tokio::test]
async fn shared_sources_have_no_share() {
    let shared_sources = vec!["127.0.0.0/24".parse::<Source>().unwrap()];
    let (_running, addr) = start(Http2Config { connections_per_ip: 1, shared_sources, ..strict() });
    let _held = [channel("127.0.0.1", addr).await.unwrap(), channel("127.0.0.1", addr).await.unwrap()];
    assert!(is_served("127.0.0.1", addr).await);
    let _held = channel("127.0.1.1", addr).await.unwrap();
    assert!(is_closed(&mut from("127.0.1.1", addr).await).await, "outside of the network the share holds");
}

#[tokio::test]
async fn silent_connections_from_everywhere_do_not_hold_up_the_door() {
    open_files::raise_limit().unwrap();
    let (_running, addr) = start(Http2Config { preface_timeout: LONG, ..Http2Config::default() });
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    assert!(is_served("127.0.0.1", addr).await);
    assert!(is_closed(&mut silent[0]).await, "the oldest had to yield");
}

#[tokio::test]
async fn silent_connections_from_one_address_take_only_its_share_of_the_handshakes() {
    open_files::raise_limit().unwrap();
    let (_running, addr) = start(strict());
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES_OF_ONE {
        silent.push(from("127.0.0.1", addr).await);
    }
    assert!(is_closed(&mut from("127.0.0.1", addr).await).await);
    assert!(is_served("127.0.0.2", addr).await);
    let nobody_yielded = silent.iter().all(|stream| stream.try_read(&mut [0; 1]).is_err());
    assert!(nobody_yielded, "there was room for all");
}

#[tokio::test]
async fn a_client_that_vanished_without_a_word_is_noticed() {
    let keep_alive = Duration::from_millis(50);
    let http2 = Http2Config {
        keep_alive_interval: keep_alive,
        keep_alive_timeout: keep_alive,
        ..Http2Config::default()
    };
    let (running, addr) = start(http2);
    let mut vanished = TcpStream::connect(addr).await.unwrap();
    // The preface and an empty SETTINGS frame; then nothing any more, as if the cable were cut.
    let words = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    tokio::io::AsyncWriteExt::write_all(&mut vanished, &words).await.unwrap();
    assert_ne!(vanished.read(&mut [0; 64]).await.unwrap(), 0, "it is spoken to");
    assert_eq!(running.connections(), 1);
    until(&running, 0).await;
}

#[tokio::test]
async fn operators_too_take_turns_at_a_bounded_door() {
    const OPERATORS: usize = 64;
    let recorder = metrics::install("sample", "1.2.3").unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let admin = Admin::serve(listener, recorder, Status::new());
    let mut silent = Vec::new();
    for _ in 0..OPERATORS {
        silent.push(TcpStream::connect(admin.addr()).await.unwrap());
    }
    assert!(is_closed(&mut TcpStream::connect(admin.addr()).await.unwrap()).await);
    silent.clear();
    let served = async { while probe::check(Some(admin.addr())).await.is_err() {} };
    tokio::time::timeout(PATIENCE, served).await.unwrap();
}
