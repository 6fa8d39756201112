//! Who provides a service, over all backbones. What they answer is verified here, filters included.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::{PeerId, ServiceQuery};
use p2psb_proto::wire::rendezvous::v1 as wire;
use tonic::Request;

use super::hedge::{Answer, Word, hedged};
use super::{Client, Locator, shown};
use crate::endpoint::Endpoint;
use crate::session::now;
use crate::walk::LocateError;
use crate::walk::answer::rank;
use crate::walk::lane::Choice;

/// How many pages of one service are read from one backbone.
const MAX_PAGES: usize = 100;
/// A page is large: so long the next rendezvous waits at least.
const PAGE_PATIENCE: Duration = Duration::from_millis(250);

/// The providers of a service.
#[derive(Clone, Debug, Default)]
pub struct Providers {
    /// Each once, in order of their ids.
    pub peers: Vec<LocatedPeer>,
    /// There may be more: some rendezvous does not keep them all.
    pub sampled: bool,
}

impl Locator {
    /// The providers that are wanted, over all backbones. An error if nobody answered.
    pub async fn find_by_service(&self, wanted: &ServiceQuery) -> Result<Providers, LocateError> {
        self.refresh().await;
        let choices = self.known.lock().choices(Instant::now());
        let mut walks: FuturesUnordered<_> =
            choices.into_iter().map(|members| self.find_in(members, wanted)).collect();
        let mut found: BTreeMap<PeerId, LocatedPeer> = BTreeMap::new();
        let (mut answered, mut sampled, mut failures) = (false, false, Vec::new());
        while let Some((answer, failed)) = walks.next().await {
            failures.extend(failed);
            let some = match answer {
                Answer::None => continue,
                Answer::Unknown => Providers::default(),
                Answer::Found(providers) => providers,
            };
            answered = true;
            sampled |= some.sampled;
            for peer in some.peers {
                let id = peer.peer_id();
                if found.get(&id).is_none_or(|known| rank(&peer) > rank(known)) {
                    found.insert(id, peer);
                }
            }
        }
        if answered {
            Ok(Providers { peers: found.into_values().collect(), sampled })
        } else {
            Err(LocateError::nobody(shown(&failures)))
        }
    }

    async fn find_in(
        &self,
        mut members: Vec<Choice>,
        wanted: &ServiceQuery,
    ) -> (Answer<Providers>, Vec<String>) {
        members.iter_mut().for_each(|one| one.patience = one.patience.max(PAGE_PATIENCE));
        let ask = |endpoint: Endpoint| async move {
            let mut all = Providers::default();
            let mut page_token = String::new();
            for _ in 0..MAX_PAGES {
                let request = wire::FindByServiceRequest {
                    service: wanted.service().to_string(),
                    page_size: 1000,
                    page_token: std::mem::take(&mut page_token),
                    filters: wanted.filters_to_wire(),
                };
                let call =
                    async |mut client: Client, request: Request<_>| client.find_by_service(request).await;
                let page = self
                    .call(&endpoint, request, call)
                    .await
                    .map_err(|s| format!("{}: {}", endpoint.url(), s.message()))?;
                all.peers.extend(page.peers.into_iter().filter_map(|p| self.offering(p, wanted)));
                all.sampled |= page.sampled;
                if page.next_page_token.is_empty() {
                    break;
                }
                page_token = page.next_page_token;
            }
            Ok(if all.peers.is_empty() && !all.sampled { Word::Unknown } else { Word::Found(all) })
        };
        hedged(members, ask).await
    }

    /// A provider that verifies, counts now, and says itself that it offers what is wanted: whoever answered may know no filters.
    fn offering(
        &self,
        wire: p2psb_proto::wire::common::v1::LocatedPeer,
        wanted: &ServiceQuery,
    ) -> Option<LocatedPeer> {
        let peer = LocatedPeer::try_from(wire).ok()?;
        let record = peer.record.value();
        (record.check(&self.network, now()).is_ok() && wanted.is_met_by(record)).then_some(peer)
    }
}
