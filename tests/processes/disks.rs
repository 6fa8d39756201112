//! Disks that are full, or can't be written for a while: the fetch is kept, says why, and goes on.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use p2psb_e2e::tree::noise;
use p2psb_e2e::{Agent, Cluster, SmallDisk, eventually};
use serde_json::Value;

use super::stage::{agent_without_rights, assert_same, fetch, joined, large, publish, text, with_agents};

/// Longer than the longest pause that comes first.
const A_WHILE: Duration = Duration::from_secs(60);

/// Bob ran out of space in the middle of fetching what alice published.
struct Full {
    // First: what is on the disk ends before it goes.
    cluster: Cluster,
    disk: SmallDisk,
    input: PathBuf,
    reference: String,
    /// As bob names it, and where it is for the test.
    target: PathBuf,
    seen: PathBuf,
}

/// `None` where no disk can be mounted.
async fn full() -> Option<Full> {
    let mut cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let disk = match SmallDisk::mount(&cluster.dir().join("disk"), "40m") {
        Ok(disk) => disk,
        Err(trouble) => {
            // Past the capture of the test runner: who reads the log must see it.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {trouble}");
            return None;
        }
    };
    let agent = cluster.new_agent("bob");
    let bob = cluster.start_agent_changed(agent, |agent| agent.run_on(&disk)).await.unwrap();
    joined(&bob).await;

    let input = large(cluster.dir());
    let reference = text(&publish(&cluster.agent("alice").unwrap(), &input, &[]).await, "reference");
    fs::write(disk.seen_at().join("ballast"), noise(9, 30 << 20)).unwrap();
    let (target, seen) = (disk.at().join("target"), disk.seen_at().join("target"));
    let (reason, message) =
        bob.refused(&["fetch", &reference, "-o", target.to_str().unwrap()]).await.unwrap();
    assert_eq!(reason, "DISK_FULL", "{message}");
    assert!(message.contains("target.partial") && message.contains("is kept"), "{message}");
    assert!(!seen.exists(), "nothing half-written is to be seen");
    Some(Full { cluster, disk, input, reference, target, seen })
}

async fn only_fetch(agent: &Agent) -> Option<Value> {
    let status = agent.json(&["status"]).await.unwrap();
    let fetches = status["fetches"].as_array().unwrap();
    assert!(fetches.len() <= 1, "{status}");
    fetches.first().cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_ran_out_of_space_is_shown_with_its_reason_and_goes_on_by_itself() {
    let Some(Full { cluster, disk, input, target, seen, .. }) = full().await else { return };
    let bob = cluster.agent("bob").unwrap();
    let kept = only_fetch(&bob).await.unwrap();
    assert_eq!((text(&kept, "state"), text(&kept, "reason")), ("FAILED".into(), "DISK_FULL".into()));
    assert!(text(&kept, "error").contains("free some space"), "{kept}");
    let (done, total) = (kept["bytes_done"].as_u64().unwrap(), kept["bytes_total"].as_u64().unwrap());
    assert!(done > 4 << 20 && done < total, "{kept}");
    let said = bob.ok(&["status"]).await.unwrap().out;
    let way_out = format!("peer-agent cancel {}", target.display());
    assert!(said.contains("the disk is full") && said.contains(&way_out), "{said}");

    fs::remove_file(disk.seen_at().join("ballast")).unwrap();
    eventually!("nobody asked again, and it is there", within A_WHILE, seen.exists());
    assert_same(&input, &seen);
    eventually!("nothing is left to do", only_fetch(&bob).await.is_none());
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_ran_out_of_space_survives_a_restart_and_is_tried_at_once_when_it_is_asked_for() {
    let Some(Full { mut cluster, disk, input, reference, target, seen }) = full().await else { return };
    let bob = cluster.agent_service("bob").unwrap();
    assert!(bob.stop().await.unwrap().unwrap().success());
    bob.start().await.unwrap();
    let bob = bob.cli();
    joined(&bob).await;
    let kept = eventually!("it was tried again, and is kept again", {
        only_fetch(&bob).await.filter(|fetch| fetch["state"] == "FAILED")
    });
    assert!(kept["bytes_done"].as_u64().unwrap() > 4 << 20, "{kept}");

    // Asked for while there is no room, it says so again.
    let to = target.to_str().unwrap();
    assert_eq!(bob.refused(&["fetch", &reference, "-o", to]).await.unwrap().0, "DISK_FULL");
    fs::remove_file(disk.seen_at().join("ballast")).unwrap();
    fetch(&bob, &reference, &target).await;
    assert_same(&input, &seen);
    assert_eq!(only_fetch(&bob).await, None);
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_is_given_up_leaves_nothing() {
    let Some(Full { mut cluster, disk, reference, target, .. }) = full().await else { return };
    let bob = cluster.agent("bob").unwrap();
    let to = target.to_str().unwrap().to_owned();
    assert_eq!(text(&bob.json(&["cancel", &to]).await.unwrap(), "event"), "cancelled");
    let left: Vec<_> = fs::read_dir(disk.seen_at()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["ballast"]);
    assert_eq!(only_fetch(&bob).await, None);
    let (reason, message) = bob.refused(&["cancel", &to]).await.unwrap();
    assert_eq!(reason, "FETCH_UNKNOWN", "{message}");
    assert!(message.contains("target"), "{message}");

    let bob = cluster.agent_service("bob").unwrap();
    bob.stop().await.unwrap();
    bob.start().await.unwrap();
    let bob = bob.cli();
    joined(&bob).await;
    assert_eq!(only_fetch(&bob).await, None);
    fs::remove_file(disk.seen_at().join("ballast")).unwrap();
    fetch(&bob, &reference, &target).await;
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_waits_for_a_host_can_be_given_up_and_its_caller_is_told() {
    let mut cluster = with_agents(Cluster::plan(), &["alice", "bob"]).await;
    let bob = cluster.agent("bob").unwrap();
    let input = large(cluster.dir());
    let reference = text(&publish(&cluster.agent("alice").unwrap(), &input, &[]).await, "reference");
    cluster.agent_service("alice").unwrap().kill().await.unwrap();
    let target = cluster.dir().join("target");
    let to = target.to_str().unwrap().to_owned();
    let fetching = tokio::spawn({
        let (bob, to) = (bob.clone(), to.clone());
        async move { bob.refused(&["fetch", &reference, "-o", &to]).await.unwrap() }
    });
    eventually!("it waits", only_fetch(&bob).await.filter(|fetch| fetch["state"] == "WAITING"));
    bob.ok(&["cancel", &to]).await.unwrap();
    assert_eq!(fetching.await.unwrap().0, "CANCELLED");
    super::stage::assert_nothing_at(&target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_may_not_be_written_is_waited_for() {
    let mut cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let bob = agent_without_rights(&mut cluster, "bob").await;

    let input = large(cluster.dir());
    let reference = text(&publish(&cluster.agent("alice").unwrap(), &input, &[]).await, "reference");
    let locked = cluster.dir().join("locked");
    fs::create_dir(&locked).unwrap();
    let mode = |mode| fs::set_permissions(&locked, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    let target = locked.join("target");
    let (reason, message) =
        bob.refused(&["fetch", &reference, "-o", target.to_str().unwrap()]).await.unwrap();
    assert_eq!(reason, "TARGET_UNWRITABLE", "{message}");
    let kept = only_fetch(&bob).await.unwrap();
    assert_eq!(text(&kept, "reason"), "TARGET_UNWRITABLE", "{kept}");
    mode(0o777);
    eventually!("nobody asked again, and it is there", within A_WHILE, target.exists());
    assert_same(&input, &target);
    cluster.stop().await.unwrap();
}
