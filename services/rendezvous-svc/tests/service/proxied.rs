//! Behind a proxy that says whom it connects for.

use std::net::{Ipv4Addr, SocketAddr};

use p2psb_client::{Endpoint, TlsMode};
use p2psb_proto::model::Address;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{TestServer, dialer};
use crate::peer::Peer;

/// Begins each of its connections to `server` with `header`, and then passes on what is said.
async fn proxy(server: SocketAddr, header: Vec<u8>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let passing = async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(server).await.unwrap();
            server.write_all(&header).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    };
    (addr, AbortOnDropHandle::new(tokio::spawn(passing)))
}

/// Of a client at 203.0.113.`last`:5555.
fn header(last: u8) -> Vec<u8> {
    let addresses = [203, 0, 113, last, 198, 51, 100, 1, 0x15, 0xb3, 0x1c, 0xe8];
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &addresses].concat()
}

fn addr_of(server: &TestServer) -> SocketAddr {
    server.endpoint.authority().parse().unwrap()
}

fn endpoint(server: &TestServer, addr: SocketAddr) -> Endpoint {
    let scheme = if server.endpoint.is_plaintext() { "http" } else { "https" };
    format!("{scheme}://{addr}#{}", server.id).parse().unwrap()
}

#[tokio::test]
async fn a_peer_is_told_the_address_that_a_proxy_names() {
    for mode in [TlsMode::Identity, TlsMode::Plaintext] {
        let server = TestServer::start(|c| {
            c.tls.mode = mode;
            c.behind_proxy = mode == TlsMode::Plaintext;
            c.http2.proxies = vec!["127.0.0.0/8".parse().unwrap()];
        })
        .await;
        let (addr, _proxy) = proxy(addr_of(&server), header(9)).await;
        let connection = dialer().dial(&endpoint(&server, addr)).await.unwrap();
        let greeted = Peer::new().greet(connection, 1).await.unwrap();
        let observed = Address::try_from(greeted.hello.observed_address.unwrap()).unwrap();
        assert_eq!(observed.socket_addr(), Some("203.0.113.9:5555".parse().unwrap()));
        // On plaintext nothing is heard from the server before the first call.
        let is_refused = match dialer().dial(&server.endpoint).await {
            Ok(connection) => Peer::new().greet(connection, 1).await.is_err(),
            Err(_) => true,
        };
        assert!(is_refused, "a proxy has to say it");
    }
}

#[tokio::test]
async fn nobody_else_is_believed_and_each_client_has_its_own_limits() {
    let server = TestServer::start(|c| {
        c.http2.proxies = vec!["127.0.0.0/8".parse().unwrap()];
        c.http2.connections_per_ip = 1;
    })
    .await;
    let to = addr_of(&server);
    let (one, _one) = proxy(to, header(1)).await;
    let (other, _other) = proxy(to, header(2)).await;
    let first = dialer().dial(&endpoint(&server, one)).await.unwrap();
    assert!(dialer().dial(&endpoint(&server, one)).await.is_err(), "its client has a connection");
    dialer().dial(&endpoint(&server, other)).await.unwrap();
    drop(first);

    let open = TestServer::start(|c| c.http2.proxies = vec!["192.0.2.0/24".parse().unwrap()]).await;
    let (addr, _proxy) = proxy(addr_of(&open), header(9)).await;
    assert!(dialer().dial(&endpoint(&open, addr)).await.is_err(), "the header is no TLS");
    dialer().dial(&open.endpoint).await.unwrap();
}
