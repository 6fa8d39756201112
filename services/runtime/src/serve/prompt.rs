//! Unary calls that can be answered from memory.
//!
//! What tonic does for every call, so that it may stream, wait and compress, costs more than a look into a table. Promise: a
//! caller can't tell the difference; whatever is out of the ordinary goes to the service itself, as it came.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures::future::{BoxFuture, Either, Ready};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use hyper::body::{Body as _, Frame};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::api::GrpcService;
use super::framed::{Framed, only_message};

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

impl<S, F> Service<Request<Body>> for Prompt<S, F>
where
    S: GrpcService + NamedService,
    F: Fn(Bytes) -> Option<Framed> + Send + Sync + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<
        Ready<Result<Response<Body>, Infallible>>,
        BoxFuture<'static, Result<Response<Body>, Infallible>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_of(self.method, &request) {
            return Either::Right(Box::pin(self.service.call(request)));
        }
        let (parts, body) = request.into_parts();
        let mut heard = Heard { first: None, second: None, rest: body };
        // What a client says in one breath is here already: nothing has to be kept for later.
        let at_once = heard.poll_message(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Some(message)) = &at_once
            && let Some(answer) = (*self.answer)(message.clone())
        {
            return Either::Left(futures::future::ready(Ok(answered(answer))));
        }
        let (mut service, answer) = (self.service.clone(), Arc::clone(&self.answer));
        Either::Right(Box::pin(async move {
            if at_once.is_pending()
                && let Some(message) = poll_fn(|cx| heard.poll_message(cx)).await
                && let Some(answer) = (*answer)(message)
            {
                return Ok(answered(answer));
            }
            service.call(Request::from_parts(parts, Body::new(heard))).await
        }))
    }
}

/// Made once: the name in a text would be parsed for every call.
static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Whether this is a call of the method, and nothing about it is out of the ordinary.
pub(super) fn is_of(method: &str, request: &Request<Body>) -> bool {
    let called = request.uri().path().rsplit('/').next();
    let is_plain = request.headers().get(&GRPC_ENCODING).is_none_or(|encoding| encoding == "identity");
    called == Some(method) && is_plain
}

/// A request of which the beginning was looked at; as a body it is the whole request.
struct Heard {
    first: Option<Result<Frame<Bytes>, Status>>,
    second: Option<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl Heard {
    /// The message, if the request is nothing but one, which came in one piece. Not to be asked again after that.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.first.is_none() {
            match ready!(Pin::new(&mut self.rest).poll_frame(cx)) {
                // There is nothing, and nothing more to wait for.
                None => return Poll::Ready(None),
                first => self.first = first,
            }
        }
        if !self.rest.is_end_stream() {
            self.second = ready!(Pin::new(&mut self.rest).poll_frame(cx));
        }
        let data = match (&self.first, &self.second) {
            (Some(Ok(first)), None) => first.data_ref(),
            _ => None,
        };
        Poll::Ready(data.and_then(only_message))
    }
}

impl hyper::body::Body for Heard {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match this.first.take().or_else(|| this.second.take()) {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut this.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.second.is_none() && self.rest.is_end_stream()
    }
}

/// The beginning of an answer with this body.
pub(super) fn answer_head(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn answered(answer: Framed) -> Response<Body> {
    answer_head(Body::new(Answer::Message(answer.into_bytes())))
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
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
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
    use std::collections::VecDeque;

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

    /// A request that comes in pieces; each has to be waited for if it is slow.
    struct Pieces {
        pieces: VecDeque<&'static [u8]>,
        is_slow: bool,
        has_come: bool,
    }

    impl hyper::body::Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.has_come = !self.has_come;
            if self.is_slow && self.has_come {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(self.pieces.pop_front().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))))
        }

        fn is_end_stream(&self) -> bool {
            !self.is_slow && self.pieces.is_empty()
        }
    }

    async fn called(method: &str, pieces: &[&'static [u8]], is_slow: bool) -> (Vec<u8>, Option<HeaderMap>) {
        let mut prompt = Prompt::new(Echo, "Ask", |request: Bytes| {
            let mut answer = Framed::default();
            answer.put_message(&"yes".to_owned());
            (request == "ok").then_some(answer)
        });
        let body = Body::new(Pieces { pieces: pieces.iter().copied().collect(), is_slow, has_come: false });
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
    async fn a_request_in_one_piece_is_answered_at_once_or_when_it_has_come() {
        for is_slow in [false, true] {
            let (heard, trailers) = called("Ask", &[b"\0\0\0\0\x02ok"], is_slow).await;
            assert_eq!(heard, b"\0\0\0\0\x05\x0a\x03yes");
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        }
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
            for is_slow in [false, true] {
                let (heard, trailers) = called(method, pieces, is_slow).await;
                assert_eq!((heard, trailers), (pieces.concat(), None), "{method} {pieces:?}");
            }
        }
    }
}
