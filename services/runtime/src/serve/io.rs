//! What lies between a server and its connections.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use metrics::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// The HTTP/2 preface and the frame header of the first SETTINGS: what a client says first.
const PREFACE_BYTES: usize = 24 + 9;

/// Says that it can't write vectored, which makes small calls 1.7 × as fast (113 k against 65 k a
/// second and core): HTTP/2 would send each payload of 256 bytes or more as a `writev` of its own,
/// and gathers payloads below 1 KiB into one buffer, one system call and one TLS record otherwise.
/// For bulk it makes no difference.
#[derive(Debug)]
pub struct Unvectored<IO>(pub IO);

impl<IO: AsyncRead + Unpin> AsyncRead for Unvectored<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Unvectored<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}

impl<IO: Connected> Connected for Unvectored<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.0.connect_info()
    }
}

/// A connection of a server: cut when the server says so, or when the client says nothing at first;
/// counted while it lives. Not vectored, see [`Unvectored`].
pub(super) struct Guarded<IO> {
    io: Unvectored<IO>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until the client has said its first words.
    preface: Option<Preface>,
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

struct Preface {
    missing: usize,
    timeout: Pin<Box<Sleep>>,
}

impl<IO> Guarded<IO> {
    pub(super) fn new(
        io: IO,
        cut: CancellationToken,
        timeout: Duration,
        gauge: Gauge,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        gauge.increment(1.0);
        let preface = Preface { missing: PREFACE_BYTES, timeout: Box::pin(tokio::time::sleep(timeout)) };
        Self {
            io: Unvectored(io),
            cut: Box::pin(cut.cancelled_owned()),
            preface: Some(preface),
            gauge,
            _permit: permit,
        }
    }

    /// Asked only when there is nothing else to do, so a busy connection does not pay for it.
    fn idle<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server is stopping",
            )));
        }
        if let Some(preface) = &mut self.preface
            && preface.timeout.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client said nothing")));
        }
        Poll::Pending
    }

    fn or_idle<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_pending() { self.idle(cx) } else { polled }
    }
}

impl<IO> Drop for Guarded<IO> {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Some(preface) = &mut self.preface {
            preface.missing = preface.missing.saturating_sub(buf.filled().len() - before);
            if preface.missing == 0 {
                self.preface = None;
            }
        }
        self.or_idle(cx, polled)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.or_idle(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.or_idle(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.or_idle(cx, polled)
    }
}

impl<IO: Connected> Connected for Guarded<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}
