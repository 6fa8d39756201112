//! The contract's services: decode, call, encode.

mod bridge;
mod locate_stream;
mod query;
mod register;
mod rendezvous;
pub(crate) mod status;
mod watch;

pub(crate) use bridge::Bridge;
pub(crate) use locate_stream::Located;
pub(crate) use query::locate_at_once;
pub(crate) use rendezvous::Rendezvous;
