//! Fetching into a folder that was fetched before: it is made whole again.

use std::fs;

use p2psb_e2e::tree::{noise, put};
use p2psb_e2e::{Cluster, eventually};
use serde_json::json;

use super::stage::{assert_same, fetch, joined, large, publish, text, with_agents};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_folder_is_repaired_and_what_was_added_to_it_stays() {
    let mut cluster = with_agents(Cluster::plan(), &["alice", "bob"]).await;
    let bob = cluster.agent("bob").unwrap();
    let input = large(cluster.dir());
    let reference = text(&publish(&cluster.agent("alice").unwrap(), &input, &[]).await, "reference");
    let target = cluster.dir().join("target");
    let first = fetch(&bob, &reference, &target).await;
    assert_eq!(first["files_repaired"], json!(0));

    // One file is gone, one has a wrong bit in the middle, both while the agent is away.
    cluster.agent_service("bob").unwrap().stop().await.unwrap();
    fs::remove_file(target.join("z/last")).unwrap();
    let mut bytes = fs::read(target.join("noise")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(target.join("noise"), bytes).unwrap();
    put(&target, "mine", b"precious").unwrap();
    let bob = cluster.agent_service("bob").unwrap();
    bob.start().await.unwrap();
    let bob = bob.cli();
    joined(&bob).await;

    let again = fetch(&bob, &reference, &target).await;
    assert_eq!(again["files_repaired"], json!(2), "{again}");
    let fetched = again["bytes_fetched"].as_u64().unwrap();
    assert!(fetched > 300_000 && fetched < 1_000_000, "{fetched} bytes came for what is much less: {again}");
    assert_eq!(fs::read(target.join("mine")).unwrap(), b"precious");
    fs::remove_file(target.join("mine")).unwrap();
    assert_same(&input, &target);
    assert!(!target.with_extension("partial").exists());

    let shared = |status: &serde_json::Value| text(&status["shared"][0], "problem");
    assert_eq!(shared(&bob.json(&["status"]).await.unwrap()), "");
    // For people: what was done is said, and that there was nothing to do, is not.
    fs::write(target.join("first"), b"other").unwrap();
    let to = target.to_str().unwrap();
    let said = bob.ok(&["fetch", &reference, "-o", to]).await.unwrap();
    assert!(said.out.contains("repaired 1 file "), "{}", said.out);
    let said = bob.ok(&["fetch", &reference, "-o", to]).await.unwrap();
    assert!(!said.out.contains("repaired"), "{}", said.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_whose_damage_was_noticed_by_others_is_served_again_once_it_is_repaired() {
    let mut cluster = with_agents(Cluster::plan(), &["alice", "bob", "carol"]).await;
    let (bob, carol) = (cluster.agent("bob").unwrap(), cluster.agent("carol").unwrap());
    let input = cluster.dir().join("input");
    put(&input, "file", &noise(1, 200_000)).unwrap();
    let reference = text(&publish(&cluster.agent("alice").unwrap(), &input, &[]).await, "reference");
    let target = cluster.dir().join("target");
    fetch(&bob, &reference, &target).await;
    fs::write(target.join("file"), noise(2, 200_000)).unwrap();
    cluster.agent_service("alice").unwrap().stop().await.unwrap();

    let to = cluster.dir().join("of-carol");
    let waiting = tokio::spawn({
        let (carol, reference, to) = (carol.clone(), reference.clone(), to.to_str().unwrap().to_owned());
        async move { carol.json(&["fetch", &reference, "-o", &to]).await }
    });
    eventually!("bob says that his copy changed", {
        let status = bob.json(&["status"]).await.unwrap();
        text(&status["shared"][0], "problem").contains("file")
    });
    assert!(!to.exists());
    // Bob can't repair it alone; once alice is back he can, and carol gets it.
    cluster.agent_service("alice").unwrap().start().await.unwrap();
    assert_eq!(fetch(&bob, &reference, &target).await["files_repaired"], json!(1));
    assert_same(&input, &target);
    let status = bob.json(&["status"]).await.unwrap();
    assert_eq!(text(&status["shared"][0], "problem"), "");
    waiting.await.unwrap().unwrap();
    assert_same(&input, &to);
}
