//! What the agent decides, without I/O: time and chance are arguments.

pub mod announce;
pub mod hosts;
pub mod incoming;
pub mod outgoing;
pub mod reference;
pub mod retry;
pub mod versions;
