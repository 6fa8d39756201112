//! Lookups over real sockets, against rendezvous that count, wait and lie: what equal lookups share, what calls tell, who is blamed.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use p2psb_client::locator::{Acquaintances, LocateError, Options};
use p2psb_client::walk::{Cached, Lie, Said, Skipped, Step, Whom};
use p2psb_client::{Dialer, Endpoint, Locator};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::{LocatedPeer, Presence, PresenceSource, PresenceState};
use p2psb_proto::model::{Genesis, NetworkId, PeerId, PeerRecord, SecretKey, Signed, UnixMillis};
use p2psb_proto::wire::common::v1 as common;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_server::{
    RendezvousService, RendezvousServiceServer,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

fn network() -> NetworkId {
    Genesis::open("test").unwrap().network_id()
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn peer(n: u8) -> PeerId {
    PeerId::new(key(n).public())
}

fn located(n: u8) -> LocatedPeer {
    let now = UnixMillis::from(SystemTime::now());
    let record = PeerRecord {
        network: network(),
        seq: now.0,
        issued: now,
        expires: now.plus(Duration::from_secs(600)),
        addresses: Vec::new(),
        services: Vec::new(),
        homes: Vec::new(),
        endorsements: Vec::new(),
    };
    let presence = Presence {
        state: PresenceState::Online,
        last_seen: now,
        as_of: now,
        source: PresenceSource::Session,
        home: None,
    };
    LocatedPeer { record: Signed::sign(&record, &key(n)).unwrap(), presence }
}

/// What a rendezvous says of everybody.
#[derive(Clone)]
enum Manner {
    Knows(u8),
    KnowsNobody,
    Silent,
}

/// A rendezvous that answers once its gate is open.
#[derive(Clone)]
struct Fake {
    id: u8,
    manner: Manner,
    gate: watch::Receiver<bool>,
    calls: watch::Sender<usize>,
    told: Arc<parking_lot::Mutex<Option<Duration>>>,
}

/// A running one.
struct Running {
    endpoint: Endpoint,
    fake: Fake,
    gate: watch::Sender<bool>,
}

impl Running {
    async fn start(id: u8, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (gate, at_gate) = watch::channel(true);
        let (calls, told) = (watch::Sender::new(0), Arc::default());
        let fake = Fake { id, manner, gate: at_gate, calls, told };
        let service = RendezvousServiceServer::new(fake.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { endpoint, fake, gate }
    }

    fn locator(&self) -> Locator {
        Locator::new(network(), std::slice::from_ref(&self.endpoint), Dialer::new(None, None).unwrap())
    }

    fn calls(&self) -> usize {
        *self.fake.calls.borrow()
    }

    /// Waits until so many have asked.
    async fn asked(&self, count: usize) {
        self.fake.calls.subscribe().wait_for(|calls| *calls >= count).await.unwrap();
    }
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl RendezvousService for Fake {
    type ConnectStream = Stream<wire::ConnectResponse>;
    type LocateStreamStream = Stream<wire::LocateStreamResponse>;
    type WatchPresenceStream = Stream<wire::WatchPresenceResponse>;

    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        *self.told.lock() = time_told(&request);
        self.calls.send_modify(|calls| *calls += 1);
        self.gate.clone().wait_for(|open| *open).await.map_err(|_| Status::aborted("the test is over"))?;
        match self.manner {
            Manner::Knows(n) => Ok(Response::new(wire::LocateResponse { peer: Some(located(n).to_wire()) })),
            Manner::KnowsNobody => Err(Failure::new(Reason::PeerUnknown, "who?").into_status()),
            Manner::Silent => std::future::pending().await,
        }
    }

    async fn list_rendezvous(
        &self,
        _: Request<wire::ListRendezvousRequest>,
    ) -> Result<Response<wire::ListRendezvousResponse>, Status> {
        let record = Some(located(self.id).record.to_wire());
        let own = wire::RendezvousInfo { record, connected: true, ..wire::RendezvousInfo::default() };
        Ok(Response::new(wire::ListRendezvousResponse { rendezvous: vec![own] }))
    }

    async fn connect(
        &self,
        _: Request<Streaming<wire::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        no()
    }

    async fn get_challenge(
        &self,
        _: Request<wire::GetChallengeRequest>,
    ) -> Result<Response<wire::GetChallengeResponse>, Status> {
        no()
    }

    async fn register(
        &self,
        _: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        no()
    }

    async fn unregister(
        &self,
        _: Request<wire::UnregisterRequest>,
    ) -> Result<Response<wire::UnregisterResponse>, Status> {
        no()
    }

    async fn locate_stream(
        &self,
        _: Request<Streaming<wire::LocateStreamRequest>>,
    ) -> Result<Response<Self::LocateStreamStream>, Status> {
        no()
    }

    async fn watch_presence(
        &self,
        _: Request<wire::WatchPresenceRequest>,
    ) -> Result<Response<Self::WatchPresenceStream>, Status> {
        no()
    }

    async fn find_by_service(
        &self,
        _: Request<wire::FindByServiceRequest>,
    ) -> Result<Response<wire::FindByServiceResponse>, Status> {
        no()
    }
}

/// How long the caller says that it waits; clients tell it in microseconds.
fn time_told<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len() - 1)?;
    let number = number.parse().ok()?;
    match unit {
        "n" => Some(Duration::from_nanos(number)),
        "u" => Some(Duration::from_micros(number)),
        "m" => Some(Duration::from_millis(number)),
        "S" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

fn within(time: Duration) -> Options {
    Options { deadline: Some(Instant::now() + time), ..Options::default() }
}

#[tokio::test]
async fn equal_lookups_at_once_are_one_walk_and_later_ones_are_answered_from_memory() {
    let rendezvous = Running::start(1, Manner::Knows(9)).await;
    let locator = rendezvous.locator();
    rendezvous.gate.send_replace(false);
    let walk = |locator: Locator| async move { locator.walk(&peer(9), Options::default()).await };
    let first = tokio::spawn(walk(locator.clone()));
    rendezvous.asked(1).await;
    let others: Vec<_> = (0..20).map(|_| walk(locator.clone())).collect();
    let (others, ()) = tokio::join!(futures::future::join_all(others), async {
        rendezvous.gate.send_replace(true);
    });
    let first = first.await.unwrap();
    assert!(!first.trace.shared && first.answer.is_ok());
    for other in others {
        assert!(other.trace.shared && other.answer.unwrap().peer.peer_id() == peer(9));
    }
    let later = locator.walk(&peer(9), Options::default()).await;
    assert!(matches!(later.trace.cache, Cached::Found { .. }) && later.answer.is_ok());
    assert_eq!(rendezvous.calls(), 1);

    let anew = locator.walk(&peer(9), Options { cached: false, ..Options::default() }).await;
    assert_eq!((anew.trace.cache, rendezvous.calls()), (Cached::Declined, 2));
    locator.doubt(&peer(9));
    assert!(locator.locate(&peer(9)).await.is_ok());
    assert_eq!(rendezvous.calls(), 3, "what led nowhere is asked for anew");
}

#[tokio::test]
async fn who_gives_up_takes_the_others_nothing_and_who_has_more_time_goes_on() {
    let rendezvous = Running::start(1, Manner::Knows(9)).await;
    let locator = rendezvous.locator();
    rendezvous.gate.send_replace(false);
    let walk = |options| {
        let locator = locator.clone();
        tokio::spawn(async move { locator.walk(&peer(9), options).await })
    };
    let leader = walk(Options::default());
    rendezvous.asked(1).await;
    let follower = walk(Options::default());
    let hasty = walk(within(Duration::from_millis(50))).await.unwrap();
    assert!(hasty.trace.cut && matches!(hasty.answer, Err(LocateError::NoRendezvous { .. })));
    leader.abort();
    rendezvous.gate.send_replace(true);
    assert!(follower.await.unwrap().answer.is_ok());
    assert_eq!(rendezvous.calls(), 1);

    // The one who leads has little time; the one who follows begins anew.
    rendezvous.gate.send_replace(false);
    let uncached = |time| Options { cached: false, ..within(time) };
    let leader = walk(uncached(Duration::from_millis(200)));
    rendezvous.asked(2).await;
    let follower = walk(uncached(Duration::from_secs(8)));
    assert!(leader.await.unwrap().trace.cut);
    rendezvous.asked(3).await;
    rendezvous.gate.send_replace(true);
    assert!(follower.await.unwrap().answer.is_ok());
}

#[tokio::test]
async fn a_lookup_ends_by_its_deadline_and_so_does_each_call_as_it_tells() {
    let rendezvous = Running::start(1, Manner::Silent).await;
    let locator = rendezvous.locator();
    let (time, begun) = (Duration::from_millis(300), Instant::now());
    let walked = locator.walk(&peer(9), within(time)).await;
    let took = begun.elapsed();
    assert!(took >= time && took < time * 5, "{took:?}");
    assert!(walked.trace.cut && matches!(walked.answer, Err(LocateError::NoRendezvous { .. })));
    let told = rendezvous.fake.told.lock().unwrap();
    assert!(told <= time && !told.is_zero(), "{told:?}");
}

#[tokio::test]
async fn that_nobody_knows_a_peer_is_remembered_with_the_time_to_ask_again() {
    let rendezvous = Running::start(1, Manner::KnowsNobody).await;
    let locator = rendezvous.locator();
    for _ in 0..3 {
        let error = locator.locate(&peer(9)).await.unwrap_err();
        assert!(matches!(error, LocateError::Unknown { asked: 1, .. }));
        assert!(error.retry_after() >= Duration::from_secs(25), "{:?}", error.retry_after());
    }
    assert_eq!(rendezvous.calls(), 1);
    let again = locator.walk(&peer(9), Options::default()).await;
    assert!(matches!(again.trace.cache, Cached::NotFound { .. }));
}

#[tokio::test]
async fn a_lie_is_named_and_counted() {
    let rendezvous = Running::start(1, Manner::Knows(8)).await;
    let locator = rendezvous.locator();
    let walked = locator.walk(&peer(9), Options::default()).await;
    assert!(matches!(walked.answer, Err(LocateError::NoRendezvous { .. })));
    let said: Vec<&Said> = walked.trace.asks().map(|ask| &ask.said).collect();
    assert_eq!(said, [&Said::Lied(Lie::OtherPeer(peer(8)))]);
    assert_eq!(locator.rendezvous().first().unwrap().lies, 1);
}

/// Two peers of whom one knows.
struct Friends;

impl Acquaintances for Friends {
    fn who_may_know(&self, _: &PeerId) -> Vec<PeerId> {
        vec![peer(2), peer(3)]
    }

    fn ask(
        &self,
        acquaintance: PeerId,
        peer_id: PeerId,
        _: Instant,
    ) -> BoxFuture<'static, Result<Option<common::LocatedPeer>, Status>> {
        Box::pin(async move {
            assert_eq!(peer_id, peer(9));
            if acquaintance == peer(3) {
                Ok(Some(located(9).to_wire()))
            } else {
                Err(Failure::new(Reason::PeerUnknown, "who?").into_status())
            }
        })
    }
}

#[tokio::test]
async fn acquaintances_are_asked_when_no_rendezvous_helps_unless_the_caller_declines() {
    let rendezvous = Running::start(1, Manner::KnowsNobody).await;
    let locator = rendezvous.locator();
    let alone = locator.walk(&peer(9), Options::default()).await;
    let skipped = |walked: &p2psb_client::locator::Walked| {
        walked.trace.steps.iter().find(|step| step.step == Step::Peers).and_then(|step| step.skipped)
    };
    assert_eq!((alone.answer.is_err(), skipped(&alone)), (true, Some(Skipped::Nobody)));

    locator.acquaint(Arc::new(Friends));
    let declined = locator.walk(&peer(9), Options { ask_peers: false, ..Options::default() }).await;
    assert!(matches!(declined.trace.cache, Cached::NotFound { .. }), "it asks no more than the one before");
    let found = locator.walk(&peer(9), Options::default()).await;
    assert_eq!(found.answer.unwrap().answered_by, Whom::Peer(peer(3)));
}

#[tokio::test]
async fn a_caller_in_a_hurry_spoils_nothing_for_others() {
    let rendezvous = Running::start(1, Manner::Knows(9)).await;
    let locator = rendezvous.locator();
    assert!(locator.locate(&peer(9)).await.is_ok());
    // What is remembered is asked for anew, in a time in which nobody can answer.
    locator.doubt(&peer(9));
    rendezvous.gate.send_replace(false);
    let hasty = locator.walk(&peer(9), within(Duration::ZERO)).await;
    if let Ok(old) = &hasty.answer {
        assert_eq!(old.peer.presence.state, PresenceState::Offline, "nobody vouches for it");
    }
    rendezvous.gate.send_replace(true);
    let calm = locator.walk(&peer(9), Options::default()).await;
    assert_eq!(calm.answer.unwrap().peer.presence.state, PresenceState::Online);
    let known = locator.rendezvous();
    assert!(known.iter().all(|one| one.error.is_none()), "{known:?}");
}
