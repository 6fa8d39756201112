//! Peers whose homes go, and where they go then.

use std::time::Duration;

use p2psb_client::session::SessionState;
use p2psb_e2e::eventually;
use p2psb_e2e::inside::stop;
use p2psb_e2e::peer::{Peer, locate};
use p2psb_proto::model::presence::PresenceState;
use p2psb_runtime::Service as _;

use super::backbone::meshed;
use super::stage::bridged;

/// The ports of the rendezvous at which a peer is online.
fn homes(peer: &Peer) -> Vec<u16> {
    let online = peer.sessions.status().into_iter().filter(|s| s.state == SessionState::Online);
    online.map(|s| s.endpoint.port()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_dies_is_replaced_by_a_rendezvous_that_was_learnt_from_others() {
    let mut backbone = bridged(5).await;
    meshed(&backbone).await;
    let peer = Peer::start(&backbone.endpoints[..1]).unwrap();
    eventually!("it has three homes, two of them learnt", homes(&peer).len() == 3);
    // The only one that is configured, then one that was learnt.
    let configured = backbone.endpoints[0].port();
    let learnt = homes(&peer).into_iter().find(|port| *port != configured).unwrap();
    for port in [configured, learnt] {
        backbone.servers.retain(|server| server.addr().port() != port);
        eventually!("it has three homes again, without the dead one", {
            let homes = homes(&peer);
            homes.len() == 3 && !homes.contains(&port)
        });
    }
    let at = format!("https://{}", backbone.servers[0].addr()).parse().unwrap();
    let found = locate(&at, &peer.id()).await.unwrap();
    assert_eq!(found.presence.state, PresenceState::Online);
    eventually!("its record names them", {
        let record = peer.sessions.record().unwrap();
        let live: Vec<_> =
            backbone.servers.iter().map(p2psb_rendezvous_svc::server::Server::peer_id).collect();
        record.value().homes.len() == 3 && record.value().homes.iter().all(|home| live.contains(home))
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_a_home_that_drains_is_online_all_the_time() {
    let mut backbone = bridged(3).await;
    meshed(&backbone).await;
    let peers: Vec<Peer> = (0..4).map(|_| Peer::start_with_homes(1, &backbone.endpoints).unwrap()).collect();
    for peer in &peers {
        eventually!("it has its home", homes(peer).len() == 1);
    }
    let (drained, other) = (backbone.servers.remove(0), backbone.endpoints[1].clone());
    for peer in &peers {
        let online = async || locate(&other, &peer.id()).await.map(|found| found.presence.state);
        eventually!("everybody knows", matches!(online().await, Ok(PresenceState::Online)));
    }
    let stopping = tokio::spawn(stop(drained));
    while !stopping.is_finished() {
        for peer in &peers {
            let found = locate(&other, &peer.id()).await.unwrap();
            assert_eq!(found.presence.state, PresenceState::Online, "{}", peer.id());
        }
    }
    stopping.await.unwrap();
    for peer in &peers {
        let drained = backbone.endpoints[0].port();
        eventually!("its home is another one", homes(peer).len() == 1 && !homes(peer).contains(&drained));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peers_of_a_rendezvous_that_dies_come_back_spread() {
    const PEERS: usize = 40;
    let mut backbone = bridged(2).await;
    meshed(&backbone).await;
    let (first, rest) = (backbone.servers.remove(0), backbone.endpoints.clone());
    let peers: Vec<Peer> = (0..PEERS).map(|_| Peer::start_with_homes(1, &rest[..1]).unwrap()).collect();
    for peer in &peers {
        eventually!("it has its home", homes(peer) == [rest[0].port()]);
    }
    let died = tokio::time::Instant::now();
    drop(first);
    let (mut moments, mut waiting) = (Vec::new(), peers.iter().collect::<Vec<_>>());
    eventually!("all are at the other one", {
        waiting.retain(|peer| {
            let is_back = homes(peer) == [rest[1].port()];
            moments.extend(is_back.then(|| died.elapsed()));
            !is_back
        });
        waiting.is_empty()
    });
    // Over a second, the least there is: most of them neither at once nor together.
    let early = moments.iter().filter(|moment| **moment < Duration::from_millis(300)).count();
    assert!(early < PEERS * 2 / 3, "{moments:?}");
    assert!(moments.iter().max().unwrap() > &Duration::from_millis(500), "{moments:?}");
}
