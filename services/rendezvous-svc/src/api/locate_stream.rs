//! `LocateStream`: many lookups over one stream. Those that the owners have to be asked for are under way at once, up to a bound;
//! a caller that does not read its answers holds up its own requests, by the flow control of HTTP/2.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt as _};
use p2psb_proto::error::Failure;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::locate_stream_response::Result as Answer;
use tonic::{Status, Streaming};

use super::query;
use super::status::draining;
use crate::node::Node;

/// Lookups of one stream that are under way at once.
const UNDER_WAY: usize = 64;

/// The answers.
pub(super) type Outgoing = BoxStream<'static, Result<wire::LocateStreamResponse, Status>>;

/// Answers every request until the caller ends the stream, or this server drains.
pub(super) fn locate_all(
    node: &Arc<Node>,
    inbound: Streaming<wire::LocateStreamRequest>,
) -> Result<Outgoing, Failure> {
    if node.drain.has_begun() {
        return Err(draining());
    }
    let (answering, until, drain) = (Arc::clone(node), node.drain.clone(), node.drain.clone());
    let answers = inbound.map(move |request| answer(Arc::clone(&answering), request));
    let answers = answers.buffer_unordered(UNDER_WAY);
    let last_word = async move { drain.has_begun().then(|| Err(draining().into())) };
    let last_word = stream::once(last_word).filter_map(std::future::ready);
    Ok(answers.take_until(async move { until.begun().await }).chain(last_word).boxed())
}

async fn answer(
    node: Arc<Node>,
    request: Result<wire::LocateStreamRequest, Status>,
) -> Result<wire::LocateStreamResponse, Status> {
    let request = request?;
    let result = match query::located(&node, &request.peer_id).await {
        Ok(peer) => Answer::Peer(peer),
        Err(failure) => Answer::Error(failure.into()),
    };
    Ok(wire::LocateStreamResponse { number: request.number, result: Some(result) })
}
