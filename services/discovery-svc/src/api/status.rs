//! How each error travels.

use p2psb_client::locator::LocateError;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::id::IdError;
use p2psb_proto::model::name::NameError;
use tonic::Status;

use crate::core::page::TokenError;

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("peer_id: {0}")]
    Id(#[from] IdError),
    #[error("service: {0}")]
    Name(#[from] NameError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Locate(#[from] LocateError),
    #[error("the rendezvous did not answer in time")]
    Slow,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let reason = match &refusal {
            Refusal::Id(_) | Refusal::Name(_) => Reason::InvalidArgument,
            Refusal::Token(_) => Reason::PageTokenInvalid,
            Refusal::Locate(error) => error.reason(),
            Refusal::Slow => Reason::NoRendezvous,
        };
        Failure::new(reason, refusal.to_string()).into_status()
    }
}
