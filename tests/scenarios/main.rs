//! Scenarios in this process: several services, each bound as its program binds it, on real sockets. What needs `kill`
//! is in `processes`.

// A test fails loudly; its helpers may, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod agents;
mod backbone;
mod catalogue;
mod discovery;
mod homes;
mod leases;
mod registration;
mod sessions;
mod stage;
mod watching;
