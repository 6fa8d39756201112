//! Fetches: they belong to the agent, not to whoever asked for them.
//!
//! Invariant: one job for each target. A job is in the catalogue from before its first byte until it is done, can't be done, or is
//! given up, so it goes on after a restart; callers come and go.

mod course;
pub mod job;
pub mod transfer;
pub mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::wire::agent::v1 as wire;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use job::{Goal, Means};

use crate::announce::Changed;
use crate::content::fetch::give_up;
use crate::core::reference::Reference;
use crate::failure::{internal, may_pass, store_failed};
use crate::index::Resolved;
use crate::store::{JobId, JobState, Store, StoreError};
use course::Course;

/// Fetches at a time.
pub const MAX_JOBS: usize = 64;
/// How long the indexes may be out of reach before resolving fails.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(500);

/// The outcome of an attempt, once there is one.
type Outcome = Option<Result<wire::FetchResult, Failure>>;

/// A job as its callers see it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// How far it is.
    pub progress: watch::Receiver<wire::FetchProgress>,
    /// How it ended.
    pub outcome: watch::Receiver<Outcome>,
}

struct Running {
    goal: Goal,
    watched: Watched,
    /// It could not go on, and waits for its next attempt.
    waits: bool,
    wake: Arc<Notify>,
    stop: CancellationToken,
}

impl Running {
    /// For one more caller. A job that waits is tried at once.
    fn join(&self) -> Watched {
        if self.waits {
            self.wake.notify_one();
        }
        self.watched.clone()
    }
}

/// All fetches. Clones are the same.
#[derive(Clone)]
pub struct Fetches {
    shared: Arc<Shared>,
}

struct Shared {
    means: Means,
    changed: Changed,
    running: Mutex<BTreeMap<PathBuf, Running>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fetches {
    /// No fetches yet.
    #[must_use]
    pub fn new(means: Means, changed: Changed) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        Self { shared: Arc::new(Shared { means, changed, running: Mutex::default(), stop, tasks }) }
    }

    /// Goes on with what an earlier run of the agent did not finish.
    pub async fn resume(&self) -> Result<(), Failure> {
        let jobs = self.store(Store::jobs).await?;
        for job in jobs {
            if let JobState::Failed { reason, message } = &job.state {
                tracing::info!(target = %job.target.display(), %reason, message, "a fetch could not go on before; it is tried again");
            }
            match (job.resolved, job.manifest) {
                (Some(reference), Some(manifest)) => {
                    tracing::info!(reference, target = %job.target.display(), "going on with a fetch");
                    let goal = Goal { asked: job.reference, reference, manifest, target: job.target };
                    if let Err(failure) = self.start(goal, Some(job.id)).await {
                        tracing::warn!(error = %failure.message, "a fetch can't be resumed");
                    }
                }
                _ => self.store(move |store| store.remove_job(job.id)).await?,
            }
        }
        Ok(())
    }

    /// Fetches a release, or joins the job that already does.
    pub async fn fetch(&self, request: wire::FetchRequest) -> Result<Watched, Failure> {
        let reference: Reference = request.reference.parse()?;
        let place = Place::parse(&request)?;
        if self.shared.stop.is_cancelled() {
            return Err(stopping());
        }
        let asked = reference.to_string();
        if let Some(watched) = self.same(&asked, &place) {
            return Ok(watched);
        }
        let resolved = tokio::select! {
            resolved = self.resolve(&reference) => resolved?,
            () = self.shared.stop.cancelled() => return Err(stopping()),
        };
        if resolved.yanked {
            tracing::warn!(
                reference = resolved.reference(),
                "this release is yanked: its publisher takes it back"
            );
        }
        let goal = Goal {
            asked,
            reference: resolved.reference(),
            manifest: resolved.release.manifest,
            target: place.target(&resolved.folder()),
        };
        let entry = resolved.entry;
        self.store(move |store| store.put_release(&entry)).await?;
        self.start(goal, None).await
    }

    /// How far those that are not complete are.
    #[must_use]
    pub fn progress(&self) -> Vec<wire::FetchProgress> {
        let running = self.shared.running.lock();
        running.values().map(|job| job.watched.progress.borrow().clone()).collect()
    }

    /// Stops all jobs, keeps what they have, and returns when nothing is written any more.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn same(&self, asked: &str, place: &Place) -> Option<Watched> {
        let running = self.shared.running.lock();
        let same = |job: &&Running| job.goal.asked == asked && place.is(&job.goal.target);
        running.values().find(same).map(Running::join)
    }

    async fn resolve(&self, reference: &Reference) -> Result<Resolved, Failure> {
        let give_up = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.shared.means.indexes.resolve(reference).await {
                Err(failure) if may_pass(failure.reason) && tokio::time::Instant::now() < give_up => {
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Gives up the fetch into `target`, and removes what it has so far; a folder that was finished before stays as it is.
    pub async fn cancel(&self, target: &str) -> Result<(), Failure> {
        let target = absolute(target, "target")?;
        let unknown = |what: &str| Failure::new(Reason::FetchUnknown, format!("{} {what}", target.display()));
        let outcome = {
            let running = self.shared.running.lock();
            running.get(&target).map(|job| {
                job.stop.cancel();
                job.watched.outcome.clone()
            })
        };
        let Some(mut outcome) = outcome else {
            // What an ended fetch left, to be gone on with, is given up, too.
            let (store, at) = (Arc::clone(&self.shared.means.store), target.clone());
            let done = tokio::task::spawn_blocking(move || give_up(store, &at)).await.map_err(internal)?;
            return if done? { Ok(()) } else { Err(unknown("is not being fetched; see the status")) };
        };
        let ended = outcome.wait_for(Option::is_some).await.map_err(internal)?.clone();
        match ended {
            Some(Err(failure)) if failure.reason == Reason::Cancelled => Ok(()),
            Some(Err(failure)) => Err(failure),
            Some(Ok(_)) | None => Err(unknown("was complete just before")),
        }
    }

    /// Starts a job, or joins the one with this target. `known` is its row in the catalogue, if it has one.
    async fn start(&self, goal: Goal, known: Option<JobId>) -> Result<Watched, Failure> {
        let (told, progress) = watch::channel(wire::FetchProgress {
            reference: goal.reference.clone(),
            target: goal.target.display().to_string(),
            state: wire::FetchState::Resolving.into(),
            ..wire::FetchProgress::default()
        });
        let (ended, outcome) = watch::channel(None);
        let watched = Watched { progress, outcome };
        let (wake, stop) = (Arc::new(Notify::new()), self.shared.stop.child_token());
        {
            let mut running = self.shared.running.lock();
            if let Some(job) = running.get(&goal.target) {
                if job.goal.manifest == goal.manifest {
                    return Ok(job.join());
                }
                let problem = format!(
                    "{} is being fetched into {}; wait for it, give it up, or choose another folder",
                    job.goal.reference,
                    goal.target.display()
                );
                return Err(Failure::new(Reason::TargetExists, problem));
            }
            if running.len() >= MAX_JOBS {
                let problem =
                    format!("all {MAX_JOBS} fetches are in use; wait for one to end, or give one up");
                return Err(Failure::new(Reason::LimitExceeded, problem).with("limit", "fetches"));
            }
            let job = Running {
                goal: goal.clone(),
                watched: watched.clone(),
                waits: false,
                wake: Arc::clone(&wake),
                stop: stop.clone(),
            };
            running.insert(goal.target.clone(), job);
        }
        let course = Course { fetches: self.clone(), goal, told: Arc::new(told), ended, wake, stop };
        self.shared.tasks.spawn(course.run(known));
        Ok(watched)
    }

    async fn store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = Arc::clone(&self.shared.means.store);
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(done) => done.map_err(store_failed),
            Err(error) => Err(internal(error)),
        }
    }
}

fn stopping() -> Failure {
    Failure::new(Reason::Draining, "the agent is stopping; a fetch that had begun goes on when it runs again")
}

/// A path of a request, written so that equal places are equal: without repeated separators or a trailing one.
fn absolute(text: &str, what: &str) -> Result<PathBuf, Failure> {
    let path = Path::new(text);
    let climbs = path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    if !path.is_absolute() || climbs {
        let problem = format!("{what} {text:?} is not an absolute path without \"..\"");
        return Err(Failure::new(Reason::PathInvalid, problem));
    }
    Ok(path.components().collect())
}

/// Where a fetch goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Exactly there.
    Target(PathBuf),
    /// Into a folder of its own below this one.
    Below(PathBuf),
}

impl Place {
    fn parse(request: &wire::FetchRequest) -> Result<Self, Failure> {
        match (request.target.as_str(), request.working_directory.as_str()) {
            ("", "") => Err(Failure::new(
                Reason::InvalidArgument,
                "target or working_directory is needed to know where to put it",
            )),
            ("", folder) => absolute(folder, "working_directory").map(Self::Below),
            (target, _) => absolute(target, "target").map(Self::Target),
        }
    }

    fn target(self, folder: &str) -> PathBuf {
        match self {
            Self::Target(path) => path,
            Self::Below(path) => path.join(folder),
        }
    }

    fn is(&self, target: &Path) -> bool {
        match self {
            Self::Target(path) => path == target,
            Self::Below(path) => target.parent() == Some(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(target: &str, working_directory: &str) -> Result<Place, Failure> {
        Place::parse(&wire::FetchRequest {
            reference: "demo".into(),
            target: target.into(),
            working_directory: working_directory.into(),
        })
    }

    #[test]
    fn the_same_place_is_recognised() {
        assert_eq!(place("/a//b/", "").unwrap(), Place::Target("/a/b".into()));
        assert!(place("", "/home/me").unwrap().is(Path::new("/home/me/demo-1.0.0")));
        assert!(!place("", "/home").unwrap().is(Path::new("/home/me/demo-1.0.0")));
        assert_eq!(place("", "/home/me").unwrap().target("demo-1.0.0"), Path::new("/home/me/demo-1.0.0"));
    }

    #[test]
    fn places_that_are_none_are_refused() {
        assert_eq!(place("", "").unwrap_err().reason, Reason::InvalidArgument);
        assert_eq!(place("a", "").unwrap_err().reason, Reason::PathInvalid);
        assert_eq!(place("/a/../b", "").unwrap_err().reason, Reason::PathInvalid);
    }
}
