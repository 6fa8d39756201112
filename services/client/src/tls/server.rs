//! The listener's side: TCP, TLS, and what a handler may know of a connection.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use p2psb_proto::model::proof::{ChannelBinding, EXPORTER_LABEL};
use p2psb_proto::model::{PeerId, Transport};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::cert::{CertError, Certificate, identity_of};
use super::{ALPN, provider};
use crate::identity::Identity;

/// How a service's listener speaks, as written in its configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// `identity` (a certificate made once from the service's own identity), `pem` (the operator's files) or `plaintext`
    /// (loopback, or behind a proxy).
    pub mode: TlsMode,
    /// With `identity`: further DNS names and IP addresses for the certificate, beside localhost.
    pub names: Vec<String>,
    /// With `pem`: the certificate chain.
    pub cert_file: Option<PathBuf>,
    /// With `pem`: its key.
    pub key_file: Option<PathBuf>,
}

/// See [`TlsConfig::mode`].
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Made from the identity.
    #[default]
    Identity,
    /// From files.
    Pem,
    /// None.
    Plaintext,
}

/// Whether a client must prove an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Not asked for.
    None,
    /// Needed: peer to peer.
    Required,
}

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// Refused by the TLS library.
    #[error("the certificate or key can't be used: {0}")]
    Rustls(#[from] rustls::Error),
    /// `pem` without files.
    #[error("tls.mode is \"pem\": set tls.cert_file and tls.key_file")]
    MissingFiles,
}

/// The listener's side of TLS, ready to use.
#[derive(Clone)]
pub struct ServerTls(Option<TlsAcceptor>);

impl ServerTls {
    /// Sets TLS up as configured. With mode `identity` the certificate lies in `dir` as `tls.pem`.
    pub fn load(
        config: &TlsConfig,
        identity: &Identity,
        dir: &Path,
        auth: ClientAuth,
    ) -> Result<Self, TlsError> {
        let certificate = match config.mode {
            TlsMode::Plaintext => return Ok(Self(None)),
            TlsMode::Pem => match (&config.cert_file, &config.key_file) {
                (Some(cert), Some(key)) => Certificate::from_pem(cert, key)?,
                _ => return Err(TlsError::MissingFiles),
            },
            TlsMode::Identity => {
                let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
                names.extend(config.names.iter().cloned());
                names.sort();
                names.dedup();
                Certificate::load_or_create(dir, identity, &names)?
            }
        };
        Self::new(certificate, auth)
    }

    /// TLS with this certificate.
    pub fn new(certificate: Certificate, auth: ClientAuth) -> Result<Self, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = match auth {
            ClientAuth::None => builder.with_no_client_auth(),
            ClientAuth::Required => builder.with_client_cert_verifier(Arc::new(PeerVerifier)),
        };
        let mut config = builder.with_single_cert(certificate.chain, certificate.key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self(Some(TlsAcceptor::from(Arc::new(config)))))
    }

    /// The handshake of a listener, for each connection that is accepted: from where, and for whom if a proxy says so. It takes as long as the client likes: the listener bounds it. On
    /// plaintext a client speaks first, so its first words are the handshake.
    pub fn handshake(
        self,
    ) -> impl Fn(TcpStream, SocketAddr, Option<SocketAddr>) -> BoxFuture<'static, io::Result<ServerIo>>
    + Clone
    + Send
    + 'static {
        move |stream, from, named| {
            let tls = self.clone();
            Box::pin(async move { ServerIo::accept(stream, (from, named), &tls).await })
        }
    }

    /// What an address of this listener says of its transport.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        if self.0.is_some() { Transport::Tls } else { Transport::Plaintext }
    }
}

/// What a handler may know of its connection: in the extensions of every request.
#[derive(Clone, Debug)]
pub struct ConnectInfo {
    /// The other end of the connection: of the socket, or the one that a proxy names.
    pub remote_addr: SocketAddr,
    /// A proxy named it.
    pub is_named: bool,
    /// What proofs on this connection are bound to; `None` on plaintext.
    pub binding: ChannelBinding,
    /// The peer that proved itself by its certificate; `None` unless the listener asks for one.
    pub peer: Option<PeerId>,
}

/// Demands a certificate with an identity. The identity is read after the handshake.
#[derive(Debug)]
struct PeerVerifier;

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match identity_of(end_entity) {
            Ok(Some(_)) => Ok(ClientCertVerified::assertion()),
            Ok(None) | Err(_) => Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)),
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

/// An accepted connection. It says that it can't write vectored: HTTP/2 then gathers a small answer into one write and one TLS record,
/// which makes small calls 1.7 × cheaper, and changes nothing for large ones.
pub struct ServerIo {
    io: Io,
    info: ConnectInfo,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl ServerIo {
    async fn accept(
        stream: TcpStream,
        (from, named): (SocketAddr, Option<SocketAddr>),
        tls: &ServerTls,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (remote_addr, is_named) = (named.unwrap_or(from), named.is_some());
        let remote_addr = SocketAddr::new(remote_addr.ip().to_canonical(), remote_addr.port());
        let Some(acceptor) = &tls.0 else {
            stream.peek(&mut [0]).await?;
            return Ok(Self {
                io: Io::Plain(stream),
                info: ConnectInfo { remote_addr, is_named, binding: None, peer: None },
            });
        };
        let stream = acceptor.accept(stream).await?;
        let (_, session) = stream.get_ref();
        let binding =
            session.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(io::Error::other)?;
        let peer = match session.peer_certificates().and_then(|chain| chain.first()) {
            Some(leaf) => identity_of(leaf).map_err(io::Error::other)?,
            None => None,
        };
        let info = ConnectInfo { remote_addr, is_named, binding: Some(binding), peer };
        Ok(Self { io: Io::Tls(Box::new(stream)), info })
    }
}

impl tonic::transport::server::Connected for ServerIo {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for ServerIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ServerIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
