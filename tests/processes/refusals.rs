//! What an agent refuses, and how it says so.

use std::fs;

use p2psb_e2e::Cluster;
use p2psb_e2e::tree::put;
use p2psb_proto::model::{PeerId, PublisherId, SecretKey};

use super::stage::{assert_nothing_at, fetch, publish, text, with_agents};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_without_an_answer_have_a_reason() {
    let cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let alice = cluster.agent("alice").unwrap();
    let input = cluster.dir().join("demo");
    put(&input, "file", b"x").unwrap();
    publish(&alice, &input, &[]).await;

    let stranger = SecretKey::from_seed(&[9; 32]).public();
    let (peer, publisher) = (PeerId::new(stranger).to_string(), PublisherId::new(stranger).to_string());
    let target = cluster.dir().join("target");
    let to = target.to_str().unwrap();
    let foreign = format!("{publisher}/demo");
    let cases: [(&[&str], &str, &str); 9] = [
        (&["locate", &peer], "PEER_UNKNOWN", &peer),
        (&["locate", "peer1typo"], "INVALID_ARGUMENT", "peer1typo"),
        (&["fetch", "nothing", "-o", to], "PACKAGE_UNKNOWN", "nothing"),
        (&["fetch", &foreign, "-o", to], "PACKAGE_UNKNOWN", "demo"),
        (&["fetch", "demo@^9", "-o", to], "RELEASE_UNKNOWN", "9"),
        (&["fetch", "demo@not-a-version", "-o", to], "REQUIREMENT_INVALID", "not-a-version"),
        (&["fetch", "De mo", "-o", to], "REFERENCE_INVALID", "De mo"),
        (&["publish", input.to_str().unwrap(), "--version", "1"], "VERSION_INVALID", "1"),
        (&["publish", input.to_str().unwrap(), "--name", "Ä"], "INVALID_ARGUMENT", "Ä"),
    ];
    for (args, expected, named) in cases {
        let (reason, message) = alice.refused(args).await.unwrap();
        assert_eq!(reason, expected, "{args:?}: {message}");
        assert!(message.contains(named), "{args:?}: {message}");
    }
    assert_nothing_at(&target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_exists_is_left_alone() {
    let cluster = with_agents(Cluster::plan(), &["alice", "bob"]).await;
    let (alice, bob) = (cluster.agent("alice").unwrap(), cluster.agent("bob").unwrap());
    let input = cluster.dir().join("demo");
    put(&input, "file", b"new").unwrap();
    let reference = text(&publish(&alice, &input, &[]).await, "reference");
    let target = cluster.dir().join("target");
    put(&target, "mine", b"precious").unwrap();
    let (reason, message) =
        bob.refused(&["fetch", &reference, "-o", target.to_str().unwrap()]).await.unwrap();
    assert_eq!(reason, "TARGET_EXISTS", "{message}");
    assert!(message.contains("target"), "{message}");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    assert_eq!(fs::read(target.join("mine")).unwrap(), b"precious");

    // A file in the way of a folder above it.
    let blocked = put(cluster.dir(), "blocked", b"").unwrap().join("target");
    let (reason, message) =
        bob.refused(&["fetch", &reference, "-o", blocked.to_str().unwrap()]).await.unwrap();
    assert_eq!(reason, "TARGET_UNWRITABLE", "{message}");
    assert!(message.contains("blocked"), "{message}");

    // And the same command with a free target works.
    let free = cluster.dir().join("free");
    fetch(&bob, &reference, &free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_two_publishers_have_must_be_said_in_full() {
    let cluster = with_agents(Cluster::plan(), &["alice", "bob"]).await;
    let (alice, bob) = (cluster.agent("alice").unwrap(), cluster.agent("bob").unwrap());
    let input = cluster.dir().join("demo");
    put(&input, "file", b"x").unwrap();
    let one = text(&publish(&alice, &input, &[]).await, "reference");
    publish(&bob, &input, &[]).await;
    let (reason, message) = bob.refused(&["fetch", "demo"]).await.unwrap();
    assert_eq!(reason, "NAME_AMBIGUOUS", "{message}");
    assert!(message.contains(one.split('/').next().unwrap()), "{message} lists the publishers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_running_agent_the_command_line_says_so() {
    let cluster = Cluster::plan().bare().start().await.unwrap();
    let agent = cluster.new_agent("alice");
    agent.write_config().unwrap();
    agent.cli().ok(&["init"]).await.unwrap();
    for args in [&["status"][..], &["search", "x"], &["fetch", "x"], &["health"]] {
        let said = agent.cli().run(args).await.unwrap();
        assert_eq!(said.code, 69, "{args:?}: {}", said.err);
        assert!(said.err.contains("peer-agent run"), "{}", said.err);
    }
    // Without an agent the ids can be shown all the same.
    let ids = agent.cli().json(&["id"]).await.unwrap();
    assert_eq!(text(&ids, "peer_id"), agent.peer_id().unwrap().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_port_answers_nobody_without_the_token() {
    let cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let control = fs::read_to_string(cluster.agents[0].data_dir().join("control.json")).unwrap();
    let control: serde_json::Value = serde_json::from_str(&control).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(cluster.agents[0].data_dir().join("control.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    use p2psb_proto::wire::agent::v1::{GetStatusRequest, agent_service_client::AgentServiceClient};
    let endpoint: p2psb_client::Endpoint = format!("http://{}", text(&control, "addr")).parse().unwrap();
    let connection = p2psb_client::Dialer::new(None, None).unwrap().dial(&endpoint).await.unwrap();
    let origin = connection.origin();
    let mut client = AgentServiceClient::with_origin(connection, origin);
    let status = client.get_status(GetStatusRequest::default()).await.unwrap_err();
    let reason = p2psb_proto::error::reason_of(&status);
    assert_eq!(reason, Some(p2psb_proto::error::Reason::AuthenticationRequired), "{status}");
}
