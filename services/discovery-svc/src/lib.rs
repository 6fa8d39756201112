//! The discovery service: the SDK's locator for clients that are not peers. It keeps nothing but caches, so any number of
//! instances answer alike.

pub mod config;
pub mod core;
pub mod server;

mod api;

pub use config::{Config, Settings};
pub use server::Server;
