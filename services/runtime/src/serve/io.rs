//! What lies between a server and its connections.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use metrics::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::answers::{Account, Arrived};
use crate::admission::Place;

/// The HTTP/2 preface and the frame header of the first SETTINGS: what a client says first.
const PREFACE_BYTES: usize = 24 + 9;

/// What is longer than this is not held back: there is enough of it for a system call.
const GATHERED_BYTES: usize = 4 * 1024;

/// Gathers small answers: those of all calls that are ready go out in one write, one TLS record and one system call.
///
/// It does two things. It says that it can't write vectored: HTTP/2 would send each payload of 256 bytes or more as a `writev`
/// of its own, and puts payloads below 1 KiB behind one another in one buffer otherwise. And before the first write after a
/// flush it stands back once: the task of the connection goes to the end of the queue, so that calls which are ready add
/// their answers. Without that each answer was written alone, because a woken connection runs before the other calls do.
/// For bulk neither makes a difference.
#[derive(Debug)]
pub struct Gathered<IO> {
    io: IO,
    /// Since the last flush.
    stood_back: bool,
}

impl<IO> Gathered<IO> {
    /// A connection that gathers what is written to it.
    pub const fn new(io: IO) -> Self {
        Self { io, stood_back: false }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gathered<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gathered<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.len() < GATHERED_BYTES && !std::mem::replace(&mut self.stood_back, true) {
            // Who wakes itself runs again after all that wait already.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stood_back = false;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
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

impl<IO: Connected> Connected for Gathered<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

/// A connection of a server: cut when the server says so, when the client says nothing at first, or when what waits for it is not
/// taken; counted while it lives. See [`Gathered`].
pub(super) struct Guarded<IO> {
    io: Gathered<IO>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until the client has said its first words.
    preface: Option<Preface>,
    writing: Writing,
    account: Arc<Account>,
    gauge: Gauge,
    live: Arc<AtomicUsize>,
    _place: Place,
}

struct Preface {
    missing: usize,
    timeout: Pin<Box<Sleep>>,
}

/// Whether the other end takes what is written.
struct Writing {
    timeout: Duration,
    /// The last write or flush found no room.
    is_blocked: bool,
    /// How many were not; it wraps.
    written: usize,
    /// While something waits. It is set anew only once it has run out.
    clock: Option<Clock>,
}

/// How much had been written and taken when the clock was set, and the clock.
type Clock = ((usize, usize), Pin<Box<Sleep>>);

/// What a server does with each of its connections.
pub(super) struct Guard {
    pub(super) cut: CancellationToken,
    pub(super) preface_timeout: Duration,
    pub(super) write_timeout: Duration,
    pub(super) gauge: Gauge,
    /// How many connections live.
    pub(super) live: Arc<AtomicUsize>,
}

impl Guard {
    pub(super) fn guard<IO>(&self, io: IO, place: Place, account: Account) -> Guarded<IO> {
        self.gauge.increment(1.0);
        self.live.fetch_add(1, Ordering::Relaxed);
        let preface =
            Preface { missing: PREFACE_BYTES, timeout: Box::pin(tokio::time::sleep(self.preface_timeout)) };
        Guarded {
            io: Gathered::new(io),
            cut: Box::pin(self.cut.clone().cancelled_owned()),
            preface: Some(preface),
            writing: Writing { timeout: self.write_timeout, is_blocked: false, written: 0, clock: None },
            account: Arc::new(account),
            gauge: self.gauge.clone(),
            live: Arc::clone(&self.live),
            _place: place,
        }
    }
}

impl Writing {
    fn note<T>(&mut self, polled: &Poll<io::Result<T>>) {
        self.is_blocked = polled.is_pending();
        if !self.is_blocked {
            self.written = self.written.wrapping_add(1);
        }
    }

    /// Whether nothing of what waits was taken for the whole timeout. A reader that leaves its answers behind its window may do so
    /// until their memory is needed.
    fn is_stalled(&mut self, account: &Account, cx: &mut Context<'_>) -> bool {
        if !self.is_blocked && !account.waits() {
            self.clock = None;
            return false;
        }
        let (now, timeout) = ((self.written, account.taken()), self.timeout);
        let (before, clock) = self.clock.get_or_insert_with(|| (now, Box::pin(tokio::time::sleep(timeout))));
        while clock.as_mut().poll(cx).is_ready() {
            let is_unread = account.waits() && before.1 == now.1;
            if self.is_blocked && before.0 == now.0 || is_unread && account.is_pressed() {
                return true;
            }
            *before = now;
            clock.as_mut().reset(Instant::now() + timeout);
        }
        false
    }
}

impl<IO> Guarded<IO> {
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
        if self.writing.is_stalled(&self.account, cx) {
            metrics::counter!("grpc_server_connections_stalled_total").increment(1);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")));
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
        self.live.fetch_sub(1, Ordering::Relaxed);
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
        let had_stood_back = self.io.stood_back;
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        // To stand back is not to be blocked.
        if polled.is_ready() || had_stood_back == self.io.stood_back {
            self.writing.note(&polled);
        }
        self.or_idle(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.writing.note(&polled);
        self.or_idle(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.or_idle(cx, polled)
    }
}

impl<IO: Connected> Connected for Guarded<IO> {
    type ConnectInfo = Arrived<IO::ConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arrived { info: self.io.connect_info(), account: Arc::clone(&self.account) }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Wake, Waker};

    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes, and then flushes if told so. Returns whether it was written, and how often the task was woken.
    fn write(io: &mut Gathered<Vec<u8>>, bytes: &[u8], then_flush: bool) -> (bool, usize) {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let written = Pin::new(&mut *io).poll_write(&mut cx, bytes);
        if then_flush {
            assert!(matches!(Pin::new(io).poll_flush(&mut cx), Poll::Ready(Ok(()))));
        }
        (matches!(written, Poll::Ready(Ok(n)) if n == bytes.len()), woken.0.load(Ordering::Relaxed))
    }

    #[test]
    fn a_small_write_stands_back_once_after_each_flush_and_wakes_itself() {
        let mut io = Gathered::new(Vec::new());
        for round in 1..=2 {
            assert_eq!(write(&mut io, b"answer", false), (false, 1), "others may add theirs");
            assert_eq!(write(&mut io, b"answers", false), (true, 0), "now all go out");
            assert_eq!(write(&mut io, b"more", true), (true, 0), "until the flush there is no other pause");
            assert_eq!(io.io.len(), round * b"answersmore".len());
        }
    }

    #[test]
    fn bulk_does_not_wait() {
        let mut io = Gathered::new(Vec::new());
        assert_eq!(write(&mut io, &[0; GATHERED_BYTES], true), (true, 0));
    }
}
