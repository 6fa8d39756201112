//! Which peers provide a service: from memory where this server owns the name, else from the owners, as one page.
//!
//! Promise: a page is made of what two owners say that have finished syncing, or the only one there is, and of what others say
//! that are as quick as these; where fewer say anything in time, the page is `sampled`.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::Presence;
use p2psb_proto::model::{PeerId, ServiceQuery, limits};
use p2psb_proto::wire::common::v1::LocatedPeer;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer as Arm;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::asking::patience;
use crate::convert;
use crate::core::directory::{INCOMPLETE_RETRY, LOCATED_OVERHEAD, Located, Page, PageLimits, Query};
use crate::core::lookup::WITNESSES;
use crate::core::page::Cursor;
use crate::core::placement::Key;
use crate::core::union::Union;
use crate::node::Node;

/// Bytes of a page that goes over a link.
const LINK_PAGE_BYTES: usize = 384 * 1024;
/// After enough owners have answered the others have so much time.
const GATHERING: Duration = Duration::from_millis(100);

/// One page of what a query wants.
pub(crate) async fn find(node: &Arc<Node>, query: Query) -> Result<Page, Failure> {
    let key = Key::service(query.wanted.service().as_str());
    let (owners, awaited, knows_all) = {
        let bridge = node.hub.bridge.lock();
        let owners: Vec<PeerId> = bridge.view().to_tell(key).collect();
        (owners, bridge.view().owners(key).iter().count().min(WITNESSES), bridge.knows_all(key))
    };
    let own = |query: &Query| node.directory.read().find(query, node.now());
    if knows_all {
        return Ok(own(&query));
    }
    let mut finding = Finding::new(node, &query, awaited);
    if owners.contains(&node.id) {
        finding.take(node.id, own(&query), true);
    }
    finding.gather(&owners).await;
    finding.go_on().await;
    if finding.union.is_empty() {
        let text = format!("no rendezvous that owns the name {} can be asked now", query.wanted.service());
        return Err(Failure::new(Reason::LookupIncomplete, text).retry_after(INCOMPLETE_RETRY));
    }
    Ok(finding.union.page())
}

/// The same question to several owners.
struct Finding<'a> {
    node: &'a Arc<Node>,
    query: &'a Query,
    union: Union,
    /// So many more owners have to answer that have finished syncing.
    awaited: usize,
    until: Instant,
}

impl<'a> Finding<'a> {
    fn new(node: &'a Arc<Node>, query: &'a Query, awaited: usize) -> Self {
        let union = Union::new(query.from, query.limits.items);
        Self { node, query, union, awaited, until: Instant::now() + patience(node).deadline }
    }

    /// The first pages of those owners that answer in time.
    async fn gather(&mut self, owners: &[PeerId]) {
        let asked = owners.iter().filter_map(|owner| {
            let answer = self.ask(owner, self.query.from)?;
            Some(async move { (*owner, answer.await) })
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut until = self.until;
        loop {
            if self.awaited == 0 {
                until = until.min(Instant::now() + GATHERING);
            }
            let Ok(Some((owner, answer))) = timeout_at(until, asked.next()).await else { break };
            self.answered(owner, answer.ok()).await;
        }
        if self.awaited > 0 {
            self.union.is_sampled();
        }
    }

    /// Asks owners on that stopped early, one after the other.
    async fn go_on(&mut self) {
        while let Some((owner, from)) = self.union.ask_on() {
            let answer = match self.ask(&owner, Some(from)) {
                Some(answer) => timeout_at(self.until, answer).await.ok().and_then(Result::ok),
                None => None,
            };
            if !self.answered(owner, answer).await {
                self.union.give_up(&owner);
            }
        }
    }

    fn ask(&self, owner: &PeerId, from: Option<Cursor>) -> Option<oneshot::Receiver<wire::BridgeAnswer>> {
        let question = wire::FindByServiceRequest {
            service: self.query.wanted.service().to_string(),
            page_size: u32::try_from(self.query.limits.items).unwrap_or(u32::MAX),
            page_token: from.map(|from| from.to_token(&self.query.wanted)).unwrap_or_default(),
            filters: self.query.wanted.filters_to_wire(),
        };
        self.node.hub.ask(owner, Question::Find(question))
    }

    /// Takes what an owner answered. Returns whether that was a page.
    async fn answered(&mut self, owner: PeerId, answer: Option<wire::BridgeAnswer>) -> bool {
        let Some(Arm::Providers(said)) = answer.and_then(|answer| answer.answer) else { return false };
        let (at, wanted) = (Arc::clone(self.node), self.query.wanted.clone());
        // A page has up to a thousand signatures to look at.
        match tokio::task::spawn_blocking(move || read(&at, &wanted, said)).await {
            Ok(Ok(page)) => {
                let had_to = is_large(&page);
                self.take(owner, page, had_to)
            }
            Ok(Err(failure)) => {
                refused(&owner, &failure.message);
                false
            }
            Err(error) => {
                tracing::error!(%error, "a page was not read");
                false
            }
        }
    }

    fn take(&mut self, owner: PeerId, page: Page, had_to: bool) -> bool {
        let is_first = !self.union.has_heard(&owner);
        if let Err(error) = self.union.take(owner, page, had_to) {
            refused(&owner, &error.to_string());
            return false;
        }
        if is_first && self.node.hub.bridge.lock().has_finished(&owner) {
            self.awaited = self.awaited.saturating_sub(1);
        }
        true
    }
}

fn refused(owner: &PeerId, problem: &str) {
    metrics::counter!("rendezvous_bridged_refused_total").increment(1);
    tracing::debug!(member = %owner, problem, "a page proves nothing");
}

/// Whether one provider more may not have fitted into a page that goes over a link.
fn is_large(page: &Page) -> bool {
    let bytes: usize = page.peers.iter().map(|found| found.bytes.len() + LOCATED_OVERHEAD).sum();
    bytes + limits::PEER_RECORD_BYTES + LOCATED_OVERHEAD > LINK_PAGE_BYTES
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
