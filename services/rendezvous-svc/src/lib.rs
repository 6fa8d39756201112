//! The rendezvous server: where peers meet, and who knows which of them are online.
//!
//! - [`core`]: what is known and decided, pure.
//! - `api`, `sessions`, `backbone`: its edges: unary calls, the streams of peers, the links with other members. `confirm`: dialing
//!   peers back.
//! - [`store`]: the snapshot on its disk, by which it comes back after a restart.
//! - [`config`], [`server`], [`cli`]: how it is set up, bound and started.

mod api;
pub mod backbone;
pub mod cli;
pub mod config;
mod confirm;
mod convert;
pub mod core;
mod ending;
pub mod init;
mod node;
mod own_record;
mod records;
pub mod server;
mod sessions;
mod snapshots;
pub mod store;
mod sweeper;
mod watching;

pub use config::{Config, ServerConfig};
pub use server::Server;
