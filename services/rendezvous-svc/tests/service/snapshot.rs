//! What a restarted server still knows.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use p2psb_proto::error::{Reason, fact_of};
use p2psb_proto::model::UnixMillis;
use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_rendezvous_svc::Config;
use p2psb_runtime::Clock;

use crate::harness::{TestServer, eventually, reason};
use crate::member::KeyFile;
use crate::peer::{Peer, now};

/// So often that no test waits for it.
const OFTEN: Duration = Duration::from_millis(100);

const SECOND: Duration = Duration::from_secs(1);

fn often(config: &mut Config) {
    config.snapshot.enabled = true;
    config.snapshot.interval = OFTEN;
}

fn file(server: &TestServer) -> PathBuf {
    server.config.data_dir.join("snapshot")
}

/// Waits until a snapshot that was begun after now is on the disk: the second one from now.
async fn written(server: &TestServer) {
    let modified = || std::fs::metadata(file(server)).and_then(|found| found.modified()).ok();
    for _ in 0..2 {
        let before = modified();
        eventually!("a snapshot is written", modified() != before);
    }
}

/// Since when, in whole seconds, it is known who comes.
async fn since(server: &TestServer) -> UnixMillis {
    let status = server.locate(&Peer::new().id()).await.unwrap_err();
    UnixMillis::parse(&fact_of(&status, "knowledge_since").unwrap()).unwrap()
}

/// A server whose clock stands at a minute ago: the next life comes a minute after its end, which is a short gap.
async fn a_minute_ago(change: impl FnOnce(&mut Config)) -> TestServer {
    let (clock, _) = Clock::manual(SystemTime::now() - Duration::from_secs(60));
    TestServer::start_at(clock, change).await
}

#[tokio::test]
async fn a_killed_server_comes_back_knowing_who_was_there() {
    let server = a_minute_ago(often).await;
    let (here, registered, gone) = (Peer::new(), Peer::new(), Peer::new());
    let _session = here.open(&server, 1).await.unwrap();
    registered.register(&server, 1).await.unwrap();
    gone.register(&server, 1).await.unwrap();
    gone.unregister(&server, 2).await.unwrap();
    written(&server).await;
    let killed = now();
    let server = server.restart().await;
    let found = server.locate(&here.id()).await.unwrap().presence;
    assert_eq!((found.state, found.home), (PresenceState::Suspect, Some(server.id)));
    let found = server.locate(&registered.id()).await.unwrap().presence;
    assert_eq!((found.state, found.source), (PresenceState::Online, PresenceSource::Registration));
    assert_eq!(reason(server.locate(&gone.id()).await), Reason::PeerOffline);
    assert_eq!(reason(gone.register(&server, 1).await), Reason::RecordStale, "the withdrawal holds");
    assert!(since(&server).await.plus(SECOND) > killed, "who came after the last snapshot is not known");

    assert_eq!(reason(here.open(&server, 1).await), Reason::SessionReplaced, "a replayed hello");
    let _session = here.open(&server, 2).await.unwrap();
    server.knows(&here.id(), PresenceState::Online).await;
}

#[tokio::test]
async fn a_server_that_drains_takes_along_what_it_knows_in_the_end() {
    let mut server = a_minute_ago(|config| {
        config.snapshot.enabled = true;
        config.snapshot.interval = Duration::from_secs(600);
    })
    .await;
    let peer = Peer::offering("chat");
    peer.register(&server, 1).await.unwrap();
    assert!(!file(&server).exists());
    let began = since(&server).await;
    server.drain().await;
    let server = server.restart().await;
    assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));
    assert!(since(&server).await <= began.plus(SECOND), "nothing happened that is not in the snapshot");
    // Killed before it has written another one: what happened in this life is lost.
    let late = Peer::new();
    let came = now();
    late.register(&server, 1).await.unwrap();
    let server = server.restart().await;
    assert_eq!(reason(server.locate(&late.id()).await), Reason::PeerUnknown);
    assert!(since(&server).await.plus(SECOND) > came);
}

#[tokio::test]
async fn a_snapshot_that_is_of_no_use_is_passed_over_and_replaced() {
    let mut server = TestServer::start(often).await;
    let peer = Peer::new();
    peer.register(&server, 1).await.unwrap();
    written(&server).await;
    server.drain().await;
    let mut bytes = std::fs::read(file(&server)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file(&server), &bytes).unwrap();
    let server = server.restart().await;
    assert_eq!(reason(server.locate(&peer.id()).await), Reason::PeerUnknown);
    let server = server.restart().await;
    assert_eq!(reason(server.locate(&peer.id()).await), Reason::PeerUnknown);
    peer.register(&server, 1).await.unwrap();
    written(&server).await;
    assert_eq!(server.restart().await.state(&peer.id()).await, Some(PresenceState::Online));
}

#[tokio::test]
async fn without_snapshots_nothing_is_written_and_nothing_read() {
    let mut server = TestServer::start(often).await;
    let peer = Peer::new();
    peer.register(&server, 1).await.unwrap();
    server.drain().await;
    server.config.snapshot.enabled = false;
    let before = std::fs::read(file(&server)).unwrap();
    let mut server = server.restart().await;
    assert_eq!(reason(server.locate(&peer.id()).await), Reason::PeerUnknown);
    server.drain().await;
    assert_eq!(std::fs::read(file(&server)).unwrap(), before);
}

#[tokio::test]
async fn a_restarted_member_finds_the_others_though_nobody_told_it_of_them_and_they_do_not_find_it() {
    let key = KeyFile::new();
    let secret = |config: &mut Config| config.bridge.key_file = Some(key.path());
    let first = TestServer::start(|config| {
        secret(config);
        often(config);
    })
    .await;
    let second = TestServer::start(|config| {
        secret(config);
        config.bridge.peers = vec![first.endpoint.clone()];
    })
    .await;
    eventually!("they are linked", first.links().await == 1 && second.links().await == 1);
    written(&first).await;
    let first = first.restart_elsewhere().await;
    eventually!("the first found the second", first.links().await == 1 && second.links().await == 1);
}
