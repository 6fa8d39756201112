//! The contract of p2pSB: what crosses the wire, and what may be believed of it.
//!
//! - [`wire`]: types and services generated from `p2psb/*/v1/*.proto`.
//! - [`model`]: types that are valid by construction. Whoever holds a [`model::Signed`] value knows that its signature was
//!   checked and its bounds hold; whoever holds only wire types knows nothing.
//! - [`error`]: the stable reasons that errors carry, and how they travel in a gRPC status.
//!
//! Nothing here does I/O, reads a clock or decides policy.

pub mod error;
pub mod model;
pub mod wire;
