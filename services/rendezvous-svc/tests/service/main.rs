//! The server over real ports and real TLS, with peers that behave, and some that do not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod anything;
mod bridge;
mod confirm;
mod edge;
mod edge_limits;
mod finding;
mod harness;
mod liars;
mod limits;
mod member;
mod peer;
mod proofs;
mod proxied;
mod query;
mod register;
mod ring;
mod session;
mod skew;
mod snapshot;
mod turning;
mod watch;
