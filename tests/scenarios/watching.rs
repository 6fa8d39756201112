//! Following peers over a backbone whose rendezvous come and go.

use std::collections::BTreeSet;

use p2psb_client::watch::{PresenceWatch, WatchEvent};
use p2psb_client::{Dialer, Endpoint, Identity, Locator};
use p2psb_e2e::inside::stop;
use p2psb_e2e::peer::{Peer, network};
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::PresenceState;

use super::stage::{bridged, unbridged};

fn watch(rendezvous: &[Endpoint], peers: &[PeerId]) -> PresenceWatch {
    let watcher = Identity::ephemeral().unwrap();
    let dialer = Dialer::new(Some(&watcher), None).unwrap();
    let locator = Locator::new(network().unwrap(), rendezvous, dialer);
    PresenceWatch::open(locator, watcher, &BTreeSet::from_iter(peers.iter().copied())).unwrap()
}

/// Reads until the peer is, or is not, online.
async fn until(watch: &mut PresenceWatch, peer: PeerId, online: bool) {
    let patience = std::time::Duration::from_secs(30);
    let seen = async {
        loop {
            let is_online = match watch.next().await.unwrap() {
                WatchEvent::Is(found) if found.peer_id() == peer => {
                    found.presence.state == PresenceState::Online
                }
                WatchEvent::Gone { peer: gone, .. } if gone == peer => false,
                _ => continue,
            };
            if is_online == online {
                return;
            }
        }
    };
    tokio::time::timeout(patience, seen).await.unwrap_or_else(|_| panic!("never told: online = {online}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_wherever_a_rendezvous_is_left() {
    let mut backbone = bridged(3).await;
    let identity = Identity::ephemeral().unwrap();
    let peer = identity.peer_id();
    let mut watch = watch(&backbone.endpoints, &[peer]);
    until(&mut watch, peer, false).await;
    while !backbone.servers.is_empty() {
        let here = Peer::start_as(identity.clone(), &backbone.endpoints, Vec::new(), None).unwrap();
        until(&mut watch, peer, true).await;
        here.sessions.shutdown().await;
        until(&mut watch, peer, false).await;
        stop(backbone.servers.remove(0)).await;
        backbone.endpoints.remove(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_followed_in_every_backbone() {
    let backbones = unbridged(2).await;
    let peers: Vec<Peer> =
        backbones.endpoints.iter().map(|at| Peer::start(std::slice::from_ref(at)).unwrap()).collect();
    let ids: Vec<PeerId> = peers.iter().map(Peer::id).collect();
    let mut watch = watch(&backbones.endpoints, &ids);
    let mut online = BTreeSet::new();
    while online.len() < 2 {
        if let WatchEvent::Is(found) = watch.next().await.unwrap()
            && found.presence.state == PresenceState::Online
        {
            online.insert(found.peer_id());
        }
    }
    let [gone, _stays] = <[Peer; 2]>::try_from(peers).ok().unwrap();
    let id = gone.id();
    gone.sessions.shutdown().await;
    until(&mut watch, id, false).await;
}
