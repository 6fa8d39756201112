//! Messages as they stand in the body of a call: each behind a prefix that says whether it is compressed, and how long it is.
//!
//! Promises: what comes in is refused as tonic refuses it; no message longer than the limit is waited for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hyper::body::Body as _;
use prost::Message;
use tonic::body::Body;
use tonic::{Code, Status};

const PREFIX: usize = 5;

/// The frame of a stream is full: as much as tonic puts into one.
const FULL: usize = 32 * 1024;

/// Messages on their way out, one behind the other.
#[derive(Debug, Default)]
pub struct Framed(BytesMut);

impl Framed {
    /// Appends a message that is `length` bytes long, as `write` writes it.
    pub fn put(&mut self, length: usize, write: impl FnOnce(&mut BytesMut)) {
        self.0.reserve(PREFIX + length);
        self.0.put_u8(0);
        self.0.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        write(&mut self.0);
    }

    /// Appends a message.
    pub fn put_message(&mut self, message: &impl Message) {
        self.put(message.encoded_len(), |to| message.encode_raw(to));
    }

    /// Whether no more should be added, so that what there is goes out.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.len() >= FULL
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.0.freeze()
    }
}

/// The message that is all there is in `data`.
pub(super) fn only_message(data: &Bytes) -> Option<Bytes> {
    let (prefix, message) = data.split_first_chunk::<PREFIX>()?;
    let [compressed, length @ ..] = *prefix;
    let is_whole = u32::from_be_bytes(length) as usize == message.len();
    (compressed == 0 && is_whole).then(|| data.slice_ref(message))
}

/// The requests of a stream, as they come in.
#[derive(Debug)]
pub struct Requests {
    body: Body,
    limit: usize,
    /// What came last and was not taken yet, unless a message began before it.
    last: Bytes,
    /// What came of a message that is not whole, and what came with its end.
    held: BytesMut,
}

impl Requests {
    pub(super) fn new(body: Body, limit: usize) -> Self {
        Self { body, limit, last: Bytes::new(), held: BytesMut::new() }
    }

    /// How long the message is that begins here.
    fn length(&self, bytes: &[u8]) -> Option<Result<usize, Status>> {
        let [compressed, length @ ..] = *bytes.first_chunk::<PREFIX>()?;
        let (length, limit) = (u32::from_be_bytes(length) as usize, self.limit);
        Some(match compressed {
            0 if length <= limit => Ok(length),
            0 => Err(Status::out_of_range(format!(
                "Error, decoded message length too large: found {length} bytes, the limit is: {limit} bytes"
            ))),
            1 => Err(Status::internal(
                "protocol error: received message with compressed-flag but no grpc-encoding was specified",
            )),
            flag => Err(Status::internal(format!(
                "protocol error: received message with invalid compression flag: {flag} (valid flags are 0 and 1), while sending request"
            ))),
        })
    }

    /// How many bytes wait to be taken.
    pub(super) fn waiting(&self) -> usize {
        self.last.len() + self.held.len()
    }

    /// Whether there is one to be taken.
    pub(super) fn has_one(&self) -> bool {
        let has_come = self.has_come();
        match self.length(has_come) {
            Some(Ok(length)) => has_come.len() >= PREFIX + length,
            Some(Err(_)) => true,
            None => false,
        }
    }

    fn has_come(&self) -> &[u8] {
        if self.held.is_empty() { &self.last } else { &self.held }
    }

    /// How the call ends when its requests ended so and all were taken: not well in the middle of one.
    pub(super) fn end(&self, end: Status) -> Status {
        if end.code() == Code::Ok && self.waiting() > 0 {
            return Status::internal("Unexpected EOF decoding stream.");
        }
        end
    }

    /// Waits for more of them. `None`: that was all.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(), Status>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame.into_data().ok(),
            // Who hung up has heard enough.
            Some(Err(status)) if status.code() == Code::Cancelled => {
                self.last.clear();
                self.held.clear();
                return Poll::Ready(None);
            }
            Some(Err(status)) => return Poll::Ready(Some(Err(status))),
            None => None,
        };
        let Some(data) = frame else { return Poll::Ready(None) };
        self.add(data);
        Poll::Ready(Some(Ok(())))
    }

    fn add(&mut self, data: Bytes) {
        if self.held.is_empty() && self.last.is_empty() {
            self.last = data;
            return;
        }
        self.held.extend_from_slice(&std::mem::take(&mut self.last));
        self.held.extend_from_slice(&data);
    }
}

/// Those of which all has come.
impl Iterator for Requests {
    type Item = Result<Bytes, Status>;

    fn next(&mut self) -> Option<Result<Bytes, Status>> {
        let has_come = self.has_come();
        let length = match self.length(has_come)? {
            Ok(length) => length,
            Err(status) => return Some(Err(status)),
        };
        if has_come.len() < PREFIX + length {
            return None;
        }
        let mut message = if self.held.is_empty() {
            self.last.split_to(PREFIX + length)
        } else {
            self.held.split_to(PREFIX + length).freeze()
        };
        message.advance(PREFIX);
        Some(Ok(message))
    }
}
