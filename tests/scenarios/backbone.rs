//! Bridged rendezvous: what one of them knows, all of them tell.

use p2psb_client::Endpoint;
use p2psb_e2e::eventually;
use p2psb_e2e::inside::{bind, endpoint, stop};
use p2psb_e2e::peer::{Peer, client, locate};
use p2psb_proto::error::{Reason, reason_of};
use p2psb_proto::model::presence::PresenceState;
use p2psb_proto::model::{PeerId, PeerRecord, SecretKey, Signed};
use p2psb_proto::wire::rendezvous::v1::{FindByServiceRequest, ListRendezvousRequest};
use p2psb_rendezvous_svc::server::Server as Rendezvous;

use super::stage::{Backbone, bridged, rendezvous_settings, unbridged};

/// How many rendezvous a rendezvous lists, itself included.
async fn listed(at: &Endpoint) -> usize {
    let mut client = client(at).await.unwrap();
    let answer = client.list_rendezvous(ListRendezvousRequest::default()).await.unwrap().into_inner();
    answer.rendezvous.into_iter().filter(|r| r.connected).count()
}

async fn state(at: &Endpoint, peer: &PeerId) -> Option<PresenceState> {
    locate(at, peer).await.ok().map(|located| located.presence.state)
}

pub(crate) async fn meshed(backbone: &Backbone) {
    let all = backbone.endpoints.len();
    for at in &backbone.endpoints {
        eventually!("every member has a link to every other", listed(at).await == all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_that_knows_one_member_comes_to_know_all() {
    let mut backbone = bridged(2).await;
    let mut settings = rendezvous_settings(&backbone.folder("newcomer"));
    settings.bridge.key_file = Some(backbone.folder("bridge.key"));
    settings.bridge.peers = vec![backbone.endpoints[0].clone()];
    let newcomer = bind::<Rendezvous>(settings).await.unwrap();
    backbone.endpoints.push(endpoint(&newcomer).unwrap());
    backbone.servers.push(newcomer);
    meshed(&backbone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_located_at_each_of_three_rendezvous_and_leaves_them_at_once() {
    let backbone = bridged(3).await;
    meshed(&backbone).await;
    let peer = Peer::start(&backbone.endpoints[..1]).unwrap();
    let id = peer.id();
    for at in &backbone.endpoints {
        eventually!("the peer is online here", state(at, &id).await == Some(PresenceState::Online));
    }
    // Its record is the same everywhere, byte for byte.
    let mut digests = Vec::new();
    for at in &backbone.endpoints {
        digests.push(locate(at, &id).await.unwrap().record.value().seq);
    }
    eventually!("all hold the same record", {
        digests.clear();
        for at in &backbone.endpoints {
            digests.push(locate(at, &id).await.unwrap().record.value().seq);
        }
        digests.iter().all(|seq| *seq == digests[0])
    });
    peer.sessions.shutdown().await;
    for at in &backbone.endpoints {
        eventually!("the peer is offline here", state(at, &id).await != Some(PresenceState::Online));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_of_a_service_are_found_wherever_they_registered() {
    let backbone = bridged(2).await;
    meshed(&backbone).await;
    let offer = || vec![p2psb_proto::model::peer::ServiceOffer::new("chat".parse().unwrap())];
    let identity = || p2psb_client::Identity::ephemeral().unwrap();
    let a = Peer::start_as(identity(), &backbone.endpoints[..1], offer(), None).unwrap();
    let b = Peer::start_as(identity(), &backbone.endpoints[1..], offer(), None).unwrap();
    for at in &backbone.endpoints {
        eventually!("both are found", {
            let request = FindByServiceRequest { service: "chat".into(), ..Default::default() };
            let answer = client(at).await.unwrap().find_by_service(request).await.unwrap().into_inner();
            let mut found: Vec<_> = answer
                .peers
                .into_iter()
                .map(|p| Signed::<PeerRecord>::verify_field(p.record).unwrap().peer_id())
                .collect();
            found.sort();
            let mut expected = vec![a.id(), b.id()];
            expected.sort();
            found == expected
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_nobody_knows_is_refused_with_a_reason() {
    let backbone = bridged(1).await;
    let nobody = PeerId::new(SecretKey::from_seed(&[9; 32]).public());
    let status = locate(&backbone.endpoints[0], &nobody).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::PeerUnknown), "{status}");
    assert!(status.message().contains(&nobody.to_string()), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rendezvous_with_different_keys_do_not_bridge() {
    let backbone = bridged(1).await;
    let key = backbone.folder("other.key");
    std::fs::write(&key, hex::encode([8; 32])).unwrap();
    let mut settings = rendezvous_settings(&backbone.folder("stranger"));
    settings.bridge.key_file = Some(key);
    settings.bridge.peers = backbone.endpoints.clone();
    let stranger = bind::<Rendezvous>(settings).await.unwrap();
    let at = endpoint(&stranger).unwrap();
    let peer = Peer::start(std::slice::from_ref(&at)).unwrap();
    eventually!(
        "the peer is online at the stranger",
        state(&at, &peer.id()).await == Some(PresenceState::Online)
    );
    assert_eq!((listed(&at).await, listed(&backbone.endpoints[0]).await), (1, 1));
    assert_eq!(state(&backbone.endpoints[0], &peer.id()).await, None, "nothing crosses");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_has_homes_in_two_backbones_that_know_nothing_of_each_other() {
    let backbone = unbridged(2).await;
    let peer = Peer::start(&backbone.endpoints).unwrap();
    eventually!("it is online at both", peer.online() == 2);
    for at in &backbone.endpoints {
        eventually!("it is online here", state(at, &peer.id()).await == Some(PresenceState::Online));
        assert_eq!(listed(at).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_of_a_rendezvous_that_stops_are_found_through_the_others() {
    let mut backbone = bridged(3).await;
    meshed(&backbone).await;
    let peer = Peer::start(&backbone.endpoints).unwrap();
    eventually!("it is online at all three", peer.online() == 3);
    stop(backbone.servers.remove(0)).await;
    for at in &backbone.endpoints[1..] {
        eventually!("it is still online here", state(at, &peer.id()).await == Some(PresenceState::Online));
    }
    eventually!("its session there has ended", peer.online() == 2);
}
