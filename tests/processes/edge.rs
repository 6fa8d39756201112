//! Agents with a rendezvous inside.

use std::net::SocketAddr;

use p2psb_e2e::cluster::Plan;
use p2psb_e2e::tree::{noise, put};
use p2psb_e2e::{Agent, Cluster, Service, eventually};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::stage::{assert_same, fails, fetch, joined, publish, text};

/// An agent that runs a rendezvous as well, on a port that the system chooses.
fn with_edge(cluster: &Cluster, name: &str) -> Service {
    let mut agent = cluster.new_agent(name);
    agent.set("edge.listen", "127.0.0.1:0");
    agent.flags = vec!["--rendezvous".into()];
    agent
}

async fn status(agent: &Agent) -> Value {
    agent.json(&["status"]).await.unwrap()
}

/// How others name the rendezvous inside an agent.
async fn endpoint(agent: &Agent) -> String {
    format!("https://{}", text(&status(agent).await["edge"], "listen_address"))
}

/// At how many rendezvous an agent is online, beside its own, and whether at its own.
async fn homes(agent: &Agent) -> (usize, bool) {
    let status = status(agent).await;
    let online = |own: bool| {
        let sessions = status["sessions"].as_array().unwrap().iter();
        sessions.filter(|one| one["state"] == "ONLINE" && one["own"].as_bool() == Some(own)).count()
    };
    (online(false), online(true) == 1)
}

/// What an agent says of how another one is.
async fn state(asked: &Agent, of: &str) -> String {
    match asked.json(&["locate", of]).await {
        Ok(located) => text(&located, "state"),
        Err(trouble) => trouble.to_string(),
    }
}

/// What the endpoint for operators answers.
async fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {at}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn id(agent: &Agent) -> String {
    text(&agent.json(&["id"]).await.unwrap(), "peer_id")
}

/// Three rendezvous, `alice` with an edge, and `bob`, who knows nobody but that edge.
async fn stage(plan: Plan) -> (Cluster, Agent, Agent) {
    let mut cluster = plan.rendezvous(3).start().await.unwrap();
    let alice = with_edge(&cluster, "alice");
    let alice = cluster.start_agent(alice).await.unwrap();
    let mut bob = cluster.new_agent("bob");
    bob.set("rendezvous", vec![endpoint(&alice).await]);
    let bob = cluster.start_agent(bob).await.unwrap();
    (cluster, alice, bob)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_around_finds_each_other_also_when_the_backbone_is_gone() {
    let (mut cluster, alice, bob) = stage(Cluster::plan().bare()).await;
    let (alice_id, bob_id) = (id(&alice).await, id(&bob).await);
    eventually!("alice has all her homes, her own beside them", homes(&alice).await == (3, true));
    eventually!("bob is found", state(&alice, &bob_id).await == "ONLINE");
    eventually!("alice is found", state(&bob, &alice_id).await == "ONLINE");

    for rendezvous in &mut cluster.rendezvous {
        rendezvous.kill().await.unwrap();
    }
    eventually!("alice has only her own", homes(&alice).await == (0, true));
    let said = alice.run(&["health"]).await.unwrap();
    assert_eq!(said.code, 1, "her own alone does not count: {}", said.out);
    assert_eq!(state(&alice, &bob_id).await, "ONLINE");
    assert_eq!(state(&bob, &alice_id).await, "ONLINE");

    // The agent says goodbye, and its rendezvous to its peers.
    let ended = cluster.agent_service("alice").unwrap().stop().await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_behind_an_edge_is_fetched_from_anywhere_and_the_other_way_round() {
    let (cluster, alice, bob) = stage(Cluster::plan().agent("carol")).await;
    let carol = cluster.agent("carol").unwrap();
    eventually!("the edge has its links", status(&alice).await["edge"]["members"] == 3);
    for agent in [&alice, &bob, &carol] {
        joined(agent).await;
    }
    let bob_id = id(&bob).await;
    eventually!("bob is found from the backbone", state(&carol, &bob_id).await == "ONLINE");
    let inputs = cluster.dir().join("inputs");
    for (from, to, name) in [(&bob, &carol, "there"), (&carol, &bob, "here")] {
        let input = inputs.join(name);
        put(&input, "a/file", name.as_bytes()).unwrap();
        put(&input, "noise", &noise(1, 300_000)).unwrap();
        publish(from, &input, &["--name", name]).await;
        let target = cluster.dir().join("fetched").join(name);
        fetch(to, name, &target).await;
        assert_same(&input, &target);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rendezvous_inside_is_the_same_after_a_restart_and_seen_from_outside() {
    let (mut cluster, alice, bob) = stage(Cluster::plan().bare()).await;
    let before = status(&alice).await["edge"].clone();
    assert_ne!(text(&before, "server_id"), id(&alice).await);
    eventually!("both have a session there", status(&alice).await["edge"]["sessions"] == 2);
    let said = alice.ok(&["status"]).await.unwrap().out;
    assert!(said.contains("inside this agent") && said.contains(&text(&before, "server_id")), "{said}");
    let metrics = cluster.agent_service("alice").unwrap().metrics().unwrap();
    eventually!(
        "its metrics are the agent's",
        get(metrics, "/metrics").await.contains("rendezvous_sessions 2")
    );
    assert!(get(metrics, "/status").await.contains("\"edge\""));

    let service = cluster.agent_service("alice").unwrap();
    service.stop().await.unwrap();
    service.set("edge.listen", text(&before, "listen_address"));
    service.start().await.unwrap();
    let after = status(&alice).await["edge"].clone();
    assert_eq!(
        (&after["server_id"], &after["listen_address"]),
        (&before["server_id"], &before["listen_address"])
    );
    eventually!("bob, who went elsewhere meanwhile, is well", homes(&bob).await.0 >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_rendezvous_inside_is_named() {
    let cluster = Cluster::plan().bare().start().await.unwrap();
    let agent = with_edge(&cluster, "alice");
    agent.write_config().unwrap();
    let cli = agent.cli();
    cli.ok(&["init"]).await.unwrap();
    for (set, key) in [
        ("edge.listen=nonsense", "edge.listen"),
        ("edge.members=nonsense", "edge.members"),
        ("edge.advertise=https://a..b:1", "edge.advertise"),
        ("edge.no_such=1", "edge.no_such"),
    ] {
        let said = cli.run(&["--set", set, "run", "--rendezvous"]).await.unwrap();
        assert!(said.code == 64 && said.err.contains(key), "{set}: {} {}", said.code, said.err);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let set = format!("edge.listen={addr}");
    fails(&cli, &["--set", &set, "run", "--rendezvous"], 69, "LISTEN_FAILED", "edge.listen").await;
    fails(&cli, &["--set", &set, "run", "--rendezvous"], 69, "LISTEN_FAILED", &addr).await;
}
