//! `PeerService`: links that other peers open.
//!
//! Promises: only who proved an id by mutual TLS gets a link; no more than [`MAX_LINKS`] are open, nor [`MAX_LINKS_OF_PEER`] of
//! one peer; on drain links end, and say so.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use p2psb_client::ConnectInfo;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::{PeerId, limits};
use p2psb_proto::wire::peer::v1 as wire;
use p2psb_proto::wire::peer::v1::peer_service_server::{PeerService, PeerServiceServer};
use p2psb_runtime::Drain;
use p2psb_runtime::serve::Arrived;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::link::{Ends, LinkError, OUT_FRAMES, accepted};

/// Links of others that may be open at once.
pub const MAX_LINKS: usize = 128;
/// Of one peer.
pub const MAX_LINKS_OF_PEER: usize = 8;

/// Admits links, and counts them.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<HashMap<PeerId, usize>>>);

/// An admitted link; dropping it makes room.
#[derive(Debug)]
struct Admitted {
    gate: Gate,
    peer: PeerId,
}

impl Gate {
    /// How many links are open.
    #[must_use]
    pub fn links(&self) -> usize {
        self.0.lock().values().sum()
    }

    fn admit(&self, peer: PeerId) -> Result<Admitted, Failure> {
        let mut links = self.0.lock();
        let (all, own) = (links.values().sum::<usize>(), links.get(&peer).copied().unwrap_or_default());
        if all >= MAX_LINKS || own >= MAX_LINKS_OF_PEER {
            let (limit, max) =
                if all >= MAX_LINKS { ("links", MAX_LINKS) } else { ("links_of_peer", MAX_LINKS_OF_PEER) };
            return Err(Failure::new(
                Reason::LimitExceeded,
                format!("all {max} links are in use; try another host, or later"),
            )
            .with("limit", limit)
            .retry_after(std::time::Duration::from_secs(5)));
        }
        links.insert(peer, own + 1);
        Ok(Admitted { gate: self.clone(), peer })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut links = self.gate.0.lock();
        match links.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(links.remove(&self.peer)),
        }
    }
}

/// The service.
#[derive(Clone, Debug)]
pub struct Peers {
    ends: Ends,
    gate: Gate,
    drain: Drain,
}

impl Peers {
    /// Serves what `ends` serves until `drain`.
    #[must_use]
    pub fn service(ends: Ends, gate: Gate, drain: Drain) -> PeerServiceServer<Self> {
        PeerServiceServer::new(Self { ends, gate, drain })
            .max_decoding_message_size(limits::EXCHANGE_FRAME_BYTES)
            .max_encoding_message_size(limits::EXCHANGE_FRAME_BYTES)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::ExchangeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for Peers {
    type ExchangeStream = Answers;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::ExchangeRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let peer = request.extensions().get::<Arrived<ConnectInfo>>().and_then(|arrived| arrived.info.peer);
        let Some(peer) = peer else {
            let problem = "peers prove their id by a client certificate; this connection has none";
            return Err(Failure::new(Reason::ProofInvalid, problem).into_status());
        };
        if self.drain.has_begun() {
            return Err(draining().into_status());
        }
        let admitted = self.gate.admit(peer).map_err(Failure::into_status)?;
        let (out, frames) = mpsc::channel(OUT_FRAMES);
        let inbound = request.into_inner().map(|came| came.map(|request| request.frame.unwrap_or_default()));
        let (ends, drain) = (self.ends.clone(), self.drain.clone());
        tokio::spawn(async move {
            let end = out.clone();
            let failure = tokio::select! {
                error = accepted(&ends, peer, out, inbound) => after(&error, peer),
                () = drain.begun() => Some(draining()),
            };
            if let Some(failure) = failure {
                // Nobody is left to be told if the stream is full or gone.
                let _ = end.try_send(Err(failure.into_status()));
            }
            drop(admitted);
        });
        let frames = ReceiverStream::new(frames)
            .map(|frame| frame.map(|frame| wire::ExchangeResponse { frame: Some(frame) }));
        Ok(Response::new(Box::pin(frames)))
    }
}

fn draining() -> Failure {
    Failure::new(Reason::Draining, "this agent is stopping; go on with another host")
}

/// What the other end is told when its link ended.
fn after(error: &LinkError, peer: PeerId) -> Option<Failure> {
    match error {
        LinkError::Closed | LinkError::Failed(_) | LinkError::Stalled => {
            tracing::debug!(%peer, %error, "link ended");
            None
        }
        LinkError::Hello(hello) => Some(hello.clone().into()),
        broken => {
            tracing::info!(%peer, error = %broken, "link ended");
            Some(Failure::new(broken.reason(), broken.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::SecretKey;

    use super::*;

    fn peer(seed: u8) -> PeerId {
        PeerId::new(SecretKey::from_seed(&[seed; 32]).public())
    }

    #[test]
    fn one_peer_gets_eight_links_and_all_together_their_bound() {
        let gate = Gate::default();
        let mut held: Vec<_> = (0..MAX_LINKS_OF_PEER).map(|_| gate.admit(peer(1)).unwrap()).collect();
        assert_eq!(gate.admit(peer(1)).unwrap_err().reason, Reason::LimitExceeded);
        held.pop();
        held.push(gate.admit(peer(1)).unwrap());
        for seed in 2..=(MAX_LINKS / MAX_LINKS_OF_PEER) as u8 {
            held.extend((0..MAX_LINKS_OF_PEER).map(|_| gate.admit(peer(seed)).unwrap()));
        }
        assert!(gate.admit(peer(200)).is_err());
        drop(held);
        assert_eq!((gate.links(), gate.0.lock().len()), (0, 0));
    }
}
