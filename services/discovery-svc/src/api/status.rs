//! How each error travels.

use p2psb_client::locator::LocateError;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::id::IdError;
use p2psb_proto::model::page::PageTokenError;
use p2psb_proto::model::query::QueryError;
use tonic::Status;

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("peer_id: {0}")]
    Id(#[from] IdError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Token(#[from] PageTokenError),
    #[error(transparent)]
    Locate(#[from] LocateError),
    #[error("the rendezvous did not answer in time")]
    Slow,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        let failure = match refusal {
            Refusal::Id(_) => Failure::new(Reason::InvalidArgument, text),
            Refusal::Query(error) => error.into(),
            Refusal::Token(error) => error.into(),
            Refusal::Locate(error) => error.into(),
            Refusal::Slow => Failure::new(Reason::NoRendezvous, text),
        };
        failure.into_status()
    }
}
