//! `DiscoveryService`: decode, call, encode.

mod status;

use std::time::{Duration, Instant};

use p2psb_client::locator::{Caller, LOOKUP, Options, RendezvousStatus};
use p2psb_client::{ConnectInfo, Locator};
use p2psb_proto::model::presence::{LocatedPeer, page_size};
use p2psb_proto::model::time::duration_to_wire;
use p2psb_proto::model::{PeerId, ServiceQuery, Signed};
use p2psb_proto::wire::discovery::v1 as wire;
use p2psb_proto::wire::discovery::v1::discovery_service_server::DiscoveryService;
use p2psb_runtime::admission::Source;
use p2psb_runtime::serve::{Arrived, time_left};
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::core::page::{after, page, token};
use status::Refusal;

/// Results of a page when the caller names no size.
const DEFAULT_PAGE: usize = 100;

/// The service over a locator.
pub(crate) struct Api {
    pub(crate) locator: Locator,
    /// From there come many callers.
    pub(crate) shared_sources: Vec<Source>,
}

impl Api {
    /// In whose name a call is answered.
    fn caller<T>(&self, request: &Request<T>) -> Caller {
        let ip = request.extensions().get::<Arrived<ConnectInfo>>().map(|at| at.info.remote_addr.ip());
        let of_one = ip.filter(|ip| !self.shared_sources.iter().any(|many| many.contains(*ip)));
        of_one.map_or(Caller::Many, Caller::at)
    }
}

/// How long a call may take: as long as the caller waits, without what the answer takes to reach it, and as a lookup may take.
fn time<T>(request: &Request<T>) -> Duration {
    time_left(request.metadata()).map_or(LOOKUP, |time| time.saturating_sub(way_back(time)).min(LOOKUP))
}

/// What is kept back of a caller's time.
fn way_back(time: Duration) -> Duration {
    (time / 20).clamp(Duration::from_millis(20), Duration::from_millis(200)).min(time / 2)
}

#[tonic::async_trait]
impl DiscoveryService for Api {
    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        let peer = PeerId::from_slice(&request.get_ref().peer_id).map_err(Refusal::from)?;
        let deadline = Some(Instant::now() + time(&request));
        let options = Options { deadline, caller: self.caller(&request), ..Options::default() };
        let located = self.locator.walk(&peer, options).await.answer.map_err(Refusal::from)?.peer;
        Ok(Response::new(wire::LocateResponse { peer: Some(located.to_wire()) }))
    }

    async fn find_by_service(
        &self,
        request: Request<wire::FindByServiceRequest>,
    ) -> Result<Response<wire::FindByServiceResponse>, Status> {
        let time = time(&request);
        let request = request.into_inner();
        let wanted = ServiceQuery::parse(&request.service, request.filters).map_err(Refusal::from)?;
        let after = after(&request.page_token, &wanted).map_err(Refusal::from)?;
        let found = timeout(time, self.locator.find_by_service(&wanted)).await.map_err(|_| Refusal::Slow)?;
        let size = page_size(request.page_size, DEFAULT_PAGE);
        let bytes_of = |p: &LocatedPeer| p.to_wire().encoded_len();
        let found = found.map_err(Refusal::from)?;
        let page = page(found.peers, after, size, bytes_of);
        let next_page_token = page.next.map(|last| token(&last, &wanted)).unwrap_or_default();
        let peers = page.peers.iter().map(LocatedPeer::to_wire).collect();
        Ok(Response::new(wire::FindByServiceResponse { peers, next_page_token, sampled: found.sampled }))
    }

    async fn list_rendezvous(
        &self,
        request: Request<wire::ListRendezvousRequest>,
    ) -> Result<Response<wire::ListRendezvousResponse>, Status> {
        // What is not known yet when the time is up is told as it stands.
        let _ = timeout(time(&request), self.locator.refresh()).await;
        let rendezvous = self.locator.rendezvous().into_iter().map(encode).collect();
        Ok(Response::new(wire::ListRendezvousResponse { rendezvous }))
    }
}

fn encode(status: RendezvousStatus) -> wire::RendezvousStatus {
    wire::RendezvousStatus {
        record: status.record.as_ref().map(Signed::to_wire),
        endpoint: status.endpoint.url(),
        reachable: status.error.is_none() && status.latency.is_some(),
        latency: status.latency.map(duration_to_wire),
        error: status.error.unwrap_or_default(),
        configured: status.configured,
    }
}
