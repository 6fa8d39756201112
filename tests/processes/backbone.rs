//! A backbone of five members, three of which own what is known of a peer: members die, stop, and come back.

use p2psb_client::Endpoint;
use p2psb_e2e::cluster::Cluster;
use p2psb_e2e::eventually;
use p2psb_e2e::peer::{Peer, locate};
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::PresenceState;

/// Whether every peer is ONLINE as each of these members says.
async fn all_online(at: &[Endpoint], peers: &[PeerId]) -> bool {
    for endpoint in at {
        for peer in peers {
            let state = locate(endpoint, peer).await.ok().map(|located| located.presence.state);
            if state != Some(PresenceState::Online) {
                return false;
            }
        }
    }
    true
}

/// All but one.
fn others(all: &[Endpoint], but: usize) -> Vec<Endpoint> {
    all.iter().enumerate().filter(|(n, _)| *n != but).map(|(_, one)| one.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_becomes_of_one_of_five_members_the_others_know_every_peer() {
    let mut cluster = Cluster::plan().bare().rendezvous(5).start().await.unwrap();
    let all = cluster.endpoints().unwrap();
    // Everybody has three homes.
    let at = |n: usize| (0..3).map(|k| all[(n + k) % all.len()].clone()).collect::<Vec<_>>();
    let peers: Vec<Peer> = (0..10).map(|n| Peer::start(&at(n)).unwrap()).collect();
    let ids: Vec<PeerId> = peers.iter().map(Peer::id).collect();
    eventually!("every peer is online at each", all_online(&all, &ids).await);

    cluster.rendezvous[1].kill().await.unwrap();
    eventually!("the others know them when one died", all_online(&others(&all, 1), &ids).await);
    cluster.rendezvous[1].start().await.unwrap();
    eventually!("and so does that one when it is back", all_online(&all, &ids).await);

    // It hangs, with all its connections open.
    cluster.rendezvous[2].process().unwrap().signal("STOP").unwrap();
    eventually!("the others do not wait for one that hangs", all_online(&others(&all, 2), &ids).await);
    cluster.rendezvous[2].process().unwrap().signal("CONT").unwrap();
    eventually!("which goes on as if nothing had been", all_online(&all, &ids).await);

    let status = cluster.rendezvous[3].stop().await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    eventually!("one that was drained is missed by nobody", all_online(&others(&all, 3), &ids).await);
    drop(peers);
}
