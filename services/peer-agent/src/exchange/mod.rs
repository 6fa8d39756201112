//! Links between peers: one `Exchange` stream, the same in both directions, so that either end can serve over it.
//!
//! [`link`] drives a link, [`serve`] answers the other end's requests, [`accept`] admits links of others, [`dial`] reaches a peer.
//! Promises: memory of a link is bounded by named limits whatever the other end does; reading and writing never wait for
//! each other; who answers was proven by TLS before the first frame.

pub mod accept;
pub mod dial;
pub mod frame;
pub mod link;
pub mod serve;

pub use accept::Gate;
pub use link::{Ends, Event, Link, LinkError};
pub use serve::ChunkSource;
