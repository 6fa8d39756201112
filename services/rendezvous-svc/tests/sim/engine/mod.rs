//! A backbone in virtual time: hundreds of members, each with the machine that the server drives, over links that break, delay,
//! lose and repeat; peers that come, move and go; questions; and somebody who compares it all with the truth.
//!
//! Everything follows from one seed: the same seed is the same run. Nothing here waits for a real clock.

pub(crate) mod check;
pub(crate) mod ids;
pub(crate) mod leaving;
pub(crate) mod member;
pub(crate) mod net;
pub(crate) mod peers;
pub(crate) mod placement;
pub(crate) mod questions;
pub(crate) mod report;
pub(crate) mod store;
pub(crate) mod world;

pub(crate) use report::Report;
pub(crate) use world::{Config, World};
