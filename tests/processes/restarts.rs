//! A rendezvous that is killed comes back by its snapshot, and an agent without it by the others that it remembers.

use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use p2psb_client::Endpoint;
use p2psb_e2e::peer::{Peer, locate};
use p2psb_e2e::{Agent, Cluster, Service, eventually};
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

/// At how many rendezvous an agent is online.
async fn homes(agent: &Agent) -> usize {
    let status = agent.json(&["status"]).await.unwrap();
    status["sessions"].as_array().unwrap().iter().filter(|one| one["state"] == "ONLINE").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_only_configured_rendezvous_is_gone_for_good_comes_home() {
    let mut cluster = Cluster::plan().rendezvous(3).bare().agent("bob").start().await.unwrap();
    let mut alice = cluster.new_agent("alice");
    alice.set("rendezvous", vec![cluster.rendezvous[0].endpoint()]);
    let alice = cluster.start_agent(alice).await.unwrap();
    eventually!("she has learnt of the others", homes(&alice).await == 3);
    let service = cluster.agent_service("alice").unwrap();
    let file = service.data_dir().join("known_rendezvous");
    service.stop().await.unwrap();
    let remembered = std::fs::read_to_string(&file).unwrap();
    for rendezvous in &cluster.rendezvous {
        let id = rendezvous.peer_id().unwrap().to_string();
        assert!(remembered.contains(&id), "{remembered}");
    }

    cluster.rendezvous[0].kill().await.unwrap();
    cluster.agent_service("alice").unwrap().start().await.unwrap();
    eventually!("the others are her homes", homes(&alice).await == 2);
    let bob = cluster.agents.iter().find(|agent| agent.name == "bob").unwrap().peer_id().unwrap().to_string();
    eventually!("and tell her where bob is", alice.ok(&["locate", &bob]).await);

    // Half of it is gone, and the rest is followed by garbage.
    let service = cluster.agent_service("alice").unwrap();
    service.stop().await.unwrap();
    let two: String = remembered.lines().take(4).flat_map(|line| [line, "\n"]).collect();
    std::fs::write(&file, [two.as_bytes(), &[0xff, 0, b'#', b'\n'][..]].concat()).unwrap();
    service.start().await.unwrap();
    eventually!("what is left is enough", homes(&alice).await == 2);
}
