//! TLS 1.3 with the Ed25519 identity inside the certificate, in the way of libp2p's TLS specification: a P-256 key does the
//! handshake, and a non-critical extension holds the identity's signature over that key. So any gRPC client can trust the
//! certificate file, and a p2pSB client knows *who* it is talking to.

mod cert;
mod client;
mod server;

pub use cert::{CertError, Certificate, identity_of};
pub use client::{ClientTls, KnownServers, TlsStream};
pub use server::{ClientAuth, ConnectInfo, ServerIo, ServerTls, TlsConfig, TlsError, TlsMode};

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The only cipher provider: aws-lc-rs.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

/// HTTP/2, the only protocol spoken inside.
const ALPN: &[u8] = b"h2";
