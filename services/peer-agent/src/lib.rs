//! The member's agent: publishes folders, fetches packages, serves both to others; with its command line.
//!
//! - [`core`] decides, without I/O; [`content`] and [`store`] hold what is shared; [`exchange`] moves it between peers.
//! - [`publish`], [`fetch`], [`announce`] and [`index`] are what a member does.
//! - [`edge`] is a rendezvous for those around, which an agent may run inside itself.
//! - [`server`] is the daemon, [`control`] and [`api`] its user's door, [`cli`] what knocks there.
//!
//! Invariant: nothing is believed, written or served unless a signature or a digest says that it is right.

pub mod announce;
pub mod api;
pub mod cli;
pub mod config;
pub mod content;
pub mod control;
pub mod core;
pub mod edge;
pub mod exchange;
pub mod failure;
pub mod fetch;
pub mod index;
pub mod publish;
pub mod reach;
pub mod server;
pub mod store;
