//! The user's own door to the daemon: who may knock, and how it is found.
//!
//! - [`lock`]: one daemon for each data folder.
//! - [`mod@file`]: `control.json`, from which the command line learns where the daemon is and how to prove that it may ask.
//! - [`token`]: the proof.

pub mod file;
pub mod lock;
pub mod token;
