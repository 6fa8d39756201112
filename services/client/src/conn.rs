//! Connections: one TCP connection, one TLS session, one HTTP/2 connection, and the certainty who is at the other end.
//!
//! There is no silent reconnect: proofs are bound to a connection, so whoever holds a [`Connection`] must know when it ends.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::HeaderMap;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::PeerId;
use p2psb_proto::model::proof::ChannelBinding;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use crate::endpoint::Endpoint;
use crate::identity::Identity;
use crate::tls::{Certificate, ClientTls, KnownServers, TlsError};

/// How long dialing may take in all.
pub const DIAL: Duration = Duration::from_secs(10);
/// The head start of one address before the next is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);
/// How many addresses of a name are tried.
const MAX_ADDRESSES: usize = 8;
/// HTTP/2 flow control: windows below 4 MiB stall bulk transfers even on loopback.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// The largest frame the other end may send: small frames are the largest single cost of bulk transfers.
const MAX_FRAME: u32 = 256 * 1024;
/// An error carries the record that the caller needs (a chain's head, a stored lease) in its trailers: 64 KiB in base64.
const MAX_HEADERS: u32 = 128 * 1024;
/// A silent connection is asked after this long, and given up after the second.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a server or peer could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name does not resolve.
    #[error("{endpoint}: the name does not resolve: {source}")]
    Resolve {
        /// Dialed.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
    /// No TCP connection.
    #[error("{endpoint}: {source}")]
    Connect {
        /// Dialed.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
    /// The TLS or HTTP/2 handshake failed.
    #[error("{endpoint}: the handshake failed: {detail}")]
    Handshake {
        /// Dialed.
        endpoint: String,
        /// Why.
        detail: String,
    },
    /// It took too long.
    #[error("{endpoint}: no answer within {} s", DIAL.as_secs())]
    Timeout {
        /// Dialed.
        endpoint: String,
    },
    /// Somebody else answered.
    #[error("{endpoint}: {expected} must answer there, {found} did")]
    IdentityMismatch {
        /// Dialed.
        endpoint: String,
        /// Who must answer.
        expected: PeerId,
        /// Who did.
        found: PeerId,
    },
    /// A pin, and a certificate that proves no identity.
    #[error(
        "{endpoint}: {expected} must answer there; the server's certificate is an ordinary one and does not prove who it is"
    )]
    Unproven {
        /// Dialed.
        endpoint: String,
        /// Who must answer.
        expected: PeerId,
    },
    /// An identity answered before, and a certificate that proves none does now.
    #[error(
        "{endpoint}: {known} answered there before; the certificate there now is an ordinary one and does not prove who it is; if the operator confirms the change, remove its line from known_servers"
    )]
    NoLongerProven {
        /// Dialed.
        endpoint: String,
        /// Who answered before.
        known: PeerId,
    },
    /// Another identity than before answered.
    #[error(
        "{endpoint}: {found} answers there now, it was {known} before; if the operator confirms the change, remove its line from known_servers"
    )]
    IdentityChanged {
        /// Dialed.
        endpoint: String,
        /// Who answered before.
        known: PeerId,
        /// Who did now.
        found: PeerId,
    },
}

impl DialError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::IdentityMismatch { .. } | Self::Unproven { .. } => Reason::IdentityMismatch,
            Self::IdentityChanged { .. } | Self::NoLongerProven { .. } => Reason::IdentityChanged,
            Self::Resolve { .. } | Self::Connect { .. } | Self::Handshake { .. } | Self::Timeout { .. } => {
                Reason::Unreachable
            }
        }
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

impl From<DialError> for tonic::Status {
    fn from(error: DialError) -> Self {
        Failure::from(error).into_status()
    }
}

/// Dials servers and peers. Clones share certificates and what is known.
#[derive(Clone)]
pub struct Dialer {
    tls: ClientTls,
    known: Arc<KnownServers>,
    decorate: fn(&mut HeaderMap),
}

impl Dialer {
    /// A dialer that shows `identity` to peers who ask for it, and remembers servers without a pin in a file.
    pub fn new(identity: Option<&Identity>, known_servers: Option<&Path>) -> Result<Self, TlsError> {
        let own = identity.map(Certificate::ephemeral).transpose()?;
        let known = match known_servers {
            None => KnownServers::default(),
            Some(file) => KnownServers::open(file)
                .map_err(|source| crate::tls::CertError::Io { path: file.to_owned(), source })?,
        };
        Ok(Self { tls: ClientTls::new(own)?, known: Arc::new(known), decorate: |_| () })
    }

    /// Lets `decorate` add headers to every request: the trace context.
    #[must_use]
    pub fn with_headers(mut self, decorate: fn(&mut HeaderMap)) -> Self {
        self.decorate = decorate;
        self
    }

    /// Dials an endpoint. DNS names are resolved anew; of several addresses the first to answer wins. A pin is satisfied by a
    /// certificate with that identity only, and so is the memory of who proved itself there first; on plaintext, which the endpoint
    /// asks for, nobody is proven.
    pub async fn dial(&self, endpoint: &Endpoint) -> Result<Connection, DialError> {
        let connection = self.dial_unproven(endpoint).await?;
        let url = endpoint.url();
        match connection.expected() {
            Some(expected) if !endpoint.is_plaintext() && connection.server_id().is_none() => {
                Err(match endpoint.pin() {
                    Some(_) => DialError::Unproven { endpoint: url, expected },
                    None => DialError::NoLongerProven { endpoint: url, known: expected },
                })
            }
            _ => Ok(connection),
        }
    }

    /// As [`Self::dial`], for callers who then demand a live proof of [`Connection::expected`]: an ordinary certificate is enough. One
    /// that proves another identity is refused all the same.
    pub async fn dial_unproven(&self, endpoint: &Endpoint) -> Result<Connection, DialError> {
        within(endpoint, async {
            let addresses = lookup(endpoint).await?;
            self.dial_unbounded(endpoint, &addresses).await
        })
        .await
    }

    /// As [`Self::dial_unproven`], at exactly these addresses, as [`resolve`] found them: for callers who first look where the
    /// name leads, since it may lead elsewhere a moment later.
    pub async fn dial_unproven_at(
        &self,
        endpoint: &Endpoint,
        addresses: &[SocketAddr],
    ) -> Result<Connection, DialError> {
        within(endpoint, self.dial_unbounded(endpoint, addresses)).await
    }

    async fn dial_unbounded(
        &self,
        endpoint: &Endpoint,
        addresses: &[SocketAddr],
    ) -> Result<Connection, DialError> {
        let stream = connect(endpoint, addresses).await?;
        let failed = |e: io::Error| DialError::Connect { endpoint: endpoint.url(), source: e };
        stream.set_nodelay(true).map_err(failed)?;
        let local_addr = stream.local_addr().map_err(failed)?;
        let remote_addr = stream.peer_addr().map_err(failed)?;
        let facts = |binding, server_id, expected| Facts {
            origin: origin(endpoint),
            binding,
            server_id,
            expected,
            local_addr,
            remote_addr,
            decorate: self.decorate,
        };
        if endpoint.is_plaintext() {
            return Connection::start(stream, facts(None, None, endpoint.pin()), endpoint).await;
        }
        let (stream, binding, server_id) = self
            .tls
            .connect(endpoint.host(), stream)
            .await
            .map_err(|e| DialError::Handshake { endpoint: endpoint.url(), detail: e.to_string() })?;
        let expected = self.check_identity(endpoint, server_id)?;
        Connection::start(stream, facts(Some(binding), server_id, expected), endpoint).await
    }

    /// Checks the identity that a certificate proved. Returns who must be there: who is pinned, else who proved itself first.
    fn check_identity(
        &self,
        endpoint: &Endpoint,
        proven: Option<PeerId>,
    ) -> Result<Option<PeerId>, DialError> {
        let authority = endpoint.authority();
        let Some(found) = proven else { return Ok(endpoint.pin().or_else(|| self.known.get(&authority))) };
        match endpoint.pin() {
            Some(expected) if expected == found => {}
            Some(expected) => {
                return Err(DialError::IdentityMismatch { endpoint: endpoint.url(), expected, found });
            }
            None => self.known.check(&authority, found).map_err(|known| DialError::IdentityChanged {
                endpoint: endpoint.url(),
                known,
                found,
            })?,
        }
        Ok(Some(found))
    }
}

/// Where an endpoint's name leads now: at most 8 addresses, in the order in which they are tried.
pub async fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, DialError> {
    within(endpoint, lookup(endpoint)).await
}

/// Ends what takes longer than dialing may.
async fn within<T>(
    endpoint: &Endpoint,
    step: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    match tokio::time::timeout(DIAL, step).await {
        Ok(done) => done,
        Err(_) => Err(DialError::Timeout { endpoint: endpoint.url() }),
    }
}

async fn lookup(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, DialError> {
    let resolved = tokio::net::lookup_host((endpoint.host(), endpoint.port())).await;
    let resolved = resolved.map_err(|source| DialError::Resolve { endpoint: endpoint.url(), source })?;
    Ok(resolved.take(MAX_ADDRESSES).collect())
}

/// The first address to answer; each gets a head start before the next.
async fn connect(endpoint: &Endpoint, addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
    let attempt = |(nth, addr): (usize, SocketAddr)| async move {
        tokio::time::sleep(HEAD_START.saturating_mul(u32::try_from(nth).unwrap_or(u32::MAX))).await;
        TcpStream::connect(addr).await
    };
    let addresses = addresses.iter().copied().take(MAX_ADDRESSES);
    let mut attempts: FuturesUnordered<_> = addresses.enumerate().map(attempt).collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
    while let Some(outcome) = attempts.next().await {
        match outcome {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(DialError::Connect { endpoint: endpoint.url(), source: last })
}

fn origin(endpoint: &Endpoint) -> http::Uri {
    // An endpoint's URL was a URI when it was parsed, so the default is never used.
    endpoint.url().parse().unwrap_or_default()
}

#[derive(Clone, Debug)]
struct Facts {
    origin: http::Uri,
    binding: ChannelBinding,
    server_id: Option<PeerId>,
    expected: Option<PeerId>,
    local_addr: SocketAddr,
    remote_addr: SocketAddr,
    decorate: fn(&mut HeaderMap),
}

/// One HTTP/2 connection to a known end: a transport for any generated client. Clones share it; it closes when the last is dropped.
#[derive(Clone)]
pub struct Connection {
    send: http2::SendRequest<Body>,
    facts: Arc<Facts>,
    ended: CancellationToken,
}

impl Connection {
    async fn start<IO>(io: IO, facts: Facts, endpoint: &Endpoint) -> Result<Self, DialError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(1024 * 1024)
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| DialError::Handshake { endpoint: endpoint.url(), detail: e.to_string() })?;
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(end);
        });
        Ok(Self { send, facts: Arc::new(facts), ended })
    }

    /// What a generated client needs beside the connection: `Client::with_origin(connection.clone(), connection.origin())`.
    #[must_use]
    pub fn origin(&self) -> http::Uri {
        self.facts.origin.clone()
    }

    /// What proofs on this connection are bound to; `None` on plaintext.
    #[must_use]
    pub fn binding(&self) -> ChannelBinding {
        self.facts.binding
    }

    /// Who answered, as its certificate proved; `None` on plaintext, and with an ordinary certificate.
    #[must_use]
    pub fn server_id(&self) -> Option<PeerId> {
        self.facts.server_id
    }

    /// Who must be at the other end: who is pinned, or proved itself by its certificate, now or at first contact. If the certificate of
    /// now proves nobody, a live proof must show it.
    #[must_use]
    pub fn expected(&self) -> Option<PeerId> {
        self.facts.expected
    }

    /// This end of the socket.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.facts.local_addr
    }

    /// The other end of the socket.
    #[must_use]
    pub fn remote_addr(&self) -> SocketAddr {
        self.facts.remote_addr
    }

    /// The connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.send.is_closed() || self.ended.is_cancelled()
    }

    /// Resolves when the connection has ended.
    pub async fn closed(&self) {
        self.ended.cancelled().await;
    }

    /// Whether this is the same connection, and not another one to the same end.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.facts, &other.facts)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("to", &self.facts.origin)
            .field("id", &self.facts.server_id)
            .finish()
    }
}

impl tower_service::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.send.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        (self.facts.decorate)(request.headers_mut());
        Box::pin(self.send.send_request(request))
    }
}
