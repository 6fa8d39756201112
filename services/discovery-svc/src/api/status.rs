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
        let text = refusal.to_string();
        let failure = match refusal {
            Refusal::Id(_) | Refusal::Name(_) => Failure::new(Reason::InvalidArgument, text),
            Refusal::Token(_) => Failure::new(Reason::PageTokenInvalid, text),
            Refusal::Locate(error) => error.into(),
            Refusal::Slow => Failure::new(Reason::NoRendezvous, text),
        };
        failure.into_status()
    }
}
