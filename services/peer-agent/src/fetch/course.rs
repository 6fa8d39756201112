//! The course of one job: attempt after attempt, until it is done, can't be done, or is given up.
//!
//! Invariant: a job leaves the catalogue only when it ended. One that could not go on is kept with its reason, whatever was verified
//! stays where it is, and its next attempt comes by itself or when the user asks again.

use std::path::PathBuf;
use std::sync::Arc;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::UnixMillis;
use p2psb_proto::wire::agent::v1 as wire;
use p2psb_runtime::retry::Backoff;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::job::{Ended, Job, Stuck, Told};
use super::{Fetches, Goal, Outcome, stopping};
use crate::content::fetch::{Remedy, Start, give_up};
use crate::core::retry::{FIRST_PAUSE, LONGEST_PAUSE, Wait, room_for};
use crate::failure::internal;
use crate::store::JobId;

/// Room that the catalogue is given before it is tried again.
const CATALOGUE_BYTES: u64 = 64 << 20;

/// A job on its way.
pub(super) struct Course {
    pub(super) fetches: Fetches,
    pub(super) goal: Goal,
    pub(super) told: Arc<Told>,
    /// How the present attempt ends.
    pub(super) ended: watch::Sender<Outcome>,
    /// The user asks again.
    pub(super) wake: Arc<Notify>,
    /// The user gives it up, or the agent stops.
    pub(super) stop: CancellationToken,
}

impl Course {
    /// To the end. `known` is its row in the catalogue, if it has one.
    pub(super) async fn run(mut self, known: Option<JobId>) {
        let outcome = match known {
            Some(id) => self.attempts(id, Start::GoingOn).await,
            None => match self.record().await {
                Ok(id) => self.attempts(id, Start::Asked).await,
                Err(failure) => Err(failure),
            },
        };
        self.fetches.shared.running.lock().remove(&self.goal.target);
        self.ended.send_replace(Some(outcome));
    }

    async fn record(&self) -> Result<JobId, Failure> {
        let now = UnixMillis(self.fetches.shared.means.clock.unix_millis());
        let goal = self.goal.clone();
        let add = move |store: &crate::store::Store| {
            let id = store.add_job(&goal.asked, &goal.target, now)?;
            store.resolve_job(id, &goal.reference, &goal.manifest, &goal.target)?;
            Ok(id)
        };
        self.fetches.store(add).await
    }

    async fn attempts(&mut self, id: JobId, mut start: Start) -> Result<wire::FetchResult, Failure> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, fastrand::Rng::new());
        let mut best = 0;
        loop {
            let ended = match self.attempt(start).await {
                Ok(result) => {
                    self.remove(id).await;
                    self.fetches.shared.changed.tell();
                    return Ok(result);
                }
                Err(Ended::Stuck(stuck)) => {
                    if stuck.done > best {
                        best = stuck.done;
                        backoff.reset();
                    }
                    match self.wait(id, *stuck, &mut backoff).await {
                        Some(next) => {
                            start = next;
                            continue;
                        }
                        None => Ended::Stopped,
                    }
                }
                Err(ended) => ended,
            };
            return Err(self.end(id, ended).await);
        }
    }

    async fn attempt(&self, start: Start) -> Result<wire::FetchResult, Ended> {
        let (goal, means) = (self.goal.clone(), self.fetches.shared.means.clone());
        let (told, stop) = (Arc::clone(&self.told), self.stop.clone());
        let result = Job { goal, means, told, stop }.run(start).await?;
        tracing::info!(
            reference = self.goal.reference,
            target = result.target,
            bytes = result.total_size,
            repaired = result.files_repaired,
            "fetched"
        );
        Ok(result)
    }

    /// There will be no other attempt.
    async fn end(&self, id: JobId, ended: Ended) -> Failure {
        let failure = match ended {
            // It is in the catalogue, for the next start.
            Ended::Stopped if self.fetches.shared.stop.is_cancelled() => return stopping(),
            Ended::Stopped => self.give_up().await,
            Ended::Failed(failure) => failure,
            Ended::Stuck(stuck) => stuck.failure,
        };
        let reference = &self.goal.reference;
        tracing::warn!(reference, reason = %failure.reason, error = %failure.message, "a fetch ended without a result");
        self.remove(id).await;
        failure
    }

    async fn give_up(&self) -> Failure {
        let (store, target) = (Arc::clone(&self.fetches.shared.means.store), self.goal.target.clone());
        match tokio::task::spawn_blocking(move || give_up(store, &target)).await {
            Ok(Ok(_)) => Failure::new(Reason::Cancelled, "the fetch was given up; nothing of it is left"),
            Ok(Err(error)) => error.into(),
            Err(error) => internal(error),
        }
    }

    /// The job has ended. Should the catalogue not take that, its next start finds out.
    async fn remove(&self, id: JobId) {
        if let Err(failure) = self.fetches.store(move |store| store.remove_job(id)).await {
            tracing::warn!(reason = %failure.reason, error = %failure.message, "a fetch that ended could not be noted as such");
        }
    }

    /// Keeps the job, tells whoever waits for it, and waits for the next attempt. `None`: there is to be none.
    async fn wait(&mut self, id: JobId, stuck: Stuck, backoff: &mut Backoff) -> Option<Start> {
        let Stuck { failure, remedy, left, .. } = stuck;
        let reference = &self.goal.reference;
        tracing::warn!(reference, reason = %failure.reason, error = %failure.message, "a fetch could not go on; it is kept");
        let (reason, message) = (failure.reason, failure.message.clone());
        if let Err(failure) = self.fetches.store(move |store| store.fail_job(id, reason, &message)).await {
            // It is in the catalogue all the same, without its reason.
            tracing::warn!(reason = %failure.reason, error = %failure.message, "why a fetch is kept could not be noted");
        }
        let clock = self.fetches.shared.means.clock.clone();
        let (disk, needed) = self.disk(remedy, left);
        let wait = Wait::new(clock.now(), backoff.next_delay(), needed, room(disk.clone()).await);
        self.tell(failure, wait.next_look(clock.now()))?;
        let start = loop {
            tokio::select! {
                () = self.wake.notified() => break Start::Asked,
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(wait.next_look(clock.now())) => {
                    let free = if wait.is_for_room() { room(disk.clone()).await } else { None };
                    if wait.is_over(clock.now(), free) {
                        break Start::GoingOn;
                    }
                }
            }
        };
        if let Some(job) = self.fetches.shared.running.lock().get_mut(&self.goal.target) {
            job.waits = false;
        }
        self.told.send_modify(|progress| {
            progress.state = wire::FetchState::Resolving.into();
            progress.reason.clear();
            progress.error.clear();
        });
        if let Err(failure) = self.fetches.store(move |store| store.retry_job(id)).await {
            tracing::warn!(reason = %failure.reason, error = %failure.message, "a new attempt of a fetch could not be noted");
        }
        Some(start)
    }

    /// This attempt is over for those who wait for it; who asks from now on waits for the next. `None` if it is to be given up.
    fn tell(&mut self, failure: Failure, pause: std::time::Duration) -> Option<()> {
        self.told.send_modify(|progress| {
            progress.state = wire::FetchState::Failed.into();
            progress.reason = failure.reason.as_str().to_owned();
            progress.error.clone_from(&failure.message);
            progress.host.clear();
            progress.waiting_for.clear();
        });
        let (ended, outcome) = watch::channel(None);
        {
            let mut running = self.fetches.shared.running.lock();
            if self.stop.is_cancelled() {
                return None;
            }
            if let Some(job) = running.get_mut(&self.goal.target) {
                job.waits = true;
                job.watched.outcome = outcome;
            }
        }
        let message = format!(
            "{}; the fetch is kept and goes on by itself once that is mended, at once if it is asked for again",
            failure.message
        );
        let failure = Failure { message, ..failure }.retry_after(pause);
        std::mem::replace(&mut self.ended, ended).send_replace(Some(Err(failure)));
        Some(())
    }

    /// The disk that needs room, and how much.
    fn disk(&self, remedy: Remedy, left: u64) -> (PathBuf, Option<u64>) {
        let target = || self.goal.target.clone();
        match remedy {
            Remedy::TargetRoom => (target(), Some(room_for(left))),
            Remedy::CatalogueRoom => {
                (self.fetches.shared.means.store.folder().to_owned(), Some(CATALOGUE_BYTES))
            }
            Remedy::Change => (target(), None),
        }
    }
}

/// What is free on the disk of a path.
async fn room(path: PathBuf) -> Option<u64> {
    let look = move || {
        let there = path.ancestors().find(|folder| folder.exists())?;
        let disk = rustix::fs::statvfs(there).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    };
    tokio::task::spawn_blocking(look).await.ok().flatten()
}
