//! Dialing over real sockets: who answers is who was meant, and both ends see the same connection.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use futures::StreamExt as _;
use p2psb_client::{
    ClientAuth, ConnectInfo, DialError, Dialer, Endpoint, Identity, ServerTls, TlsConfig, TlsMode, resolve,
};
use p2psb_proto::model::PeerId;
use p2psb_proto::wire::discovery::v1 as wire;
use p2psb_proto::wire::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use p2psb_proto::wire::discovery::v1::discovery_service_server::{DiscoveryService, DiscoveryServiceServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Answers with what it knows of the connection.
struct Mirror;

#[tonic::async_trait]
impl DiscoveryService for Mirror {
    async fn locate(
        &self,
        _: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn find_by_service(
        &self,
        _: Request<wire::FindByServiceRequest>,
    ) -> Result<Response<wire::FindByServiceResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_rendezvous(
        &self,
        request: Request<wire::ListRendezvousRequest>,
    ) -> Result<Response<wire::ListRendezvousResponse>, Status> {
        let info = request.extensions().get::<ConnectInfo>().unwrap();
        let status = wire::RendezvousStatus {
            endpoint: format!("{:?}", info.binding),
            error: info.peer.map(|p| p.to_string()).unwrap_or_default(),
            ..wire::RendezvousStatus::default()
        };
        Ok(Response::new(wire::ListRendezvousResponse { rendezvous: vec![status] }))
    }
}

struct Server {
    addr: SocketAddr,
    id: PeerId,
    dir: tempfile::TempDir,
}

async fn server(mode: TlsMode, auth: ClientAuth) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::load_or_create(dir.path()).unwrap();
    let config = TlsConfig { mode, ..TlsConfig::default() };
    let tls = ServerTls::load(&config, &identity, dir.path(), auth).unwrap();
    let addr = serve(tls).await;
    Server { addr, id: identity.peer_id(), dir }
}

async fn serve(tls: ServerTls) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(DiscoveryServiceServer::new(Mirror));
    let handshake = tls.handshake();
    let connections = TcpListenerStream::new(listener).filter_map(move |accepted| {
        let stream = accepted.unwrap();
        let from = stream.peer_addr().unwrap();
        let shaken = handshake(stream, from, None);
        async move { shaken.await.ok().map(Ok::<_, std::io::Error>) }
    });
    tokio::spawn(server.serve_with_incoming(connections));
    addr
}

impl Server {
    fn endpoint(&self, scheme: &str, pin: Option<PeerId>) -> Endpoint {
        let endpoint: Endpoint = format!("{scheme}://{}", self.addr).parse().unwrap();
        pin.map_or(endpoint.clone(), |pin| endpoint.pinned(pin))
    }
}

fn dialer() -> Dialer {
    Dialer::new(None, None).unwrap()
}

async fn mirror(connection: &p2psb_client::Connection) -> Result<(String, String), Status> {
    let mut client = DiscoveryServiceClient::with_origin(connection.clone(), connection.origin());
    let mut answer = client.list_rendezvous(wire::ListRendezvousRequest {}).await?.into_inner();
    let status = answer.rendezvous.remove(0);
    Ok((status.endpoint, status.error))
}

#[tokio::test]
async fn both_ends_of_a_tls_connection_see_the_same_binding_and_no_other_does() {
    let server = server(TlsMode::Identity, ClientAuth::None).await;
    let dialer = dialer();
    let one = dialer.dial(&server.endpoint("https", Some(server.id))).await.unwrap();
    let two = dialer.dial(&server.endpoint("https", Some(server.id))).await.unwrap();
    assert_eq!(one.server_id(), Some(server.id));
    assert_eq!(mirror(&one).await.unwrap().0, format!("{:?}", one.binding()));
    assert_eq!(mirror(&two).await.unwrap().0, format!("{:?}", two.binding()));
    assert!(one.binding().is_some() && one.binding() != two.binding());
}

#[tokio::test]
async fn a_server_that_is_not_the_pinned_one_is_refused() {
    let server = server(TlsMode::Identity, ClientAuth::None).await;
    let other = Identity::ephemeral().unwrap().peer_id();
    let error = dialer().dial(&server.endpoint("https", Some(other))).await.unwrap_err();
    assert!(matches!(error, DialError::IdentityMismatch { expected, found, .. }
        if expected == other && found == server.id));
}

#[tokio::test]
async fn a_server_that_changed_its_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let known = dir.path().join("known_servers");
    let server = server(TlsMode::Identity, ClientAuth::None).await;
    let first = Identity::ephemeral().unwrap().peer_id();
    std::fs::write(&known, format!("{} {first}\n", server.addr)).unwrap();
    let dialer = Dialer::new(None, Some(&known)).unwrap();
    let error = dialer.dial(&server.endpoint("https", None)).await.unwrap_err();
    assert!(matches!(error, DialError::IdentityChanged { known, found, .. }
        if known == first && found == server.id));
}

/// Who proved itself somewhere first is demanded there also of a certificate that others vouch for: such a one is easily had by
/// whoever stands between.
#[tokio::test]
async fn a_remembered_identity_is_demanded_of_an_ordinary_certificate_too() {
    const ORDINARY: &str = "P2PSB_TEST_ORDINARY_CERTIFICATE";
    let Some(pem) = std::env::var_os(ORDINARY) else {
        // The roots of the system are read once, so they are set for a process of their own.
        let dir = tempfile::tempdir().unwrap();
        let (pem, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let ordinary = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&pem, ordinary.cert.pem()).unwrap();
        std::fs::write(&key, ordinary.signing_key.serialize_pem()).unwrap();
        let name = "a_remembered_identity_is_demanded_of_an_ordinary_certificate_too";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let output =
            again.args(["--exact", name]).envs([(ORDINARY, &pem), ("SSL_CERT_FILE", &pem)]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    };
    let (pem, id) = (std::path::PathBuf::from(pem), Identity::ephemeral().unwrap());
    let (cert_file, key_file) = (Some(pem.clone()), Some(pem.with_file_name("key.pem")));
    let config = TlsConfig { mode: TlsMode::Pem, cert_file, key_file, ..TlsConfig::default() };
    let folder = pem.parent().unwrap();
    let addr = serve(ServerTls::load(&config, &id, folder, ClientAuth::None).unwrap()).await;
    let endpoint: Endpoint = format!("https://localhost:{}", addr.port()).parse().unwrap();
    let stranger = dialer().dial(&endpoint).await.unwrap();
    assert_eq!(
        (stranger.server_id(), stranger.expected()),
        (None, None),
        "vouched for, and nobody is expected"
    );

    let first = id.peer_id();
    std::fs::write(folder.join("known_servers"), format!("localhost:{} {first}\n", addr.port())).unwrap();
    let dialer = Dialer::new(None, Some(&folder.join("known_servers"))).unwrap();
    let error = dialer.dial(&endpoint).await.unwrap_err();
    assert!(matches!(error, DialError::NoLongerProven { known, .. } if known == first), "{error}");
    // A live proof would do.
    assert_eq!(dialer.dial_unproven(&endpoint).await.unwrap().expected(), Some(first));
}

#[tokio::test]
async fn plaintext_has_no_binding_and_proves_nobody() {
    let server = server(TlsMode::Plaintext, ClientAuth::None).await;
    let connection = dialer().dial(&server.endpoint("http", None)).await.unwrap();
    assert_eq!((connection.binding(), connection.server_id()), (None, None));
    assert_eq!(mirror(&connection).await.unwrap().0, "None");
}

#[tokio::test]
async fn between_peers_both_ends_prove_themselves() {
    let server = server(TlsMode::Identity, ClientAuth::Required).await;
    let me = Identity::ephemeral().unwrap();
    let dialer = Dialer::new(Some(&me), None).unwrap();
    let connection = dialer.dial(&server.endpoint("https", Some(server.id))).await.unwrap();
    assert_eq!(mirror(&connection).await.unwrap().1, me.peer_id().to_string());
}

#[tokio::test]
async fn a_peer_without_an_identity_gets_no_answer() {
    let server = server(TlsMode::Identity, ClientAuth::Required).await;
    // With TLS 1.3 the client learns of the refusal only with its first read.
    let refused = match dialer().dial(&server.endpoint("https", Some(server.id))).await {
        Ok(connection) => mirror(&connection).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}

#[tokio::test]
async fn a_certificate_is_kept_and_lies_beside_the_key() {
    let server = server(TlsMode::Identity, ClientAuth::None).await;
    let pem = std::fs::read_to_string(server.dir.path().join("tls.pem")).unwrap();
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
    let identity = Identity::load(server.dir.path()).unwrap();
    ServerTls::load(&TlsConfig::default(), &identity, server.dir.path(), ClientAuth::None).unwrap();
    assert_eq!(std::fs::read_to_string(server.dir.path().join("tls.pem")).unwrap(), pem);
}

#[tokio::test]
async fn at_given_addresses_the_name_is_not_looked_up_again() {
    let server = server(TlsMode::Identity, ClientAuth::None).await;
    // A name that leads nowhere: dialing it works only at the address that is given.
    let endpoint: Endpoint = format!("https://nobody.invalid:{}", server.addr.port()).parse().unwrap();
    let endpoint = endpoint.pinned(server.id);
    let connection = dialer().dial_unproven_at(&endpoint, &[server.addr]).await.unwrap();
    assert_eq!((connection.server_id(), connection.remote_addr()), (Some(server.id), server.addr));
    let error = dialer().dial_unproven_at(&endpoint, &[]).await.unwrap_err();
    assert!(matches!(error, DialError::Connect { .. }), "{error}");
    assert_eq!(resolve(&server.endpoint("https", None)).await.unwrap(), [server.addr]);
}

#[tokio::test]
async fn nobody_listening_is_told_with_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let error = dialer().dial(&format!("https://{addr}").parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, DialError::Connect { .. }));
    assert!(error.to_string().contains(&addr.to_string()));
}
