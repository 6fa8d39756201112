//! Processes that are killed in the middle. A host of the harness passes some chunks on and then falls silent, so that
//! "in the middle" is a place and not a matter of luck.

use std::time::Duration;

use p2psb_e2e::liar::{Liar, Lie};
use p2psb_e2e::{Cluster, eventually};
use p2psb_proto::model::Digest;
use serde_json::Value;

use super::stage::{assert_same, fetch, joined, large, publish, text, with_agents};

/// Parts of chunks that pass before the silence: some of the content, far from all of it.
const PASSED: u64 = 60;

/// A cluster in which bob is in the middle of fetching what alice published.
struct Middle {
    cluster: Cluster,
    silent: Liar,
    input: std::path::PathBuf,
    target: std::path::PathBuf,
    reference: String,
    fetching: tokio::task::JoinHandle<p2psb_e2e::Result<Value>>,
}

async fn middle(rendezvous: usize) -> Middle {
    let cluster = with_agents(Cluster::plan().rendezvous(rendezvous), &["alice", "bob"]).await;
    let input = large(cluster.dir());
    let published = publish(&cluster.agent("alice").unwrap(), &input, &[]).await;
    let manifest: Digest = text(&published, "manifest_digest").parse().unwrap();
    let alice = cluster.agents[0].dialed().unwrap();
    let silent =
        Liar::start(Lie::Stalls { after: PASSED }, &cluster.endpoints().unwrap(), alice).await.unwrap();
    eventually!("the silent host is online", silent.peer().online() == rendezvous.min(3));
    // Who announced last is asked first.
    silent.claim(&cluster.index.as_ref().unwrap().dialed().unwrap(), manifest).await.unwrap();

    let (reference, target) = (text(&published, "reference"), cluster.dir().join("target"));
    let bob = cluster.agent("bob").unwrap();
    let (asked, to) = (reference.clone(), target.to_str().unwrap().to_owned());
    let fetching = tokio::spawn(async move { bob.json(&["fetch", &asked, "-o", &to]).await });
    eventually!("bob is in the middle of it", silent.told() > 0);
    let bob = cluster.agent("bob").unwrap();
    eventually!("some bytes are in place", {
        let status = bob.json(&["status"]).await.unwrap();
        status["fetches"].as_array().unwrap().iter().any(|f| f["bytes_done"].as_u64() > Some(0))
    });
    assert!(!target.exists(), "the target appears whole or not at all");
    Middle { cluster, silent, input, target, reference, fetching }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_in_the_middle_of_a_fetch_goes_on_where_it_was() {
    let Middle { mut cluster, silent, input, target, reference, fetching } = middle(1).await;
    let bob = cluster.agent_service("bob").unwrap();
    bob.kill().await.unwrap();
    assert!(fetching.await.unwrap().is_err(), "the caller is told that the agent went away");
    assert!(!target.exists());
    drop(silent);

    let bob = cluster.agent_service("bob").unwrap();
    bob.start().await.unwrap();
    let bob = bob.cli();
    joined(&bob).await;
    // The same command joins the fetch, which went on by itself.
    let fetched = fetch(&bob, &reference, &target).await;
    assert_same(&input, &target);
    let (bytes, total) =
        (fetched["bytes_fetched"].as_u64().unwrap(), fetched["total_size"].as_u64().unwrap());
    assert!(bytes <= total + total / 10, "{bytes} of {total}: what was there was fetched again");
    assert!(bob.json(&["status"]).await.unwrap()["fetches"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_stopped_in_the_middle_of_a_fetch_goes_on_by_itself_when_it_runs_again() {
    let Middle { mut cluster, silent, input, target, fetching, .. } = middle(1).await;
    let bob = cluster.agent_service("bob").unwrap();
    let status = bob.stop().await.unwrap().unwrap();
    assert!(status.success(), "SIGTERM is obeyed in the middle of a fetch, too: {status}");
    let told = fetching.await.unwrap().unwrap_err().to_string();
    assert!(told.contains("69") && told.contains("DRAINING"), "{told}");
    assert!(!target.exists());
    let beside = target.with_extension("partial");
    assert!(beside.is_dir(), "what was fetched is kept");
    drop(silent);

    let bob = cluster.agent_service("bob").unwrap();
    bob.start().await.unwrap();
    let bob = bob.cli();
    eventually!("nobody asked again, and it is there", within Duration::from_secs(60), target.exists());
    assert_same(&input, &target);
    eventually!("nothing is left to do", {
        bob.json(&["status"]).await.unwrap()["fetches"].as_array().unwrap().is_empty()
    });
    assert!(!beside.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rendezvous_killed_in_the_middle_of_a_fetch_disturbs_nobody() {
    let Middle { mut cluster, silent, input, target, fetching, .. } = middle(3).await;
    cluster.rendezvous[0].kill().await.unwrap();
    drop(silent);
    // The other host has to be located and dialed, with one rendezvous less.
    fetching.await.unwrap().unwrap();
    assert_same(&input, &target);

    let (bob, peer) = (cluster.agent("bob").unwrap(), cluster.agents[0].peer_id().unwrap().to_string());
    assert_eq!(text(&bob.json(&["locate", &peer]).await.unwrap(), "state"), "ONLINE");
    // And back: the peers return to it by themselves.
    cluster.rendezvous[0].start().await.unwrap();
    let at = cluster.rendezvous[0].dialed().unwrap();
    let id = cluster.agents[0].peer_id().unwrap();
    eventually!("the restarted rendezvous knows alice", within Duration::from_secs(60), {
        p2psb_e2e::peer::locate(&at, &id).await.map_err(|s| s.message().to_owned())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_killed_in_the_middle_is_waited_for() {
    let Middle { mut cluster, silent, input, target, fetching, .. } = middle(1).await;
    cluster.agent_service("alice").unwrap().kill().await.unwrap();
    drop(silent);
    let bob = cluster.agent("bob").unwrap();
    eventually!("bob says what it waits for", {
        let status = bob.json(&["status"]).await.unwrap();
        status["fetches"].as_array().unwrap().iter().any(|f| f["state"] == "WAITING")
    });
    cluster.agent_service("alice").unwrap().start().await.unwrap();
    fetching.await.unwrap().unwrap();
    assert_same(&input, &target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_killed_right_after_it_acknowledged_forgets_nothing() {
    let mut cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let alice = cluster.agent("alice").unwrap();
    let input = large(cluster.dir());
    let reference = text(&publish(&alice, &input, &[]).await, "reference");
    let index = cluster.index.as_mut().unwrap();
    index.kill().await.unwrap();
    index.start().await.unwrap();
    joined(&alice).await;
    let found = eventually!("the index answers", {
        alice.objects(&["search", "large"]).await.map(|found| found.into_iter().next()).unwrap_or_default()
    });
    assert!(reference.starts_with(&text(&found, "reference")), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rendezvous_that_is_down_at_start_keeps_nobody_from_working() {
    let mut cluster = with_agents(Cluster::plan().rendezvous(2), &[]).await;
    cluster.rendezvous[1].stop().await.unwrap();
    let agent = cluster.new_agent("alice");
    let cli = cluster.start_agent(agent).await.unwrap();
    joined(&cli).await;
    let status = cli.json(&["status"]).await.unwrap();
    let down = cluster.rendezvous[1].endpoint();
    let failed = status["sessions"].as_array().unwrap().iter().find(|s| s["state"] == "FAILED");
    let failed = failed.unwrap_or_else(|| panic!("{status}"));
    assert!(text(failed, "endpoint").starts_with(&down) && !text(failed, "error").is_empty(), "{failed}");

    cluster.rendezvous[1].start().await.unwrap();
    eventually!("it is joined once it is there", within Duration::from_secs(60), {
        let status = cli.json(&["status"]).await.unwrap();
        let sessions = status["sessions"].as_array().unwrap().clone();
        sessions.iter().any(|s| s["state"] == "ONLINE" && text(s, "endpoint").starts_with(&down))
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_program_drains_after_sigterm_and_ends_with_zero() {
    let mut cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let mut services: Vec<_> = cluster.agents.drain(..).collect();
    services.extend(cluster.discovery.take());
    services.extend(cluster.index.take());
    services.append(&mut cluster.rendezvous);
    for service in &mut services {
        let status = service.stop().await.unwrap().unwrap();
        assert!(status.success(), "{} ended with {status}", service.name);
    }
}
