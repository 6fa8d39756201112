//! The harness: real processes in a temporary folder, on ephemeral ports, and what tests need around them.
//!
//! It promises to leave nothing behind: whatever was started ends with the value that started it, also when a test
//! fails. It judges nothing: assertions are the tests'. Nothing of it is in a product; the demo is made of it, too.

pub mod agent;
pub mod binaries;
pub mod cluster;
pub mod disk;
pub mod eventually;
pub mod forger;
pub mod inside;
pub mod liar;
pub mod memory;
pub mod network;
pub mod peer;
pub mod process;
pub mod tree;
pub mod trouble;

pub use agent::{Agent, Said};
pub use binaries::{Binaries, Program};
pub use cluster::{Cluster, Service};
pub use disk::SmallDisk;
pub use trouble::{Result, Trouble};
