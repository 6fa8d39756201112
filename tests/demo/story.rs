//! What the demo does, step by step.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use p2psb_client::{Dialer, Endpoint};
use p2psb_e2e::eventually::wait_for;
use p2psb_e2e::memory::Sampler;
use p2psb_e2e::tree::Tree;
use p2psb_e2e::trouble::Context as _;
use p2psb_e2e::{Agent, Binaries, Cluster, Result, Service, Trouble};
use p2psb_proto::model::PeerId;
use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::wire::discovery::v1::LocateRequest;
use p2psb_proto::wire::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use serde_json::{Value, json};

use crate::tell::{Count, Pace, Size, Teller, rounded};

const PUBLISHER: &str = "alice";
const FETCHER: &str = "bob";

/// How long publishing or fetching may take: inputs may have gigabytes.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

/// How long agents may take to find rendezvous and index.
const JOINING: Duration = Duration::from_secs(60);

/// How long a query may take.
const QUERY: Duration = Duration::from_secs(10);

/// What there is to try afterwards.
pub(crate) struct Told {
    reference: String,
    publisher: PeerId,
}

/// Builds and starts everything.
pub(crate) async fn start(teller: &Teller) -> Result<Cluster> {
    teller.remark("p2pSB on this machine: a backbone, its services, and two members who share a folder\n");
    teller.say("building", "building the four programs (the first time takes minutes)", json!({}));
    tokio::task::spawn_blocking(Binaries::build).await.context("building")??;

    teller.say(
        "starting",
        "starting three bridged rendezvous, discovery, the package index, and two agents",
        json!({}),
    );
    let plan = Cluster::plan().prefix("p2psb-demo-").rendezvous(3).agent(PUBLISHER).agent(FETCHER);
    let cluster = plan.start().await?;
    let dir = cluster.dir().display();
    teller.say("started", format_args!("they run, in {dir}"), json!({ "folder": dir.to_string() }));
    for service in cluster.services() {
        introduce(service, teller)?;
    }
    Ok(cluster)
}

fn introduce(service: &Service, teller: &Teller) -> Result<()> {
    let (id, pid) = (service.peer_id()?, service.pid());
    let facts = json!({
        "name": service.name,
        "program": service.program.name(),
        "pid": pid,
        "id": id.to_string(),
        "endpoint": service.endpoint(),
        "metrics": format!("http://{}", service.metrics()?),
        "data_dir": service.data_dir(),
        "config": service.config(),
        "log": service.log(),
    });
    let pid = pid.unwrap_or_default();
    let line = format!("{:<10} {:<24} {}…  pid {pid}", service.name, service.endpoint(), id.short());
    teller.add("process", line, facts);
    Ok(())
}

/// Publish, search, locate, fetch, compare.
pub(crate) async fn tell(cluster: &Cluster, input: &Path, teller: &Teller) -> Result<Told> {
    let (alice, bob) = (cluster.agent(PUBLISHER)?, cluster.agent(FETCHER)?);
    let (alice, bob) = (alice.patient(PATIENCE), bob.patient(PATIENCE));
    let sampler = Sampler::start(agents(cluster).filter_map(Service::pid).collect());
    for agent in [&alice, &bob] {
        wait_for("the agents find rendezvous and index", JOINING, async || joined(agent).await).await?;
    }
    teller.say(
        "joined",
        "both agents know only the rendezvous; through them they found the index",
        json!({}),
    );

    let reference = publish(&alice, input, teller).await?;
    search(&bob, &reference, teller).await?;
    let publisher = service(cluster, PUBLISHER)?.peer_id()?;
    locate(cluster, &publisher, teller).await?;
    let target = cluster.dir().join("fetched");
    fetch(&bob, &reference, &target, teller).await?;
    let same = compare(input, target, teller).await;
    memory(cluster, &sampler, teller);
    same.map(|()| Told { reference, publisher })
}

fn agents(cluster: &Cluster) -> impl Iterator<Item = &Service> {
    cluster.agents.iter()
}

fn service<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Service> {
    cluster.services().find(|s| s.name == name).context(format_args!("no {name}"))
}

/// A search needs a session with a rendezvous, the index's endorsement, and the index.
async fn joined(agent: &Agent) -> std::result::Result<(), String> {
    let answered = agent.objects(&["search", "anything"]).await;
    answered.map(|_| ()).map_err(|trouble| trouble.to_string())
}

/// A text in an answer of the command line.
fn text(answer: &Value, key: &str) -> Result<String> {
    let found = answer.get(key).and_then(Value::as_str).map(str::to_owned);
    found.context(format_args!("the answer has no {key}: {answer}"))
}

fn number(answer: &Value, key: &str) -> u64 {
    answer.get(key).and_then(Value::as_u64).unwrap_or(0)
}

async fn publish(alice: &Agent, input: &Path, teller: &Teller) -> Result<String> {
    let shown = input.display().to_string();
    teller.say("publishing", format_args!("{PUBLISHER} publishes {shown}"), json!({ "input": shown }));
    let begin = Instant::now();
    let result = alice.json(&["publish", &shown]).await?;
    let took = begin.elapsed();
    let reference = text(&result, "reference")?;
    let (files, bytes) = (number(&result, "file_count"), number(&result, "total_size"));
    teller.say(
        "published",
        format_args!("published {reference}:"),
        json!({
            "reference": reference, "files": files, "bytes": bytes, "took_seconds": rounded(took.as_secs_f64()),
            "manifest_digest": result.get("manifest_digest"),
        }),
    );
    teller.remark(format_args!(
        "           {} with {} chunked, hashed and signed in {}",
        Count(files, "file"),
        Size(bytes),
        Pace(bytes, took)
    ));
    Ok(reference)
}

async fn search(bob: &Agent, reference: &str, teller: &Teller) -> Result<()> {
    let name = reference.rsplit('/').next().and_then(|r| r.split('@').next()).unwrap_or(reference);
    let begin = Instant::now();
    let found = wait_for("the search finds the package with its host", QUERY, async || {
        let packages = bob.objects(&["search", name]).await.map_err(|t| t.to_string())?;
        let is_it =
            |p: &&Value| p.get("name").and_then(Value::as_str) == Some(name) && number(p, "host_count") > 0;
        packages.iter().find(is_it).cloned().ok_or_else(|| format!("{packages:?}"))
    })
    .await?;
    let hosts = number(&found, "host_count");
    let text = format_args!(
        "{FETCHER} searches for \"{name}\" and finds it, {} online ({:.2} s)",
        Count(hosts, "host"),
        begin.elapsed().as_secs_f64()
    )
    .to_string();
    teller.say("found", text, json!({ "query": name, "hosts": hosts }));
    Ok(())
}

/// As a thin client: one gRPC call to discovery, by someone who is no peer.
async fn locate(cluster: &Cluster, publisher: &PeerId, teller: &Teller) -> Result<()> {
    let discovery = service(cluster, "discovery")?;
    let endpoint: Endpoint = discovery.endpoint().parse().context("the endpoint of discovery")?;
    let dialer = Dialer::new(None, None).context("preparing TLS")?;
    let begin = Instant::now();
    let connection = dialer.dial(&endpoint).await.context("dialing discovery")?;
    let mut client = DiscoveryServiceClient::with_origin(connection.clone(), connection.origin());
    let request = LocateRequest { peer_id: publisher.to_wire() };
    let answer = client.locate(request).await.context("locating through discovery")?.into_inner();
    let peer = answer.peer.context("discovery answered without a peer")?;
    let located = LocatedPeer::try_from(peer).context("the located peer's record")?;
    if located.peer_id() != *publisher {
        return Err(Trouble::new(format!("discovery answered with {}", located.peer_id())));
    }
    let online = located.presence.state == PresenceState::Online;
    let addresses: Vec<_> = located.record.value().addresses.iter().map(ToString::to_string).collect();
    let text = format!(
        "discovery, asked by a client that is no peer, says: {PUBLISHER} is {} at {} ({:.2} s)",
        if online { "online" } else { "not online" },
        addresses.first().map_or("no address", String::as_str),
        begin.elapsed().as_secs_f64()
    );
    teller.say(
        "located",
        text,
        json!({ "peer": publisher.to_string(), "online": online, "addresses": addresses }),
    );
    if online {
        Ok(())
    } else {
        Err(Trouble::new("the publisher is there, and discovery says it is not online"))
    }
}

async fn fetch(bob: &Agent, reference: &str, target: &Path, teller: &Teller) -> Result<()> {
    teller.say("fetching", format_args!("{FETCHER} fetches it straight from {PUBLISHER}"), json!({}));
    let shown = target.display().to_string();
    let begin = Instant::now();
    let result = bob.json(&["fetch", reference, "-o", &shown]).await?;
    let took = begin.elapsed();
    let (files, bytes) = (number(&result, "file_count"), number(&result, "total_size"));
    let text = format!(
        "fetched {} with {}, encrypted, verified and durable on disk, in {}",
        Count(files, "file"),
        Size(bytes),
        Pace(bytes, took)
    );
    let facts = json!({
        "reference": text_or(&result, "reference"), "target": shown, "files": files, "bytes": bytes,
        "bytes_fetched": number(&result, "bytes_fetched"), "took_seconds": rounded(took.as_secs_f64()),
    });
    teller.say("fetched", text, facts);
    Ok(())
}

fn text_or(answer: &Value, key: &str) -> String {
    text(answer, key).unwrap_or_default()
}

async fn compare(input: &Path, target: PathBuf, teller: &Teller) -> Result<()> {
    let input = input.to_owned();
    let (before, after) =
        tokio::task::spawn_blocking(move || Ok::<_, Trouble>((Tree::read(&input)?, Tree::read(&target)?)))
            .await
            .context("comparing")??;
    let differences = before.differences(&after);
    let facts = json!({
        "entries": before.0.len(), "files": before.files(), "bytes": before.bytes(),
        "differences": differences.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    if differences.is_empty() {
        let text = format!(
            "compared every digest, executable bit, symlink and folder: all {} are the same",
            Count(before.0.len() as u64, "entry").to_string().replace("entrys", "entries")
        );
        teller.say("compared", text, facts);
        return Ok(());
    }
    teller.say("compared", "compared: not the same", facts);
    let shown: Vec<_> = differences.iter().take(20).map(ToString::to_string).collect();
    Err(Trouble::new(format!("{} differ:\n{}", Count(differences.len() as u64, "path"), shown.join("\n"))))
}

fn memory(cluster: &Cluster, sampler: &Sampler, teller: &Teller) {
    let peaks: Vec<_> =
        agents(cluster).filter_map(|a| Some((a.name.clone(), sampler.peak(a.pid()?)))).collect();
    let shown: Vec<_> = peaks.iter().map(|(name, peak)| format!("{name} {}", Size(*peak))).collect();
    let facts: Vec<_> =
        peaks.iter().map(|(name, peak)| json!({ "name": name, "peak_rss_anon": peak })).collect();
    teller.say("memory", format_args!("most memory held: {}", shown.join(", ")), json!({ "agents": facts }));
}

/// Commands to try against what runs.
pub(crate) fn suggest(cluster: &Cluster, told: &Told, teller: &Teller) {
    let cli = |name: &str| cluster.agent(name).ok();
    let mut commands = Vec::new();
    if let (Some(alice), Some(bob)) = (cli(PUBLISHER), cli(FETCHER)) {
        commands.push(("who bob is, whom it is connected to", bob.shown("status")));
        commands.push(("where alice is", bob.shown(&format!("locate {}", told.publisher))));
        commands.push(("publish something", alice.shown("publish FOLDER --name my-folder")));
        commands.push(("find it", bob.shown("search my-folder")));
        commands.push(("fetch it", bob.shown("fetch my-folder")));
        commands
            .push(("fetch the first one again", bob.shown(&format!("fetch {} -o again", told.reference))));
    }
    if let Some(discovery) = &cluster.discovery {
        let pem = discovery.data_dir().join("tls.pem");
        let url = format!("{}/p2psb.discovery.v1.DiscoveryService/ListRendezvous", discovery.endpoint());
        let call =
            format!("buf curl --protocol grpc --schema proto --cacert {} {url} -d '{{}}'", pem.display());
        commands.push(("ask discovery from any gRPC client", call));
    }
    teller.remark("\nEverything keeps running until Ctrl-C. Try:\n");
    for (what, command) in commands {
        teller.remark(format_args!("  # {what}\n  {command}\n"));
        teller.only_json("try", json!({ "what": what, "command": command }));
    }
    teller.only_json("ready", json!({}));
}
