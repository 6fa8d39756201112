//! `BridgeService`.

use std::sync::Arc;

use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_service_server::BridgeService;
use tonic::{Request, Response, Status, Streaming};

use crate::backbone;
use crate::node::{Caller, Node};

/// The service.
pub(crate) struct Bridge(pub(crate) Arc<Node>);

#[tonic::async_trait]
impl BridgeService for Bridge {
    type LinkStream = backbone::Outgoing;

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let caller = Caller::of(&request, &self.0)?;
        Ok(Response::new(backbone::accept(&self.0, caller, request.into_inner())?))
    }
}
