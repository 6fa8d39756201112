//! Publish and fetch, as people do it.

use p2psb_e2e::tree::put;
use p2psb_e2e::{Cluster, eventually};
use serde_json::json;

use super::stage::{assert_same, fetch, joined, publish, text, with_agents};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_publishes_another_finds_and_fetches_across_three_rendezvous() {
    let cluster = with_agents(Cluster::plan().rendezvous(3), &["alice", "bob"]).await;
    let (alice, bob) = (cluster.agent("alice").unwrap(), cluster.agent("bob").unwrap());
    let input = cluster.dir().join("My Holiday");
    put(&input, "day 1/beach.txt", b"sand").unwrap();
    put(&input, "day 2/empty", b"").unwrap();

    let published = publish(&alice, &input, &["--title", "Pictures of sand", "--tag", "sea"]).await;
    let reference = text(&published, "reference");
    assert!(reference.contains('/') && reference.ends_with("@0.1.0"), "{reference}");
    assert_eq!((&published["file_count"], &published["total_size"]), (&json!(2), &json!(4)));

    let found = eventually!("the search finds it with its host", {
        let found = bob.objects(&["search", "sea", "sand"]).await.unwrap();
        found.into_iter().find(|p| p["host_count"] == 1)
    });
    assert_eq!(text(&found, "title"), "Pictures of sand");

    let target = cluster.dir().join("fetched");
    let fetched = fetch(&bob, &reference, &target).await;
    assert_eq!(text(&fetched, "reference"), reference);
    assert_same(&input, &target);

    // Each of the two is found by the other, through any rendezvous.
    let peer = cluster.agents[0].peer_id().unwrap().to_string();
    let located = bob.json(&["locate", &peer]).await.unwrap();
    assert_eq!((text(&located, "state"), text(&located, "peer_id")), ("ONLINE".into(), peer));
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_follow_each_other_and_requirements_choose() {
    let cluster = with_agents(Cluster::plan(), &["alice", "bob"]).await;
    let (alice, bob) = (cluster.agent("alice").unwrap(), cluster.agent("bob").unwrap());
    let (one, two) = (cluster.dir().join("one"), cluster.dir().join("two"));
    put(&one, "file", b"first").unwrap();
    put(&two, "file", b"second").unwrap();
    let first = publish(&alice, &one, &["--name", "notes"]).await;
    let second = publish(&alice, &two, &["--name", "notes"]).await;
    assert!(text(&first, "reference").ends_with("/notes@0.1.0"));
    assert!(text(&second, "reference").ends_with("/notes@0.2.0"));
    publish(&alice, &one, &["--name", "notes", "--version", "2.0.0-rc.1"]).await;
    let (reason, message) = alice
        .refused(&["publish", two.to_str().unwrap(), "--name", "notes", "--version", "0.1.0"])
        .await
        .unwrap();
    assert_eq!(reason, "VERSION_EXISTS", "{message}");

    // Without -o the folder is name-version, where the command was typed.
    let bob = bob.in_folder(cluster.dir().to_owned());
    bob.json(&["fetch", "notes"]).await.unwrap();
    assert_same(&two, &cluster.dir().join("notes-0.2.0"));
    bob.json(&["fetch", "notes@=0.1.0"]).await.unwrap();
    assert_same(&one, &cluster.dir().join("notes-0.1.0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_fetched_serves_when_the_publisher_is_gone() {
    let mut cluster = with_agents(Cluster::plan(), &["alice", "bob", "carol"]).await;
    let (alice, bob, carol) =
        (cluster.agent("alice").unwrap(), cluster.agent("bob").unwrap(), cluster.agent("carol").unwrap());
    let input = cluster.dir().join("input");
    put(&input, "a/b", b"content").unwrap();
    let reference = text(&publish(&alice, &input, &[]).await, "reference");
    fetch(&bob, &reference, &cluster.dir().join("of-bob")).await;
    eventually!("both are listed as hosts", {
        let found = carol.objects(&["search", "input"]).await.unwrap();
        found.iter().any(|p| p["host_count"] == 2)
    });
    cluster.agent_service("alice").unwrap().kill().await.unwrap();
    let target = cluster.dir().join("of-carol");
    fetch(&carol, &reference, &target).await;
    assert_same(&input, &target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_two_unbridged_backbones_joins_both() {
    let mut cluster = Cluster::plan().rendezvous(2).unbridged().start().await.unwrap();
    let agent = cluster.new_agent("alice");
    let cli = cluster.start_agent(agent).await.unwrap();
    joined(&cli).await;
    eventually!("it has a home in each", {
        let status = cli.json(&["status"]).await.unwrap();
        let online = status["sessions"].as_array().unwrap().iter().filter(|s| s["state"] == "ONLINE").count();
        online == 2
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_it_works_without_tls_inside_a_private_network() {
    let cluster = with_agents(Cluster::plan().rendezvous(2).plaintext(), &["alice", "bob"]).await;
    let input = cluster.dir().join("input");
    put(&input, "file", b"content").unwrap();
    let reference = text(&publish(&cluster.agent("alice").unwrap(), &input, &[]).await, "reference");
    let target = cluster.dir().join("target");
    fetch(&cluster.agent("bob").unwrap(), &reference, &target).await;
    assert_same(&input, &target);
}
