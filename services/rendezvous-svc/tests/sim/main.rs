//! The core of the backbone in virtual time: hundreds of members, peers that move, faults of every kind, and what must hold
//! whatever happens. A failure prints its seed; `P2PSB_SIM_SEED` runs that one alone, `P2PSB_SIM_LONG=1` more seeds and the
//! full size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod engine;
mod faults;
mod sizes;
