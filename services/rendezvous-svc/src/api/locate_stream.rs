//! `LocateStream`: many lookups over one stream. What is known here is answered at once, together with all that was asked meanwhile;
//! for the rest the owners are asked. A caller that does not read its answers holds up its own requests, by the flow control of
//! HTTP/2.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use p2psb_proto::model::PeerId;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::locate_stream_response::Result as Answer;
use p2psb_runtime::serve::{Answers, Framed, Later, Requests};
use prost::Message as _;
use prost::encoding::uint64;
use tonic::Status;

use super::query;
use super::status::{draining, unreadable};
use crate::core::directory::{Aim, Directory, Near};
use crate::node::Node;

/// Of a `LocateStreamResponse`.
const NUMBER: u32 = 1;
const PEER: u32 = 2;

/// So many are looked up together: memory gives what all of them need in the time of a few.
const TOGETHER: usize = 16;

/// Answers the requests of one stream, until the caller ends it or this server drains.
pub(crate) struct Located {
    node: Arc<Node>,
    /// What is looked up now.
    asked: Vec<Asked>,
    drained: BoxFuture<'static, ()>,
}

/// A request, and whom it is about if that is an id.
struct Asked {
    request: wire::LocateStreamRequest,
    peer: Option<(PeerId, Aim)>,
    near: Option<Near>,
}

impl Located {
    pub(crate) fn by(node: &Arc<Node>) -> Self {
        let drain = node.drain.clone();
        Self {
            node: Arc::clone(node),
            asked: Vec::new(),
            drained: async move { drain.begun().await }.boxed(),
        }
    }
}

impl Located {
    /// Takes requests, `most` of them, as far as they can be read, and brings near whom they are about.
    fn take(&mut self, requests: &mut Requests, most: usize, directory: &Directory) -> Result<(), Status> {
        let mut taken = Ok(());
        for request in requests.take(most.min(TOGETHER)) {
            let request = request.and_then(|request| {
                wire::LocateStreamRequest::decode(request).map_err(|error| unreadable(&error))
            });
            match request {
                Ok(request) => {
                    let peer = PeerId::from_slice(&request.peer_id).ok();
                    let peer = peer.map(|peer| (peer, directory.aim(&peer)));
                    self.asked.push(Asked { request, peer, near: None });
                }
                Err(status) => {
                    taken = Err(status);
                    break;
                }
            }
        }
        self.asked.iter().filter_map(|one| one.peer).for_each(|(_, aim)| directory.touch(aim));
        for one in &mut self.asked {
            one.near = one.peer.and_then(|(_, aim)| directory.near(aim));
        }
        taken
    }
}

impl Answers for Located {
    type Message = wire::LocateStreamResponse;
    type Later = BoxFuture<'static, wire::LocateStreamResponse>;

    fn answer(
        &mut self,
        requests: &mut Requests,
        to: &mut Framed,
        later: &mut Later<Self::Later>,
    ) -> Result<(), Status> {
        let node = Arc::clone(&self.node);
        let (now, directory) = (node.now(), node.directory.read());
        while !to.is_full() && later.has_room() {
            let taken = self.take(requests, later.room(), &directory);
            if self.asked.is_empty() {
                return taken;
            }
            for Asked { request, peer, near } in self.asked.drain(..) {
                let number = request.number;
                let is_found = peer.is_some_and(|(peer, _)| {
                    query::at_once(&node, &directory, (&peer, near), now, |found| {
                        let length = if number == 0 { 0 } else { uint64::encoded_len(NUMBER, &number) };
                        to.put(length + found.field_len(PEER), |to| {
                            if number != 0 {
                                uint64::encode(NUMBER, &number, to);
                            }
                            found.put_field(PEER, to);
                        });
                    })
                });
                if !is_found {
                    later.push(answer(Arc::clone(&node), request).boxed());
                }
            }
            taken?;
        }
        Ok(())
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        self.drained.poll_unpin(cx).map(|()| draining().into())
    }
}

/// The answer to one request, whoever has to be asked.
async fn answer(node: Arc<Node>, request: wire::LocateStreamRequest) -> wire::LocateStreamResponse {
    let result = match query::located(&node, &request.peer_id).await {
        Ok(peer) => Answer::Peer(peer),
        Err(failure) => Answer::Error(failure.into()),
    };
    wire::LocateStreamResponse { number: request.number, result: Some(result) }
}
