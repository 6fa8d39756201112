//! Callers that ask for too much of a server: more connections than their share, answers that they do not read, and watches of
//! many peers.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use p2psb_client::Identity;
use p2psb_e2e::memory::rss_anon;
use p2psb_e2e::peer::{Peer, locate, watch};
use p2psb_e2e::{Cluster, Service, eventually};
use p2psb_proto::error::{Reason, fact_of, reason_of};
use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::model::{PeerId, PublicKey, SecretKey};
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use p2psb_proto::wire::rendezvous::v1::watch_presence_response::Message;
use p2psb_proto::wire::rendezvous::v1::{LocateRequest, WatchPresenceResponse};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Long enough for anything that should happen; nothing waits this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// The question for a file of the contract, the largest answer that needs no preparation.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Ask {
    #[prost(string, tag = "4")]
    file_containing_symbol: String,
}

/// The answer, of which only the size matters.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Answer {}

/// A cluster of one rendezvous with these limits, which takes loopback for a source like any other.
async fn rendezvous(limits: &[(&str, i64)]) -> (Cluster, SocketAddr) {
    let mut cluster = Cluster::plan().bare().plaintext().start().await.unwrap();
    let service: &mut Service = &mut cluster.rendezvous[0];
    service.stop().await.unwrap();
    service.set("http2.shared_sources", toml::Value::Array(Vec::new()));
    for (key, most) in limits {
        service.set(key, *most);
    }
    service.start().await.unwrap();
    let addr = service.addr().unwrap();
    (cluster, addr)
}

/// A connection from one of the many addresses of loopback that leaves so much room for an answer.
async fn channel(from: &str, to: SocketAddr, window: u32) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{to}")).unwrap();
    let endpoint = endpoint.local_address(Some(from.parse().unwrap())).initial_stream_window_size(window);
    tokio::time::timeout(PATIENCE, endpoint.connect()).await.unwrap().unwrap()
}

/// Whether a caller from there gets an answer to a small question.
async fn is_served(from: &str, to: SocketAddr) -> bool {
    let nobody = PeerId::new(SecretKey::from_seed(&[9; 32]).public());
    let request = LocateRequest { peer_id: nobody.to_wire() };
    let mut client = RendezvousServiceClient::new(channel(from, to, 1 << 16).await);
    let answer = tokio::time::timeout(PATIENCE, client.locate(request)).await.unwrap();
    answer.is_err_and(|status| reason_of(&status) == Some(Reason::PeerUnknown))
}

/// Asks for so many large answers on one stream.
async fn ask(channel: &Channel, many: usize) -> Result<Streaming<Answer>, Status> {
    let question = Ask { file_containing_symbol: "p2psb.rendezvous.v1.RendezvousService".into() };
    let questions = futures::stream::iter(vec![question; many]).chain(futures::stream::pending());
    let path = PathAndQuery::from_static("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    grpc.streaming(Request::new(questions), path, ProstCodec::default())
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_from_one_network_is_turned_away_and_others_are_served() {
    let (_cluster, addr) =
        rendezvous(&[("http2.connections_per_ip", 8), ("http2.connections_per_prefix", 16)]).await;
    let mut flood = Vec::new();
    for nth in 0..200 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 7, 1 + nth % 100], 0))).unwrap();
        flood.push(socket.connect(addr).await.unwrap());
    }
    let closed = |mut stream: TcpStream| async move {
        // What has a place stays silent until its time is over.
        let read = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut [0; 1])).await;
        read.is_ok()
    };
    assert!(is_served("127.0.0.1", addr).await, "during the flood");
    let turned_away = flood.into_iter().map(closed).collect::<FuturesUnordered<_>>();
    let turned_away = turned_away.filter(|closed| std::future::ready(*closed)).count().await;
    assert!(turned_away >= 184, "{turned_away} of 200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_do_not_read_are_refused_and_memory_stays_bounded() {
    const SHARE: i64 = 1 << 20;
    let (cluster, addr) = rendezvous(&[("http2.waiting_bytes_per_ip", SHARE)]).await;
    assert!(is_served("127.0.0.1", addr).await);
    let pid = cluster.rendezvous[0].pid().unwrap();
    let before = rss_anon(pid).unwrap();

    let mut readers = Vec::new();
    for _ in 0..8 {
        let slow = channel("127.0.0.1", addr, 1).await;
        for _ in 0..60 {
            readers.push(ask(&slow, 100).await);
        }
    }
    let mut heard: FuturesUnordered<_> = readers
        .iter_mut()
        .map(async |reader| match reader {
            Ok(answers) => answers.message().await.map(drop).err(),
            Err(status) => Some(status.clone()),
        })
        .collect();
    let first = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
    let refused = first.expect("what does not fit into the window can't be read");
    assert_eq!(reason_of(&refused), Some(Reason::LimitExceeded), "{refused:?}");
    assert_eq!(fact_of(&refused, "limit").as_deref(), Some("http2.waiting_bytes_per_ip"));
    assert!(is_served("127.0.0.1", addr).await, "a small answer");
    let other = channel("127.0.1.1", addr, 1 << 20).await;
    assert!(ask(&other, 1).await.unwrap().message().await.unwrap().is_some(), "a large one, elsewhere");
    let grown = rss_anon(pid).unwrap().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more for 480 answers that nobody reads");
}

/// The `nth` of many ids that nobody has.
fn nobody(nth: u32) -> PeerId {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&nth.to_be_bytes());
    PeerId::new(PublicKey::from_bytes(bytes))
}

/// How many peers a watch names as unknown before its first mark.
async fn unknown(watch: &mut Streaming<WatchPresenceResponse>) -> usize {
    let mut unknown = 0;
    loop {
        match watch.message().await.unwrap().unwrap().message.unwrap() {
            Message::Gone(gone) => {
                assert_eq!(gone.error.unwrap().reason, "PEER_UNKNOWN");
                unknown += 1;
            }
            Message::Progress(_) => return unknown,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_ten_thousand_peers_that_others_own_are_bounded_and_end_with_their_streams() {
    const WATCHES: u32 = 10;
    const EACH: u32 = 1000;
    let cluster = Cluster::plan().bare().rendezvous(5).start().await.unwrap();
    let (at, other) = (cluster.rendezvous[0].dialed().unwrap(), cluster.rendezvous[4].dialed().unwrap());
    let watched = async || cluster.rendezvous[0].figure("rendezvous_watched").await;
    eventually!("all are in the ring", {
        let mut members = Vec::new();
        for service in &cluster.rendezvous {
            members.push(service.figure("rendezvous_ring_members").await.unwrap_or_default());
        }
        if members == [5.0; 5] { Ok(()) } else { Err(format!("{members:?}")) }
    });
    let pids: Vec<u32> = cluster.rendezvous.iter().map(|service| service.pid().unwrap()).collect();
    let before: Vec<u64> = pids.iter().map(|pid| rss_anon(*pid).unwrap()).collect();
    let comes = Identity::ephemeral().unwrap();
    let mut watches = Vec::new();
    for nth in 0..WATCHES {
        let mut peers: Vec<PeerId> = (0..EACH).map(|n| nobody(nth * EACH + n)).collect();
        peers[0] = if nth == 0 { comes.peer_id() } else { peers[0] };
        let mut watch = watch(&at, &peers).await.unwrap();
        assert_eq!(unknown(&mut watch).await, EACH as usize);
        watches.push(watch);
    }
    eventually!(
        "they are counted",
        watched().await.is_ok_and(|watched| watched == f64::from(WATCHES * EACH))
    );
    let peer = Peer::start_as(comes, std::slice::from_ref(&other), Vec::new(), None).unwrap();
    let told = async {
        loop {
            if let Message::Peer(found) = watches[0].message().await.unwrap().unwrap().message.unwrap() {
                let found = LocatedPeer::try_from(found).unwrap();
                if found.presence.state == PresenceState::Online {
                    return found.peer_id();
                }
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, told).await.unwrap(), peer.id());
    for (pid, before) in pids.iter().zip(before) {
        let grown = rss_anon(*pid).unwrap().saturating_sub(before);
        assert!(grown < 32 << 20, "{grown} bytes more for 10,000 watched peers");
    }
    drop(watches);
    eventually!("nobody watches any more", watched().await.is_ok_and(|watched| watched == 0.0));
    assert_eq!(locate(&at, &peer.id()).await.unwrap().presence.state, PresenceState::Online);
}
