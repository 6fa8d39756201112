//! What survives a restart on this server's disk: the snapshot. Synchronous: callers keep it off the async threads.
//!
//! Promises: what is there was written whole, or is not there at all, also after a crash in the middle; nothing is believed
//! that this server did not write itself.

mod encoding;
pub mod snapshot;

pub use snapshot::{Reading, SnapshotError, SnapshotFile, Writing, Written};
