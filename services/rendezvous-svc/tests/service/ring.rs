//! A backbone of more members than own a key: whoever does not own it asks, and listens at, those that do.

use p2psb_proto::error::Reason;
use p2psb_proto::model::presence::PresenceState;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_rendezvous_svc::core::placement::{Key, Operator, Placement};

use crate::bridge::member;
use crate::harness::{TestServer, eventually, reason};
use crate::member::KeyFile;
use crate::peer::Peer;
use crate::watch::{Said, Watch};

/// Five members, each of which was told of the first alone.
pub(crate) async fn five(key: &KeyFile) -> Vec<TestServer> {
    let mut all: Vec<TestServer> = Vec::new();
    for _ in 0..5 {
        let first = all.iter().take(1);
        let server = TestServer::start(member(key, first)).await;
        all.push(server);
    }
    for server in &all {
        eventually!("each is linked with the others", server.links().await == 4);
    }
    all
}

#[tokio::test]
async fn a_peer_at_any_of_five_members_is_located_at_each() {
    let key = KeyFile::new();
    let servers = five(&key).await;
    for home in &servers {
        let peer = Peer::new();
        let session = peer.open(home, 1).await.unwrap();
        for server in &servers {
            server.knows(&peer.id(), PresenceState::Online).await;
            assert_eq!(server.locate(&peer.id()).await.unwrap().presence.home, Some(home.id));
        }
        let (mut down, _connection) = session.close();
        while down.message().await.unwrap().is_some() {}
        for server in &servers {
            server.knows(&peer.id(), PresenceState::Offline).await;
        }
    }
    let stranger = Peer::new();
    for server in &servers {
        let refusal = async || reason(server.locate(&stranger.id()).await);
        eventually!("enough owners have heard all", refusal().await == Reason::PeerUnknown);
    }
}

#[tokio::test]
async fn who_registers_elsewhere_is_located_there_also_by_the_member_where_it_registered_before() {
    let key = KeyFile::new();
    let servers = five(&key).await;
    let ring = Placement::new(servers.iter().map(|one| (one.id, Operator::of(&one.id, None))));
    for (before, later) in servers.iter().zip(servers.iter().cycle().skip(1)) {
        let does_not_own = |peer: &Peer| !ring.owners(Key::peer(&peer.id())).contains(&before.id);
        let peer = std::iter::repeat_with(Peer::new).find(does_not_own).unwrap();
        peer.register(before, 1).await.unwrap();
        for server in &servers {
            server.knows(&peer.id(), PresenceState::Online).await;
        }
        eventually!("it may change its record again", peer.register(later, 2).await.is_ok());
        for server in &servers {
            let found = async || server.locate(&peer.id()).await.unwrap().record.value().seq;
            eventually!("the newer record is found", found().await == 2);
        }
    }
}

#[tokio::test]
async fn providers_are_found_at_each_of_five_members() {
    let key = KeyFile::new();
    let servers = five(&key).await;
    let mut sessions = Vec::new();
    for home in &servers {
        for _ in 0..3 {
            let peer = Peer::offering("chat");
            sessions.push(peer.open(home, 1).await.unwrap());
        }
    }
    for server in &servers {
        let count = async || pages(server, 4).await;
        eventually!("every provider is named once", count().await == sessions.len());
    }
}

/// How many different providers all pages name, none of which is named twice.
pub(crate) async fn pages(server: &TestServer, page_size: u32) -> usize {
    let (mut keys, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = wire::FindByServiceRequest {
            service: "chat".into(),
            page_size,
            page_token,
            ..Default::default()
        };
        let Ok(page) = server.client().await.find_by_service(request).await else { return 0 };
        let page = page.into_inner();
        assert!(page.peers.len() <= page_size as usize);
        keys.extend(page.peers.into_iter().map(|peer| peer.record.unwrap().key));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    keys.sort();
    keys.dedup();
    keys.len()
}

#[tokio::test]
async fn a_watch_at_each_of_five_members_follows_a_peer() {
    let key = KeyFile::new();
    let servers = five(&key).await;
    let peer = Peer::new();
    let session = peer.open(&servers[4], 1).await.unwrap();
    let mut watches = Vec::new();
    for server in &servers {
        server.knows(&peer.id(), PresenceState::Online).await;
        let mut watch = Watch::open(server, &[peer.id()]).await.unwrap();
        assert_eq!(watch.beginning().await, [Said::Is(peer.id(), PresenceState::Online)]);
        watches.push(watch);
    }
    let (_answers, _connection) = session.close();
    for watch in &mut watches {
        watch.says(Said::Is(peer.id(), PresenceState::Offline)).await;
    }
    let _again = peer.open(&servers[1], 2).await.unwrap();
    for watch in &mut watches {
        watch.says(Said::Is(peer.id(), PresenceState::Online)).await;
    }
}

#[tokio::test]
async fn when_an_owner_dies_its_peers_are_located_all_the_same() {
    let key = KeyFile::new();
    let mut servers = five(&key).await;
    let peers: Vec<Peer> = std::iter::repeat_with(Peer::new).take(12).collect();
    let mut sessions = Vec::new();
    for peer in &peers {
        sessions.push(peer.open(&servers[0], 1).await.unwrap());
    }
    for peer in &peers {
        for server in &servers {
            server.knows(&peer.id(), PresenceState::Online).await;
        }
    }
    servers[3].kill();
    for peer in &peers {
        for server in [&servers[1], &servers[2], &servers[4]] {
            assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));
        }
    }
}

#[tokio::test]
async fn a_member_that_has_just_come_finds_what_it_does_not_own_yet() {
    let key = KeyFile::new();
    let old = TestServer::start(member(&key, [])).await;
    let peer = Peer::new();
    let _session = peer.open(&old, 1).await.unwrap();
    let new = TestServer::start(member(&key, [&old])).await;
    new.knows(&peer.id(), PresenceState::Online).await;
    let at_new = Peer::new();
    let _other = at_new.open(&new, 1).await.unwrap();
    old.knows(&at_new.id(), PresenceState::Online).await;
}

/// Of this member nobody learns where it is: it has the links that it dials.
async fn hidden(key: &KeyFile, to: &TestServer) -> TestServer {
    let change = member(key, [to]);
    TestServer::start(|config| {
        change(config);
        config.listen = ([0, 0, 0, 0], 0).into();
    })
    .await
}

#[tokio::test]
async fn two_members_that_reach_only_a_third_know_all_that_happens_at_each_other() {
    let key = KeyFile::new();
    let c = TestServer::start(member(&key, [])).await;
    let (a, b) = (hidden(&key, &c).await, hidden(&key, &c).await);
    eventually!("both reach the third", c.links().await == 2);
    for round in 1..=3 {
        for (home, other) in [(&a, &b), (&b, &a)] {
            let peer = Peer::offering("chat");
            let session = peer.open(home, round).await.unwrap();
            other.knows(&peer.id(), PresenceState::Online).await;
            let mut watch = Watch::open(other, &[peer.id()]).await.unwrap();
            assert_eq!(watch.beginning().await, [Said::Is(peer.id(), PresenceState::Online)]);
            let (_answers, _connection) = session.close();
            watch.says(Said::Is(peer.id(), PresenceState::Offline)).await;
            assert_eq!(other.locate(&peer.id()).await.unwrap().presence.home, Some(home.id));
        }
    }
    assert_eq!((a.links().await, b.links().await), (1, 1), "they never had a link");
}
