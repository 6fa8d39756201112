//! What keeps a program from starting, and what does not: each is said with a text, a reason and an exit code, and leaves
//! what was there as it was.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use p2psb_e2e::{Cluster, Service, eventually};

use super::stage::{NOBODY, fails, joined, text, with_agents};

/// `EX_UNAVAILABLE`.
const UNAVAILABLE: i32 = 69;

async fn initialised(cluster: &Cluster, name: &str) -> Service {
    let agent = cluster.new_agent(name);
    agent.write_config().unwrap();
    agent.cli().ok(&["init"]).await.unwrap();
    agent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_named() {
    let mut cluster = Cluster::plan().start().await.unwrap();
    let agent = initialised(&cluster, "alice").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for key in ["listen", "control.listen", "metrics.listen"] {
        let set = format!("{key}={addr}");
        fails(&agent.cli(), &["--set", &set, "run"], UNAVAILABLE, "LISTEN_FAILED", &addr).await;
    }
    assert!(!agent.data_dir().join("control.json").exists());

    // A second one of each service, with the configuration of the first.
    let mut services: Vec<_> = cluster.rendezvous.drain(..).collect();
    services.extend(cluster.discovery.take());
    services.extend(cluster.index.take());
    for service in &services {
        let addr = service.addr().unwrap().to_string();
        // The file is from before the first one was given its port.
        service.write_config().unwrap();
        let said = service.cli().run(&["--set", "metrics.listen=off"]).await.unwrap();
        assert_eq!(said.code, UNAVAILABLE, "{}: {}{}", service.name, said.out, said.err);
        assert!(said.err.contains("LISTEN_FAILED") && said.err.contains(&addr), "{}", said.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_has_one_agent() {
    let mut cluster = with_agents(Cluster::plan().bare(), &[]).await;
    let mut first = initialised(&cluster, "alice").await;
    first.start().await.unwrap();
    let cli = first.cli();
    let folder = first.data_dir().display().to_string();
    let anywhere =
        ["--set", "listen=127.0.0.1:0", "--set", "control.listen=127.0.0.1:0", "--set", "metrics.listen=off"];
    fails(&cli, &[&anywhere[..], &["run"]].concat(), UNAVAILABLE, "AGENT_RUNNING", &folder).await;
    // The first one is none the worse for it, and still found.
    let status = cli.json(&["status"]).await.unwrap();
    assert_eq!(text(&status, "peer_id"), first.peer_id().unwrap().to_string());
    // However it ends, the folder is free again.
    first.kill().await.unwrap();
    first.start().await.unwrap();
    cli.ok(&["status"]).await.unwrap();
    cluster.agents.push(first);
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_that_may_not_be_used_is_named() {
    let cluster = Cluster::plan().bare().start().await.unwrap();
    let mut agent = initialised(&cluster, "alice").await;
    let (mut cli, data) = (agent.cli(), agent.data_dir());
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        // Root may use any folder, so it is somebody else who tries.
        mode(cluster.dir(), 0o711);
        agent.run_as(NOBODY).unwrap();
        cli = agent.cli().by(NOBODY);
    }
    let folder = data.display().to_string();
    for closed in [0o000, 0o500] {
        mode(&data, closed);
        fails(&cli, &["run"], UNAVAILABLE, "STORAGE_FAILED", &folder).await;
    }
    mode(&data, 0o000);
    fails(&cli, &["status"], 1, "STORAGE_FAILED", &folder).await;
    fails(&cli, &["id"], 1, "STORAGE_FAILED", &folder).await;
    // A folder that can't even be made.
    let inside = data.join("deeper");
    let inside = inside.to_str().unwrap();
    fails(&cli, &["--data-dir", inside, "run"], UNAVAILABLE, "STORAGE_FAILED", inside).await;
    fails(&cli, &["--data-dir", inside, "init"], 1, "STORAGE_FAILED", inside).await;
    mode(&data, 0o700);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_damaged_or_open_to_others_is_named_and_never_replaced() {
    let mut cluster = Cluster::plan().start().await.unwrap();
    let agent = initialised(&cluster, "alice").await;
    for name in ["identity.key", "publisher.key"] {
        let file = agent.data_dir().join(name);
        let (key, path) = (fs::read(&file).unwrap(), file.display().to_string());
        for damaged in [&b""[..], b"p2psb-secret-key-ed25519 0123\n", &key[..key.len() - 9], &[0xff; 200]] {
            fs::write(&file, damaged).unwrap();
            fails(&agent.cli(), &["run"], UNAVAILABLE, "STORAGE_FAILED", &path).await;
            fails(&agent.cli(), &["id"], 1, "STORAGE_FAILED", &path).await;
            fails(&agent.cli(), &["init"], 1, "STORAGE_FAILED", &path).await;
            assert_eq!(fs::read(&file).unwrap(), damaged, "{name}");
        }
        fs::write(&file, &key).unwrap();
        mode(&file, 0o644);
        fails(&agent.cli(), &["run"], UNAVAILABLE, "STORAGE_FAILED", "chmod 600").await;
        mode(&file, 0o600);
    }
    agent.cli().ok(&["id"]).await.unwrap();

    let mut services: Vec<_> = cluster.rendezvous.drain(..).collect();
    services.extend(cluster.discovery.take());
    services.extend(cluster.index.take());
    for service in &mut services {
        service.stop().await.unwrap();
        let file = service.data_dir().join("identity.key");
        fs::write(&file, "garbage").unwrap();
        let said = service.cli().run(&[]).await.unwrap();
        assert_eq!(said.code, UNAVAILABLE, "{}: {}", service.name, said.err);
        for named in ["STORAGE_FAILED", file.to_str().unwrap(), "restore it from a backup"] {
            assert!(said.err.contains(named), "{}: {named} is not in {}", service.name, said.err);
        }
        assert_eq!(fs::read(&file).unwrap(), b"garbage");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_only_rendezvous_is_down_runs_says_so_and_recovers() {
    let mut cluster = Cluster::plan().start().await.unwrap();
    cluster.rendezvous[0].stop().await.unwrap();
    let mut agent = initialised(&cluster, "alice").await;
    agent.start().await.unwrap();
    let cli = agent.cli();
    let down = cluster.rendezvous[0].endpoint();

    let status = eventually!("the status says what is wrong", {
        let status = cli.json(&["status"]).await.unwrap();
        (status["sessions"][0]["state"] == "FAILED").then_some(status)
    });
    let session = &status["sessions"][0];
    assert!(text(session, "endpoint").starts_with(&down), "{session}");
    assert!(text(session, "error").contains("refused"), "{session}");
    let said = cli.ok(&["status"]).await.unwrap();
    assert!(said.out.contains("FAILED") && said.out.contains(&down), "{}", said.out);
    let said = cli.run(&["--json", "health"]).await.unwrap();
    assert_eq!((said.code, said.last().unwrap()["healthy"].as_bool()), (1, Some(false)), "{}", said.out);
    let nobody = agent.peer_id().unwrap().to_string();
    for args in [&["search", "x"][..], &["locate", &nobody]] {
        fails(&cli, args, 1, "NO_RENDEZVOUS", "rendezvous").await;
    }

    cluster.rendezvous[0].start().await.unwrap();
    eventually!("it is healthy again", within Duration::from_secs(60), {
        cli.run(&["health"]).await.unwrap().code == 0
    });
    joined(&cli).await;
    let status = cli.json(&["status"]).await.unwrap();
    assert_eq!(text(&status["sessions"][0], "state"), "ONLINE", "{status}");
    cluster.agents.push(agent);
}
