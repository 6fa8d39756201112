//! The door of a listener: who may come in, and who is still shaking hands.
//!
//! Invariants: a connection holds its place from before its handshake until it is dropped, whatever becomes of it. One source has its
//! share of the places and no more, in all and among handshakes, so a flood from there is closed at once and harms nobody else. While
//! all handshakes are taken, the oldest yields as soon as it has had its time: who says nothing does not hold up the door.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::Stream;
use futures::future::Either;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::task::JoinMap;

use super::http2::Http2Config;
use super::listener::Listener;
use super::proxy;
use crate::admission::{LimitReached, Limits, Place, Places, Source};

/// How many connections may be in their handshake at once, in all and from one source.
const HANDSHAKES: Limits = Limits {
    total: (512, "handshakes"),
    per_ip: (64, "handshakes_per_ip"),
    per_prefix: (128, "handshakes_per_prefix"),
};

/// How long every handshake may take, however many wait behind it: two round trips around the world.
const HANDSHAKE_TIME: Duration = Duration::from_millis(500);

/// A connection after its handshake, with its place.
#[derive(Debug)]
pub struct Admitted<IO> {
    /// What the handshake made of it.
    pub io: IO,
    /// Held while it lives.
    pub place: Place,
}

impl Listener {
    /// Connections that were admitted and whose handshake `shake` has ended well, for as long as somebody wants them. It is told from
    /// where each comes, and for whom, if a proxy says so. Dropping the stream closes the listener.
    pub fn incoming<IO, S, F>(
        self,
        http2: &Http2Config,
        shake: S,
    ) -> impl Stream<Item = Admitted<IO>> + Send + 'static
    where
        IO: Send + 'static,
        S: Fn(TcpStream, SocketAddr, Option<SocketAddr>) -> F + Clone + Send + 'static,
        F: Future<Output = io::Result<IO>> + Send + 'static,
    {
        let door = Door {
            listener: self,
            shake,
            timeout: http2.preface_timeout,
            shared: http2.shared_sources.clone(),
            proxies: http2.proxies.clone(),
            places: Places::new(http2.of_connections()),
            handshakes: Places::new(HANDSHAKES),
            shaking: JoinMap::new(),
            begun: BTreeMap::new(),
            next: 0,
        };
        futures::stream::unfold(door, |mut door| async move { Some((door.next().await, door)) })
    }

    /// Connections without TLS. Clients of HTTP speak first, so their first words are the handshake.
    pub fn plaintext(self, http2: &Http2Config) -> impl Stream<Item = Admitted<TcpStream>> + Send + 'static {
        self.incoming(http2, |stream, _, _| async move { stream.peek(&mut [0]).await.map(|_| stream) })
    }
}

struct Door<IO, S> {
    listener: Listener,
    shake: S,
    timeout: Duration,
    shared: Vec<Source>,
    proxies: Vec<Source>,
    places: Places,
    handshakes: Places,
    shaking: JoinMap<u64, Option<Admitted<IO>>>,
    /// When each of them began, the oldest first; without those that had to yield.
    begun: BTreeMap<u64, Instant>,
    next: u64,
}

impl<IO, S, F> Door<IO, S>
where
    IO: Send + 'static,
    S: Fn(TcpStream, SocketAddr, Option<SocketAddr>) -> F + Clone + Send + 'static,
    F: Future<Output = io::Result<IO>> + Send + 'static,
{
    async fn next(&mut self) -> Admitted<IO> {
        loop {
            let is_full = self.shaking.len() >= HANDSHAKES.total.0;
            // One at a time: who was told to yield is gone a moment later.
            let oldest = self.begun.first_key_value().filter(|_| self.begun.len() == self.shaking.len());
            let oldest = oldest.map(|(nth, begun)| (*nth, *begun + HANDSHAKE_TIME));
            tokio::select! {
                Some((nth, shaken)) = self.shaking.join_next() => {
                    self.begun.remove(&nth);
                    if let Ok(Some(admitted)) = shaken {
                        return admitted;
                    }
                }
                (stream, from) = self.listener.accept(), if !is_full => self.begin(stream, from),
                nth = due(oldest), if is_full => {
                    count_refused("handshakes");
                    self.begun.remove(&nth);
                    self.shaking.abort(&nth);
                }
            }
        }
    }

    /// Over a limit the connection is closed at once: it is dropped.
    fn begin(&mut self, stream: TcpStream, from: SocketAddr) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let is_proxy = lies_in(&self.proxies, from);
        // From a shared source come many callers: one of them is not to pay for the others.
        let source = (!is_proxy && !lies_in(&self.shared, from)).then_some(from.ip());
        let entered = self.places.enter(source).and_then(|place| Ok((place, self.handshakes.enter(source)?)));
        let (place, handshake) = match entered {
            Ok(places) => places,
            Err(reached) => return refuse(from, &reached),
        };
        let timeout = self.timeout;
        let admitting = if is_proxy {
            let (shake, places, handshakes) =
                (self.shake.clone(), self.places.clone(), self.handshakes.clone());
            let shared = self.shared.clone();
            let mut stream = stream;
            Either::Left(async move {
                let Some(client) = proxy::client(&mut stream).await? else {
                    return Ok(Some(Admitted { io: shake(stream, from, None).await?, place }));
                };
                // The client pays, and not the proxy.
                drop((place, handshake));
                let source = (!lies_in(&shared, client)).then_some(client.ip());
                let entered = places.enter(source).and_then(|place| Ok((place, handshakes.enter(source)?)));
                let (place, _handshake) = match entered {
                    Ok(places) => places,
                    Err(reached) => {
                        refuse(client, &reached);
                        return Ok(None);
                    }
                };
                Ok(Some(Admitted { io: shake(stream, from, Some(client)).await?, place }))
            })
        } else {
            let shaking = (self.shake)(stream, from, None);
            Either::Right(async move {
                let _handshake = handshake;
                Ok(Some(Admitted { io: shaking.await?, place }))
            })
        };
        self.shaking.spawn(self.next, async move {
            match tokio::time::timeout(timeout, admitting).await {
                Ok(Ok(admitted)) => return admitted,
                Ok(Err(error)) => {
                    let error: io::Error = error;
                    tracing::debug!(%from, %error, "handshake failed");
                }
                Err(_) => tracing::debug!(%from, "handshake timed out"),
            }
            None
        });
        self.begun.insert(self.next, Instant::now());
        self.next += 1;
    }
}

fn lies_in(sources: &[Source], addr: SocketAddr) -> bool {
    sources.iter().any(|source| source.contains(addr.ip()))
}

/// Resolves to the oldest when its time is over.
async fn due(oldest: Option<(u64, Instant)>) -> u64 {
    let Some((nth, time)) = oldest else { return std::future::pending().await };
    tokio::time::sleep_until(time).await;
    nth
}

fn refuse(from: SocketAddr, reached: &LimitReached) {
    tracing::debug!(%from, limit = reached.limit, "a connection was refused");
    count_refused(reached.limit);
}

fn count_refused(limit: &'static str) {
    metrics::counter!("grpc_server_connections_refused_total", "limit" => limit).increment(1);
}
