//! Confirming addresses. A home that is asked by its peer asks another member; that one dials the peer back, and signs that
//! it was reached.
//!
//! Promises: only the IP that a peer's session comes from is dialed, nothing private unless the operator allows it, and no more
//! often than [`crate::core::confirm`] says, at each of the two; a member's word is passed on only if it is about what was asked.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use p2psb_client::tls::TlsError;
use p2psb_client::{Dialer, Endpoint, Identity};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{Address, AddressConfirmation, AddressKind, PeerId, Signed, Transport, limits};
use p2psb_proto::wire::common::v1::{self as common, ItemError};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer;
use p2psb_proto::wire::rendezvous::v1::confirm_result::Result as Confirmed;
use p2psb_runtime::telemetry;
use parking_lot::Mutex;
use prost::Message as _;

use crate::backbone::confirming;
use crate::core::confirm::{Budget, DIAL, MINUTE, TooMany, choose};
use crate::core::public::is_public;
use crate::node::Node;

/// What a member says for people is cut here.
const DETAIL_CHARS: usize = 256;

/// What confirming needs.
pub(crate) struct Confirming {
    dialer: Dialer,
    allow_private: bool,
    /// Dials that other members were asked for.
    asked: Mutex<Budget>,
    /// Dials of this server.
    dialed: Mutex<Budget>,
}

impl Confirming {
    /// Dials as `identity`: peers demand to know who calls.
    pub(crate) fn new(identity: &Identity, allow_private: bool) -> Result<Self, TlsError> {
        let dialer = Dialer::new(Some(identity), None)?.with_headers(telemetry::inject);
        Ok(Self { dialer, allow_private, asked: Mutex::default(), dialed: Mutex::default() })
    }

    fn may_dial(&self, ip: IpAddr) -> Result<(), Failure> {
        if self.allow_private || is_public(ip) {
            return Ok(());
        }
        Err(not_dialed(format!("{ip} is not on the open internet, and dial.allow_private is off")))
    }
}

fn not_dialed(why: String) -> Failure {
    Failure::new(Reason::NotDialed, why)
}

fn malformed(what: impl std::fmt::Display) -> Failure {
    Failure::new(Reason::InvalidArgument, format!("confirming an address: {what}"))
}

/// Which of the two budgets a dial is counted in.
type Which = fn(&Confirming) -> &Mutex<Budget>;

/// A dial that is counted as running until it is dropped.
struct Running {
    node: Arc<Node>,
    which: Which,
}

impl Running {
    fn begin(node: &Arc<Node>, which: Which, peer: PeerId, ip: IpAddr) -> Result<Self, TooMany> {
        which(&node.confirming).lock().begin(peer, ip, node.now().mono)?;
        Ok(Self { node: Arc::clone(node), which })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        (self.which)(&self.node.confirming).lock().end();
    }
}

/// A peer wants to know whether it is reached where its session comes from, at `port`. What comes back resolves when the member
/// that was asked has answered.
pub(crate) fn ask(
    node: &Arc<Node>,
    peer: PeerId,
    session: Option<SocketAddr>,
    port: u32,
) -> Result<impl Future<Output = Result<common::SignedRecord, Failure>> + use<>, Failure> {
    let asked = decide(node, peer, session, port);
    if let Err(failure) = &asked {
        count_asked(failure.reason.as_str());
    }
    let (member, at, running) = asked?;
    let node = Arc::clone(node);
    Ok(async move {
        let address = Address::ip(at, Transport::Tls, AddressKind::Observed).to_wire();
        let question = wire::ConfirmQuestion { peer_id: peer.to_wire(), address: Some(address) };
        let answer = confirming::ask(&node, &member, question).await;
        drop(running);
        let result = believe(&node, member, peer, at, answer);
        match &result {
            Ok(_) => {
                count_asked("CONFIRMED");
                tracing::debug!(%peer, %at, %member, "confirmed");
            }
            Err(failure) => {
                count_asked(failure.reason.as_str());
                tracing::debug!(%peer, %at, %member, reason = %failure.reason, problem = failure.message, "not confirmed");
            }
        }
        result
    })
}

fn count_asked(outcome: &'static str) {
    metrics::counter!("rendezvous_confirmations_total", "outcome" => outcome).increment(1);
}

/// Whom to ask, and for what address.
fn decide(
    node: &Arc<Node>,
    peer: PeerId,
    session: Option<SocketAddr>,
    port: u32,
) -> Result<(PeerId, SocketAddr, Running), Failure> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| malformed("the port is not between 1 and 65535"))?;
    let session = session
        .ok_or_else(|| not_dialed("this server is behind a proxy and does not see where you are".into()))?;
    let at = SocketAddr::new(session.ip().to_canonical(), port);
    node.confirming.may_dial(at.ip())?;
    let (linked, homes) = members_and_homes(node, &peer);
    let member = choose(&linked, &homes, session.port() == port, fastrand::f64());
    let member =
        member.ok_or_else(|| no_other("there is no other member of this backbone that could look"))?;
    let running = Running::begin(node, |confirming| &confirming.asked, peer, at.ip())?;
    Ok((member, at, running))
}

/// The members that could be asked, and the homes that the peer names in its record.
fn members_and_homes(node: &Node, peer: &PeerId) -> (Vec<PeerId>, Vec<PeerId>) {
    let now = node.now().wall;
    let (members, record) = {
        let directory = node.directory.read();
        let record = directory.table.valid(peer, now).map(|entry| entry.bytes().clone());
        (directory.members.all(), record)
    };
    let linked = members.into_iter().filter(|member| member.linked).map(|member| member.peer).collect();
    // The table holds what was verified before.
    let payload = record.and_then(|bytes| common::SignedRecord::decode(bytes).ok());
    let record = payload.and_then(|signed| common::PeerRecord::decode(signed.payload).ok());
    let homes = record.map(|record| record.homes).unwrap_or_default();
    (linked, homes.iter().filter_map(|home| PeerId::from_slice(home).ok()).collect())
}

fn no_other(why: &str) -> Failure {
    Failure::new(Reason::NoOtherMember, why).retry_after(MINUTE)
}

/// What a member answered, as far as it is about what was asked, and the member's own word.
fn believe(
    node: &Node,
    member: PeerId,
    peer: PeerId,
    at: SocketAddr,
    answer: Option<Answer>,
) -> Result<common::SignedRecord, Failure> {
    let record = match answer {
        None => return Err(no_other("the member that was asked did not answer")),
        Some(Answer::Error(error)) => return Err(refused(error)),
        Some(Answer::Confirmation(record)) => record,
        Some(_) => {
            return Err(no_other("the member that was asked gave no good answer"));
        }
    };
    let lied = |why: String| {
        tracing::warn!(%member, %peer, %at, problem = why, "a member confirmed what it was not asked for");
        no_other("the member that was asked gave no good answer")
    };
    let confirmation =
        Signed::<AddressConfirmation>::verify(record).map_err(|error| lied(error.to_string()))?;
    let said = confirmation.value();
    said.check(&node.network, node.now().wall).map_err(|error| lied(error.to_string()))?;
    if confirmation.attested_by() != member || said.peer != peer || said.at != at {
        let by = confirmation.attested_by();
        return Err(lied(format!("{by} says that {} is at {}", said.peer, said.at)));
    }
    Ok(confirmation.to_wire())
}

/// The reasons that a member may give; any other says that it is no use.
fn refused(error: ItemError) -> Failure {
    let reason = match Reason::parse(&error.reason) {
        Some(
            reason @ (Reason::Unreachable
            | Reason::IdentityMismatch
            | Reason::NotDialed
            | Reason::LimitExceeded),
        ) => reason,
        _ => return no_other("the member that was asked gave no good answer"),
    };
    let failure = Failure::new(reason, error.detail.chars().take(DETAIL_CHARS).collect::<String>());
    match error.retry_after {
        Some(after) => failure.retry_after(duration_from_wire(Some(&after)).min(limits::RECORD_LIFETIME)),
        None => failure,
    }
}

/// As the peer is told.
pub(crate) fn result(result: Result<common::SignedRecord, Failure>) -> Confirmed {
    match result {
        Ok(record) => Confirmed::Confirmation(record),
        Err(failure) => Confirmed::Error(failure.into()),
    }
}

/// As the member that asked is told.
pub(crate) fn answer(result: Result<common::SignedRecord, Failure>) -> Answer {
    match result {
        Ok(record) => Answer::Confirmation(record),
        Err(failure) => Answer::Error(failure.into()),
    }
}

/// Whom another member asks to dial, and where.
pub(crate) struct Dial {
    peer: PeerId,
    address: Address,
    at: SocketAddr,
}

impl Dial {
    /// Reads a question; `None` if it makes no sense.
    pub(crate) fn read(question: &wire::ConfirmQuestion) -> Option<Self> {
        let peer = PeerId::from_slice(&question.peer_id).ok()?;
        let address = Address::try_from(question.address.clone()?).ok()?;
        let at = address.socket_addr().filter(|_| address.transport == Transport::Tls)?;
        Some(Self { peer, address, at })
    }
}

/// Another member asks to dial a peer of its own. What comes back resolves when that is done.
pub(crate) fn dial_back(
    node: &Arc<Node>,
    asked: Dial,
) -> Result<impl Future<Output = Result<common::SignedRecord, Failure>> + use<>, Failure> {
    let Dial { peer, at, .. } = asked;
    let admitted = node
        .confirming
        .may_dial(at.ip())
        .and_then(|()| Ok(Running::begin(node, |confirming| &confirming.dialed, peer, at.ip())?));
    if let Err(failure) = &admitted {
        count_dialed(failure.reason.as_str());
    }
    let running = admitted?;
    let node = Arc::clone(node);
    Ok(async move {
        let result = dial(&node, &asked).await;
        drop(running);
        let outcome = result.as_ref().err().map_or("CONFIRMED", |failure| failure.reason.as_str());
        count_dialed(outcome);
        tracing::debug!(%peer, %at, outcome, "dialed back");
        result
    })
}

fn count_dialed(outcome: &'static str) {
    metrics::counter!("rendezvous_dial_backs_total", "outcome" => outcome).increment(1);
}

async fn dial(node: &Node, asked: &Dial) -> Result<common::SignedRecord, Failure> {
    let Dial { peer, address, at } = asked;
    let unreachable = |why: String| Failure::new(Reason::Unreachable, why);
    let endpoint = Endpoint::of(address, *peer).ok_or_else(|| unreachable("no endpoint".into()))?;
    let Ok(dialed) = tokio::time::timeout(DIAL, node.confirming.dialer.dial(&endpoint)).await else {
        return Err(unreachable(format!("{at}: no answer within {} s", DIAL.as_secs())));
    };
    // Whoever answers must be the pinned one, else there is no connection.
    dialed?;
    let confirmation = AddressConfirmation::new(node.network, *peer, *at, node.now().wall);
    Ok(Signed::sign(&confirmation, node.identity.key())?.to_wire())
}
