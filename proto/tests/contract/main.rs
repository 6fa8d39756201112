//! The contract under test: its style, the bytes that never change, and what it does with bytes from anywhere.

// A test fails loudly; its helpers may, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod golden;
mod hostile;
mod style;
mod vectors;
