//! Whether an agent is reached from elsewhere: as its user sees it, and as others do.

use p2psb_e2e::{Cluster, eventually};
use serde_json::json;

use super::stage::{text, with_agents};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_reached_shows_it_and_others_dial_that_address_first() {
    let cluster = with_agents(Cluster::plan().rendezvous(3), &["alice", "bob"]).await;
    let (alice, bob) = (cluster.agent("alice").unwrap(), cluster.agent("bob").unwrap());
    let own = eventually!("a rendezvous has reached it", {
        let status = alice.json(&["status"]).await.unwrap();
        let own = status["own_addresses"].as_array().and_then(|all| all.first().cloned());
        own.filter(|own| own["confirmed_by"] != "")
    });
    assert_eq!((&own["reason"], own["expire_time"].is_string()), (&json!(""), true), "{own}");
    let by = text(&own, "confirmed_by");
    let servers: Vec<_> = cluster.rendezvous.iter().map(|one| one.peer_id().unwrap().to_string()).collect();
    assert!(servers.contains(&by), "{by} is none of {servers:?}");
    let said = alice.ok(&["status"]).await.unwrap().out;
    assert!(said.contains("reached from elsewhere, by"), "{said}");

    let id = text(&alice.json(&["status"]).await.unwrap(), "peer_id");
    let expected = format!("{} (confirmed)", text(&own, "address"));
    eventually!("others learn it, and believe it", {
        let located = bob.json(&["locate", &id]).await.unwrap();
        located["addresses"].as_array().unwrap().first() == Some(&json!(expected))
    });
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_rendezvous_an_agent_is_told_that_nobody_can_look() {
    let cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let alice = cluster.agent("alice").unwrap();
    let own = eventually!("it was told", {
        let status = alice.json(&["status"]).await.unwrap();
        let own = status["own_addresses"].as_array().and_then(|all| all.first().cloned());
        own.filter(|own| own["reason"] != "")
    });
    assert_eq!((text(&own, "reason").as_str(), &own["confirmed_by"]), ("NO_OTHER_MEMBER", &json!("")));
    cluster.stop().await.unwrap();
}
