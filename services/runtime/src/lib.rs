//! What a service needs to start, be seen and stop.
//!
//! A program's `main` is one call of [`main`]: it reads the configuration in two stages, starts
//! telemetry, binds the service, logs its address, waits for a signal, drains under a deadline and
//! flushes. The pieces are usable alone, too, by programs with verbs of their own and by tests.
//!
//! This crate promises to know nothing of what the services are about. Pure parts ([`admission`],
//! [`expiring`], [`retry`], [`status`]) take `now` and chance as arguments; what does I/O ([`serve`],
//! [`metrics`], [`telemetry`]) is bounded by named limits.

pub mod admission;
pub mod clock;
pub mod config;
pub mod exit;
pub mod expiring;
pub mod metrics;
pub mod open_files;
pub mod probe;
pub mod program;
pub mod retry;
pub mod serve;
pub mod status;
pub mod telemetry;
pub mod verbs;

pub use clock::Clock;
pub use config::{CommonArgs, ConfigError, Secret, Settings};
pub use program::{Flags, NoFlags, Program, Service, main};
pub use serve::{Api, Drain, Running, ServeOptions};
pub use status::Status;
