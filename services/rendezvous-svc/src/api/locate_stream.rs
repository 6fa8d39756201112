//! `LocateStream`: many lookups over one stream. Each is answered from memory as it comes, so nothing waits here: a caller that
//! does not read its answers holds up its own requests, by the flow control of HTTP/2.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt as _};
use p2psb_proto::error::Failure;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::locate_stream_response::Result as Answer;
use tonic::{Status, Streaming};

use super::query;
use super::status::draining;
use crate::node::Node;

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
    let answers = inbound.map(move |request| Ok(answer(&answering, &request?)));
    let last_word = async move { drain.has_begun().then(|| Err(draining().into())) };
    let last_word = stream::once(last_word).filter_map(std::future::ready);
    Ok(answers.take_until(async move { until.begun().await }).chain(last_word).boxed())
}

fn answer(node: &Node, request: &wire::LocateStreamRequest) -> wire::LocateStreamResponse {
    let result = match query::located(node, &request.peer_id) {
        Ok(peer) => Answer::Peer(peer),
        Err(failure) => Answer::Error(failure.into()),
    };
    wire::LocateStreamResponse { number: request.number, result: Some(result) }
}
