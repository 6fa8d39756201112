//! The package index: which packages and releases exist, and who hosts them now.
//!
//! What is signed is believed, so the index can withhold, never forge. Promises: an acknowledged entry survives a crash; a chain
//! never forks here; a host is shown only while its lease runs; everything from outside is bounded by a named limit.
//!
//! - [`core`]: the decisions, pure.
//! - [`store`]: where the catalogue is kept; synchronous.
//! - [`catalogue`]: the store's work, off the async threads.
//! - [`server`], [`config`]: the program.

pub mod catalogue;
pub mod config;
pub mod core;
pub mod server;
pub mod store;

mod api;

pub use config::{Config, Settings};
pub use server::Server;
