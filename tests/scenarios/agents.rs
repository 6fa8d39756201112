//! Whole agents in this process, through the door of their users: publish with one, fetch with the other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use p2psb_e2e::inside::{bind, stop};
use p2psb_e2e::peer::NETWORK;
use p2psb_e2e::tree::{Tree, noise, put};
use p2psb_e2e::{Result, Trouble, eventually};
use p2psb_peer_agent::config::Config;
use p2psb_peer_agent::control::file::Control;
use p2psb_peer_agent::control::token::Show;
use p2psb_peer_agent::server::Server;
use p2psb_proto::error::{Reason, reason_of};
use p2psb_proto::wire::agent::v1 as wire;
use p2psb_proto::wire::agent::v1::agent_service_client::AgentServiceClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::stage::{Backbone, with_index};

type Client = AgentServiceClient<InterceptedService<Channel, Show>>;

/// An agent and its user.
struct Agent {
    server: Server,
    user: Client,
    folder: PathBuf,
}

impl Agent {
    async fn start(backbone: &Backbone, name: &str) -> Self {
        let folder = backbone.folder(name);
        let mut settings = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: Some(folder.join("data")),
            rendezvous: backbone.endpoints.clone(),
            ..Config::default()
        };
        settings.control.listen = "127.0.0.1:0".parse().unwrap();
        settings.network.name = NETWORK.into();
        let server = bind::<Server>(settings).await.unwrap();
        let token = Control::read(&folder.join("data")).unwrap().token;
        let endpoint = format!("http://{}", server.control_addr());
        let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap().connect().await.unwrap();
        let user = AgentServiceClient::with_interceptor(channel, Show(token));
        eventually!("the agent has found the index", {
            let request = wire::SearchPackagesRequest { query: "anything".into(), page_size: 1 };
            user.clone().search_packages(request).await.map_err(|status| status.message().to_owned())
        });
        Self { server, user, folder }
    }

    async fn publish(&mut self, path: &Path) -> wire::PublishResult {
        let paths = vec![path.to_str().unwrap().to_owned()];
        let request = wire::PublishRequest { paths, ..wire::PublishRequest::default() };
        let mut events = self.user.publish(request).await.unwrap().into_inner();
        loop {
            match events.message().await.unwrap().and_then(|news| news.event) {
                Some(wire::publish_response::Event::Progress(_)) => {}
                Some(wire::publish_response::Event::Result(result)) => break result,
                None => panic!("it ended without a result"),
            }
        }
    }

    async fn begin(&mut self, reference: &str, target: &Path) -> Streaming<wire::FetchResponse> {
        let request = wire::FetchRequest {
            reference: reference.to_owned(),
            target: target.to_str().unwrap().to_owned(),
            working_directory: String::new(),
        };
        self.user.fetch(request).await.unwrap().into_inner()
    }

    async fn fetch(&mut self, reference: &str, target: &Path) -> wire::FetchResult {
        let events = self.begin(reference, target).await;
        ended(events).await.unwrap()
    }

    async fn cancel(&mut self, target: &Path) -> Option<Reason> {
        let request = wire::CancelFetchRequest { target: target.to_str().unwrap().to_owned() };
        self.user.cancel_fetch(request).await.err().map(|status| reason_of(&status).unwrap())
    }

    async fn status(&self) -> wire::GetStatusResponse {
        self.user.clone().get_status(wire::GetStatusRequest {}).await.unwrap().into_inner()
    }
}

/// The last word of a fetch.
async fn ended(mut events: Streaming<wire::FetchResponse>) -> std::result::Result<wire::FetchResult, Status> {
    loop {
        match events.message().await?.and_then(|news| news.event) {
            Some(wire::fetch_response::Event::Progress(_)) => {}
            Some(wire::fetch_response::Event::Result(result)) => break Ok(result),
            None => panic!("it ended without a result"),
        }
    }
}

fn assert_same(before: &Path, after: &Path) {
    let differences = Tree::read(before).unwrap().differences(&Tree::read(after).unwrap());
    assert!(differences.is_empty(), "{differences:#?}");
}

fn content(folder: &Path) -> Result<PathBuf> {
    let input = folder.join("holiday");
    put(&input, "day 1/beach", &noise(1, 3 << 20))?;
    put(&input, "day 2/notes", b"sand")?;
    std::fs::create_dir(input.join("day 3")).map_err(|error| Trouble::new(error.to_string()))?;
    Ok(input)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_agent_publishes_another_fetches_and_repairs() {
    let (backbone, _index) = with_index().await;
    let (mut alice, mut bob) = (Agent::start(&backbone, "alice").await, Agent::start(&backbone, "bob").await);
    let input = content(&alice.folder).unwrap();
    let published = alice.publish(&input).await;
    assert!(published.reference.ends_with("/holiday@0.1.0"), "{}", published.reference);
    assert_eq!((published.file_count, published.total_size), (2, (3 << 20) + 4));

    let target = bob.folder.join("target");
    let fetched = bob.fetch("holiday", &target).await;
    assert_eq!(
        (&fetched.reference, &fetched.manifest_digest),
        (&published.reference, &published.manifest_digest)
    );
    assert_eq!((fetched.bytes_fetched, fetched.files_repaired), (published.total_size, 0));
    assert_same(&input, &target);
    let shared = bob.status().await.shared;
    assert_eq!(shared.iter().map(|package| &package.reference).collect::<Vec<_>>(), [&published.reference]);

    std::fs::remove_dir_all(target.join("day 2")).unwrap();
    let repaired = bob.fetch("holiday@^0.1", &target).await;
    assert_eq!((repaired.bytes_fetched, repaired.files_repaired), (4, 1));
    assert_same(&input, &target);

    stop(alice.server).await;
    stop(bob.server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_without_hosts_is_shared_by_its_callers_and_given_up_for_all_of_them() {
    let (backbone, _index) = with_index().await;
    let (mut alice, mut bob) = (Agent::start(&backbone, "alice").await, Agent::start(&backbone, "bob").await);
    let input = content(&alice.folder).unwrap();
    let reference = alice.publish(&input).await.reference;
    stop(alice.server).await;

    let target = bob.folder.join("deeper/target");
    let (first, second) = (bob.begin(&reference, &target).await, bob.begin(&reference, &target).await);
    eventually!("it waits for a host", {
        let fetches = bob.status().await.fetches;
        assert!(fetches.len() <= 1, "one job for both: {fetches:?}");
        fetches.first().is_some_and(|fetch| fetch.state() == wire::FetchState::Waiting)
    });
    assert_eq!(bob.cancel(&bob.folder.join("elsewhere")).await, Some(Reason::FetchUnknown));
    assert_eq!(bob.cancel(Path::new("relative")).await, Some(Reason::PathInvalid));
    assert_eq!(bob.cancel(&target).await, None);
    for events in [first, second] {
        let status = tokio::time::timeout(Duration::from_secs(10), ended(events)).await.unwrap().unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::Cancelled), "{status}");
    }
    assert!(bob.status().await.fetches.is_empty());
    assert_eq!(std::fs::read_dir(bob.folder.join("deeper")).unwrap().count(), 0);
    assert_eq!(bob.cancel(&target).await, Some(Reason::FetchUnknown));
    stop(bob.server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_can_not_go_on_answers_every_caller_and_can_be_given_up_at_any_moment() {
    let (backbone, _index) = with_index().await;
    let (mut alice, mut bob) = (Agent::start(&backbone, "alice").await, Agent::start(&backbone, "bob").await);
    let input = content(&alice.folder).unwrap();
    let reference = alice.publish(&input).await.reference;
    // Nobody can make a folder there, whoever it is.
    let target = Path::new("/proc/p2psb-test/target");
    for round in 0..20 {
        let first = ended(bob.begin(&reference, target).await).await.unwrap_err();
        assert_eq!(reason_of(&first), Some(Reason::TargetUnwritable), "{first}");
        let fetches = bob.status().await.fetches;
        let [kept] = fetches.as_slice() else { panic!("round {round}: {fetches:?}") };
        assert_eq!((kept.state(), kept.reason.as_str()), (wire::FetchState::Failed, "TARGET_UNWRITABLE"));

        // Some join it while it is given up; whoever comes later begins anew.
        let (mut again, mut giving_up) = (Vec::new(), bob.user.clone());
        for _ in 0..3 {
            again.push(tokio::spawn(ended(bob.begin(&reference, target).await)));
        }
        let request = wire::CancelFetchRequest { target: target.to_str().unwrap().to_owned() };
        giving_up.cancel_fetch(request).await.unwrap();
        for caller in again {
            let told = tokio::time::timeout(Duration::from_secs(10), caller).await.unwrap().unwrap();
            let reason = told.err().as_ref().and_then(reason_of);
            assert!(
                matches!(reason, Some(Reason::TargetUnwritable | Reason::Cancelled)),
                "round {round}: {reason:?}"
            );
        }
        let left = bob.cancel(target).await;
        assert!(matches!(left, None | Some(Reason::FetchUnknown)), "round {round}: {left:?}");
        assert!(bob.status().await.fetches.is_empty(), "round {round}");
    }
    stop(alice.server).await;
    stop(bob.server).await;
}
