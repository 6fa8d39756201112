//! The course of one fetch: local content first, then one host after the other, then into place.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use p2psb_client::locator::{Locator, Options};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::{Digest, PeerId};
use p2psb_proto::wire::agent::v1 as wire;
use p2psb_runtime::Clock;
use p2psb_runtime::retry::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::transfer::{self, Outcome};
use super::worker::{Answer, Broken, Order, UNKNOWN, Worker};
use crate::content::fetch::{FetchProgress, Fetched, Next, Phase, Remedy, Start};
use crate::core::hosts::Hosts;
use crate::exchange::dial::Caller;
use crate::failure::{internal, store_failed};
use crate::index::Indexes;
use crate::store::{Store, Tree, TreeId};

/// How long locating a host may take.
const LOCATE: Duration = Duration::from_secs(8);
/// The pauses while no host can be reached.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// What is fetched, and to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// As it was asked for.
    pub asked: String,
    /// `publisher/name@version`.
    pub reference: String,
    /// The content.
    pub manifest: Digest,
    /// The folder to make.
    pub target: PathBuf,
}

/// What a fetch needs of the agent.
#[derive(Clone)]
pub struct Means {
    /// Where content is kept track of.
    pub store: Arc<Store>,
    /// Who knows hosts.
    pub indexes: Indexes,
    /// Who knows where hosts are.
    pub locator: Locator,
    /// Dials them.
    pub caller: Caller,
    /// Own id: nobody fetches from itself.
    pub own: PeerId,
    /// The time.
    pub clock: Clock,
}

/// How long hosts are tried before the indexes are asked again.
const ASK_ANEW: Duration = Duration::from_secs(30);

/// What there is to know of a fetch while it runs.
pub type Told = watch::Sender<wire::FetchProgress>;

/// One run of a fetch.
pub(super) struct Job {
    pub(super) goal: Goal,
    pub(super) means: Means,
    pub(super) told: Arc<Told>,
    pub(super) stop: CancellationToken,
}

/// The search for hosts.
struct Search {
    hosts: Hosts,
    backoff: Backoff,
    /// What was wrong with the last one.
    problem: String,
}

impl Search {
    fn new() -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, fastrand::Rng::new());
        Self { hosts: Hosts::default(), backoff, problem: String::new() }
    }
}

/// Why an attempt ended without a result.
#[derive(Debug)]
pub(super) enum Ended {
    /// The agent stops, or the user gives it up.
    Stopped,
    /// For good.
    Failed(Failure),
    /// It can't go on now; another attempt may get further.
    Stuck(Box<Stuck>),
}

/// An attempt that could not go on.
#[derive(Debug)]
pub(super) struct Stuck {
    /// Why.
    pub(super) failure: Failure,
    /// What would help.
    pub(super) remedy: Remedy,
    /// Bytes in place.
    pub(super) done: u64,
    /// Bytes still to come.
    pub(super) left: u64,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Ended {
    /// What is wrong with the disk, and how far it was then.
    fn by(broken: Broken, at: FetchProgress) -> Self {
        let Broken { failure, remedy } = broken;
        let (done, left) = (at.bytes_done, at.bytes_total.saturating_sub(at.bytes_done));
        match remedy {
            None => Self::Failed(failure),
            Some(remedy) => Self::Stuck(Box::new(Stuck { failure, remedy, done, left })),
        }
    }
}

impl Job {
    /// One attempt.
    pub(super) async fn run(&self, start: Start) -> Result<wire::FetchResult, Ended> {
        let goal = &self.goal;
        let opened =
            Worker::open(Arc::clone(&self.means.store), goal.manifest, goal.target.clone(), start).await;
        let mut worker = opened.map_err(|broken| Ended::by(broken, UNKNOWN))?;
        let reporting = self.report(&worker);
        let got = tokio::select! {
            got = self.get(&mut worker) => Some(got),
            () = self.stop.cancelled() => None,
            () = reporting => None,
        };
        let done = match got {
            Some(Ok(())) => Some(self.finish(&mut worker).await),
            Some(Err(broken)) => Some(Err(broken)),
            None => None,
        };
        let last = worker.progress();
        worker.close().await;
        let fetched = done.ok_or(Ended::Stopped)?.map_err(|broken| Ended::by(broken, last))?;
        let tree = self.tree(fetched.tree).await?;
        self.say(wire::FetchState::Done, |progress| {
            progress.bytes_done = tree.total_size;
            progress.bytes_total = tree.total_size;
            progress.files_total = tree.file_count;
        });
        Ok(wire::FetchResult {
            reference: goal.reference.clone(),
            manifest_digest: goal.manifest.to_string(),
            target: fetched.path.display().to_string(),
            total_size: tree.total_size,
            file_count: tree.file_count,
            bytes_fetched: last.bytes_total.saturating_sub(last.bytes_local),
            files_repaired: fetched.repaired,
        })
    }

    /// The finished tree.
    async fn tree(&self, id: TreeId) -> Result<Tree, Failure> {
        let store = Arc::clone(&self.means.store);
        let found = tokio::task::spawn_blocking(move || store.tree(id)).await.map_err(internal)?;
        found.map_err(store_failed)?.ok_or_else(|| internal("a finished fetch is not in the catalogue"))
    }

    async fn finish(&self, worker: &mut Worker) -> Result<Fetched, Broken> {
        self.say(wire::FetchState::Finishing, |_| {});
        match worker.ask(Order::Finish).await? {
            Answer::Finished(fetched) => Ok(fetched),
            other => Err(internal(format!("finishing was answered by {other:?}")).into()),
        }
    }

    /// Brings everything into place.
    async fn get(&self, worker: &mut Worker) -> Result<(), Broken> {
        if local(worker).await? {
            return Ok(());
        }
        let mut search = Search::new();
        'ask: loop {
            let silent = match self.means.indexes.hosts(self.goal.manifest).await {
                Ok(mut found) => {
                    found.retain(|host| *host != self.means.own);
                    search.hosts.found(&found);
                    None
                }
                Err(failure) => Some(failure.message),
            };
            let asked_at = self.means.clock.now();
            while let Some(host) = search.hosts.next(self.means.clock.now()) {
                if self.try_host(host, worker, &mut search).await? {
                    return Ok(());
                }
                if self.means.clock.now().saturating_duration_since(asked_at) > ASK_ANEW {
                    // Hosts that stall, one after the other, must not hide the ones that came meanwhile.
                    continue 'ask;
                }
            }
            // The last host may have gone with the last chunk.
            if local(worker).await? {
                return Ok(());
            }
            let waiting_for = silent.unwrap_or_else(|| waiting_for(search.hosts.count(), &search.problem));
            let delay = search.backoff.next_delay();
            tracing::info!(reference = self.goal.reference, waiting_for, ?delay, "no host can be reached");
            self.say(wire::FetchState::Waiting, |progress| {
                progress.host.clear();
                progress.waiting_for = waiting_for;
            });
            tokio::time::sleep(delay).await;
        }
    }

    /// Fetches from one host; `true` if everything is there now.
    async fn try_host(&self, host: PeerId, worker: &mut Worker, search: &mut Search) -> Result<bool, Broken> {
        let mut delivered = 0;
        let outcome = match self.reach(host).await {
            Ok(mut link) => {
                tracing::info!(%host, reference = self.goal.reference, "fetching from a host");
                self.say(state_of(worker.progress().phase), |progress| {
                    progress.host = host.to_string();
                    progress.waiting_for.clear();
                });
                transfer::run(worker, &mut link, self.goal.manifest, &mut delivered).await?
            }
            Err(failure) => Outcome::Left(failure),
        };
        if delivered > 0 {
            search.hosts.delivered(host);
            search.backoff.reset();
        }
        match outcome {
            Outcome::Complete => return Ok(true),
            Outcome::Left(failure) => {
                tracing::info!(%host, reason = %failure.reason, error = %failure.message, "left a host");
                search.hosts.failed(host, self.means.clock.now(), fastrand::f64());
                search.problem = failure.message;
            }
            Outcome::Lied(digest) => {
                tracing::warn!(%host, reason = %Reason::ChunkCorrupt, %digest, "a host sent wrong bytes; it is banned from this fetch");
                metrics::counter!("fetch_hosts_banned_total").increment(1);
                search.hosts.ban(host);
                search.problem = format!("{} sent wrong bytes", host.short());
            }
        }
        Ok(false)
    }

    async fn reach(&self, host: PeerId) -> Result<crate::exchange::Link, Failure> {
        let locator = &self.means.locator;
        let options = Options { deadline: Some(Instant::now() + LOCATE), ..Options::default() };
        let located = locator.walk(&host, options).await.answer?;
        let opened = self.means.caller.open(host, &locator.believed(&located.peer.record)).await;
        if opened.is_err() {
            locator.doubt(&host);
        }
        opened
    }

    /// Passes on how far the worker is, for as long as it runs.
    fn report(&self, worker: &Worker) -> impl Future<Output = ()> + use<> {
        let (mut follow, told) = (worker.follow(), Arc::clone(&self.told));
        async move {
            loop {
                let now = *follow.borrow_and_update();
                told.send_modify(|progress| take_over(progress, now));
                if follow.changed().await.is_err() {
                    // The worker ended, and says why itself.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    fn say(&self, state: wire::FetchState, change: impl FnOnce(&mut wire::FetchProgress)) {
        self.told.send_modify(|progress| {
            progress.state = state.into();
            change(progress);
        });
    }
}

/// Does what can be done without any host; `true` if that was all.
async fn local(worker: &mut Worker) -> Result<bool, Broken> {
    loop {
        match worker.ask(Order::Next(u64::from(u32::MAX))).await? {
            Answer::Next(Next::Busy) => {}
            Answer::Next(Next::Ready) => return Ok(true),
            Answer::Next(Next::Want(list)) => {
                // Nobody is there to be asked yet.
                worker.ask(Order::Lost(list.into_iter().map(|want| want.digest).collect())).await?;
                return Ok(false);
            }
            Answer::Next(Next::Wait) | Answer::Delivered { .. } | Answer::Noted | Answer::Finished(_) => {
                return Ok(false);
            }
        }
    }
}

const fn state_of(phase: Phase) -> wire::FetchState {
    match phase {
        Phase::Manifest => wire::FetchState::Manifest,
        Phase::Checking => wire::FetchState::Checking,
        Phase::Chunks => wire::FetchState::Chunks,
        Phase::Ready => wire::FetchState::Finishing,
    }
}

fn take_over(progress: &mut wire::FetchProgress, now: FetchProgress) {
    progress.bytes_done = now.bytes_done;
    progress.bytes_total = now.bytes_total;
    progress.bytes_local = now.bytes_local;
    progress.files_total = now.files_total;
    // While it waits, that is what is to be said.
    if progress.state() != wire::FetchState::Waiting {
        progress.state = state_of(now.phase).into();
    }
}

fn waiting_for((known, banned): (usize, usize), problem: &str) -> String {
    let what = match (known, banned) {
        (0, _) => return "a host: nobody announces this content now".to_owned(),
        (known, banned) if known == banned => format!("another host: all {known} sent wrong bytes"),
        (known, 0) => format!("a host: none of {known} can be reached"),
        (known, banned) => format!("a host: none of {known} can be used ({banned} sent wrong bytes)"),
    };
    if problem.is_empty() { what } else { format!("{what}; last: {problem}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_said() {
        assert!(waiting_for((0, 0), "").contains("nobody announces"));
        assert!(waiting_for((2, 2), "").contains("wrong bytes"));
        assert!(waiting_for((2, 0), "refused").ends_with("last: refused"));
    }

    #[test]
    fn waiting_is_not_hidden_by_progress() {
        let mut progress =
            wire::FetchProgress { state: wire::FetchState::Waiting.into(), ..Default::default() };
        let now = FetchProgress {
            phase: Phase::Chunks,
            bytes_done: 3,
            bytes_total: 9,
            bytes_local: 1,
            files_total: 2,
        };
        take_over(&mut progress, now);
        assert_eq!((progress.state(), progress.bytes_done), (wire::FetchState::Waiting, 3));
        progress.state = wire::FetchState::Manifest.into();
        take_over(&mut progress, now);
        assert_eq!(progress.state(), wire::FetchState::Chunks);
    }
}
