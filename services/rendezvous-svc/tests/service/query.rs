//! What anyone may ask.

use p2psb_client::{Connection, Endpoint, Locator};
use p2psb_proto::error::Reason;
use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::model::{PeerId, ServiceName, ServiceQuery, Signed};
use p2psb_proto::wire::common::v1::AttributeFilter;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::locate_stream_response::Result as Answer;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use p2psb_runtime::Service as _;

use crate::harness::{TestServer, dialer, reason};
use crate::peer::{Peer, network};

#[tokio::test]
async fn an_unknown_peer_and_a_wrong_id_are_told_apart() {
    let server = TestServer::start(|_| ()).await;
    assert_eq!(reason(server.locate(&Peer::new().id()).await), Reason::PeerUnknown);
    let wrong = wire::LocateRequest { peer_id: vec![1; 5].into() };
    assert_eq!(reason(server.client().await.locate(wrong).await), Reason::InvalidArgument);
}

#[tokio::test]
async fn many_are_located_over_one_stream_and_one_that_is_unknown_does_not_end_it() {
    let server = TestServer::start(|_| ()).await;
    let (here, gone, nobody) = (Peer::new(), Peer::new(), Peer::new());
    let _session = here.open(&server, 1).await.unwrap();
    gone.register(&server, 1).await.unwrap();
    gone.unregister_by(&server, &gone.withdrawal(2)).await.unwrap();
    let asked = [
        here.id().to_wire(),
        nobody.id().to_wire(),
        gone.id().to_wire(),
        vec![7; 3].into(),
        here.id().to_wire(),
    ];
    let requests: Vec<_> =
        (10..).zip(asked).map(|(number, peer_id)| wire::LocateStreamRequest { number, peer_id }).collect();
    let mut answers =
        server.client().await.locate_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        told.push(match answer.result.unwrap() {
            Answer::Peer(peer) => {
                (answer.number, LocatedPeer::try_from(peer).unwrap().peer_id() == here.id(), String::new())
            }
            Answer::Error(error) => (answer.number, false, error.reason),
        });
    }
    // They come in any order.
    told.sort_unstable();
    let error = |number, reason: &str| (number, false, reason.to_owned());
    let found = |number| (number, true, String::new());
    assert_eq!(
        told,
        [
            found(10),
            error(11, "PEER_UNKNOWN"),
            error(12, "PEER_OFFLINE"),
            error(13, "INVALID_ARGUMENT"),
            found(14)
        ]
    );
}

#[tokio::test]
async fn a_stream_of_lookups_ends_when_the_server_drains() {
    let mut server = TestServer::start(|_| ()).await;
    let (ask, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = server.client().await.locate_stream(requests).await.unwrap().into_inner();
    ask.send(wire::LocateStreamRequest { number: 1, peer_id: Peer::new().id().to_wire() }).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().number, 1);
    let stopping = tokio::spawn(server.server.take().unwrap().shutdown(std::time::Duration::from_secs(10)));
    assert_eq!(reason(answers.message().await), Reason::Draining);
    drop(answers);
    stopping.await.unwrap();
}

async fn page(
    client: &mut RendezvousServiceClient<Connection>,
    page_size: u32,
    page_token: String,
) -> (Vec<LocatedPeer>, String) {
    let request =
        wire::FindByServiceRequest { service: "chat".into(), page_size, page_token, ..Default::default() };
    let answer = client.find_by_service(request).await.unwrap().into_inner();
    (answer.peers.into_iter().map(|p| LocatedPeer::try_from(p).unwrap()).collect(), answer.next_page_token)
}

#[tokio::test]
async fn providers_are_found_page_by_page_online_ones_first() {
    let server = TestServer::start(|_| ()).await;
    let mut sessions = Vec::new();
    for n in 0..7 {
        let peer = Peer::offering("chat");
        let session = peer.open(&server, 1).await.unwrap();
        if n % 2 == 0 {
            sessions.push(session);
        } else {
            let (mut down, _connection) = session.close();
            while down.message().await.unwrap().is_some() {}
        }
    }
    let mut client = server.client().await;
    let (whole, end) = page(&mut client, 0, String::new()).await;
    assert_eq!((whole.len(), end.as_str()), (7, ""));
    let states: Vec<_> = whole.iter().map(|p| p.presence.state).collect();
    assert_eq!(states, [[PresenceState::Online; 4].as_slice(), &[PresenceState::Offline; 3]].concat());
    let (mut paged, mut token) = (Vec::new(), String::new());
    loop {
        let (some, next) = page(&mut client, 2, token).await;
        paged.extend(some);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    let ids = |peers: &[LocatedPeer]| peers.iter().map(LocatedPeer::peer_id).collect::<Vec<_>>();
    assert_eq!(ids(&paged), ids(&whole));
}

fn filter(key: &str, values: &[&str]) -> AttributeFilter {
    AttributeFilter { key: key.into(), values: values.iter().map(|value| (*value).into()).collect() }
}

#[tokio::test]
async fn only_providers_whose_own_record_meets_the_filters_are_found() {
    let server = TestServer::start(|_| ()).await;
    let mut ids = std::collections::BTreeMap::<&str, Vec<PeerId>>::new();
    for region in ["eu", "us", "eu", "asia", "eu"] {
        let mut peer = Peer::offering("chat");
        peer.services[0].attributes = vec![("region".into(), region.into()), ("tier".into(), "1".into())];
        peer.register(&server, 1).await.unwrap();
        ids.entry(region).or_default().push(peer.id());
        ids.get_mut(region).unwrap().sort_unstable();
    }
    Peer::offering("chat").register(&server, 1).await.unwrap();
    let mut client = server.client().await;
    let mut find = async |filters: &[AttributeFilter]| {
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let filters = filters.to_vec();
            let request =
                wire::FindByServiceRequest { service: "chat".into(), page_size: 2, page_token, filters };
            let answer = client.find_by_service(request).await.unwrap().into_inner();
            found.extend(answer.peers.into_iter().map(|p| LocatedPeer::try_from(p).unwrap().peer_id()));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    };
    assert_eq!(find(&[filter("region", &["eu"])]).await, ids["eu"]);
    assert_eq!(find(&[filter("region", &["asia", "us"]), filter("tier", &["1"])]).await.len(), 2);
    assert_eq!(find(&[filter("region", &["eu"]), filter("tier", &["2"])]).await, []);
    assert_eq!(find(&[filter("tier", &[])]).await.len(), 5);
    assert_eq!(find(&[]).await.len(), 6);
    let locator = Locator::new(network(), &[server.pinned()], dialer());
    let wanted = ServiceQuery::from("chat".parse::<ServiceName>().unwrap()).having("region", ["eu"]).unwrap();
    let found = locator.find_by_service(&wanted).await.unwrap().peers;
    assert_eq!(found.iter().map(LocatedPeer::peer_id).collect::<Vec<_>>(), ids["eu"]);
}

#[tokio::test]
async fn wrong_names_filters_and_tokens_are_refused() {
    let server = TestServer::start(|_| ()).await;
    for _ in 0..2 {
        Peer::offering("chat").register(&server, 1).await.unwrap();
    }
    let mut client = server.client().await;
    let (_, token) = page(&mut client, 1, String::new()).await;
    let mut ask = async |service: &str, token: &str, filters: Vec<AttributeFilter>| {
        let (service, page_token) = (service.into(), token.into());
        reason(
            client
                .find_by_service(wire::FindByServiceRequest { service, page_size: 1, page_token, filters })
                .await,
        )
    };
    assert_eq!(ask("No Name", "", vec![]).await, Reason::InvalidArgument);
    assert_eq!(ask("chat", "", vec![filter("", &[])]).await, Reason::InvalidArgument);
    assert_eq!(ask("chat", "", vec![filter("k", &[]); 9]).await, Reason::InvalidArgument);
    assert_eq!(ask("chat", "", vec![filter("k", &["v"; 17])]).await, Reason::InvalidArgument);
    assert_eq!(ask("chat", "abc", vec![]).await, Reason::PageTokenInvalid);
    assert_eq!(ask("mail", &token, vec![]).await, Reason::PageTokenInvalid);
    assert_eq!(ask("chat", &token, vec![filter("region", &["eu"])]).await, Reason::PageTokenInvalid);
    let (second, end) = page(&mut client, 1, token).await;
    assert_eq!((second.len(), end.as_str()), (1, ""), "the same query goes on");
}

#[tokio::test]
async fn the_servers_own_record_names_its_addresses_and_whom_it_endorses() {
    let (configured, in_folder) = (Peer::new().id(), Peer::new().id());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p2psb.package-index@a"), format!("{in_folder}\n")).unwrap();
    let server = TestServer::start(|c| {
        c.endorse = vec![format!("p2psb.discovery={configured}")];
        c.endorse_dir = Some(folder.path().to_owned());
        c.advertise = vec!["https://r1.example:7400".parse().unwrap()];
    })
    .await;
    let listed = server.client().await.list_rendezvous(wire::ListRendezvousRequest {}).await.unwrap();
    let listed = listed.into_inner().rendezvous;
    assert_eq!((listed.len(), listed[0].connected), (1, true));
    let record = Signed::<p2psb_proto::model::PeerRecord>::verify_field(listed[0].record.clone()).unwrap();
    assert_eq!(record.peer_id(), server.id);
    let record = record.value();
    assert!(record.endorses("p2psb.discovery", &configured));
    assert!(record.endorses("p2psb.package-index", &in_folder));
    assert!(record.offers("p2psb.rendezvous"));
    let endpoint = Endpoint::of(&record.addresses[0], server.id).unwrap();
    assert_eq!(endpoint.url(), "https://r1.example:7400");

    let located = server.locate(&server.id).await.unwrap();
    assert_eq!(located.presence.state, PresenceState::Online);
}

#[tokio::test]
async fn without_an_advertised_address_the_listening_one_is_told() {
    let server = TestServer::start(|_| ()).await;
    let located = server.locate(&server.id).await.unwrap();
    let addr = located.record.value().addresses[0].socket_addr();
    assert_eq!(addr, server.server.as_ref().map(p2psb_rendezvous_svc::Server::addr));
    let id: PeerId = located.peer_id();
    assert_eq!(id, server.id);
}
