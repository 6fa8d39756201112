//! Failures as they come from other services.

use std::fmt;

use p2psb_proto::error::{Failure, Reason, reason_of, record_of, retry_after_of};
use tonic::{Code, Status};

use crate::store::StoreError;

/// Longest message of another service that is kept.
const MAX_MESSAGE_BYTES: usize = 1024;

/// What a status says. A status without a reason of ours gets the one that its code comes closest to.
#[must_use]
pub fn from_status(status: &Status) -> Failure {
    let reason = reason_of(status).unwrap_or_else(|| match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => Reason::Unreachable,
        Code::ResourceExhausted | Code::OutOfRange => Reason::LimitExceeded,
        Code::Unauthenticated | Code::PermissionDenied => Reason::AuthenticationRequired,
        Code::InvalidArgument => Reason::InvalidArgument,
        _ => Reason::Internal,
    });
    let mut failure = Failure::new(reason, message(status));
    failure.retry_after = retry_after_of(status);
    failure.record = record_of(status).map(Box::new);
    failure
}

fn message(status: &Status) -> String {
    let text = match status.message() {
        "" => status.code().description(),
        text => text,
    };
    let mut message: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    if message.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|at| message.is_char_boundary(*at)).unwrap_or_default();
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Whether the same may succeed a moment later, without anybody doing anything.
#[must_use]
pub const fn may_pass(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Unreachable
            | Reason::NoProvider
            | Reason::NoRendezvous
            | Reason::NoHosts
            | Reason::Draining
            | Reason::LimitExceeded
            | Reason::HandshakeTimeout
            | Reason::SessionLost
    )
}

/// A fault that should not be possible, told rather than hidden.
pub fn internal(what: impl fmt::Display) -> Failure {
    Failure::new(Reason::Internal, format!("{what}; this is a defect of the program, please report it"))
}

/// The catalogue could not be used.
pub fn store_failed(error: StoreError) -> Failure {
    Failure::new(error.reason(), error.to_string())
}
