//! Watching peers: the beginning, what changes, what time changes, and how a watch goes on.

use std::time::{Duration, SystemTime};

use p2psb_client::Connection;
use p2psb_proto::error::{Reason, fact_of, reason_of, retry_after_of};
use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::model::proof::ChallengeAction;
use p2psb_proto::model::{Digest, PeerId, UnixMillis};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::watch_presence_response::Message;
use p2psb_runtime::clock::ManualClock;
use p2psb_runtime::{Clock, Service as _};
use tonic::{Status, Streaming};

use crate::bridge::member;
use crate::harness::{TestServer, Wire, client, dialer, eventually, reason};
use crate::member::KeyFile;
use crate::peer::{Peer, RawSession};

/// What a watch said, in short.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Is(PeerId, PresenceState),
    Gone(PeerId, String),
    Progress,
    Resync,
}

pub(crate) struct Watch {
    messages: Streaming<wire::WatchPresenceResponse>,
    token: String,
    /// Of the last mark.
    pub(crate) as_of: Option<UnixMillis>,
}

impl Watch {
    pub(crate) async fn open(server: &TestServer, peers: &[PeerId]) -> Result<Self, Status> {
        Self::resume(server, peers, String::new()).await
    }

    async fn resume(server: &TestServer, peers: &[PeerId], token: String) -> Result<Self, Status> {
        Self::open_by(&Peer::new(), &server.connection().await, peers, token).await
    }

    async fn open_by(
        watcher: &Peer,
        connection: &Connection,
        peers: &[PeerId],
        token: String,
    ) -> Result<Self, Status> {
        let request = request(watcher, connection, peers, token).await;
        let messages = client(connection).watch_presence(request).await?.into_inner();
        Ok(Self { messages, token: String::new(), as_of: None })
    }

    async fn next(&mut self) -> Result<Said, Status> {
        let message = self.messages.message().await?.expect("a watch ends with a status");
        Ok(match message.message.unwrap() {
            Message::Peer(peer) => {
                let peer = LocatedPeer::try_from(peer).unwrap();
                Said::Is(peer.peer_id(), peer.presence.state)
            }
            Message::Gone(gone) => {
                Said::Gone(PeerId::from_slice(&gone.peer_id).unwrap(), gone.error.unwrap().reason)
            }
            Message::Progress(progress) => {
                self.token = progress.resume_token;
                self.as_of = progress.as_of_time.as_ref().and_then(UnixMillis::from_wire);
                Said::Progress
            }
            Message::Resync(_) => Said::Resync,
        })
    }

    /// Reads until the watch says this; what it says before may be more.
    pub(crate) async fn says(&mut self, wanted: Said) {
        while self.next().await.unwrap() != wanted {}
    }

    /// The beginning, up to its progress.
    pub(crate) async fn beginning(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        loop {
            match self.next().await.unwrap() {
                Said::Progress => return said,
                one => said.push(one),
            }
        }
    }
}

async fn request(
    watcher: &Peer,
    connection: &Connection,
    peers: &[PeerId],
    resume_token: String,
) -> wire::WatchPresenceRequest {
    let peer_ids: Vec<_> = peers.iter().map(PeerId::to_wire).collect();
    let digest = Digest::of(&peer_ids.concat());
    let proof = watcher.proof(connection, ChallengeAction::Watch, digest).await;
    let watcher_id = watcher.id().to_wire();
    wire::WatchPresenceRequest { peer_ids, watcher_id, proof: Some(proof), resume_token }
}

#[tokio::test]
async fn a_watch_begins_with_what_is_known_and_goes_on_with_what_changes() {
    let server = TestServer::start(|_| ()).await;
    let (here, later) = (Peer::new(), Peer::new());
    let mut session = here.open(&server, 1).await.unwrap();
    let mut watch = Watch::open(&server, &[here.id(), later.id()]).await.unwrap();
    let beginning = watch.beginning().await;
    let unknown = Said::Gone(later.id(), "PEER_UNKNOWN".into());
    assert_eq!(beginning, [Said::Is(here.id(), PresenceState::Online), unknown]);

    let _later = later.open(&server, 1).await.unwrap();
    watch.says(Said::Is(later.id(), PresenceState::Online)).await;
    session.send(Up::Goodbye(wire::Goodbye { withdrawal: None })).await;
    session.end().await.unwrap();
    watch.says(Said::Is(here.id(), PresenceState::Offline)).await;
    here.unregister(&server, 9).await.unwrap();
    watch.says(Said::Gone(here.id(), "PEER_OFFLINE".into())).await;
}

#[tokio::test]
async fn a_record_that_runs_out_is_told() {
    let (server, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let brief = peer.record_until(1, Duration::from_millis(1500)).to_wire();
    let _session = peer.open_over(server.connection().await, 1, brief).await.unwrap();
    let mut watch = Watch::open(&server, &[peer.id()]).await.unwrap();
    assert_eq!(watch.beginning().await, [Said::Is(peer.id(), PresenceState::Online)]);
    watch.says(Said::Gone(peer.id(), "PEER_OFFLINE".into())).await;
}

#[tokio::test]
async fn a_watch_goes_on_from_its_token_without_a_new_beginning() {
    let server = TestServer::start(|_| ()).await;
    let (one, two) = (Peer::new(), Peer::new());
    let peers = [one.id(), two.id()];
    one.register(&server, 1).await.unwrap();
    two.register(&server, 1).await.unwrap();
    let mut watch = Watch::open(&server, &peers).await.unwrap();
    watch.beginning().await;
    let token = watch.token.clone();
    drop(watch);
    two.unregister(&server, 2).await.unwrap();
    let mut again = Watch::resume(&server, &peers, token).await.unwrap();
    assert_eq!(again.beginning().await, [Said::Gone(two.id(), "PEER_OFFLINE".into())]);
}

/// A peer with a session at one member, watched at another, whose clock is moved by hand.
struct FarHome {
    home: TestServer,
    server: TestServer,
    hand: ManualClock,
    peer: PeerId,
    token: String,
    _session: RawSession,
}

impl FarHome {
    /// The watch was left when all was told.
    async fn left() -> Self {
        let key = KeyFile::new();
        let home = TestServer::start(member(&key, [])).await;
        let (clock, hand) = Clock::manual(SystemTime::now());
        let server = TestServer::start_at(clock, member(&key, [&home])).await;
        let peer = Peer::new();
        let session = peer.open(&home, 1).await.unwrap();
        server.knows(&peer.id(), PresenceState::Online).await;
        let mut watch = Watch::open(&server, &[peer.id()]).await.unwrap();
        assert_eq!(watch.beginning().await, [Said::Is(peer.id(), PresenceState::Online)]);
        Self { home, server, hand, peer: peer.id(), token: watch.token, _session: session }
    }

    async fn resume(&self) -> Watch {
        Watch::resume(&self.server, &[self.peer], self.token.clone()).await.unwrap()
    }

    async fn kill_home(&mut self) {
        self.home.kill();
        eventually!("the link is gone", self.server.links().await == 0);
    }
}

#[tokio::test]
async fn a_watch_that_goes_on_sees_the_home_of_a_peer_die_that_had_not_changed() {
    let mut far = FarHome::left().await;
    let mut again = far.resume().await;
    assert_eq!(again.beginning().await, [], "nothing is told twice");
    far.kill_home().await;
    again.says(Said::Is(far.peer, PresenceState::Online)).await;
    far.hand.advance(Duration::from_secs(16));
    again.says(Said::Is(far.peer, PresenceState::Suspect)).await;
    far.hand.advance(Duration::from_secs(75));
    again.says(Said::Is(far.peer, PresenceState::Offline)).await;
}

#[tokio::test]
async fn a_home_that_died_while_nobody_watched_is_told_to_who_comes_back() {
    let mut far = FarHome::left().await;
    far.kill_home().await;
    far.hand.advance(Duration::from_secs(100));
    let mut again = far.resume().await;
    assert_eq!(again.beginning().await, [Said::Is(far.peer, PresenceState::Offline)]);
}

#[tokio::test]
async fn a_mark_promises_no_more_than_the_home_that_is_cut_off_has_said() {
    let mut far = FarHome::left().await;
    let mut watch = far.resume().await;
    assert_eq!(watch.beginning().await, []);
    let (before, known) = (UnixMillis::from(SystemTime::now()), watch.as_of.unwrap());
    assert!(known <= before);
    far.kill_home().await;
    far.hand.advance(Duration::from_secs(30));
    watch.says(Said::Is(far.peer, PresenceState::Suspect)).await;
    watch.says(Said::Progress).await;
    let cut = UnixMillis::from(SystemTime::now());
    assert!(watch.as_of.unwrap() <= cut, "{:?} is promised, {cut:?} is the end", watch.as_of);
    // Once it has no place in the ring any more, and its peers are offline, nothing rests on it.
    far.hand.advance(Duration::from_secs(70));
    watch.says(Said::Is(far.peer, PresenceState::Offline)).await;
    let passed = known.plus(Duration::from_secs(100));
    eventually!("it goes on", {
        watch.says(Said::Progress).await;
        watch.as_of.unwrap() >= passed
    });
}

#[tokio::test]
async fn a_record_that_ran_out_while_nobody_watched_is_told_to_who_comes_back() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let (server, brief, long) = (TestServer::start_at(clock, |_| ()).await, Peer::new(), Peer::new());
    let record = brief.record_until(1, Duration::from_secs(5)).to_wire();
    let _session = brief.open_over(server.connection().await, 1, record).await.unwrap();
    let _other = long.open(&server, 1).await.unwrap();
    let peers = [brief.id(), long.id()];
    let mut watch = Watch::open(&server, &peers).await.unwrap();
    assert_eq!(watch.beginning().await.len(), 2);
    let token = watch.token.clone();
    drop(watch);
    hand.advance(Duration::from_secs(6));
    let mut again = Watch::resume(&server, &peers, token).await.unwrap();
    assert_eq!(again.beginning().await, [Said::Gone(brief.id(), "PEER_OFFLINE".into())]);
}

#[tokio::test]
async fn a_foreign_token_gets_resync_and_a_fresh_beginning() {
    let server = TestServer::start(|_| ()).await;
    let (one, two) = (Peer::new(), Peer::new());
    one.register(&server, 1).await.unwrap();
    let mut other = Watch::open(&server, &[two.id()]).await.unwrap();
    other.beginning().await;
    for token in [other.token, "garbage".to_owned()] {
        let mut watch = Watch::resume(&server, &[one.id()], token).await.unwrap();
        let online = Said::Is(one.id(), PresenceState::Online);
        assert_eq!(watch.beginning().await, [Said::Resync, online]);
    }
}

#[tokio::test]
async fn who_watches_must_prove_it_and_ask_for_what_may_be() {
    let (server, watcher) = (TestServer::start(|_| ()).await, Peer::new());
    let peers: Vec<PeerId> = (0..2).map(|_| Peer::new().id()).collect();
    let connection = server.connection().await;
    let good = request(&watcher, &connection, &peers, String::new()).await;
    let mut client = server.client().await;
    let mut refused = async |request| reason(client.watch_presence(request).await.map(drop));

    let unproven = wire::WatchPresenceRequest { proof: None, ..good.clone() };
    assert_eq!(refused(unproven).await, Reason::ProofInvalid);
    let mut others = good.clone();
    others.peer_ids.pop();
    assert_eq!(refused(others).await, Reason::ProofInvalid, "signed for other peers");
    let stolen = wire::WatchPresenceRequest { watcher_id: Peer::new().id().to_wire(), ..good.clone() };
    assert_eq!(refused(stolen).await, Reason::ChallengeExpired, "a challenge of somebody else");
    for ids in [vec![], vec![peers[0]; 2], vec![peers[0]; 1001], vec![peers[0]; 10_000]] {
        let wrong = request(&watcher, &connection, &ids, String::new()).await;
        assert_eq!(refused(wrong).await, Reason::InvalidArgument, "{} ids", ids.len());
    }
    client.watch_presence(good).await.unwrap();
}

#[tokio::test]
async fn watches_from_one_address_are_bounded_and_end_with_their_stream() {
    let server = TestServer::start(|c| c.limits.sessions_per_ip = 1).await;
    let peers = [Peer::new().id()];
    let mut first = Watch::open(&server, &peers).await.unwrap();
    first.beginning().await;
    let refused = Watch::open(&server, &peers).await.map(drop).unwrap_err();
    assert_eq!(fact_of(&refused, "limit").as_deref(), Some("limits.sessions_per_ip"));
    drop(first);
    eventually!("the place is free again", Watch::open(&server, &peers).await.is_ok());
}

#[tokio::test]
async fn one_watcher_address_or_network_does_not_take_the_watches_of_all() {
    let server = TestServer::start(|c| {
        c.limits.watched_per_watcher = 3;
        c.limits.watched_per_ip = 4;
        c.limits.watched_per_prefix = 6;
        c.limits.watched = 9;
    })
    .await;
    let peers: Vec<PeerId> = (0..5).map(|_| Peer::new().id()).collect();
    let open = async |watcher: &Peer, ip: [u8; 4], count: usize| {
        let wire = Wire::from(ip, &server).await;
        let connection = dialer().dial(&wire.endpoint).await.unwrap();
        let mut watch = Watch::open_by(watcher, &connection, &peers[..count], String::new()).await?;
        watch.beginning().await;
        Ok::<_, Status>((watch, wire, connection))
    };
    let refused = async |watcher: &Peer, ip: [u8; 4], count: usize| {
        let status = open(watcher, ip, count).await.map(drop).unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::LimitExceeded), "{status:?}");
        assert!(retry_after_of(&status).is_some());
        fact_of(&status, "limit").unwrap()
    };
    let [one, two, three, four] = [(); 4].map(|()| Peer::new());
    let first = open(&one, [127, 0, 7, 1], 3).await.unwrap();
    assert_eq!(refused(&one, [127, 0, 8, 1], 1).await, "limits.watched_per_watcher");
    assert_eq!(refused(&two, [127, 0, 7, 1], 2).await, "limits.watched_per_ip");
    let _second = open(&two, [127, 0, 7, 2], 2).await.unwrap();
    assert_eq!(refused(&three, [127, 0, 7, 3], 2).await, "limits.watched_per_prefix");
    // Others are unharmed, as long as there is room at all.
    let _third = open(&three, [127, 0, 8, 1], 3).await.unwrap();
    assert_eq!(refused(&four, [127, 0, 9, 1], 2).await, "limits.watched");
    drop(first);
    eventually!("who leaves makes room", open(&four, [127, 0, 9, 1], 3).await.is_ok());
}

#[tokio::test]
async fn a_watch_ends_when_the_server_drains() {
    let mut server = TestServer::start(|_| ()).await;
    let mut watch = Watch::open(&server, &[Peer::new().id()]).await.unwrap();
    watch.beginning().await;
    let stopping = tokio::spawn(server.server.take().unwrap().shutdown(Duration::from_secs(10)));
    let end = loop {
        if let Err(status) = watch.next().await {
            break status;
        }
    };
    assert_eq!(reason::<()>(Err(end)), Reason::Draining);
    drop(watch);
    stopping.await.unwrap();
}
