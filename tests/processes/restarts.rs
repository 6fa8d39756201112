//! A rendezvous that is killed comes back by its snapshot.

use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use p2psb_client::Endpoint;
use p2psb_e2e::peer::{Peer, locate};
use p2psb_e2e::{Cluster, Service, eventually};
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::PresenceState;

fn modified(rendezvous: &Service) -> Option<SystemTime> {
    std::fs::metadata(rendezvous.data_dir().join("snapshot")).and_then(|found| found.modified()).ok()
}

/// What is said of a peer at once, without asking again.
async fn said(at: &Endpoint, peer: &PeerId) -> PresenceState {
    locate(at, peer).await.unwrap_or_else(|status| panic!("{peer}: {status}")).presence.state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_rendezvous_killed_again_and_again_never_takes_a_peer_for_unknown() {
    let mut cluster = Cluster::plan().rendezvous(1).bare().start().await.unwrap();
    let rendezvous = &mut cluster.rendezvous[0];
    rendezvous.stop().await.unwrap();
    rendezvous.set("snapshot.interval", "100ms");
    rendezvous.start().await.unwrap();
    let at = rendezvous.dialed().unwrap();
    let peers: Vec<Peer> = (0..3).map(|_| Peer::start(std::slice::from_ref(&at)).unwrap()).collect();
    for round in 0..5 {
        eventually!("all are online", peers.iter().all(|peer| peer.online() == 1));
        for _ in 0..2 {
            let before = modified(rendezvous);
            eventually!("a snapshot is written", modified(rendezvous) != before);
        }
        // At any moment, also in the middle of writing the next one.
        rendezvous.kill().await.unwrap();
        rendezvous.start().await.unwrap();
        for peer in &peers {
            let state = said(&at, &peer.id()).await;
            let is_there = matches!(state, PresenceState::Suspect | PresenceState::Online);
            assert!(is_there, "round {round}: {state:?}");
        }
    }
    eventually!("all are online again", peers.iter().all(|peer| peer.online() == 1));
    for peer in &peers {
        eventually!("and it says so", said(&at, &peer.id()).await == PresenceState::Online);
    }
    let snapshot = std::fs::metadata(rendezvous.data_dir().join("snapshot")).unwrap();
    assert_eq!(snapshot.permissions().mode() & 0o777, 0o600);

    let gone = peers.into_iter().next().unwrap();
    let id = gone.id();
    eventually!("a snapshot is there", modified(rendezvous).is_some());
    rendezvous.kill().await.unwrap();
    drop(gone);
    rendezvous.start().await.unwrap();
    assert_eq!(said(&at, &id).await, PresenceState::Suspect, "it may be back at once");
    cluster.stop().await.unwrap();
}
