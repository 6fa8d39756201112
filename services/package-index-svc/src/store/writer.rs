//! The one thread that writes, with group commit: writes that wait while another transaction is synced share the next one, and
//! each is acknowledged when that is durable.
//!
//! Between writes the thread sweeps what expired hosts left behind.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use p2psb_proto::model::time::UnixMillis;

use super::{StoreError, Write};
use crate::core::limits::{BATCH_TIME, BATCH_WRITES, QUEUE_WRITES, SWEEP_INTERVAL, SWEEP_ROWS};

/// What is to be done inside a transaction. It returns what is to be done once the transaction is durable or lost.
pub type Job = Box<dyn FnOnce(&mut dyn Write) -> Settle + Send>;

/// Acknowledges a job.
pub type Settle = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Is told of every transaction how it ended.
pub type Watcher = Box<dyn FnMut(&Result<(), StoreError>) + Send>;

/// The queue is full, or the writer has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many writes wait.
    Full,
    /// Nobody writes any more.
    Ended,
}

/// The thread. Dropping this lets it finish what is queued and end.
#[derive(Debug)]
pub struct Writer {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. `now` is what the time is for the sweep.
    pub fn start(
        store: Box<dyn Write>,
        now: impl Fn() -> UnixMillis + Send + 'static,
        watcher: Watcher,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_WRITES);
        let mut work = Work { store, queue, now: Box::new(now), watcher };
        let thread = std::thread::Builder::new().name("index-writer".into()).spawn(move || work.run())?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues a job, without waiting.
    pub fn submit(&self, job: Job) -> Result<(), Refused> {
        let jobs = self.jobs.as_ref().ok_or(Refused::Ended)?;
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Refused::Full,
            TrySendError::Disconnected(_) => Refused::Ended,
        })
    }

    /// Takes no further jobs, and waits until all that were taken are settled.
    pub fn finish(mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by it; there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

struct Work {
    store: Box<dyn Write>,
    queue: Receiver<Job>,
    now: Box<dyn Fn() -> UnixMillis + Send>,
    watcher: Watcher,
}

impl Work {
    fn run(&mut self) {
        let mut next_sweep = Instant::now();
        loop {
            let wait = next_sweep.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                // Swept in pieces, between which whoever waits is served.
                let more = self.sweep();
                next_sweep = Instant::now() + if more { BATCH_TIME } else { SWEEP_INTERVAL };
                continue;
            }
            match self.queue.recv_timeout(wait) {
                Ok(first) => self.batch(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// One transaction: this job, and those that wait.
    fn batch(&mut self, first: Job) {
        let begun = Instant::now();
        self.store.begin();
        let mut settles = vec![first(self.store.as_mut())];
        while settles.len() < BATCH_WRITES && begun.elapsed() < BATCH_TIME {
            match self.queue.try_recv() {
                Ok(job) => settles.push(job(self.store.as_mut())),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let done = self.store.commit();
        metrics::histogram!("index_transaction_seconds").record(begun.elapsed());
        metrics::counter!("index_writes_total").increment(settles.len() as u64);
        (self.watcher)(&done);
        for settle in settles {
            settle(done.clone());
        }
    }

    fn sweep(&mut self) -> bool {
        self.store.begin();
        let swept = self.store.sweep((self.now)(), SWEEP_ROWS);
        let done = self.store.commit().and(swept);
        (self.watcher)(&done.clone().map(drop));
        match done {
            Ok(swept) => {
                metrics::counter!("index_swept_rows_total").increment(swept.rows as u64);
                swept.more
            }
            Err(error) => {
                tracing::warn!(%error, "cannot sweep what expired hosts left behind");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};

    use p2psb_proto::model::record::Signed;
    use p2psb_proto::model::release::PackageEntry;

    use super::super::{AnnounceError, Announced, Announcement, Appended, PublishError, Swept};
    use super::*;

    /// A store that only writes down what happens to it. A commit succeeds while `works`.
    struct Diary {
        events: Arc<Mutex<Vec<&'static str>>>,
        works: bool,
    }

    impl Diary {
        fn note(&self, event: &'static str) {
            self.events.lock().unwrap().push(event);
        }
    }

    impl Write for Diary {
        fn begin(&mut self) {
            self.note("begin");
        }

        fn commit(&mut self) -> Result<(), StoreError> {
            self.note("commit");
            if self.works { Ok(()) } else { Err(StoreError::Full("no room".into())) }
        }

        fn publish(&mut self, _: &Signed<PackageEntry>, _: UnixMillis) -> Result<Appended, PublishError> {
            unreachable!("no test publishes")
        }

        fn announce(&mut self, _: &Announcement, _: UnixMillis) -> Result<Announced, AnnounceError> {
            unreachable!("no test announces")
        }

        fn sweep(&mut self, _: UnixMillis, _: usize) -> Result<Swept, StoreError> {
            self.note("sweep");
            Ok(Swept { rows: 0, more: false })
        }
    }

    type Events = Arc<Mutex<Vec<&'static str>>>;

    /// A writer that has swept once and is held inside its first job until the sender is used.
    fn held(works: bool) -> (Writer, Events, mpsc::Sender<()>) {
        let events = Events::default();
        let diary = Diary { events: Arc::clone(&events), works };
        let writer = Writer::start(Box::new(diary), UnixMillis::default, Box::new(|_| ())).unwrap();
        let (inside, entered) = mpsc::channel();
        let (release, held) = mpsc::channel();
        let first: Job = Box::new(move |_| {
            inside.send(()).unwrap();
            held.recv().unwrap();
            Box::new(|_| ())
        });
        writer.submit(first).unwrap();
        entered.recv().unwrap();
        (writer, events, release)
    }

    fn job(outcomes: &mpsc::Sender<Result<(), StoreError>>) -> Job {
        let outcomes = outcomes.clone();
        Box::new(move |_| Box::new(move |committed| outcomes.send(committed).unwrap()))
    }

    #[test]
    fn writes_that_wait_share_a_transaction_and_are_acknowledged_after_its_commit() {
        let (writer, events, release) = held(true);
        let (sender, outcomes) = mpsc::channel();
        for _ in 0..10 {
            let (events, sender) = (Arc::clone(&events), sender.clone());
            let job: Job = Box::new(move |_| {
                events.lock().unwrap().push("write");
                Box::new(move |committed| {
                    assert_eq!(events.lock().unwrap().last(), Some(&"commit"));
                    sender.send(committed).unwrap();
                })
            });
            writer.submit(job).unwrap();
        }
        release.send(()).unwrap();
        for _ in 0..10 {
            assert_eq!(outcomes.recv().unwrap(), Ok(()));
        }
        writer.finish();
        let events = events.lock().unwrap();
        let transactions = events.iter().filter(|event| **event == "begin").count();
        assert!(transactions <= 3, "one to sweep, at most two to write: {events:?}");
    }

    #[test]
    fn everybody_is_told_when_the_transaction_is_lost() {
        let (writer, _, release) = held(false);
        let (sender, outcomes) = mpsc::channel();
        for _ in 0..3 {
            writer.submit(job(&sender)).unwrap();
        }
        release.send(()).unwrap();
        for _ in 0..3 {
            assert!(matches!(outcomes.recv().unwrap(), Err(StoreError::Full(_))));
        }
    }

    #[test]
    fn a_full_queue_refuses_and_an_ended_writer_settles_what_it_took() {
        let (writer, _, release) = held(true);
        let (sender, outcomes) = mpsc::channel();
        let mut taken = 0;
        while writer.submit(job(&sender)).is_ok() {
            taken += 1;
        }
        assert_eq!((taken, writer.submit(job(&sender))), (QUEUE_WRITES, Err(Refused::Full)));
        release.send(()).unwrap();
        writer.finish();
        drop(sender);
        assert_eq!(outcomes.iter().count(), QUEUE_WRITES);
    }
}
