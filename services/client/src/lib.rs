//! The Rust SDK of p2pSB: what a program needs to be a peer, or to ask for one.
//!
//! - [`identity`]: keys in files, made once.
//! - [`tls`]: certificates that carry the identity; the listener's side of TLS.
//! - [`endpoint`], [`conn`]: dialing a server or a peer, so that it *is* who it should be.
//! - [`session`]: keeps sessions with the rendezvous and the peer's record fresh.
//! - [`register`]: the same for peers that keep no session, call by call.
//! - [`locator`]: where a peer is, who provides a service; [`walk`]: how a peer is found; [`watch`]: following peers.
//! - [`provider`]: the start of a program that provides a service.
//! - [`config`]: the keys that the configurations of all programs share.

mod backoff;
pub mod config;
pub mod conn;
pub mod endpoint;
pub mod files;
pub mod identity;
pub mod locator;
pub mod pool;
pub mod provider;
pub mod register;
pub mod session;
pub mod tls;
pub mod walk;
pub mod watch;

pub use conn::{Connection, DialError, Dialer, resolve};
pub use endpoint::Endpoint;
pub use identity::{Identity, IdentityError};
pub use locator::Locator;
pub use provider::{Provider, ProviderError, Registration};
pub use session::{SessionConfig, SessionKeeper};
pub use watch::{PresenceWatch, WatchEvent};

pub use tls::{ClientAuth, ConnectInfo, ServerTls, TlsConfig, TlsMode};
