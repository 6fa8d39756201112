//! Discovery for clients that are no peers.

use p2psb_client::{Connection, Dialer, Endpoint, Identity};
use p2psb_e2e::eventually;
use p2psb_e2e::inside::{endpoint, stop};
use p2psb_e2e::peer::Peer;
use p2psb_proto::error::{Reason, reason_of};
use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::model::{PeerId, SecretKey};
use p2psb_proto::wire::common::v1::AttributeFilter;
use p2psb_proto::wire::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use p2psb_proto::wire::discovery::v1::{
    FindByServiceRequest, FindByServiceResponse, ListRendezvousRequest, LocateRequest,
};
use tonic::Status;

use super::stage::{bridged, unbridged};

type Client = DiscoveryServiceClient<Connection>;

async fn client(at: &Endpoint) -> Client {
    let connection = Dialer::new(None, None).unwrap().dial(at).await.unwrap();
    let origin = connection.origin();
    DiscoveryServiceClient::with_origin(connection, origin)
}

async fn locate(client: &mut Client, peer: &PeerId) -> Result<LocatedPeer, Status> {
    let request = LocateRequest { peer_id: peer.to_wire() };
    let peer = client.locate(request).await?.into_inner().peer.expect("a peer");
    Ok(LocatedPeer::try_from(peer).expect("a verified record"))
}

async fn reachable(client: &mut Client) -> usize {
    let answer = client.list_rendezvous(ListRendezvousRequest::default()).await.unwrap().into_inner();
    answer.rendezvous.iter().filter(|r| r.reachable).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_rendezvous_it_learns_them_all_and_outlives_that_one() {
    let mut backbone = bridged(3).await;
    let discovery = backbone.discovery(&backbone.endpoints[..1]).await;
    let mut client = client(&endpoint(&discovery).unwrap()).await;
    eventually!("it knows all three", reachable(&mut client).await == 3);

    let peer = Peer::start(&backbone.endpoints[2..]).unwrap();
    let online = |l: Result<LocatedPeer, Status>| l.is_ok_and(|l| l.presence.state == PresenceState::Online);
    eventually!("it finds the peer", online(locate(&mut client, &peer.id()).await));

    stop(backbone.servers.remove(0)).await;
    assert!(online(locate(&mut client, &peer.id()).await), "the one it was configured with is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_finds_peers_of_every_backbone_it_knows() {
    let backbone = unbridged(2).await;
    let discovery = backbone.discovery(&backbone.endpoints).await;
    let mut client = client(&endpoint(&discovery).unwrap()).await;
    for at in &backbone.endpoints {
        let peer = Peer::start(std::slice::from_ref(at)).unwrap();
        eventually!("the peer is found", locate(&mut client, &peer.id()).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_knows_and_nobody_answers_are_two_answers() {
    let mut backbone = bridged(1).await;
    let discovery = backbone.discovery(&backbone.endpoints).await;
    let mut client = client(&endpoint(&discovery).unwrap()).await;
    let nobody = PeerId::new(SecretKey::from_seed(&[9; 32]).public());
    let status = locate(&mut client, &nobody).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::PeerUnknown), "{status}");

    stop(backbone.servers.remove(0)).await;
    let status = locate(&mut client, &nobody).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::NoRendezvous), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_registers_itself_as_a_provider() {
    let backbone = bridged(1).await;
    let discovery = backbone.discovery(&backbone.endpoints).await;
    let mut client = client(&endpoint(&discovery).unwrap()).await;
    eventually!("discovery is found by its service", {
        let request = FindByServiceRequest { service: "p2psb.discovery".into(), ..Default::default() };
        let found = client.find_by_service(request).await.unwrap().into_inner().peers;
        found.len() == 1 && LocatedPeer::try_from(found[0].clone()).unwrap().peer_id() == discovery.peer_id()
    });
    let request = FindByServiceRequest { service: "Not A Name".into(), ..Default::default() };
    let status = client.find_by_service(request).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::InvalidArgument), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_passes_filters_on_and_its_pages_belong_to_their_query() {
    let backbone = unbridged(2).await;
    let discovery = backbone.discovery(&backbone.endpoints).await;
    let mut client = client(&endpoint(&discovery).unwrap()).await;
    let start = |region: &str, at: &Endpoint| {
        let attributes = vec![("region".to_owned(), region.to_owned())];
        let offer = ServiceOffer { name: "chat".parse().unwrap(), attributes };
        Peer::start_as(Identity::ephemeral().unwrap(), std::slice::from_ref(at), vec![offer], None).unwrap()
    };
    let (first, second) = (&backbone.endpoints[0], &backbone.endpoints[1]);
    let peers = [start("eu", first), start("eu", second), start("us", first)];
    let find = async |client: &mut Client, region: &str, page_size, page_token: &str| {
        let filters = vec![AttributeFilter { key: "region".into(), values: vec![region.into()] }];
        let (service, page_token) = ("chat".into(), page_token.into());
        let request = FindByServiceRequest { service, page_size, page_token, filters };
        client.find_by_service(request).await.map(tonic::Response::into_inner)
    };
    let ids = |answer: &FindByServiceResponse| -> Vec<PeerId> {
        let id = |peer: &p2psb_proto::wire::common::v1::LocatedPeer| {
            LocatedPeer::try_from(peer.clone()).unwrap().peer_id()
        };
        answer.peers.iter().map(id).collect()
    };
    let mut expected = [peers[0].id(), peers[1].id()];
    expected.sort_unstable();
    eventually!("both in eu are found", ids(&find(&mut client, "eu", 0, "").await.unwrap()) == expected);
    eventually!(
        "so is the one in us",
        ids(&find(&mut client, "us", 0, "").await.unwrap()) == [peers[2].id()]
    );

    let page = find(&mut client, "eu", 1, "").await.unwrap();
    assert_eq!(ids(&page), expected[..1]);
    let status = find(&mut client, "us", 1, &page.next_page_token).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::PageTokenInvalid), "{status}");
    let rest = find(&mut client, "eu", 1, &page.next_page_token).await.unwrap();
    assert_eq!((ids(&rest), rest.next_page_token.as_str()), (expected[1..].to_vec(), ""));
}
