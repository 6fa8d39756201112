//! Hosts that lie: what they send is never written, and who lies is left for somebody honest.

use p2psb_e2e::liar::{Liar, Lie};
use p2psb_e2e::{Cluster, eventually};
use p2psb_proto::model::Digest;

use super::stage::{assert_same, fetch, large, publish, text, with_agents};

async fn fetched_in_spite_of(lie: Lie) {
    let cluster = with_agents(Cluster::plan(), &["alice", "bob"]).await;
    let input = large(cluster.dir());
    let published = publish(&cluster.agent("alice").unwrap(), &input, &[]).await;
    let manifest: Digest = text(&published, "manifest_digest").parse().unwrap();
    let alice = cluster.agents[0].dialed().unwrap();
    let liar = Liar::start(lie, &cluster.endpoints().unwrap(), alice).await.unwrap();
    eventually!("the liar is online", liar.peer().online() == 1);
    liar.claim(&cluster.index.as_ref().unwrap().dialed().unwrap(), manifest).await.unwrap();

    let target = cluster.dir().join("target");
    fetch(&cluster.agent("bob").unwrap(), &text(&published, "reference"), &target).await;
    assert!(liar.told() > 0, "the liar was not even asked");
    assert_same(&input, &target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_from_the_start() {
    fetched_in_spite_of(Lie::WrongBytes { after: 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_in_the_middle() {
    fetched_in_spite_of(Lie::WrongBytes { after: 40 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_that_can_not_be() {
    fetched_in_spite_of(Lie::WrongSize).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset() {
    fetched_in_spite_of(Lie::Resets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence() {
    fetched_in_spite_of(Lie::Stalls { after: 20 }).await;
}
