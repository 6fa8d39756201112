//! The user's door to a whole agent: who may knock, and what is refused how. No rendezvous is there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use p2psb_peer_agent::config::AgentConfig;
use p2psb_peer_agent::control::file::{CONTROL_FILE, Control};
use p2psb_peer_agent::control::token::{Show, Token};
use p2psb_peer_agent::server::{Server, StartError};
use p2psb_proto::error::{Reason, reason_of};
use p2psb_proto::model::Genesis;
use p2psb_proto::wire::agent::v1 as wire;
use p2psb_proto::wire::agent::v1::agent_service_client::AgentServiceClient;
use p2psb_runtime::Service as _;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

fn config(data_dir: &Path) -> AgentConfig {
    AgentConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        control: "127.0.0.1:0".parse().unwrap(),
        data_dir: data_dir.to_owned(),
        advertise: Vec::new(),
        // Nobody listens on the discard port.
        rendezvous: vec!["https://127.0.0.1:9".parse().unwrap()],
        network: Genesis::open("test").unwrap().network_id(),
        edge: None,
    }
}

async fn channel(server: &Server) -> Channel {
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{}", server.control_addr())).unwrap();
    endpoint.connect().await.unwrap()
}

async fn user(server: &Server, data_dir: &Path) -> AgentServiceClient<InterceptedService<Channel, Show>> {
    let token = Control::read(data_dir).unwrap().token;
    AgentServiceClient::with_interceptor(channel(server).await, Show(token))
}

fn refused<T>(answer: Result<T, Status>) -> Option<Reason> {
    answer.err().and_then(|status| reason_of(&status))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_token_of_the_control_file_opens() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(config(dir.path())).await.unwrap();
    let mode = std::fs::metadata(dir.path().join(CONTROL_FILE)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let mut nobody = AgentServiceClient::new(channel(&server).await);
    let required = Some(Reason::AuthenticationRequired);
    assert_eq!(refused(nobody.get_status(wire::GetStatusRequest {}).await), required);
    let strange = Show(Token::generate().unwrap());
    let mut strange = AgentServiceClient::with_interceptor(channel(&server).await, strange);
    assert_eq!(refused(strange.get_status(wire::GetStatusRequest {}).await), required);
    assert_eq!(refused(strange.publish(wire::PublishRequest::default()).await), required);
    let mut user = user(&server, dir.path()).await;
    let status = user.get_status(wire::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.peer_id, server.peer_id().to_string());
    assert_eq!(status.publisher_id, server.publisher_id().to_string());
    assert_eq!((status.sessions.len(), status.shared.len(), status.fetches.len()), (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_by_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(config(dir.path())).await.unwrap();
    let mut user = user(&server, dir.path()).await;
    let publish = |paths: &[&str], version: &str| wire::PublishRequest {
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        version: version.to_owned(),
        ..wire::PublishRequest::default()
    };
    assert_eq!(refused(user.publish(publish(&[], "")).await), Some(Reason::InvalidArgument));
    assert_eq!(refused(user.publish(publish(&["relative"], "")).await), Some(Reason::PathInvalid));
    assert_eq!(refused(user.publish(publish(&["/x"], "1.0")).await), Some(Reason::VersionInvalid));
    let mut events = user.publish(publish(&["/nowhere/at/all"], "")).await.unwrap().into_inner();
    let ended = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert_eq!(refused(ended), Some(Reason::PathMissing));
    for (reference, reason) in
        [("Not A Name", Reason::ReferenceInvalid), ("demo@x.y.z.w", Reason::RequirementInvalid)]
    {
        let request = wire::FetchRequest {
            reference: reference.to_owned(),
            working_directory: "/tmp".to_owned(),
            ..wire::FetchRequest::default()
        };
        let mut events = user.fetch(request).await.unwrap().into_inner();
        let ended = loop {
            match events.message().await {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        };
        assert_eq!(refused(ended), Some(reason));
    }
    let locate = |peer: String| wire::LocateRequest { peer };
    assert_eq!(refused(user.locate(locate("peer1nonsense".into())).await), Some(Reason::InvalidArgument));
    let somebody = server.peer_id().to_string();
    assert_eq!(refused(user.locate(locate(somebody)).await), Some(Reason::NoRendezvous));
    let search = wire::SearchPackagesRequest { query: "x".into(), page_size: 1 };
    assert_eq!(refused(user.search_packages(search).await), Some(Reason::NoRendezvous));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_has_one_agent_and_nothing_is_left_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(config(dir.path())).await.unwrap();
    assert!(matches!(Server::bind(config(dir.path())).await, Err(StartError::Lock(_))));
    let id = server.peer_id();
    server.shutdown(Duration::from_secs(5)).await;
    assert!(!dir.path().join(CONTROL_FILE).exists());
    let again = Server::bind(config(dir.path())).await.unwrap();
    assert_eq!(again.peer_id(), id);
    again.shutdown(Duration::from_secs(5)).await;
}
