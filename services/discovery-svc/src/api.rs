//! `DiscoveryService`: decode, call, encode.

mod status;

use p2psb_client::Locator;
use p2psb_client::locator::{LOOKUP, RendezvousStatus};
use p2psb_proto::model::presence::{LocatedPeer, page_size};
use p2psb_proto::model::time::duration_to_wire;
use p2psb_proto::model::{PeerId, ServiceQuery, Signed};
use p2psb_proto::wire::discovery::v1 as wire;
use p2psb_proto::wire::discovery::v1::discovery_service_server::DiscoveryService;
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
}

#[tonic::async_trait]
impl DiscoveryService for Api {
    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        let peer = PeerId::from_slice(&request.get_ref().peer_id).map_err(Refusal::from)?;
        let found = timeout(LOOKUP, self.locator.locate(&peer)).await.map_err(|_| Refusal::Slow)?;
        let located = found.map_err(Refusal::from)?.peer;
        Ok(Response::new(wire::LocateResponse { peer: Some(located.to_wire()) }))
    }

    async fn find_by_service(
        &self,
        request: Request<wire::FindByServiceRequest>,
    ) -> Result<Response<wire::FindByServiceResponse>, Status> {
        let request = request.into_inner();
        let wanted = ServiceQuery::parse(&request.service, request.filters).map_err(Refusal::from)?;
        let after = after(&request.page_token, &wanted).map_err(Refusal::from)?;
        let found =
            timeout(LOOKUP, self.locator.find_by_service(&wanted)).await.map_err(|_| Refusal::Slow)?;
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
        _: Request<wire::ListRendezvousRequest>,
    ) -> Result<Response<wire::ListRendezvousResponse>, Status> {
        // What is not known yet when the time is up is told as it stands.
        let _ = timeout(LOOKUP, self.locator.refresh()).await;
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
