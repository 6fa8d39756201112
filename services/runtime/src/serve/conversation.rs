//! Streams of requests that most often can be answered from memory.
//!
//! What tonic does for every message of a stream costs more than a look into a table. Here all requests that have come are answered
//! together, in one piece; those that take time are answered when they can be. Promise: a caller can't tell the difference;
//! whatever is out of the ordinary goes to the service itself, as it came.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{Either, Ready, ready};
use futures::stream::{FuturesUnordered, StreamExt as _};
use http::{HeaderMap, Request, Response};
use hyper::body::Frame;
use prost::Message;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

use super::api::GrpcService;
use super::framed::{Framed, Requests};
use super::prompt::{answer_head, is_of};

/// Answers of one stream that take time, at once.
const UNDER_WAY: usize = 64;

/// Requests of so many bytes are not kept waiting for more of them.
const TOGETHER_BYTES: usize = 8 * 1024;

/// Who answers the requests of one stream.
pub trait Answers: Send + Unpin + 'static {
    /// What is answered.
    type Message: Message;
    /// An answer that takes time.
    type Later: Future<Output = Self::Message> + Send + 'static;

    /// Answers those of `requests` that have come, as long as there is room for their answers. An error ends the stream.
    fn answer(
        &mut self,
        requests: &mut Requests,
        to: &mut Framed,
        later: &mut Later<Self::Later>,
    ) -> Result<(), Status>;

    /// Resolves when the stream is to end, whatever is asked.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Status>;
}

/// Answers that take time.
#[derive(Debug)]
pub struct Later<F>(FuturesUnordered<F>);

impl<F> Later<F> {
    /// Whether one more may be under way.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// How many more may be under way.
    #[must_use]
    pub fn room(&self) -> usize {
        UNDER_WAY.saturating_sub(self.0.len())
    }

    /// One more is under way.
    pub fn push(&mut self, answer: F) {
        self.0.push(answer);
    }
}

/// A service of which one method, a stream of requests and answers, is answered by `begin`.
#[derive(Clone, Debug)]
pub struct Conversing<S, F> {
    service: S,
    method: &'static str,
    limit: usize,
    begin: F,
}

impl<S, F> Conversing<S, F> {
    /// Calls `begin` for each stream of `method`; no request may be longer than `limit`.
    pub const fn new(service: S, method: &'static str, limit: usize, begin: F) -> Self {
        Self { service, method, limit, begin }
    }
}

impl<S: NamedService, F> NamedService for Conversing<S, F> {
    const NAME: &'static str = S::NAME;
}

impl<S, F, A> Service<Request<Body>> for Conversing<S, F>
where
    S: GrpcService + NamedService,
    F: Fn() -> A,
    A: Answers,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_of(self.method, &request) {
            return Either::Right(self.service.call(request));
        }
        let conversation = Conversation {
            answers: (self.begin)(),
            requests: Requests::new(request.into_body(), self.limit),
            later: Later(FuturesUnordered::new()),
            end: None,
            state: State::Open,
        };
        Either::Left(ready(Ok(answer_head(Body::new(conversation)))))
    }
}

/// The body of the answers.
struct Conversation<A: Answers> {
    answers: A,
    requests: Requests,
    later: Later<A::Later>,
    /// How the requests end, behind those that wait.
    end: Option<Status>,
    state: State,
}

enum State {
    /// More may be asked.
    Open,
    /// It ends so, once what takes time is answered.
    Ending(Status),
    Over,
}

impl<A: Answers> Conversation<A> {
    /// Takes what has come, so that all of it is answered together; says whether there was anything.
    fn hear(&mut self, cx: &mut Context<'_>) -> bool {
        let mut is_news = false;
        while self.end.is_none() && (self.requests.waiting() < TOGETHER_BYTES || !self.requests.has_one()) {
            match self.requests.poll_more(cx) {
                Poll::Ready(Some(Ok(()))) => is_news = true,
                Poll::Ready(Some(Err(status))) => self.end = Some(status),
                Poll::Ready(None) => self.end = Some(Status::new(Code::Ok, "")),
                Poll::Pending => break,
            }
        }
        is_news
    }

    /// All answers that there are now.
    fn answer(&mut self, cx: &mut Context<'_>) -> Framed {
        let mut to = Framed::default();
        loop {
            while matches!(self.state, State::Open) && self.later.has_room() && !to.is_full() {
                let is_news = self.hear(cx);
                if let Err(status) = self.answers.answer(&mut self.requests, &mut to, &mut self.later) {
                    self.state = State::Ending(status);
                } else if self.later.has_room() && !to.is_full() {
                    // All that wait are answered.
                    match self.end.take() {
                        Some(end) => self.state = State::Ending(self.requests.end(end)),
                        None if is_news => {}
                        None => break,
                    }
                }
            }
            let before = self.later.0.len();
            while !to.is_full()
                && let Poll::Ready(Some(message)) = self.later.0.poll_next_unpin(cx)
            {
                to.put_message(&message);
            }
            // Where an answer was is room for another one.
            if self.later.0.len() == before || to.is_full() {
                return to;
            }
        }
    }
}

impl<A: Answers> hyper::body::Body for Conversation<A> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let State::Open = this.state
            && let Poll::Ready(status) = this.answers.poll_end(cx)
        {
            this.state = State::Ending(status);
        }
        let answers = this.answer(cx);
        if !answers.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(answers.into_bytes()))));
        }
        match &this.state {
            State::Ending(status) if this.later.0.is_empty() => {
                let mut trailers = HeaderMap::with_capacity(4);
                // Fails only on a message that is no header value; percent-encoded ones always are.
                let _ = status.add_header(&mut trailers);
                this.state = State::Over;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            State::Over => Poll::Ready(None),
            State::Open | State::Ending(_) => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Over)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;

    use futures::future::BoxFuture;
    use tokio::sync::oneshot;

    use super::*;

    /// The longest request that is taken.
    const LIMIT: usize = 8;

    /// Answers at once with what was asked; what begins with `l` is answered later.
    struct Echo {
        end: oneshot::Receiver<()>,
    }

    impl Answers for Echo {
        type Message = String;
        type Later = BoxFuture<'static, String>;

        fn answer(
            &mut self,
            requests: &mut Requests,
            to: &mut Framed,
            later: &mut Later<Self::Later>,
        ) -> Result<(), Status> {
            while !to.is_full() && later.has_room() {
                let Some(request) = requests.next() else { break };
                let text = String::from_utf8(request?.to_vec()).map_err(|_| Status::internal("no text"))?;
                if text.starts_with('l') {
                    later.push(Box::pin(async move {
                        tokio::task::yield_now().await;
                        text
                    }));
                } else {
                    to.put_message(&text);
                }
            }
            Ok(())
        }

        fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
            Pin::new(&mut self.end).poll(cx).map(|_| Status::unavailable("the end"))
        }
    }

    /// A request that comes in pieces, and then ends or, if it is open, does not.
    struct Pieces {
        pieces: VecDeque<Vec<u8>>,
        is_open: bool,
    }

    impl hyper::body::Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.pieces.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece.into())))),
                None if self.is_open => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    fn conversation(pieces: Vec<Vec<u8>>, is_open: bool) -> (Conversation<Echo>, oneshot::Sender<()>) {
        let (ending, end) = oneshot::channel();
        let body = Body::new(Pieces { pieces: pieces.into(), is_open });
        let (requests, later) = (Requests::new(body, LIMIT), Later(FuturesUnordered::new()));
        (Conversation { answers: Echo { end }, requests, later, end: None, state: State::Open }, ending)
    }

    fn framed(texts: &[&str]) -> Vec<u8> {
        let prefixed = |text: &&str| [&[0, 0, 0, 0, text.len() as u8], text.as_bytes()].concat();
        texts.iter().flat_map(prefixed).collect()
    }

    /// What comes until the end: the texts of each piece, and the outcome.
    async fn heard(conversation: &mut Conversation<Echo>) -> (Vec<Vec<String>>, String) {
        let mut pieces = Vec::new();
        loop {
            let frame = poll_fn(|cx| hyper::body::Body::poll_frame(Pin::new(conversation), cx)).await;
            match frame.unwrap().unwrap().into_data() {
                Ok(mut data) => {
                    let mut texts = Vec::new();
                    while !data.is_empty() {
                        let message = data.split_to(5 + data[4] as usize);
                        texts.push(String::decode(&message[5..]).unwrap());
                    }
                    pieces.push(texts);
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap();
                    return (pieces, trailers["grpc-status"].to_str().unwrap().to_owned());
                }
            }
        }
    }

    fn texts(pieces: &[&[&str]]) -> Vec<Vec<String>> {
        pieces.iter().map(|piece| piece.iter().map(|&text| text.to_owned()).collect()).collect()
    }

    #[tokio::test]
    async fn what_has_come_is_answered_together_and_what_takes_time_later() {
        let pieces = vec![framed(&["a", "late", "b"]), framed(&["c"])];
        let (mut conversation, _ending) = conversation(pieces, false);
        assert_eq!(heard(&mut conversation).await, (texts(&[&["a", "b", "c"], &["late"]]), "0".to_owned()));
        assert!(poll_fn(|cx| hyper::body::Body::poll_frame(Pin::new(&mut conversation), cx)).await.is_none());
    }

    #[tokio::test]
    async fn a_request_may_come_in_any_pieces() {
        let whole = framed(&["a", "bc", "", "def"]);
        for size in 1..whole.len() {
            let pieces = whole.chunks(size).map(<[u8]>::to_vec).collect();
            let (mut conversation, _ending) = conversation(pieces, false);
            let (heard, outcome) = heard(&mut conversation).await;
            assert_eq!((heard.concat(), outcome.as_str()), (texts(&[&["a", "bc", "", "def"]]).concat(), "0"));
        }
    }

    #[tokio::test]
    async fn a_flood_waits_with_whoever_sends_it_and_a_long_request_is_waited_for() {
        // Each answer is longer than its request, so that a piece of answers is full before the flood is heard.
        let flood = framed(&vec!["abcdefg"; 300]);
        let pieces = vec![flood; 40];
        let (mut conversation, _ending) = conversation(pieces, true);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let first = hyper::body::Body::poll_frame(Pin::new(&mut conversation), &mut cx);
        assert!(first.is_ready());
        assert!(conversation.requests.waiting() < 3 * TOGETHER_BYTES, "{}", conversation.requests.waiting());

        let long = "x".repeat(3 * TOGETHER_BYTES);
        let framed = [&[0, 0, 0, (long.len() >> 8) as u8, long.len() as u8], long.as_bytes()].concat();
        let body =
            Body::new(Pieces { pieces: framed.chunks(1000).map(<[u8]>::to_vec).collect(), is_open: false });
        conversation.requests = Requests::new(body, usize::MAX);
        let mut frame = None;
        while frame.is_none() {
            let polled = hyper::body::Body::poll_frame(Pin::new(&mut conversation), &mut cx);
            let Poll::Ready(Some(Ok(piece))) = polled else { panic!("it does not wait") };
            frame = piece.into_data().ok().filter(|data| data.ends_with(b"xxx"));
        }
    }

    #[tokio::test]
    async fn more_than_may_be_under_way_wait_for_room() {
        let many: Vec<String> = (0..UNDER_WAY * 3).map(|n| format!("l{n}")).collect();
        let asked: Vec<&str> = many.iter().map(String::as_str).collect();
        let (mut conversation, _ending) = conversation(vec![framed(&asked)], false);
        let (heard, outcome) = heard(&mut conversation).await;
        let mut heard = heard.concat();
        heard.sort_by_key(|text| text[1..].parse::<usize>().unwrap());
        assert_eq!((heard, outcome.as_str()), (many, "0"));
    }

    #[tokio::test]
    async fn what_is_no_request_ends_the_stream_behind_the_answers_before_it() {
        let (internal, out_of_range) = ("13", "11");
        for (wrong, outcome) in [
            (b"\x01\0\0\0\x01a".as_slice(), internal),
            (b"\x07\0\0\0\x01a", internal),
            (b"\0\0\0\0\x09", out_of_range),
            (b"\0\xff\xff\xff\xff", out_of_range),
            (b"\0\0\0\0\x02a", internal),
            (b"\0", internal),
            (b"\0\0\0\0\x01\xff", internal),
        ] {
            let (mut conversation, _ending) = conversation(vec![[&framed(&["a"]), wrong].concat()], false);
            assert_eq!(heard(&mut conversation).await, (texts(&[&["a"]]), outcome.to_owned()), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn it_ends_when_it_is_told_to_behind_the_answers_to_what_was_heard() {
        let (mut conversation, ending) = conversation(vec![framed(&["late"])], true);
        let first =
            poll_fn(|cx| Poll::Ready(hyper::body::Body::poll_frame(Pin::new(&mut conversation), cx))).await;
        assert!(first.is_pending());
        ending.send(()).unwrap();
        assert_eq!(heard(&mut conversation).await, (texts(&[&["late"]]), "14".to_owned()));
    }
}
