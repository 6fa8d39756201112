//! What people type wrong, or at the wrong time: every answer is a text that names what is wrong, a reason that never
//! changes, and an exit code; with `--json` the same as an object.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use p2psb_e2e::tree::put;
use p2psb_e2e::{Cluster, Service};
use p2psb_proto::model::{PeerId, SecretKey};

use super::stage::{assert_nothing_at, fails, publish, text, with_agents};

/// Done wrong, by whoever asks.
const REFUSED: i32 = 1;
/// `EX_USAGE`.
const USAGE: i32 = 64;
/// `EX_UNAVAILABLE`.
const UNAVAILABLE: i32 = 69;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_or_can_not_be_read_is_named_in_both_forms() {
    let cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let alice = cluster.agent("alice").unwrap();
    let input = cluster.dir().join("demo");
    put(&input, "file", b"x").unwrap();
    publish(&alice, &input, &[]).await;
    let nobody = PeerId::new(SecretKey::from_seed(&[9; 32]).public()).to_string();
    let (target, folder) = (cluster.dir().join("target"), input.display().to_string());
    let to = target.to_str().unwrap();
    let cases: [(&[&str], &str, &str); 10] = [
        (&["locate", &nobody], "PEER_UNKNOWN", &nobody),
        (&["locate", &nobody[..nobody.len() - 1]], "INVALID_ARGUMENT", &nobody[..20]),
        (&["fetch", "nothing", "-o", to], "PACKAGE_UNKNOWN", "nothing"),
        (&["fetch", "demo@^9", "-o", to], "RELEASE_UNKNOWN", "9"),
        (&["fetch", "demo@>=1 <", "-o", to], "REQUIREMENT_INVALID", ">=1 <"),
        (&["fetch", "../demo", "-o", to], "REFERENCE_INVALID", "\"..\""),
        (&["publish", to], "PATH_MISSING", to),
        (&["publish", &folder, "--version", "01.0.0"], "VERSION_INVALID", "01.0.0"),
        (&["publish", &folder, "--name", "Two Words"], "INVALID_ARGUMENT", "Two Words"),
        (&["publish", &folder, "--title", "one\ntwo"], "INVALID_ARGUMENT", "title"),
    ];
    for (args, reason, named) in cases {
        fails(&alice, args, REFUSED, reason, named).await;
    }
    assert_nothing_at(&target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_none_ends_with_64_and_says_what_there_is() {
    let cluster = Cluster::plan().bare().start().await.unwrap();
    let agent = cluster.new_agent("alice");
    agent.write_config().unwrap();
    for (args, named) in [
        (&["fech", "demo"][..], "fetch"),
        (&["fetch"], "<REF>"),
        (&["search", "x", "--limit", "0"], "0"),
        (&["init", "--rendezvous", "nonsense"], "nonsense"),
        (&["status", "--colour"], "--colour"),
        (&[], "Usage"),
    ] {
        let said = agent.cli().run(args).await.unwrap();
        assert_eq!(said.code, USAGE, "{args:?}: {}{}", said.out, said.err);
        assert!(said.err.contains(named) && said.out.is_empty(), "{args:?}: {}{}", said.out, said.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_is_wrong_is_named_by_every_verb() {
    let cluster = Cluster::plan().bare().start().await.unwrap();
    let agent = cluster.new_agent("alice");
    agent.write_config().unwrap();
    let cli = agent.cli();
    for verb in ["status", "id", "health", "run"] {
        for (set, named) in [
            ("lisen=127.0.0.1:0", "did you mean `listen`?"),
            ("listen=nonsense", "listen"),
            ("rendezvous=nonsense", "rendezvous"),
            ("drain.deadline=soon", "drain.deadline"),
        ] {
            fails(&cli, &["--set", set, verb], USAGE, "INVALID_ARGUMENT", named).await;
        }
    }
    // What is wrong with a value beyond its form is for `run` to say.
    for (set, named) in [
        ("network.name=A B", "network.name"),
        ("control.listen=192.0.2.1:7440", "loopback"),
        ("advertise=http://me.example:1", "https://"),
        ("telemetry.log.filter=a=b=c", "telemetry.log.filter"),
    ] {
        let said = cli.run(&["--json", "--set", set, "run"]).await.unwrap();
        assert_eq!(said.code, USAGE, "{set}: {}{}", said.out, said.err);
        let last = said.last().unwrap();
        assert_eq!(text(&last, "reason"), "INVALID_ARGUMENT", "{last}");
        assert!(text(&last, "message").contains(named) && said.err.contains(named), "{last}\n{}", said.err);
    }
    // In the file it is the file that is named, and its line where it is no TOML.
    let file = agent.config();
    for (written, named) in [("rendezvou = []\n", "rendezvous"), ("listen = \n", "line 1")] {
        fs::write(&file, written).unwrap();
        fails(&cli, &["status"], USAGE, "INVALID_ARGUMENT", named).await;
        fails(&cli, &["run"], USAGE, "INVALID_ARGUMENT", file.to_str().unwrap()).await;
    }
    assert!(!agent.data_dir().exists(), "nothing was begun");
}

/// Changes the file by which an agent is found.
fn rewrite(agent: &Service, change: impl FnOnce(String) -> String) {
    let file = agent.data_dir().join("control.json");
    let changed = change(fs::read_to_string(&file).unwrap());
    fs::write(&file, changed).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_can_not_be_reached_is_told_from_one_that_refuses() {
    let mut cluster = with_agents(Cluster::plan().bare(), &[]).await;
    let mut agent = cluster.new_agent("alice");
    agent.write_config().unwrap();
    let cli = agent.cli();
    fails(&cli, &["id"], REFUSED, "STORAGE_FAILED", "peer-agent init").await;
    cli.ok(&["init"]).await.unwrap();
    for verb in [&["status"][..], &["search", "x"], &["fetch", "x"], &["locate", "x"], &["health"]] {
        fails(&cli, verb, UNAVAILABLE, "UNREACHABLE", "peer-agent run").await;
    }
    agent.start().await.unwrap();
    cli.ok(&["status"]).await.unwrap();

    // The token of another start, or of another agent.
    let control = fs::read_to_string(agent.data_dir().join("control.json")).unwrap();
    let control: serde_json::Value = serde_json::from_str(&control).unwrap();
    let (right, wrong) = (text(&control, "token"), "0".repeat(64));
    rewrite(&agent, |file| file.replace(&right, &wrong));
    for verb in [&["status"][..], &["search", "x"], &["fetch", "x"], &["publish", "/etc/hosts"]] {
        fails(&cli, verb, REFUSED, "AUTHENTICATION_REQUIRED", "control.json").await;
    }
    rewrite(&agent, |_| "{\"addr\": ".into());
    fails(&cli, &["status"], REFUSED, "STORAGE_FAILED", "control.json").await;

    // Killed, it leaves a file behind that leads to nobody.
    rewrite(&agent, |_| control.to_string());
    cli.ok(&["status"]).await.unwrap();
    agent.kill().await.unwrap();
    fails(&cli, &["status"], UNAVAILABLE, "UNREACHABLE", "peer-agent run").await;
    cluster.agents.push(agent);
}
