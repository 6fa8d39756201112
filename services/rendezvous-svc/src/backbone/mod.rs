//! The backbone: links with the other members.
//!
//! A link begins with a handshake in which both ends prove their id and their right to bridge; then each end tells the other what
//! it owns, as it changes. What is said is believed only as far as the peers it speaks of signed it. A link that lags is told the
//! newest state when it catches up; one that is silent is cut, and dialed anew. Who owns what and is told what decides
//! [`crate::core::bridge`]; here are its hands:
//!
//! - `dial`, `handshake`, `trust`: how a link comes to be; `link`, `frame`, `mailbox`: how it lives. `edges`: what an edge may cost.
//! - `batch`, `stating`, `hearing`: what is told, and what is made of it.
//! - `asking`, `finding`: questions to owners. `hub`, `turning`: what all links share, and the task that turns the ring.

pub(crate) mod asking;
mod batch;
pub(crate) mod confirming;
pub(crate) mod dial;
mod edges;
pub(crate) mod finding;
mod frame;
mod handshake;
mod hearing;
pub(crate) mod hub;
mod link;
mod mailbox;
pub(crate) mod stating;
pub mod trust;
pub(crate) mod turning;

pub(crate) use handshake::{Outgoing, accept};

/// Largest message of a link, in bytes.
pub(crate) const MESSAGE_BYTES: usize = 512 * 1024;
