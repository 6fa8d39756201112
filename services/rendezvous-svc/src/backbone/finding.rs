//! Which peers provide a service: from memory where this server owns the name, else from the owners, as one page.
//!
//! Promise: a page is made of what two owners say that have finished syncing, or the only one there is, and of what others say
//! that are as quick as these; where fewer say anything in time, the page is `sampled`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::{Presence, aliveness};
use p2psb_proto::model::{PeerId, PeerStatement, ServiceQuery, UnixMillis, limits};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer as Arm;
use p2psb_proto::wire::rendezvous::v1::bridge_question::Question;
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::asking::{self, patience};
use super::stating;
use crate::api::status;
use crate::convert;
use crate::core::Now;
use crate::core::directory::{self, Located, Page, PageLimits, Query};
use crate::core::lookup::WITNESSES;
use crate::core::page::Cursor;
use crate::core::placement::Key;
use crate::core::presence::{Said, View};
use crate::core::union::{Found, Union, lies_in, place};
use crate::node::Node;

/// Bytes of a page that goes over a link.
const LINK_PAGE_BYTES: usize = 384 * 1024;
/// Homes of a provider that a page tells of: as many as a peer keeps. The word of one has less than 400 bytes with its proof.
const HOMES: usize = 3;
/// What one provider takes in a page that goes over a link, at most.
const LARGEST: usize = limits::PEER_RECORD_BYTES + HOMES * 400 + 16;
/// After enough owners have answered the others have so much time.
const GATHERING: Duration = Duration::from_millis(100);

/// One page of what a query wants.
pub(crate) async fn find(node: &Arc<Node>, query: Query) -> Result<Page<Found>, Failure> {
    let key = Key::service(query.wanted.service().as_str());
    let (owners, awaited, knows_all) = {
        let bridge = node.hub.bridge.lock();
        let owners: Vec<PeerId> = bridge.view().to_tell(key).collect();
        (owners, bridge.view().owners(key).iter().count().min(WITNESSES), bridge.knows_all(key))
    };
    let own = |query: &Query| node.directory.read().find(query, node.now()).map(Found::from);
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
        return Err(status::incomplete(text));
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
            self.answered(owner, self.query.from, answer.ok()).await;
        }
        if self.awaited > 0 {
            self.union.mark_sampled();
        }
    }

    /// Asks owners on that stopped early, one after the other.
    async fn go_on(&mut self) {
        while let Some((owner, from)) = self.union.ask_on() {
            let answer = match self.ask(&owner, Some(from)) {
                Some(answer) => timeout_at(self.until, answer).await.ok().and_then(Result::ok),
                None => None,
            };
            if !self.answered(owner, Some(from), answer).await {
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

    /// Takes what an owner answered that was asked for what follows `from`. Returns whether that was a page.
    async fn answered(
        &mut self,
        owner: PeerId,
        from: Option<Cursor>,
        answer: Option<wire::BridgeAnswer>,
    ) -> bool {
        let Some(Arm::Page(said)) = answer.and_then(|answer| answer.answer) else { return false };
        let (at, wanted) = (Arc::clone(self.node), self.query.wanted.clone());
        let reading = move || Reading { node: &at, owner, wanted: &wanted, now: at.now() }.page(from, said);
        // A page has up to two thousand signatures to look at.
        match tokio::task::spawn_blocking(reading).await {
            Ok(Ok((page, had_to))) => self.take(owner, page, had_to),
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

    fn take(&mut self, owner: PeerId, page: Page<Found>, had_to: bool) -> bool {
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

/// Looks at what an owner says: nothing of it is believed that the provider itself did not sign.
struct Reading<'a> {
    node: &'a Node,
    owner: PeerId,
    wanted: &'a ServiceQuery,
    now: Now,
}

impl Reading<'_> {
    /// The page behind `from`, and whether one provider more may not have fitted into it. Records that nobody signed are left out.
    fn page(
        &self,
        from: Option<Cursor>,
        said: wire::BridgeProviders,
    ) -> Result<(Page<Found>, bool), Failure> {
        let next = Cursor::parse(&said.next_page_token, self.wanted)?;
        let (mut peers, mut seen, mut bytes) = (Vec::new(), HashSet::new(), 0);
        for one in said.peers {
            let size = one.encoded_len();
            match self.found(one) {
                Ok(found) => {
                    let is_new = seen.insert(found.located.peer);
                    bytes += if is_new && lies_in(&found.located, from, next) { size } else { 0 };
                    peers.push(found);
                }
                Err(failure) => refused(&self.owner, &failure.message),
            }
        }
        Ok((Page { peers, next, sampled: said.sampled }, bytes + LARGEST > LINK_PAGE_BYTES))
    }

    fn found(&self, said: wire::BridgeFound) -> Result<Found, Failure> {
        let missing = || Failure::new(Reason::InvalidArgument, "a provider without a record");
        let record = said.record.ok_or_else(missing)?;
        let bytes = bytes::Bytes::from(record.encode_to_vec());
        let statement = self.node.verify(record)?;
        let PeerStatement::Record(record) = &statement else { return Err(missing()) };
        if !self.wanted.is_met_by_stored(&bytes) {
            return Err(Failure::new(Reason::InvalidArgument, "a provider of something else"));
        }
        let peer = statement.peer_id();
        let (presence, said) = self.presence(&peer, record.value().issued, &said.presence);
        Ok(Found { located: Located { peer, bytes, presence }, said: Some(said) })
    }

    /// How a provider is: as this server knows itself, if the provider is here; else as the liveliest of its homes says that it proved
    /// a session with, among them this server if it was here; else nobody knows more than its record says.
    fn presence(
        &self,
        peer: &PeerId,
        issued: UnixMillis,
        said: &[wire::HomePresence],
    ) -> (Presence, Vec<Said>) {
        let mut homes: Vec<Said> = said
            .iter()
            .take(HOMES)
            .filter_map(|said| stating::read(said, self.owner, self.now).ok())
            .filter(|said| said.peer == *peer && said.home != self.node.id)
            .map(|said| Said { is_direct: false, ..said })
            .collect();
        let (here, own, views) = {
            let directory = self.node.directory.read();
            let is_here = directory.is_here(peer, self.now);
            let here = if is_here { directory.locate(peer, self.now).ok() } else { None };
            let own = directory.stated(peer, self.now.mono).map(|stated| View {
                state: stated.state,
                source: stated.source,
                last_seen: stated.heard,
                as_of: self.now.mono,
                home: self.node.id,
            });
            let follow = |said: &Said| directory.presence.follow(said, self.now.mono);
            (here.map(|here| here.presence), own, homes.iter().map(follow).collect::<Vec<_>>())
        };
        let mut best: Vec<(usize, View)> = views.into_iter().enumerate().collect();
        best.sort_by_key(|(_, view)| std::cmp::Reverse((aliveness(view.state), view.last_seen)));
        let is_proven = |(n, _): &(usize, View)| {
            homes.get(*n).is_some_and(|said| stating::verify(said, self.node.network).is_ok())
        };
        let proven = best.into_iter().find(is_proven);
        let said = proven.map(|(n, _)| vec![homes.swap_remove(n)]).unwrap_or_default();
        let views = proven.map(|(_, view)| view).into_iter().chain(own);
        (here.unwrap_or_else(|| directory::presence(views, issued, self.now)), said)
    }
}

/// Answers a member that asks.
pub(super) fn answer(node: &Node, asked: wire::FindByServiceRequest) -> Result<Arm, Failure> {
    let query = over_a_link(asked)?;
    let page = node.directory.read().find(&query, node.now()).map(Found::from);
    over_the_link(node, page, &query.wanted)
}

/// Answers an edge that asks: with all that the owners know.
pub(super) async fn answer_edge(node: &Arc<Node>, asked: wire::FindByServiceRequest) -> Result<Arm, Failure> {
    let query = over_a_link(asked)?;
    let wanted = query.wanted.clone();
    over_the_link(node, find(node, query).await?, &wanted)
}

/// A page with what its reader needs to believe it, as much of it as may go over a link.
fn over_the_link(node: &Node, page: Page<Found>, wanted: &ServiceQuery) -> Result<Arm, Failure> {
    let now = node.now();
    let (mut peers, mut bytes, mut last, mut next) = (Vec::new(), 0, None, page.next);
    let directory = node.directory.read();
    for Found { located, said } in page.peers {
        let presence = match said {
            Some(said) => {
                let own = stating::own(&directory, &located.peer, now.wall.0, now);
                own.into_iter().chain(said.iter().map(|said| stating::to_wire(said, now))).collect()
            }
            None => asking::homes_of(&directory, &located.peer, HOMES, now),
        };
        let told = wire::BridgeFound { record: Some(convert::signed(&located.bytes)?), presence };
        bytes += told.encoded_len();
        if bytes > LINK_PAGE_BYTES && last.is_some() {
            next = last;
            break;
        }
        last = Some(place(&located));
        peers.push(told);
    }
    let next_page_token = next.map(|next| next.to_token(wanted)).unwrap_or_default();
    Ok(Arm::Page(wire::BridgeProviders { peers, next_page_token, sampled: page.sampled }))
}

fn over_a_link(asked: wire::FindByServiceRequest) -> Result<Query, Failure> {
    let wanted = ServiceQuery::parse(&asked.service, asked.filters)?;
    let from = Cursor::parse(&asked.page_token, &wanted)?;
    let items = p2psb_proto::model::presence::page_size(asked.page_size, 1);
    Ok(Query { wanted, from, limits: PageLimits { items, bytes: LINK_PAGE_BYTES } })
}

/// A page as it is told.
pub(crate) fn to_wire(
    page: &Page<Found>,
    wanted: &ServiceQuery,
) -> Result<wire::FindByServiceResponse, Failure> {
    Ok(wire::FindByServiceResponse {
        peers: page.peers.iter().map(|found| convert::located(&found.located)).collect::<Result<_, _>>()?,
        next_page_token: page.next.map(|next| next.to_token(wanted)).unwrap_or_default(),
        sampled: page.sampled,
    })
}
