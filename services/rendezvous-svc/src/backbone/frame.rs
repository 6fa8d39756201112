//! The two directions of a link carry the same things in two types; here they are one.

use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::link_request::Message as Request;
use p2psb_proto::wire::rendezvous::v1::link_response::Message as Response;

/// A message of a link.
#[derive(Debug)]
pub(super) enum Frame {
    Hello(Box<wire::BridgeHello>),
    Authenticate(wire::BridgeProof),
    Batch(wire::BridgeBatch),
    Mark(wire::BridgeMark),
    Question(wire::BridgeQuestion),
    Answer(wire::BridgeAnswer),
}

impl Frame {
    /// As the dialer says it.
    pub(super) fn into_request(self) -> wire::LinkRequest {
        let message = match self {
            Self::Hello(hello) => Request::Hello(*hello),
            Self::Authenticate(proof) => Request::Authenticate(proof),
            Self::Batch(batch) => Request::Batch(batch),
            Self::Mark(mark) => Request::Mark(mark),
            Self::Question(question) => Request::Question(question),
            Self::Answer(answer) => Request::Answer(answer),
        };
        wire::LinkRequest { message: Some(message) }
    }

    /// As the listener says it. It has nothing to authenticate that its hello does not hold.
    pub(super) fn into_response(self) -> wire::LinkResponse {
        let message = match self {
            Self::Hello(hello) => Some(Response::Hello(*hello)),
            Self::Authenticate(_) => None,
            Self::Batch(batch) => Some(Response::Batch(batch)),
            Self::Mark(mark) => Some(Response::Mark(mark)),
            Self::Question(question) => Some(Response::Question(question)),
            Self::Answer(answer) => Some(Response::Answer(answer)),
        };
        wire::LinkResponse { message }
    }

    /// What a dialer said; `None` if it is unknown.
    pub(super) fn of_request(request: wire::LinkRequest) -> Option<Self> {
        Some(match request.message? {
            Request::Hello(hello) => Self::Hello(Box::new(hello)),
            Request::Authenticate(proof) => Self::Authenticate(proof),
            Request::Batch(batch) => Self::Batch(batch),
            Request::Mark(mark) => Self::Mark(mark),
            Request::Question(question) => Self::Question(question),
            Request::Answer(answer) => Self::Answer(answer),
        })
    }

    /// What a listener said; `None` if it is unknown.
    pub(super) fn of_response(response: wire::LinkResponse) -> Option<Self> {
        Some(match response.message? {
            Response::Hello(hello) => Self::Hello(Box::new(hello)),
            Response::Batch(batch) => Self::Batch(batch),
            Response::Mark(mark) => Self::Mark(mark),
            Response::Question(question) => Self::Question(question),
            Response::Answer(answer) => Self::Answer(answer),
        })
    }
}
