//! Serving: chunks are read off the async threads, a little ahead of what the link takes.
//!
//! Promises: requests are answered one after the other, each by its chunks and one `RequestDone`; a link whose other end does not
//! read holds no thread and no more than some frames, and is given up after [`STALL`].

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::Digest;
use p2psb_proto::wire::peer::v1 as wire;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;

use super::frame::{Message, Packer, frame};
use crate::core::incoming::{Asked, Incoming, Refused};
use crate::failure::store_failed;
use crate::store::Store;

/// How long the other end may take no frame at all.
pub const STALL: Duration = Duration::from_secs(60);

/// How much is read at a time.
const READ_AHEAD_BYTES: usize = 512 * 1024;

/// Where chunks are read. Called off the async threads.
pub trait ChunkSource: Send + Sync + 'static {
    /// Reads chunks, or pages, of a shared manifest in this order and hands each to `take`, verified; `None` stands for one that
    /// is not held (any more). Ends early when `take` breaks. `false` if nothing of the manifest is shared.
    fn read(
        &self,
        manifest: &Digest,
        digests: &[Digest],
        take: &mut dyn FnMut(Option<Bytes>) -> ControlFlow<()>,
    ) -> Result<bool, Failure>;
}

/// What the worker of a link has to do.
#[derive(Debug)]
pub(super) enum Task {
    Serve(Asked),
    Refuse(Refused),
}

/// The outbound half of a link.
pub(super) type Outbound = mpsc::Sender<Result<wire::ExchangeFrame, Status>>;

/// The link takes no more: it was closed, or its other end does not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

pub(super) async fn send(out: &Outbound, message: Message) -> Result<(), Gone> {
    match tokio::time::timeout(STALL, out.send(Ok(frame(message)))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone),
    }
}

/// Serves the requests of one link until it ends.
pub(super) async fn run(
    mut tasks: mpsc::Receiver<Task>,
    out: Outbound,
    open: Arc<Mutex<Incoming>>,
    source: Arc<dyn ChunkSource>,
) -> Result<(), Gone> {
    let (bytes, chunks) =
        (metrics::counter!("exchange_served_bytes_total"), metrics::counter!("exchange_served_chunks_total"));
    while let Some(task) = tasks.recv().await {
        let asked = match task {
            Task::Serve(asked) => asked,
            Task::Refuse(refused) => {
                send(&out, refusal(refused.id, refused.reason, refused.detail)).await?;
                continue;
            }
        };
        let id = asked.id;
        let mut reading = Some(Reading::new(asked));
        let done = loop {
            let Some(now) = reading.take() else { break Done::default() };
            if open.lock().is_cancelled(id) {
                break now.done;
            }
            let source = Arc::clone(&source);
            // A failed join is a panic or a runtime that stops: either way this link is over.
            let (next, batches) =
                tokio::task::spawn_blocking(move || now.step(source.as_ref())).await.map_err(|_| Gone)?;
            for batch in batches {
                bytes.increment(batch.parts.iter().map(|part| part.data.len() as u64).sum());
                chunks.increment(batch.parts.iter().filter(|part| part.offset == 0).count() as u64);
                send(&out, Message::Chunks(batch)).await?;
            }
            if next.is_finished() {
                break next.done;
            }
            reading = Some(next);
        };
        open.lock().finish(id);
        let Done { missing, refused } = done;
        let (reason, detail) = refused.map(|(r, d)| (r.as_str().to_owned(), d)).unwrap_or_default();
        send(&out, Message::Done(wire::RequestDone { request_id: id, missing, reason, detail })).await?;
    }
    Ok(())
}

fn refusal(id: u64, reason: Reason, detail: String) -> Message {
    Message::Done(wire::RequestDone {
        request_id: id,
        reason: reason.as_str().to_owned(),
        detail,
        missing: Vec::new(),
    })
}

#[derive(Debug, Default)]
struct Done {
    missing: Vec<u32>,
    refused: Option<(Reason, String)>,
}

/// A request on its way to be answered.
#[derive(Debug)]
struct Reading {
    asked: Asked,
    next: usize,
    done: Done,
}

impl Reading {
    const fn new(asked: Asked) -> Self {
        Self { asked, next: 0, done: Done { missing: Vec::new(), refused: None } }
    }

    const fn is_finished(&self) -> bool {
        self.done.refused.is_some() || self.next >= self.asked.digests.len()
    }

    /// Reads the next chunks.
    fn step(mut self, source: &dyn ChunkSource) -> (Self, Vec<wire::ChunkBatch>) {
        let (mut packer, mut read) = (Packer::new(self.asked.id), 0);
        let (mut next, missing) = (self.next, &mut self.done.missing);
        let mut take = |chunk: Option<Bytes>| {
            // Below limits::REQUEST_DIGESTS.
            let index = next as u32;
            next += 1;
            match chunk.filter(|chunk| !chunk.is_empty()) {
                Some(chunk) => {
                    read += chunk.len();
                    packer.add(index, &chunk);
                }
                None => missing.push(index),
            }
            if read < READ_AHEAD_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let rest = self.asked.digests.get(self.next..).unwrap_or_default();
        match source.read(&self.asked.manifest, rest, &mut take) {
            Ok(true) => {}
            Ok(false) => {
                let detail = "this content is not shared here".to_owned();
                self.done.refused = Some((Reason::ManifestUnknown, detail));
            }
            Err(failure) => {
                tracing::warn!(error = %failure.message, reason = %failure.reason, "shared content cannot be read");
                // What exactly is wrong here is nobody else's business.
                let detail = "this content cannot be read here at the moment".to_owned();
                self.done.refused = Some((failure.reason, detail));
            }
        }
        self.next = next;
        (self, packer.flush())
    }
}

impl ChunkSource for Store {
    fn read(
        &self,
        manifest: &Digest,
        digests: &[Digest],
        take: &mut dyn FnMut(Option<Bytes>) -> ControlFlow<()>,
    ) -> Result<bool, Failure> {
        let Some(mut reader) = self.reader(manifest).map_err(store_failed)? else { return Ok(false) };
        for digest in digests {
            let mut buffer = Vec::new();
            let chunk = match reader.read(digest, &mut buffer) {
                Ok(held) => held.then(|| Bytes::from(buffer)),
                Err(error) => {
                    tracing::warn!(%error, %digest, "a shared chunk cannot be read");
                    None
                }
            };
            if take(chunk).is_break() {
                break;
            }
        }
        Ok(true)
    }
}
