//! The backbone: links with the other members.
//!
//! A link begins with a handshake in which both ends prove their id and their right to bridge; then each end tells all it
//! knows, then what changes. What is said is believed only as far as the peers it speaks of signed it. A link that lags is
//! told the newest state when it catches up; one that is silent is cut, and dialed anew.

mod batch;
pub(crate) mod dial;
mod frame;
mod handshake;
pub(crate) mod hub;
mod link;
pub mod trust;

pub(crate) use handshake::{Outgoing, accept};

/// Largest message of a link, in bytes.
pub(crate) const MESSAGE_BYTES: usize = 512 * 1024;
