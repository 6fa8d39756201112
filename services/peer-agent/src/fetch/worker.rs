//! The thread that owns the content of one fetch: everything that hashes or touches the disk happens there.
//!
//! Invariant: each order gets exactly one answer, in order; whoever gives orders keeps at most [`MAX_PENDING`] unanswered, so neither
//! side ever waits for the other with a full pipe. The thread ends when the worker is dropped, and what was written stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use p2psb_proto::error::Failure;
use p2psb_proto::model::Digest;
use tokio::sync::{mpsc, watch};

use crate::content::fetch::{Fetch, FetchError, FetchProgress, Fetched, Next, Phase, Remedy, Start};
use crate::core::outgoing::Arrived;
use crate::failure::internal;
use crate::store::Store;

/// Orders that may wait for their answers.
pub const MAX_PENDING: usize = 16;
/// How often the journal is written at least.
const CHECKPOINT: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Debug)]
pub enum Order {
    /// What is wanted next, of about so many bytes.
    Next(u64),
    /// These arrived.
    Deliver(Vec<Arrived>),
    /// These will not come from where they were asked for.
    Lost(Vec<Digest>),
    /// Everything is in place: make it durable and move it to the target.
    Finish,
}

/// What became of an order.
#[derive(Debug)]
pub enum Answer {
    /// To `Next`.
    Next(Next),
    /// To `Deliver`: all of them were handled; these did not fit their digests.
    Delivered {
        /// What was handed over.
        digests: Vec<Digest>,
        /// Of those, the lies.
        corrupt: Vec<Digest>,
    },
    /// To `Lost`.
    Noted,
    /// To `Finish`.
    Finished(Fetched),
}

/// Why the content can't be worked on: its disk, the catalogue, the manifest; never a host.
#[derive(Debug)]
pub struct Broken {
    /// As the user is told.
    pub failure: Failure,
    /// What has to change before another attempt can help; `None` if nothing can.
    pub remedy: Option<Remedy>,
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self { failure, remedy: None }
    }
}

impl From<FetchError> for Broken {
    fn from(error: FetchError) -> Self {
        Self { remedy: error.remedy(), failure: error.into() }
    }
}

/// The thread's handle.
#[derive(Debug)]
pub struct Worker {
    orders: mpsc::Sender<Order>,
    answers: mpsc::Receiver<Result<Answer, Broken>>,
    pending: usize,
    progress: watch::Receiver<FetchProgress>,
}

/// Nothing is known yet.
pub(super) const UNKNOWN: FetchProgress =
    FetchProgress { phase: Phase::Manifest, bytes_done: 0, bytes_total: 0, bytes_local: 0, files_total: 0 };

impl Worker {
    /// Starts the thread, which begins, or resumes, the fetch.
    pub async fn open(
        store: Arc<Store>,
        manifest: Digest,
        target: PathBuf,
        start: Start,
    ) -> Result<Self, Broken> {
        let (orders, ordered) = mpsc::channel(MAX_PENDING);
        let (answer, answers) = mpsc::channel(MAX_PENDING + 1);
        let (tell, progress) = watch::channel(UNKNOWN);
        let (opened, open) = tokio::sync::oneshot::channel();
        let body = move || match Fetch::open(store, manifest, &target, start) {
            Ok(fetch) => {
                tell.send_replace(fetch.progress());
                if opened.send(Ok(())).is_ok() {
                    work(fetch, ordered, &answer, &tell);
                }
            }
            Err(error) => drop(opened.send(Err(Broken::from(error)))),
        };
        std::thread::Builder::new().name("fetch".into()).spawn(body).map_err(internal)?;
        open.await.map_err(internal)??;
        Ok(Self { orders, answers, pending: 0, progress })
    }

    /// Whether another order may be given.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.pending < MAX_PENDING
    }

    /// How many orders wait for their answers.
    #[must_use]
    pub const fn pending(&self) -> usize {
        self.pending
    }

    /// Gives an order. Does not wait while [`Self::has_room`].
    pub async fn order(&mut self, order: Order) -> Result<(), Broken> {
        if self.orders.send(order).await.is_err() {
            return Err(self.last_words().await);
        }
        self.pending += 1;
        Ok(())
    }

    /// The next answer. Only while one is pending.
    pub async fn answer(&mut self) -> Result<Answer, Broken> {
        let answer = self.answers.recv().await.ok_or_else(ended)?;
        self.pending = self.pending.saturating_sub(1);
        answer
    }

    /// Why the thread ended: it said so before it stopped listening, in an answer that was not read yet.
    async fn last_words(&mut self) -> Broken {
        while let Some(answer) = self.answers.recv().await {
            if let Err(broken) = answer {
                return broken;
            }
        }
        ended().into()
    }

    /// Gives an order and waits for its answer. Only while none is pending.
    pub async fn ask(&mut self, order: Order) -> Result<Answer, Broken> {
        self.order(order).await?;
        self.answer().await
    }

    /// How far the fetch is.
    #[must_use]
    pub fn progress(&self) -> FetchProgress {
        *self.progress.borrow()
    }

    /// Follows how far the fetch is.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<FetchProgress> {
        self.progress.clone()
    }

    /// Ends the thread, and waits until what it wrote is kept.
    pub async fn close(self) {
        let Self { orders, mut answers, .. } = self;
        drop(orders);
        while answers.recv().await.is_some() {}
    }
}

fn ended() -> Failure {
    internal("the fetching thread ended")
}

fn work(
    fetch: Fetch,
    mut orders: mpsc::Receiver<Order>,
    answers: &mpsc::Sender<Result<Answer, Broken>>,
    progress: &watch::Sender<FetchProgress>,
) {
    let mut fetch = Some(fetch);
    let mut checkpoint_at = Instant::now() + CHECKPOINT;
    while let Some(order) = orders.blocking_recv() {
        let Some(mut at) = fetch.take() else { return };
        let done = match order {
            Order::Finish => at.finish().map(Answer::Finished),
            order => {
                let done = obey(&mut at, order).and_then(|answer| {
                    if Instant::now() >= checkpoint_at {
                        at.checkpoint()?;
                        checkpoint_at = Instant::now() + CHECKPOINT;
                    }
                    Ok(answer)
                });
                if done.is_ok() {
                    // How far it was when it failed, remains to be seen.
                    progress.send_replace(at.progress());
                }
                fetch = Some(at);
                done
            }
        };
        let failed = done.is_err();
        if answers.blocking_send(done.map_err(Broken::from)).is_err() || failed {
            return;
        }
    }
}

fn obey(fetch: &mut Fetch, order: Order) -> Result<Answer, FetchError> {
    match order {
        Order::Next(bytes) => fetch.next(bytes).map(Answer::Next),
        Order::Deliver(arrived) => {
            let mut corrupt = Vec::new();
            for Arrived { digest, data } in &arrived {
                match fetch.deliver(digest, data) {
                    Ok(_) => {}
                    Err(FetchError::ChunkCorrupt { digest, .. }) => corrupt.push(digest),
                    Err(error) => return Err(error),
                }
            }
            fetch.lost(&corrupt);
            Ok(Answer::Delivered {
                digests: arrived.into_iter().map(|arrived| arrived.digest).collect(),
                corrupt,
            })
        }
        Order::Lost(digests) => {
            fetch.lost(&digests);
            Ok(Answer::Noted)
        }
        // Taken before; it ends the fetch.
        Order::Finish => Ok(Answer::Noted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_after_the_end_is_told_why_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("data")).unwrap());
        let target = dir.path().join("target");
        let mut worker = Worker::open(store, Digest::of(b"nothing"), target, Start::Asked).await.unwrap();
        worker.order(Order::Next(1)).await.unwrap();
        // Too early, which ends it; what it says of that is not read before the next order.
        worker.order(Order::Finish).await.unwrap();
        worker.orders.closed().await;
        let broken = worker.order(Order::Next(1)).await.unwrap_err();
        assert!(broken.failure.message.contains("not complete"), "{}", broken.failure.message);
    }
}
