//! Unary calls that can be answered from memory.
//!
//! What tonic does for every call, so that it may stream, wait and compress, costs more than a look into a table. Promise: a
//! caller can't tell the difference; whatever is out of the ordinary goes to the service itself, as it came.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::{Body as _, Frame};
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::api::GrpcService;

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A service of which one unary method may be answered at once, by a function.
#[derive(Debug)]
pub struct Prompt<S, F> {
    service: S,
    method: &'static str,
    answer: Arc<F>,
}

impl<S: Clone, F> Clone for Prompt<S, F> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), method: self.method, answer: Arc::clone(&self.answer) }
    }
}

impl<S, F> Prompt<S, F> {
    /// `answer` is given the encoded request of `method`. For `None` the service itself is called.
    pub fn new(service: S, method: &'static str, answer: F) -> Self {
        Self { service, method, answer: Arc::new(answer) }
    }
}

impl<S: NamedService, F> NamedService for Prompt<S, F> {
    const NAME: &'static str = S::NAME;
}

impl<S, F, M> Service<Request<Body>> for Prompt<S, F>
where
    S: GrpcService + NamedService,
    F: Fn(Bytes) -> Option<M> + Send + Sync + 'static,
    M: Message,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next();
        if method != Some(self.method) || request.headers().contains_key("grpc-encoding") {
            return Box::pin(self.service.call(request));
        }
        let (mut service, answer) = (self.service.clone(), Arc::clone(&self.answer));
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let mut heard = Heard { frames: VecDeque::new(), rest: body };
            match heard.message().await.and_then(|message| (*answer)(message)) {
                Some(message) => Ok(answered(&message)),
                None => service.call(Request::from_parts(parts, Body::new(heard))).await,
            }
        })
    }
}

/// A request of which the beginning was looked at; as a body it is the whole request.
struct Heard {
    frames: VecDeque<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl Heard {
    /// The message, if the request is nothing but one, which came in one piece.
    async fn message(&mut self) -> Option<Bytes> {
        let first = self.look().await?;
        let message = message_in(first.as_ref().ok()?.data_ref()?);
        self.frames.push_back(first);
        if !self.rest.is_end_stream()
            && let Some(more) = self.look().await
        {
            self.frames.push_back(more);
            return None;
        }
        message
    }

    async fn look(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        poll_fn(|cx| Pin::new(&mut self.rest).poll_frame(cx)).await
    }
}

fn message_in(data: &Bytes) -> Option<Bytes> {
    let (prefix, message) = data.split_first_chunk::<PREFIX>()?;
    let [compressed, length @ ..] = *prefix;
    let is_whole = u32::from_be_bytes(length) as usize == message.len();
    (compressed == 0 && is_whole).then(|| data.slice_ref(message))
}

impl hyper::body::Body for Heard {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.is_end_stream()
    }
}

fn answered(message: &impl Message) -> Response<Body> {
    let length = message.encoded_len();
    let mut data = BytesMut::with_capacity(PREFIX + length);
    data.put_u8(0);
    data.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut data);
    let mut response = Response::new(Body::new(Answer::Message(data.freeze())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// What is still to be sent of an answer.
enum Answer {
    Message(Bytes),
    Trailers,
    Nothing,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let (frame, left) = match std::mem::replace(&mut *self, Self::Nothing) {
            Self::Message(message) => (Some(Ok(Frame::data(message))), Self::Trailers),
            Self::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                (Some(Ok(Frame::trailers(trailers))), Self::Nothing)
            }
            Self::Nothing => (None, Self::Nothing),
        };
        *self = left;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that answers with what it was asked.
    #[derive(Clone)]
    struct Echo;

    impl NamedService for Echo {
        const NAME: &'static str = "sample.Sample";
    }

    impl Service<Request<Body>> for Echo {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            Box::pin(async move { Ok(Response::new(request.into_body())) })
        }
    }

    async fn called(method: &str, pieces: &[&'static [u8]]) -> (Vec<u8>, Option<HeaderMap>) {
        let mut prompt =
            Prompt::new(Echo, "Ask", |request: Bytes| (request == "ok").then(|| "yes".to_owned()));
        let frames = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))).collect();
        let body = Body::new(Heard { frames, rest: Body::empty() });
        let request = Request::builder().uri(format!("/sample.Sample/{method}")).body(body).unwrap();
        let mut body = prompt.call(request).await.unwrap().into_body();
        let (mut heard, mut trailers) = (Vec::new(), None);
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            match frame.unwrap().into_data() {
                Ok(data) => heard.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        (heard, trailers)
    }

    #[tokio::test]
    async fn a_request_in_one_piece_is_answered_at_once() {
        let (heard, trailers) = called("Ask", &[b"\0\0\0\0\x02ok"]).await;
        assert_eq!(heard, b"\0\0\0\0\x05\x0a\x03yes");
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
    }

    #[tokio::test]
    async fn whatever_is_out_of_the_ordinary_goes_to_the_service_as_it_came() {
        let cases: [(&str, &[&'static [u8]]); 7] = [
            ("Other", &[b"\0\0\0\0\x02ok"]),
            ("Ask", &[b"\0\0\0\0\x02no"]),
            ("Ask", &[b"\x01\0\0\0\x02ok"]),
            ("Ask", &[b"\0\0\0\0\x02o", b"k"]),
            ("Ask", &[b"\0\0\0\0\x02ok", b"\0\0\0\0\x02ok"]),
            ("Ask", &[b"\0\0"]),
            ("Ask", &[]),
        ];
        for (method, pieces) in cases {
            assert_eq!(called(method, pieces).await, (pieces.concat(), None), "{method} {pieces:?}");
        }
    }
}
