//! Links over real mutual TLS: two ends in one process, chunks from a source that the test controls.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use super::host::{Host, caller, link_to, network};
use bytes::Bytes;
use p2psb_client::{Dialer, Identity};
use p2psb_peer_agent::core::outgoing::Want;
use p2psb_peer_agent::exchange::accept::MAX_LINKS_OF_PEER;
use p2psb_peer_agent::exchange::{ChunkSource, Event, Link};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::{Address, AddressKind, Digest, Transport, UnixMillis, limits};
use p2psb_proto::wire::peer::v1 as wire;
use p2psb_proto::wire::peer::v1::exchange_frame::Message;
use p2psb_proto::wire::peer::v1::peer_service_client::PeerServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Long enough for anything that should happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Chunks by digest, of one manifest. Lies can be put in by hand.
#[derive(Default)]
struct Shelf {
    chunks: BTreeMap<Digest, Bytes>,
}

impl Shelf {
    fn with(sizes: &[usize]) -> (Self, Vec<Digest>) {
        let mut shelf = Self::default();
        let digests = sizes
            .iter()
            .enumerate()
            .map(|(n, size)| {
                let chunk = Bytes::from([&n.to_le_bytes()[..], &vec![n as u8; *size]].concat());
                let digest = Digest::of(&chunk);
                shelf.chunks.insert(digest, chunk);
                digest
            })
            .collect();
        (shelf, digests)
    }
}

fn manifest() -> Digest {
    Digest::of(b"the manifest")
}

impl ChunkSource for Shelf {
    fn read(
        &self,
        asked: &Digest,
        digests: &[Digest],
        take: &mut dyn FnMut(Option<Bytes>) -> ControlFlow<()>,
    ) -> Result<bool, Failure> {
        if *asked != manifest() {
            return Ok(false);
        }
        for digest in digests {
            if take(self.chunks.get(digest).cloned()).is_break() {
                break;
            }
        }
        Ok(true)
    }
}

fn wants(digests: &[Digest], max_bytes: u32) -> Vec<Want> {
    digests.iter().map(|digest| Want { digest: *digest, max_bytes }).collect()
}

/// Everything that comes until `requests` have ended: chunks, missing ones, refusals.
async fn collect(
    link: &mut Link,
    requests: usize,
) -> (BTreeMap<Digest, Bytes>, Vec<Digest>, Vec<Option<Reason>>) {
    let (mut chunks, mut missing, mut refusals) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut ended = 0;
    while ended < requests {
        match tokio::time::timeout(PATIENCE, link.next()).await.unwrap().unwrap() {
            Event::Chunks(arrived) => chunks.extend(arrived.into_iter().map(|a| (a.digest, a.data))),
            Event::Ended(end) => {
                ended += 1;
                missing.extend(end.missing.iter().map(|want| want.digest));
                refusals.extend(end.refusal.map(|refusal| refusal.reason));
            }
        }
    }
    (chunks, missing, refusals)
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_every_size_come_over_and_what_is_not_held_is_named() {
    let mut sizes: Vec<usize> = (0..3000).map(|n| n % 97).collect();
    sizes.extend([70_000; 200]);
    sizes.extend([300_000, 262_144, 4 * 1024 * 1024 - 8, 1]);
    let (shelf, digests) = Shelf::with(&sizes);
    let held = shelf.chunks.clone();
    let host = Host::start(shelf);
    let mut link = link_to(&host).await;
    assert_eq!(link.peer(), host.identity.peer_id());
    let mut requests = 0;
    let unheld = Digest::of(b"nowhere");
    for part in digests.chunks(1000) {
        let mut list = part.to_vec();
        list.insert(0, unheld);
        link.ask(manifest(), wants(&list, 4 << 20)).await.unwrap();
        requests += 1;
    }
    let (chunks, missing, refusals) = collect(&mut link, requests).await;
    assert_eq!(chunks, held);
    assert_eq!((missing.len(), refusals.len()), (requests, 0));
    assert!(missing.iter().all(|digest| *digest == unheld));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_manifest_is_refused_by_name_and_the_link_goes_on() {
    let (shelf, digests) = Shelf::with(&[10]);
    let host = Host::start(shelf);
    let mut link = link_to(&host).await;
    link.ask(Digest::of(b"another"), wants(&digests, 100)).await.unwrap();
    let (_, missing, refusals) = collect(&mut link, 1).await;
    assert_eq!((missing, refusals), (digests.clone(), vec![Some(Reason::ManifestUnknown)]));
    link.ask(manifest(), wants(&digests, 100)).await.unwrap();
    assert_eq!(collect(&mut link, 1).await.0.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_larger_than_it_may_be_ends_the_link() {
    let (shelf, digests) = Shelf::with(&[1000]);
    let host = Host::start(shelf);
    let mut link = link_to(&host).await;
    link.ask(manifest(), wants(&digests, 999)).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, link.next()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::UnexpectedMessage, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_at_the_address_is_refused_and_the_address_left_alone() {
    let (host, me) = (Host::start(Shelf::default()), Identity::ephemeral().unwrap());
    let wanted = Identity::ephemeral().unwrap().peer_id();
    let caller = caller(&me, "test");
    let failure = caller.open(wanted, &[host.address()]).await.unwrap_err();
    assert!(failure.message.contains(&host.identity.peer_id().to_string()), "{}", failure.message);
    let failure = caller.open(wanted, &[host.address()]).await.unwrap_err();
    assert!(failure.message.contains("no address"), "it is not dialed again: {}", failure.message);
    assert!(caller.open(host.identity.peer_id(), &[host.address()]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_addresses_the_one_that_answers_is_used() {
    let (host, me) = (Host::start(Shelf::default()), Identity::ephemeral().unwrap());
    // Bound and never accepted: connects, and then says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = Address::ip(silent.local_addr().unwrap(), Transport::Tls, AddressKind::Observed);
    let addresses = [dead, host.address()];
    let caller = caller(&me, "test");
    let opened =
        tokio::time::timeout(Duration::from_secs(5), caller.open(host.identity.peer_id(), &addresses)).await;
    assert!(opened.expect("the silent address must not hold it up").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_network_is_refused() {
    let (host, me) = (Host::start(Shelf::default()), Identity::ephemeral().unwrap());
    let failure =
        caller(&me, "elsewhere").open(host.identity.peer_id(), &[host.address()]).await.unwrap_err();
    assert_eq!(failure.reason, Reason::NetworkMismatch, "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ninth_link_of_one_peer_is_refused_until_one_closes() {
    let (host, me) = (Host::start(Shelf::default()), Identity::ephemeral().unwrap());
    let caller = caller(&me, "test");
    let mut links = Vec::new();
    for _ in 0..MAX_LINKS_OF_PEER {
        links.push(caller.open(host.identity.peer_id(), &[host.address()]).await.unwrap());
    }
    let failure = caller.open(host.identity.peer_id(), &[host.address()]).await.unwrap_err();
    assert_eq!(failure.reason, Reason::LimitExceeded, "{}", failure.message);
    links.pop();
    let freed = async {
        while host.gate.links() >= MAX_LINKS_OF_PEER {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.unwrap();
    assert!(caller.open(host.identity.peer_id(), &[host.address()]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_host_ends_its_links_and_says_so() {
    let host = Host::start(Shelf::default());
    let mut link = link_to(&host).await;
    host.drain.begin();
    let error = tokio::time::timeout(PATIENCE, link.next()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::Draining, "{error}");
}

/// A client that speaks the protocol by hand.
struct Raw {
    requests: mpsc::Sender<wire::ExchangeRequest>,
    answers: tonic::Streaming<wire::ExchangeResponse>,
}

impl Raw {
    async fn connect(host: &Host, me: &Identity) -> Self {
        let dialer = Dialer::new(Some(me), None).unwrap();
        let endpoint = p2psb_client::Endpoint::of(&host.address(), host.identity.peer_id()).unwrap();
        let connection = dialer.dial(&endpoint).await.unwrap();
        let origin = connection.origin();
        let (requests, stream) = mpsc::channel(256);
        let mut client = PeerServiceClient::with_origin(connection, origin);
        let answers = client.exchange(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn say(&self, message: Message) {
        let frame = Some(wire::ExchangeFrame { message: Some(message) });
        self.requests.send(wire::ExchangeRequest { frame }).await.unwrap();
    }

    async fn hello(&self, me: &Identity) {
        let now = UnixMillis::from(std::time::SystemTime::now());
        self.say(Message::Hello(Hello::own(network("test"), me.peer_id(), "raw/1", now))).await;
    }

    async fn hear(&mut self) -> Result<Message, tonic::Status> {
        let heard = tokio::time::timeout(PATIENCE, self.answers.message()).await.unwrap()?;
        Ok(heard.expect("a message").frame.unwrap().message.unwrap())
    }

    fn request(id: u64, digests: Vec<Bytes>) -> Message {
        Message::Request(wire::ChunkRequest {
            request_id: id,
            manifest_digest: manifest().to_wire(),
            digests,
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_calls_itself_somebody_else_is_refused() {
    let (host, me) = (Host::start(Shelf::default()), Identity::ephemeral().unwrap());
    let mut raw = Raw::connect(&host, &me).await;
    raw.hello(&Identity::ephemeral().unwrap()).await;
    assert!(matches!(raw.hear().await.unwrap(), Message::Hello(_)));
    let status = raw.hear().await.unwrap_err();
    assert_eq!(p2psb_proto::error::reason_of(&status), Some(Reason::IdentityMismatch));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_hello_and_requests_without_order_end_the_link() {
    let (host, me) = (Host::start(Shelf::default()), Identity::ephemeral().unwrap());
    let mut raw = Raw::connect(&host, &me).await;
    raw.hello(&me).await;
    raw.hello(&me).await;
    assert!(matches!(raw.hear().await.unwrap(), Message::Hello(_)));
    let status = raw.hear().await.unwrap_err();
    assert_eq!(p2psb_proto::error::reason_of(&status), Some(Reason::UnexpectedMessage));
    let mut raw = Raw::connect(&host, &me).await;
    raw.hello(&me).await;
    raw.say(Raw::request(7, vec![manifest().to_wire()])).await;
    raw.say(Raw::request(7, vec![manifest().to_wire()])).await;
    let broken = loop {
        if let Err(status) = raw.hear().await {
            break status;
        }
    };
    assert_eq!(p2psb_proto::error::reason_of(&broken), Some(Reason::UnexpectedMessage));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_requests_is_answered_within_bounds() {
    let (shelf, digests) = Shelf::with(&[200_000; 20]);
    let (host, me) = (Host::start(shelf), Identity::ephemeral().unwrap());
    let mut raw = Raw::connect(&host, &me).await;
    raw.hello(&me).await;
    let list: Vec<Bytes> = digests.iter().map(Digest::to_wire).collect();
    let sender = raw.requests.clone();
    let flood = tokio::spawn(async move {
        for id in 1..=200 {
            let frame = Some(wire::ExchangeFrame { message: Some(Raw::request(id, list.clone())) });
            sender.send(wire::ExchangeRequest { frame }).await.unwrap();
        }
    });
    let (mut served, mut refused, mut bytes) = (0, 0, 0);
    while served + refused < 200 {
        match raw.hear().await.unwrap() {
            Message::Done(done) if done.reason == Reason::LimitExceeded.as_str() => refused += 1,
            Message::Done(done) => {
                assert_eq!((done.reason.as_str(), done.missing.len()), ("", 0));
                served += 1;
            }
            Message::Chunks(batch) => {
                let data: usize = batch.parts.iter().map(|part| part.data.len()).sum();
                assert!(data <= limits::CHUNK_FRAME_BYTES);
                bytes += data;
            }
            Message::Hello(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    flood.await.unwrap();
    assert!(served >= limits::OPEN_REQUESTS, "served {served}, refused {refused}");
    assert_eq!(bytes, served * 20 * 200_008);
}
