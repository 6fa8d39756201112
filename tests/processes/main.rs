//! The real programs, as processes: what needs their command lines, `kill -9`, or another user.

// A test fails loudly; its helpers may, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod backbone;
mod commandline;
mod commands;
mod configuration;
mod confirmed;
mod contract;
mod disks;
mod edge;
mod floods;
mod forgeries;
mod indexes;
mod input;
mod interrupted;
mod liars;
mod partitions;
mod refusals;
mod repair;
mod restarts;
mod restarts_rolling;
mod sharing;
mod stage;
mod startup;
