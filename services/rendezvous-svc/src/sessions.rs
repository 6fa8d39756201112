//! Sessions: one task for each stream, from the hello to the end.
//!
//! Invariant: whatever way a session ends, its slot is free again and the directory knows how it ended, unless a newer
//! session of the peer took its place.

mod handshake;
mod live;
mod slot;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::limits;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use crate::api::status::{draining, full};
use crate::node::{Caller, Node};
pub(crate) use slot::RETURNING;
use slot::Slot;

type Answer = Result<wire::ConnectResponse, Status>;

/// What a session answers. Boxed while it waits: a queue has room for 32 answers from the first on.
pub(crate) type Outgoing = stream::Map<ReceiverStream<Box<Answer>>, fn(Box<Answer>) -> Answer>;

/// Messages that may wait for a slow reader; one more ends its session.
const QUEUE: usize = 16;
/// How long the reason of an end may take to be taken.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Accepts a stream; its task goes on by itself.
pub(crate) fn accept(
    node: &Arc<Node>,
    caller: Caller,
    inbound: Streaming<wire::ConnectRequest>,
) -> Result<Outgoing, Failure> {
    if node.drain.has_begun() {
        return Err(draining());
    }
    let slot = Slot::take(node, caller.ip()).map_err(full)?;
    let (outbound, answers) = mpsc::channel(QUEUE);
    let (node, stream) = (Arc::clone(node), Stream { inbound, outbound });
    tokio::spawn(run(node, caller, stream, slot).in_current_span());
    Ok(ReceiverStream::new(answers).map(|answer| *answer))
}

async fn run(node: Arc<Node>, caller: Caller, mut stream: Stream, mut slot: Slot) {
    // Boxed, so that its room is free for the rest of the session.
    let handshake = Box::pin(handshake::shake_hands(&node, &caller, &mut stream, &mut slot));
    let ended = match tokio::time::timeout(limits::HANDSHAKE, handshake).await {
        Ok(Ok((session, lease))) => {
            let ended = session.live(&mut stream, lease).await;
            // At once: if another one took its place, that one counts already.
            drop(slot);
            ended
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::new(Reason::HandshakeTimeout, "the peer did not prove itself within 5 s")),
    };
    if let Err(failure) = ended {
        metrics::counter!("rendezvous_sessions_refused_total", "reason" => failure.reason.as_str())
            .increment(1);
        tracing::debug!(reason = %failure.reason, problem = failure.message, from = ?caller.addr, "a session ended");
        stream.last_word(failure).await;
    }
}

/// Both directions of a session.
struct Stream {
    inbound: Streaming<wire::ConnectRequest>,
    outbound: mpsc::Sender<Box<Answer>>,
}

impl Stream {
    /// The next message that is known; `None` when the peer closed the stream. Safe to drop while it waits.
    async fn next(&mut self) -> Result<Option<Up>, Status> {
        while let Some(request) = self.inbound.message().await? {
            let size = request.encoded_len();
            if size > limits::CONTROL_MESSAGE_BYTES {
                let limit = limits::CONTROL_MESSAGE_BYTES;
                let text = format!("a message of a session has at most {limit} bytes, this one {size}");
                return Err(Failure::new(Reason::InvalidArgument, text).into());
            }
            if let Some(message) = request.message {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Queues an answer. A peer that does not read what it is told loses its session.
    fn send(&self, message: Down) -> Result<(), Failure> {
        let response = wire::ConnectResponse { message: Some(message) };
        self.outbound.try_send(Box::new(Ok(response))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Failure::new(Reason::LimitExceeded, format!("{QUEUE} answers wait and none is read"))
                    .with("limit", "session.queue")
            }
            mpsc::error::TrySendError::Closed(_) => gone(),
        })
    }

    async fn last_word(&self, failure: Failure) {
        // Nobody is left to be told if this fails.
        let _ = tokio::time::timeout(LAST_WORD, self.outbound.send(Box::new(Err(failure.into())))).await;
    }
}

/// The stream broke.
fn gone() -> Failure {
    Failure::new(Reason::Unreachable, "the stream broke")
}
