//! The dialer's side: whom a certificate proves, and whom an address proved before.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use p2psb_proto::model::PeerId;
use p2psb_proto::model::proof::EXPORTER_LABEL;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::cert::{Certificate, identity_of};
use super::server::TlsError;
use super::{ALPN, provider};
use crate::files::{self, Existing};

/// A connection after its handshake.
pub type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// The dialer's side of TLS: shows its own certificate if it is asked and has one.
#[derive(Clone)]
pub struct ClientTls(TlsConnector);

impl ClientTls {
    /// TLS with this certificate of one's own.
    pub fn new(own: Option<Certificate>) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier { webpki: webpki() }));
        let mut config = match own {
            Some(own) => builder.with_client_auth_cert(own.chain, own.key)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands. Returns the connection, its channel binding, and the identity that the server proved, if its certificate
    /// holds one; without one the certificate was verified for `host` by the system's roots.
    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<(TlsStream, [u8; 32], Option<PeerId>)> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = self.0.connect(name, stream).await?;
        let (_, session) = stream.get_ref();
        let binding =
            session.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(io::Error::other)?;
        let leaf = session.peer_certificates().and_then(|chain| chain.first());
        let server = leaf.map(identity_of).transpose().map_err(io::Error::other)?.flatten();
        Ok((stream, binding, server))
    }
}

/// The system's roots, if there are any.
fn webpki() -> Option<Arc<WebPkiServerVerifier>> {
    static VERIFIER: std::sync::OnceLock<Option<Arc<WebPkiServerVerifier>>> = std::sync::OnceLock::new();
    VERIFIER
        .get_or_init(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok()
        })
        .clone()
}

/// Accepts a certificate that proves an identity (the dialer then compares it), or one that the system's roots vouch for.
#[derive(Debug)]
struct ServerVerifier {
    webpki: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match (identity_of(end_entity), &self.webpki) {
            (Ok(Some(_)), _) => Ok(ServerCertVerified::assertion()),
            (Ok(None), Some(webpki)) => {
                webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
            }
            (Ok(None), None) => Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)),
            (Err(_), _) => {
                Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Servers without a pin are remembered on first contact, by the address as it was written: a changed identity is noticed.
#[derive(Debug, Default)]
pub struct KnownServers {
    file: Option<PathBuf>,
    ids: Mutex<BTreeMap<String, PeerId>>,
}

const MAX_BYTES: u64 = 1024 * 1024;
/// How many servers are remembered.
const MAX_SERVERS: usize = 4096;

impl KnownServers {
    /// Those in a file: one line each, address and id. The file is made with the first of them.
    pub fn open(file: &Path) -> io::Result<Self> {
        let text = match files::read_bounded(file, MAX_BYTES) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        let parse = |line: &str| {
            let (authority, id) = line.split_once(' ')?;
            Some((authority.to_owned(), id.trim().parse().ok()?))
        };
        let ids = text.lines().filter_map(parse).take(MAX_SERVERS).collect();
        Ok(Self { file: Some(file.to_owned()), ids: Mutex::new(ids) })
    }

    /// Who proved itself at `authority` first.
    pub fn get(&self, authority: &str) -> Option<PeerId> {
        self.ids.lock().get(authority).copied()
    }

    /// Checks the identity that `authority` proved, and remembers it if it is the first. Returns the remembered one if it differs.
    pub fn check(&self, authority: &str, proven: PeerId) -> Result<(), PeerId> {
        let mut ids = self.ids.lock();
        match ids.get(authority) {
            Some(known) if *known == proven => return Ok(()),
            Some(known) => return Err(*known),
            None if ids.len() >= MAX_SERVERS => return Ok(()),
            None => ids.insert(authority.to_owned(), proven),
        };
        if let Some(file) = &self.file {
            let text: String = ids.iter().map(|(a, id)| format!("{a} {id}\n")).collect();
            if let Err(error) = files::write_atomically(file, text.as_bytes(), 0o600, Existing::Replace) {
                tracing::warn!(file = %file.display(), %error, "remembering a server failed");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_changed_identity_is_noticed_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_servers");
        let (one, two) = (Identity::ephemeral().unwrap().peer_id(), Identity::ephemeral().unwrap().peer_id());
        let known = KnownServers::open(&file).unwrap();
        assert_eq!(known.check("a:1", one), Ok(()));
        assert_eq!(known.check("b:1", two), Ok(()));
        let reopened = KnownServers::open(&file).unwrap();
        assert_eq!(reopened.check("a:1", one), Ok(()));
        assert_eq!(reopened.check("a:1", two), Err(one));
    }
}
