//! Sessions: what they prove, and how they end.

use std::time::Duration;

use p2psb_client::Identity;
use p2psb_e2e::eventually;
use p2psb_e2e::peer::{Peer, client, locate, network, now, record};
use p2psb_proto::error::{Reason, reason_of};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::presence::PresenceState;
use p2psb_proto::model::proof::{ChannelBinding, ProofRole, Transcript, nonce};
use p2psb_proto::model::{Genesis, PeerId};
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Said;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Heard;
use p2psb_proto::wire::rendezvous::v1::{Authenticate, ConnectRequest, ConnectResponse, SessionHello};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::stage::bridged;

/// A session spoken by hand, up to the server's hello.
struct ByHand {
    say: mpsc::Sender<ConnectRequest>,
    hear: Streaming<ConnectResponse>,
    transcript: Transcript,
    binding: ChannelBinding,
    identity: Identity,
}

impl ByHand {
    async fn open(at: &p2psb_client::Endpoint) -> Self {
        let identity = Identity::ephemeral().unwrap();
        let dialer = p2psb_client::Dialer::new(Some(&identity), None).unwrap();
        let connection = dialer.dial(at).await.unwrap();
        let binding = connection.binding();
        let origin = connection.origin();
        let mut client =
            p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient::with_origin(
                connection, origin,
            );
        let (say, said) = mpsc::channel(8);
        let hello = Hello::own(network().unwrap(), identity.peer_id(), "test/1", now());
        let (client_nonce, session_seq) = ([5; 32], now().0);
        let first =
            SessionHello { hello: Some(hello), client_nonce: client_nonce.to_vec().into(), session_seq };
        say.send(ConnectRequest { message: Some(Said::Hello(first)) }).await.unwrap();
        let mut hear = client.connect(ReceiverStream::new(said)).await.unwrap().into_inner();
        let Some(Heard::Hello(answer)) = hear.message().await.unwrap().unwrap().message else {
            panic!("the server says hello first");
        };
        let server = PeerId::from_slice(&answer.hello.as_ref().unwrap().peer_id).unwrap();
        let transcript = Transcript {
            network: network().unwrap(),
            peer: identity.peer_id(),
            server,
            client_nonce,
            server_nonce: nonce(&answer.server_nonce).unwrap(),
            session_seq,
        };
        transcript.verify(ProofRole::SessionServer, &binding, answer.proof.as_ref()).unwrap();
        Self { say, hear, transcript, binding, identity }
    }

    /// Sends a proof and gives what the server makes of it.
    async fn authenticate(
        &mut self,
        by: &Transcript,
        role: ProofRole,
        binding: &ChannelBinding,
    ) -> Result<Heard, Status> {
        let proof = by.prove(role, binding, self.identity.key());
        let record = record(&self.identity, 0).unwrap().to_wire();
        let message = Authenticate { proof: Some(proof), record: Some(record) };
        self.say.send(ConnectRequest { message: Some(Said::Authenticate(message)) }).await.unwrap();
        Ok(self.hear.message().await?.expect("an answer").message.expect("a message"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_proof_gets_a_lease() {
    let backbone = bridged(1).await;
    let mut session = ByHand::open(&backbone.endpoints[0]).await;
    let (transcript, binding) = (session.transcript.clone(), session.binding);
    let heard = session.authenticate(&transcript, ProofRole::SessionPeer, &binding).await.unwrap();
    assert!(matches!(heard, Heard::Lease(_)), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_or_borrowed_proof_is_refused() {
    let backbone = bridged(1).await;
    let at = &backbone.endpoints[0];

    // The proof of an earlier session: other nonces, another connection.
    let earlier = ByHand::open(at).await;
    let mut session = ByHand::open(at).await;
    let own = session.transcript.clone();
    let old = Transcript { server_nonce: earlier.transcript.server_nonce, ..own };
    let binding = session.binding;
    let status = session.authenticate(&old, ProofRole::SessionPeer, &binding).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::ProofInvalid), "{status}");

    // A proof for this session, made on another connection: someone in between.
    let mut session = ByHand::open(at).await;
    let own = session.transcript.clone();
    let status = session.authenticate(&own, ProofRole::SessionPeer, &Some([1; 32])).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::ProofInvalid), "{status}");

    // A proof in another role.
    let mut session = ByHand::open(at).await;
    let (own, binding) = (session.transcript.clone(), session.binding);
    let status = session.authenticate(&own, ProofRole::BridgeDialer, &binding).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::ProofInvalid), "{status}");
    assert!(locate(at, &session.identity.peer_id()).await.is_err(), "nobody was listed by it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_of_another_community_is_refused() {
    let backbone = bridged(1).await;
    let identity = Identity::ephemeral().unwrap();
    let other = Genesis::open("other").unwrap().network_id();
    let hello = Hello::own(other, identity.peer_id(), "test/1", now());
    let first = SessionHello { hello: Some(hello), client_nonce: vec![5; 32].into(), session_seq: 1 };
    let (say, said) = mpsc::channel(1);
    say.send(ConnectRequest { message: Some(Said::Hello(first)) }).await.unwrap();
    let mut client = client(&backbone.endpoints[0]).await.unwrap();
    let status = match client.connect(ReceiverStream::new(said)).await {
        Err(status) => status,
        Ok(answer) => answer.into_inner().message().await.unwrap_err(),
    };
    assert_eq!(reason_of(&status), Some(Reason::NetworkMismatch), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_falls_silent_is_suspect_and_then_offline() {
    let backbone = bridged(1).await;
    let at = &backbone.endpoints[0];
    let mut session = ByHand::open(at).await;
    let (transcript, binding) = (session.transcript.clone(), session.binding);
    session.authenticate(&transcript, ProofRole::SessionPeer, &binding).await.unwrap();
    let id = session.identity.peer_id();
    let state = async || locate(at, &id).await.unwrap().presence.state;
    assert_eq!(state().await, PresenceState::Online);
    // No heartbeat is ever sent.
    let patience = Duration::from_secs(10);
    eventually!("it is no longer online", within patience, state().await != PresenceState::Online);
    eventually!("it is offline", within patience, state().await == PresenceState::Offline);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_dropped_is_offline_after_its_grace_and_back_at_once() {
    let backbone = bridged(1).await;
    let at = &backbone.endpoints[0];
    let identity = Identity::ephemeral().unwrap();
    let id = identity.peer_id();
    let online = async || locate(at, &id).await.is_ok_and(|l| l.presence.state == PresenceState::Online);
    let first = Peer::start_as(identity.clone(), &backbone.endpoints, Vec::new(), None).unwrap();
    eventually!("it is online", online().await);
    drop(first);
    eventually!("it is not", !online().await);
    let _second = Peer::start_as(identity, &backbone.endpoints, Vec::new(), None).unwrap();
    eventually!("it is online again", online().await);
}
