//! Peers among themselves, in one process, over real ports and real TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod control;
mod exchange;
mod host;
mod indexes;
mod transfer;
