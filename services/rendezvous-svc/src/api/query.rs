//! What anyone may ask.

use std::sync::Arc;

use bytes::Bytes;
use p2psb_proto::error::Failure;
use p2psb_proto::model::presence::page_size;
use p2psb_proto::model::{PeerId, ServiceQuery, limits};
use p2psb_proto::wire::common::v1::LocatedPeer;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_runtime::serve::Framed;
use prost::Message as _;

use super::status::not_an_id;
use crate::backbone::{asking, finding};
use crate::convert::{self, StoredPeer};
use crate::core::Now;
use crate::core::directory::{Directory, Near, PageLimits, Query};
use crate::core::page::Cursor;
use crate::node::Node;

/// Items of a page if the caller names no number.
const DEFAULT_PAGE: usize = 100;
/// What an entry of the list takes beside its record, at most.
const LISTED_OVERHEAD: usize = 48;

/// Where is this peer?
pub(super) async fn locate(
    node: &Arc<Node>,
    request: &wire::LocateRequest,
) -> Result<wire::LocateResponse, Failure> {
    Ok(wire::LocateResponse { peer: Some(located(node, &request.peer_id).await?) })
}

/// The answer to an encoded request, if nobody else has to be asked. Anything else is for [`locate`].
pub(crate) fn locate_at_once(node: &Node, request: Bytes) -> Option<Framed> {
    let request = wire::LocateRequest::decode(request).ok()?;
    let peer = PeerId::from_slice(&request.peer_id).ok()?;
    let mut answer = Framed::default();
    let directory = node.directory.read();
    let near = directory.near(directory.aim(&peer));
    let is_found = at_once(node, &directory, (&peer, near), node.now(), |found| {
        answer.put(found.field_len(PEER), |to| found.put_field(PEER, to));
    });
    is_found.then_some(answer)
}

/// Of a `LocateResponse`.
const PEER: u32 = 1;

/// Gives `to` the peer, if nobody else has to be asked; else returns `false`.
pub(super) fn at_once(
    node: &Node,
    directory: &Directory,
    (peer, near): (&PeerId, Option<Near>),
    now: Now,
    to: impl FnOnce(&StoredPeer<'_>),
) -> bool {
    if let Some(here) = directory.locate_here(peer, near, now) {
        to(&StoredPeer::from(here));
        return true;
    }
    let known = asking::look(node, directory, peer, now);
    known.settled().map(|found| to(&StoredPeer::from(found))).is_some()
}

/// The peer of this id: from memory, or from its owners.
pub(super) async fn located(node: &Arc<Node>, peer_id: &[u8]) -> Result<LocatedPeer, Failure> {
    let peer = PeerId::from_slice(peer_id).map_err(|error| not_an_id("peer_id", &error))?;
    let known = asking::look(node, &node.directory.read(), &peer, node.now());
    if let Some(found) = known.settled() {
        return convert::located(found);
    }
    convert::located(&asking::ask(node, peer, known).await?)
}

/// Which peers provide this service?
pub(super) async fn find_by_service(
    node: &Arc<Node>,
    request: wire::FindByServiceRequest,
) -> Result<wire::FindByServiceResponse, Failure> {
    let wanted = ServiceQuery::parse(&request.service, request.filters)?;
    let from = Cursor::parse(&request.page_token, &wanted)?;
    let limits = PageLimits { items: page_size(request.page_size, DEFAULT_PAGE), bytes: limits::PAGE_BYTES };
    let page = finding::find(node, Query { wanted: wanted.clone(), from, limits }).await?;
    finding::to_wire(&page, &wanted)
}

/// Every rendezvous of this backbone.
pub(super) fn list_rendezvous(node: &Node) -> wire::ListRendezvousResponse {
    let now = node.now();
    let sessions = node.sessions.lock().total();
    let known = node.directory.read().rendezvous(sessions, now);
    let mut room = limits::PAGE_BYTES;
    let fits = |size: usize| {
        let fits = size <= room;
        room = room.saturating_sub(size);
        fits
    };
    let sizes = known.iter().map(|one| one.bytes.len() + LISTED_OVERHEAD);
    let count = sizes.take(limits::MEMBERS).map(fits).take_while(|fits| *fits).count();
    let info = |one: &crate::core::directory::KnownRendezvous| {
        Some(wire::RendezvousInfo {
            record: Some(convert::signed(&one.bytes).ok()?),
            connected: one.connected,
            last_seen_time: Some(one.last_seen.to_wire()),
            sessions: one.sessions,
        })
    };
    wire::ListRendezvousResponse { rendezvous: known.iter().take(count).filter_map(info).collect() }
}
