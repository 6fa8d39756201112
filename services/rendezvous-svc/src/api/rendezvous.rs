//! `RendezvousService`.

use std::sync::Arc;

use futures::stream::Empty;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_server::RendezvousService;
use tonic::{Request, Response, Status, Streaming};

use super::{query, register, watch};
use crate::node::{Caller, Node};
use crate::sessions;

/// The service.
pub(crate) struct Rendezvous(pub(crate) Arc<Node>);

#[tonic::async_trait]
impl RendezvousService for Rendezvous {
    type ConnectStream = sessions::Outgoing;
    type LocateStreamStream = Empty<Result<wire::LocateStreamResponse, Status>>;
    type WatchPresenceStream = watch::Outgoing;

    async fn connect(
        &self,
        request: Request<Streaming<wire::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let caller = Caller::of(&request, &self.0)?;
        Ok(Response::new(sessions::accept(&self.0, caller, request.into_inner())?))
    }

    async fn get_challenge(
        &self,
        request: Request<wire::GetChallengeRequest>,
    ) -> Result<Response<wire::GetChallengeResponse>, Status> {
        let caller = Caller::of(&request, &self.0)?;
        Ok(Response::new(register::challenge(&self.0, &caller, &request.into_inner())?))
    }

    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        let caller = Caller::of(&request, &self.0)?;
        Ok(Response::new(register::register(&self.0, &caller, request.into_inner())?))
    }

    async fn unregister(
        &self,
        request: Request<wire::UnregisterRequest>,
    ) -> Result<Response<wire::UnregisterResponse>, Status> {
        let caller = Caller::of(&request, &self.0)?;
        Ok(Response::new(register::unregister(&self.0, &caller, request.into_inner())?))
    }

    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        Ok(Response::new(query::locate(&self.0, request.get_ref()).await?))
    }

    async fn locate_stream(
        &self,
        _: Request<Streaming<wire::LocateStreamRequest>>,
    ) -> Result<Response<Self::LocateStreamStream>, Status> {
        // See [`Located`](super::locate_stream::Located): here are only requests in an encoding that tonic refuses before.
        Err(Status::unimplemented("requests are not to be compressed"))
    }

    async fn watch_presence(
        &self,
        request: Request<wire::WatchPresenceRequest>,
    ) -> Result<Response<Self::WatchPresenceStream>, Status> {
        let caller = Caller::of(&request, &self.0)?;
        Ok(Response::new(watch::watch(&self.0, &caller, request.into_inner())?))
    }

    async fn find_by_service(
        &self,
        request: Request<wire::FindByServiceRequest>,
    ) -> Result<Response<wire::FindByServiceResponse>, Status> {
        Ok(Response::new(query::find_by_service(&self.0, request.into_inner()).await?))
    }

    async fn list_rendezvous(
        &self,
        _: Request<wire::ListRendezvousRequest>,
    ) -> Result<Response<wire::ListRendezvousResponse>, Status> {
        Ok(Response::new(query::list_rendezvous(&self.0)))
    }
}
