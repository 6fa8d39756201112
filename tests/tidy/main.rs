//! House rules that a machine can check: which crate may use which, what each room may hold, how files begin and how long
//! they are, what stands at the top of the repository, and that README and compose file say what is true.
//!
//! A rule that fails names the file, the line and the rule. An exception is a line in this folder, with its reason.

// A test fails loudly; its helpers may, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod documents;
mod files;
mod layers;
mod rooms;
mod source;
