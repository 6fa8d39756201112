//! Which peers provide a service: from memory where this server owns the name, else from the owners, as one page.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::Presence;
use p2psb_proto::model::{PeerId, ServiceQuery};
use p2psb_proto::wire::common::v1::LocatedPeer;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer as Arm;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use prost::Message as _;
use tokio::time::{Instant, timeout_at};

use super::asking::patience;
use crate::convert;
use crate::core::directory::{INCOMPLETE_RETRY, Located, Page, PageLimits, Query};
use crate::core::page::Cursor;
use crate::core::placement::Key;
use crate::core::union::unite;
use crate::node::Node;

/// Bytes of a page that goes over a link.
const LINK_PAGE_BYTES: usize = 384 * 1024;
/// After the first owner has answered the others have so much time.
const GATHERING: Duration = Duration::from_millis(100);

/// One page of what a query wants.
pub(crate) async fn find(node: &Arc<Node>, query: Query) -> Result<Page, Failure> {
    let key = Key::service(query.wanted.service().as_str());
    let (owners, knows_all) = {
        let bridge = node.hub.bridge.lock();
        (bridge.view().to_tell(key).collect::<Vec<PeerId>>(), bridge.knows_all(key))
    };
    let own = |query: &Query| node.directory.read().find(query, node.now());
    if knows_all {
        return Ok(own(&query));
    }
    let mut pages = ask(node, &owners, &query).await;
    if owners.contains(&node.id) {
        pages.push(own(&query));
    }
    if pages.is_empty() {
        let text = format!("no rendezvous that owns the name {} can be asked now", query.wanted.service());
        return Err(Failure::new(Reason::LookupIncomplete, text).retry_after(INCOMPLETE_RETRY));
    }
    Ok(unite(pages, query.limits.items))
}

/// The pages of those owners that answer in time.
async fn ask(node: &Arc<Node>, owners: &[PeerId], query: &Query) -> Vec<Page> {
    let question = Question::Find(wire::FindByServiceRequest {
        service: query.wanted.service().to_string(),
        page_size: u32::try_from(query.limits.items).unwrap_or(u32::MAX),
        page_token: query.from.map(|from| from.to_token(&query.wanted)).unwrap_or_default(),
        filters: query.wanted.filters_to_wire(),
    });
    let asked = owners.iter().filter_map(|owner| node.hub.ask(owner, question.clone()));
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut until = Instant::now() + patience(node).deadline;
    let mut pages = Vec::new();
    while let Ok(Some(answer)) = timeout_at(until, asked.next()).await {
        let Ok(wire::BridgeAnswer { answer: Some(Arm::Providers(said)), .. }) = answer else { continue };
        let (at, wanted) = (Arc::clone(node), query.wanted.clone());
        // A page has up to a thousand signatures to look at.
        match tokio::task::spawn_blocking(move || read(&at, &wanted, said)).await {
            Ok(Ok(page)) => {
                pages.push(page);
                until = until.min(Instant::now() + GATHERING);
            }
            Ok(Err(failure)) => {
                metrics::counter!("rendezvous_bridged_refused_total").increment(1);
                tracing::debug!(reason = %failure.reason, problem = failure.message, "a page proves nothing");
            }
            Err(error) => tracing::error!(%error, "a page was not read"),
        }
    }
    pages
}

/// A page that an owner told. Records that nobody signed are left out.
fn read(node: &Node, wanted: &ServiceQuery, said: wire::FindByServiceResponse) -> Result<Page, Failure> {
    let next = Cursor::parse(&said.next_page_token, wanted)?;
    let peers = said.peers.into_iter().filter_map(|one| located(node, wanted, one).ok()).collect();
    Ok(Page { peers, next, sampled: said.sampled })
}

fn located(node: &Node, wanted: &ServiceQuery, said: LocatedPeer) -> Result<Located, Failure> {
    let malformed = || Failure::new(Reason::InvalidArgument, "a provider without record or presence");
    let record = said.record.ok_or_else(malformed)?;
    let presence =
        said.presence.and_then(|presence| Presence::try_from(presence).ok()).ok_or_else(malformed)?;
    let bytes = bytes::Bytes::from(record.encode_to_vec());
    let peer = node.verify(record)?.peer_id();
    if !wanted.is_met_by_stored(&bytes) {
        return Err(Failure::new(Reason::InvalidArgument, "a provider of something else"));
    }
    Ok(Located { peer, bytes, presence })
}

/// Answers a member that asks.
pub(super) fn answer(node: &Node, asked: wire::FindByServiceRequest) -> Result<Arm, Failure> {
    let query = over_a_link(asked)?;
    let page = node.directory.read().find(&query, node.now());
    Ok(Arm::Providers(to_wire(&page, &query.wanted)?))
}

/// Answers an edge that asks: with all that the owners know.
pub(super) async fn answer_edge(node: &Arc<Node>, asked: wire::FindByServiceRequest) -> Result<Arm, Failure> {
    let query = over_a_link(asked)?;
    let wanted = query.wanted.clone();
    Ok(Arm::Providers(to_wire(&find(node, query).await?, &wanted)?))
}

fn over_a_link(asked: wire::FindByServiceRequest) -> Result<Query, Failure> {
    let wanted = ServiceQuery::parse(&asked.service, asked.filters)?;
    let from = Cursor::parse(&asked.page_token, &wanted)?;
    let items = p2psb_proto::model::presence::page_size(asked.page_size, 1);
    Ok(Query { wanted, from, limits: PageLimits { items, bytes: LINK_PAGE_BYTES } })
}

/// A page as it is told.
pub(crate) fn to_wire(page: &Page, wanted: &ServiceQuery) -> Result<wire::FindByServiceResponse, Failure> {
    Ok(wire::FindByServiceResponse {
        peers: page.peers.iter().map(convert::located).collect::<Result<_, _>>()?,
        next_page_token: page.next.map(|next| next.to_token(wanted)).unwrap_or_default(),
        sampled: page.sampled,
    })
}
