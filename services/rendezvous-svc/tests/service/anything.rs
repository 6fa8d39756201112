//! Messages on the wire as a liar makes them: an envelope whose content may be anything.

use bytes::Bytes;
use p2psb_client::Connection;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Any request of a stream of the contract: one of some messages, none of which is looked at.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Anything {
    #[prost(bytes = "bytes", optional, tag = "1")]
    one: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    two: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    three: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    four: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "5")]
    five: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "6")]
    six: Option<Bytes>,
}

impl Anything {
    /// This request.
    pub(crate) fn of(request: &impl Message) -> Self {
        Self::decode(request.encode_to_vec().as_slice()).unwrap()
    }

    /// What nobody can read, where a message of an open stream belongs.
    pub(crate) fn garbage() -> Self {
        Self { three: Some(Bytes::from_static(&[0xff; 100])), ..Self::default() }
    }
}

/// Calls a method with a stream of requests.
pub(crate) async fn call<T: Message + Default + Send + Sync + 'static>(
    connection: &Connection,
    path: &'static str,
    requests: mpsc::Receiver<Anything>,
) -> Result<Streaming<T>, Status> {
    let mut grpc = tonic::client::Grpc::with_origin(connection.clone(), connection.origin());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let (requests, path) = (Request::new(ReceiverStream::new(requests)), PathAndQuery::from_static(path));
    let codec = ProstCodec::<Anything, T>::default();
    Ok(grpc.streaming(requests, path, codec).await?.into_inner())
}
