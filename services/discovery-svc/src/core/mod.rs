//! What is decided without I/O.

pub mod page;
