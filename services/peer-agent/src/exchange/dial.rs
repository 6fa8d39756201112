//! Reaching a peer: its addresses are tried beside each other with a head start, and who answers must be that peer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use p2psb_client::{Connection, Dialer, Endpoint};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::{Address, PeerId, limits};
use p2psb_proto::wire::peer::v1 as wire;
use p2psb_proto::wire::peer::v1::peer_service_client::PeerServiceClient;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::link::{Ends, Link, LinkError, OUT_FRAMES, dialed, greet};
use crate::core::hosts::to_dial;
use crate::failure::from_status;
use crate::reach;

/// How long an address is left alone after somebody else answered there.
const BLOCKED: Duration = Duration::from_secs(600);
/// Blocked addresses that are remembered.
const MAX_BLOCKED: usize = 4096;

/// Dials peers. Clones share what is known of addresses.
#[derive(Clone)]
pub struct Caller {
    dialer: Dialer,
    ends: Ends,
    blocked: Arc<Mutex<HashMap<(Endpoint, PeerId), Instant>>>,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Caller {
    /// Dials with this identity, and serves over what it dialed.
    #[must_use]
    pub fn new(dialer: Dialer, ends: Ends) -> Self {
        Self { dialer, ends, blocked: Arc::default() }
    }

    /// Opens a link to a peer, at addresses as far as they are believed.
    pub async fn open(&self, peer: PeerId, addresses: &[Address]) -> Result<Link, Failure> {
        let connection = self.reach(peer, addresses).await?;
        self.link(peer, connection).await.map_err(Failure::from)
    }

    /// The first of the peer's addresses at which it answers.
    async fn reach(&self, peer: PeerId, addresses: &[Address]) -> Result<Connection, Failure> {
        let now = self.ends.clock.now();
        let mut endpoints: Vec<Endpoint> = to_dial(addresses)
            .into_iter()
            .filter_map(|address| Endpoint::of(address, peer))
            .filter(|endpoint| !self.is_blocked(endpoint, peer, now))
            .collect();
        endpoints.dedup();
        let attempt = |endpoint| self.try_one(endpoint, peer);
        reach::first(endpoints, attempt).await.map_err(|problems| unreachable(peer, &problems))
    }

    async fn try_one(&self, endpoint: Endpoint, peer: PeerId) -> Result<Connection, String> {
        if endpoint.is_plaintext() {
            return Err(format!("{}: peers are reached by TLS only", endpoint.url()));
        }
        match self.dialer.dial(&endpoint).await {
            Ok(connection) if connection.server_id() == Some(peer) => Ok(connection),
            Ok(_) => {
                self.block(endpoint.clone(), peer);
                Err(format!("{}: what answers there proves no identity", endpoint.url()))
            }
            Err(error) => {
                if matches!(error.reason(), Reason::IdentityMismatch | Reason::IdentityChanged) {
                    self.block(endpoint, peer);
                }
                Err(error.to_string())
            }
        }
    }

    async fn link(&self, peer: PeerId, connection: Connection) -> Result<Link, LinkError> {
        let (out, frames) = mpsc::channel(OUT_FRAMES);
        greet(&self.ends, &out).await?;
        let requests = ReceiverStream::new(frames).filter_map(|frame: Result<_, tonic::Status>| {
            std::future::ready(frame.ok().map(|frame| wire::ExchangeRequest { frame: Some(frame) }))
        });
        let origin = connection.origin();
        let mut client = PeerServiceClient::with_origin(connection, origin)
            .max_decoding_message_size(limits::EXCHANGE_FRAME_BYTES)
            .max_encoding_message_size(limits::EXCHANGE_FRAME_BYTES);
        let answered = tokio::time::timeout(limits::HANDSHAKE, client.exchange(requests)).await;
        let answers = answered
            .map_err(|_| LinkError::Silent)?
            .map_err(|status| LinkError::Failed(from_status(&status)))?
            .into_inner()
            .map(|came| came.map(|answer| answer.frame.unwrap_or_default()));
        dialed(&self.ends, peer, out, answers).await
    }

    fn is_blocked(&self, endpoint: &Endpoint, peer: PeerId, now: Instant) -> bool {
        let mut blocked = self.blocked.lock();
        let key = (endpoint.clone(), peer);
        match blocked.get(&key) {
            Some(until) if *until > now => true,
            Some(_) => {
                blocked.remove(&key);
                false
            }
            None => false,
        }
    }

    fn block(&self, endpoint: Endpoint, peer: PeerId) {
        let now = self.ends.clock.now();
        let mut blocked = self.blocked.lock();
        if blocked.len() >= MAX_BLOCKED {
            blocked.retain(|_, until| *until > now);
        }
        if blocked.len() < MAX_BLOCKED {
            blocked.insert((endpoint, peer), now + BLOCKED);
        }
    }
}

fn unreachable(peer: PeerId, problems: &[String]) -> Failure {
    let why = if problems.is_empty() {
        "its record names no address that can be dialed".to_owned()
    } else {
        problems.join("; ")
    };
    Failure::new(Reason::Unreachable, format!("{} cannot be reached: {why}", peer.short()))
}
