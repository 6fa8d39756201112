//! How a link begins, at both ends: hello, hello with proof, proof.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};
use p2psb_client::{Connection, Endpoint};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::proof::{ChannelBinding, Nonce, ProofRole, Transcript, nonce};
use p2psb_proto::model::record::next_seq;
use p2psb_proto::model::time::{duration_from_wire, duration_to_wire};
use p2psb_proto::model::{PeerId, RecordError, limits};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_service_client::BridgeServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use super::MESSAGE_BYTES;
use super::edges::{EdgePlace, OtherEnd};
use super::frame::Frame;
use super::link::{self, Ended, Link};
use super::mailbox::Says;
use super::trust::Trust;
use crate::api::status::{draining, full};
use crate::core::members::{DialedBy, LinkRefused, Role};
use crate::node::{Caller, Node, random};

/// Batches that may wait to be sent: the outbox holds the rest.
const QUEUE: usize = 2;

/// Messages of the other end; one that is unknown is `None`.
pub(super) type Inbound = BoxStream<'static, Result<Option<Frame>, Status>>;
/// Messages to the other end.
pub(super) type Outbound = mpsc::Sender<Result<Frame, Status>>;

/// What a listener answers.
pub(crate) type Outgoing = BoxStream<'static, Result<wire::LinkResponse, Status>>;

/// Both directions of a link, and what its proofs are bound to.
struct Ends {
    inbound: Inbound,
    outbound: Outbound,
    binding: ChannelBinding,
}

impl Ends {
    async fn next(&mut self) -> Result<Frame, Failure> {
        loop {
            match self.inbound.next().await {
                Some(Ok(Some(frame))) => return Ok(frame),
                Some(Ok(None)) => {}
                Some(Err(status)) => return Err(link::from_stream(&status)),
                None => return Err(Failure::new(Reason::Unreachable, "the other end closed the link")),
            }
        }
    }

    async fn send(&mut self, frame: Frame) -> Result<(), Failure> {
        let sent = self.outbound.send(Ok(frame)).await;
        sent.map_err(|_| Failure::new(Reason::Unreachable, "the link broke"))
    }
}

async fn within<T>(steps: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(limits::HANDSHAKE, steps).await {
        Ok(done) => done,
        Err(_) => {
            Err(Failure::new(Reason::HandshakeTimeout, "the other member did not prove itself within 5 s"))
        }
    }
}

fn unexpected(wanted: &str) -> Failure {
    Failure::new(Reason::UnexpectedMessage, format!("{wanted} must come now"))
}

fn disabled() -> Failure {
    let text = "this server bridges with nobody: neither bridge.key_file nor bridge.trust is set";
    Failure::new(Reason::BridgeDisabled, text)
}

/// Accepts a link that another member dialed; its task goes on by itself.
pub(crate) fn accept(
    node: &Arc<Node>,
    caller: Caller,
    inbound: Streaming<wire::LinkRequest>,
) -> Result<Outgoing, Failure> {
    if node.drain.has_begun() {
        return Err(draining());
    }
    let (outbound, answers) = mpsc::channel(QUEUE);
    let inbound = inbound.map(|message| message.map(Frame::of_request)).boxed();
    let ends = Ends { inbound, outbound: outbound.clone(), binding: caller.binding };
    let node = Arc::clone(node);
    let task = async move {
        let ended = match within(listen(&node, caller.ip(), ends)).await {
            Ok((link, says, ends)) => link.run(None, ends.inbound, (ends.outbound, says)).await.reason,
            Err(failure) => {
                log_refusal(&node, &failure, &caller);
                Some(failure)
            }
        };
        if let Some(failure) = ended {
            // Nobody is left to be told if this fails.
            let _ = outbound.try_send(Err(failure.into()));
        }
    };
    tokio::spawn(task.in_current_span());
    Ok(ReceiverStream::new(answers).map(|frame| frame.map(Frame::into_response)).boxed())
}

/// That a member looked who is there, and has a link already or is this server itself, is no news. Of strangers, who may come as
/// often as they like, one is logged now and then.
fn log_refusal(node: &Node, failure: &Failure, caller: &Caller) {
    let (reason, problem, from) = (failure.reason, failure.message.as_str(), &caller.addr);
    let is_news = !matches!(reason, Reason::Unreachable | Reason::LinkDuplicate);
    match is_news.then(|| node.hub.refused_link(node.clock.now())).flatten() {
        Some(times) => tracing::warn!(%reason, problem, ?from, times, "refused a link"),
        None => tracing::debug!(%reason, problem, ?from, "no link came to be"),
    }
}

/// Whether somebody of this role may have a link with this server, before it has proven anything.
fn admit(node: &Arc<Node>, role: Role, from: Option<IpAddr>) -> Result<OtherEnd, Failure> {
    match (node.role, role) {
        (Role::Edge, _) => {
            let text = "this server is an edge of its backbone; links are made with members";
            Err(Failure::new(Reason::BridgeDisabled, text))
        }
        (Role::Member, Role::Member) if node.trust.is_none() => Err(disabled()),
        (Role::Member, Role::Member) => Ok(OtherEnd::Member),
        (Role::Member, Role::Edge) if !node.takes_edges => {
            Err(Failure::new(Reason::BridgeDisabled, "this server takes no edges: bridge.edges is off"))
        }
        (Role::Member, Role::Edge) => Ok(OtherEnd::Edge(EdgePlace::take(node, from).map_err(full)?)),
    }
}

async fn listen(
    node: &Arc<Node>,
    from: Option<IpAddr>,
    mut ends: Ends,
) -> Result<(Link, Says, Ends), Failure> {
    let Frame::Hello(hello) = ends.next().await? else { return Err(unexpected("hello")) };
    let theirs = read_hello(node, &hello)?;
    let other = admit(node, theirs.role, from)?;
    let trust = match &other {
        OtherEnd::Member => node.trust.clone().ok_or_else(disabled)?,
        OtherEnd::Edge(_) => Trust::nobody(),
    };
    let transcript = Transcript {
        network: node.network,
        peer: theirs.peer,
        server: node.id,
        client_nonce: theirs.nonce,
        server_nonce: random()?,
        session_seq: hello.link_seq,
    };
    let key = node.identity.key();
    let proof = trust.prove(&transcript, ProofRole::BridgeListener, &ends.binding, key);
    ends.send(own_hello(node, &transcript.server_nonce, hello.link_seq, Some(proof))).await?;

    let Frame::Authenticate(answer) = ends.next().await? else { return Err(unexpected("authenticate")) };
    match &other {
        OtherEnd::Member => {
            trust.verify(&theirs.peer, &transcript, ProofRole::BridgeDialer, &ends.binding, Some(&answer))?;
        }
        OtherEnd::Edge(_) => {
            Trust::verify_id(&transcript, ProofRole::BridgeDialer, &ends.binding, Some(&answer))?;
        }
    }
    let (link, says) = Link::open(node, DialedBy::Them, hello.link_seq, (theirs, other))?;
    Ok((link, says, ends))
}

fn own_hello(node: &Node, nonce: &Nonce, link_seq: u64, proof: Option<wire::BridgeProof>) -> Frame {
    let said = node.hub.bridge.lock().introduction(node.now().mono);
    Frame::Hello(Box::new(wire::BridgeHello {
        hello: Some(node.hello()),
        nonce: Bytes::copy_from_slice(nonce),
        link_seq,
        proof,
        record: node.own.current(),
        boot_id: said.boot,
        up_for: Some(duration_to_wire(said.up_for)),
        oldest_up_for: Some(duration_to_wire(said.oldest_up_for)),
        role: match node.role {
            Role::Member => wire::BridgeRole::Member,
            Role::Edge => wire::BridgeRole::Edge,
        } as i32,
    }))
}

/// What the other end's hello says.
pub(super) struct Theirs {
    pub(super) peer: PeerId,
    nonce: Nonce,
    pub(super) record: SignedRecord,
    /// Which life of it this is.
    pub(super) boot: u64,
    pub(super) role: Role,
    pub(super) up_for: Duration,
    pub(super) oldest_up_for: Duration,
}

fn read_hello(node: &Node, hello: &wire::BridgeHello) -> Result<Theirs, Failure> {
    let theirs = Hello::accept(hello.hello.clone(), &node.network, node.now().wall)?;
    let record = hello.record.clone().ok_or(RecordError::Missing)?;
    if record.key.as_ref() != theirs.peer.key().as_bytes() {
        return Err(Failure::new(Reason::InvalidArgument, "a member's hello holds its own record"));
    }
    Ok(Theirs {
        peer: theirs.peer,
        nonce: nonce(&hello.nonce)?,
        record,
        boot: hello.boot_id,
        role: match hello.role() {
            wire::BridgeRole::Edge => Role::Edge,
            wire::BridgeRole::Unspecified | wire::BridgeRole::Member => Role::Member,
        },
        up_for: duration_from_wire(hello.up_for.as_ref()),
        oldest_up_for: duration_from_wire(hello.oldest_up_for.as_ref()),
    })
}

/// A dialed link did not come to be.
pub(super) struct Refused {
    /// Who is there, if it proved that.
    pub(super) peer: Option<PeerId>,
    /// Why not.
    pub(super) failure: Failure,
}

impl<E: Into<Failure>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self { peer: None, failure: error.into() }
    }
}

/// Opens a link over a connection that this server dialed, and keeps it until it ends.
pub(super) async fn dialed(
    node: &Arc<Node>,
    trust: &Trust,
    connection: Connection,
    endpoint: &Endpoint,
) -> Result<Ended, Refused> {
    let (outbound, requests) = mpsc::channel(QUEUE);
    let requests = ReceiverStream::new(requests)
        .filter_map(|frame: Result<Frame, Status>| std::future::ready(frame.ok().map(Frame::into_request)));
    let mut client = BridgeServiceClient::with_origin(connection.clone(), connection.origin())
        .max_decoding_message_size(MESSAGE_BYTES);
    let client_nonce = random()?;
    let link_seq = next_seq(0, node.now().wall);
    let hello = own_hello(node, &client_nonce, link_seq, None);
    let shake = async {
        outbound.send(Ok(hello)).await.map_err(|_| Failure::new(Reason::Unreachable, "the link broke"))?;
        let answers = client.link(requests).await.map_err(|status| link::from_stream(&status))?;
        let inbound = answers.into_inner().map(|message| message.map(Frame::of_response)).boxed();
        let mut ends = Ends { inbound, outbound, binding: connection.binding() };
        let Frame::Hello(hello) = ends.next().await? else { return Err(unexpected("hello").into()) };
        let theirs = read_hello(node, &hello)?;
        let peer = theirs.peer;
        let expected = endpoint.pin().or(connection.server_id());
        if let Some(expected) = expected.filter(|expected| *expected != peer) {
            let text = format!("{}: {expected} must answer there, {peer} did", endpoint.url());
            return Err(Failure::new(Reason::IdentityMismatch, text).into());
        }
        let transcript = Transcript {
            network: node.network,
            peer: node.id,
            server: peer,
            client_nonce,
            server_nonce: theirs.nonce,
            session_seq: link_seq,
        };
        // Until here anybody may have claimed to be anybody.
        let live = hello.proof.as_ref().and_then(|proof| proof.proof.as_ref());
        transcript.verify(ProofRole::BridgeListener, &ends.binding, live)?;
        let proven = |failure| Refused { peer: Some(peer), failure };
        if peer == node.id {
            return Err(proven(LinkRefused::Own.into()));
        }
        let first = prove_both(node, trust, &mut ends, &transcript, hello.proof.as_ref()).await;
        Ok((ends, theirs, first.map_err(proven)?))
    };
    let (ends, theirs, first) = match tokio::time::timeout(limits::HANDSHAKE, shake).await {
        Ok(done) => done?,
        Err(_) => {
            let text = "the other member did not prove itself within 5 s";
            return Err(Failure::new(Reason::HandshakeTimeout, text).into());
        }
    };
    let peer = theirs.peer;
    let (link, says) = Link::open(node, DialedBy::Us, link_seq, (theirs, OtherEnd::Member))
        .map_err(|failure| Refused { peer: Some(peer), failure })?;
    let ended = link.run(Some(first), ends.inbound, (ends.outbound, says)).await;
    drop(connection);
    Ok(ended)
}

/// The dialer's second half. The listener's first frame says that it accepted the proof.
async fn prove_both(
    node: &Node,
    trust: &Trust,
    ends: &mut Ends,
    transcript: &Transcript,
    theirs: Option<&wire::BridgeProof>,
) -> Result<Frame, Failure> {
    let peer = transcript.server;
    match node.role {
        Role::Member => trust.verify(&peer, transcript, ProofRole::BridgeListener, &ends.binding, theirs)?,
        // An edge believes nobody more than peers sign.
        Role::Edge => Trust::verify_id(transcript, ProofRole::BridgeListener, &ends.binding, theirs)?,
    }
    node.directory.read().members.may_link(&peer, DialedBy::Us, transcript.session_seq)?;
    let key = node.identity.key();
    let proof = trust.prove(transcript, ProofRole::BridgeDialer, &ends.binding, key);
    ends.send(Frame::Authenticate(proof)).await?;
    ends.next().await
}
