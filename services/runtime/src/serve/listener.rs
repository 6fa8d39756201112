//! A TCP listener that keeps listening: a failed accept is a pause at worst, never the end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// How many connections the kernel holds for us before we accept them.
pub const BACKLOG: u32 = 1024;

/// The pause after running out of descriptors or memory: trying at once would only spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    addr: SocketAddr,
}

impl Listener {
    /// Binds `addr` (port 0: any) and listens. An error names the address.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        Self::with_socket(addr, |_| Ok(()))
    }

    /// As [`Listener::bind`], on a port that outgoing connections of this process may share.
    #[cfg(unix)]
    pub fn bind_shared(addr: SocketAddr) -> io::Result<Self> {
        Self::with_socket(addr, |socket| socket.set_reuseport(true))
    }

    fn with_socket(addr: SocketAddr, prepare: impl FnOnce(&TcpSocket) -> io::Result<()>) -> io::Result<Self> {
        let bind = || {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // On Windows the option means something else: another process could take the port over.
            #[cfg(unix)]
            socket.set_reuseaddr(true)?;
            prepare(&socket)?;
            socket.bind(addr)?;
            let inner = socket.listen(BACKLOG)?;
            let addr = inner.local_addr()?;
            Ok(Self { inner, addr })
        };
        bind().map_err(|error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}"))
        })
    }

    /// Where it listens, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next connection. Cancelling it loses none.
    pub(super) async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.inner.accept().await {
                Ok((stream, from)) => {
                    // Fails only on a connection that is dead already; its first read will say so.
                    let _ = stream.set_nodelay(true);
                    return (stream, from);
                }
                Err(error) => self.after_failure(&error).await,
            }
        }
    }

    async fn after_failure(&self, error: &io::Error) {
        metrics::counter!("listener_accept_errors_total").increment(1);
        if is_of_one_connection(error) {
            tracing::debug!(%error, addr = %self.addr, "a connection failed before it was accepted");
            return;
        }
        tracing::warn!(%error, addr = %self.addr, "cannot accept connections for the moment; is the limit of open files too low?");
        tokio::time::sleep(EXHAUSTED_PAUSE).await;
    }
}

/// Whether the failure concerns the connection rather than the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
