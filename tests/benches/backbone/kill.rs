//! One of five members dies by `kill -9`, the one that holds all sessions, while peers are looked for through the SDK: who
//! waits too long, how soon its peers are at home again, and whether they come all at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{pending, try_join_all};
use p2psb_client::{Dialer, Locator};
use p2psb_e2e::Result;
use p2psb_e2e::peer::network;
use p2psb_e2e::trouble::Context as _;
use p2psb_proto::model::PeerId;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Size;
use super::fleet::Fleet;
use super::stage::Stage;
use crate::crowd::Crowd;
use crate::keep::{Kept, Story, now};
use crate::report::{Bar, Better, Report, Row};
use crate::sample::Sample;

/// A call without an answer by then is one too many.
const DEADLINE: Duration = Duration::from_secs(1);
const MOST_LATE: f64 = 0.0;
const MOST_SECONDS: f64 = 8.0;
const MOST_BURST: f64 = 3.0;
/// In which bursts are looked for, in milliseconds.
const BURST: u64 = 100;
/// The member that dies.
const VICTIM: usize = 0;
/// How long peers may take to come.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long peers are looked for before the death.
const BEFORE: Duration = Duration::from_secs(2);
/// How often it is looked which calls are due.
const LOOK: Duration = Duration::from_millis(1);

/// What one death came to.
struct Death {
    asked: u64,
    /// Calls without an answer within the deadline, and those with one that named nobody.
    late: u64,
    wrong: u64,
    /// Until the last peer was at home again, in seconds.
    rehomed: f64,
    /// Peers that were given up.
    homeless: u64,
    /// Dials in the fullest tenth of a second, over the mean.
    burst: f64,
}

pub(super) async fn measure(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    let mut deaths = Vec::new();
    for round in 0..stage.size.rounds {
        report.remark(format_args!("a member with {} sessions, round {}", stage.size.sessions, round + 1));
        let death = die(stage).await?;
        report.remark(format_args!(
            "at home again after {:.1} s but for {}, burst {:.1}; {} locates, {} past the deadline, {} failed",
            death.rehomed, death.homeless, death.burst, death.asked, death.late, death.wrong
        ));
        deaths.push(death);
    }
    let of = |figure: fn(&Death) -> f64| Sample::of(deaths.iter().map(figure).collect());
    let failed: u64 = deaths.iter().map(|death| death.late + death.wrong).sum();
    report.row(&Row {
        name: "kill -9: locates failed or late",
        unit: "calls",
        better: Better::Less,
        // Of all rounds: none may be.
        value: Sample::once(failed as f64),
        bar: Bar::AtMost(MOST_LATE),
    });
    report.row(&Row {
        name: "kill -9: until its peers are at home",
        unit: "s",
        better: Better::Less,
        value: of(|death| death.rehomed),
        bar: Bar::AtMost(MOST_SECONDS),
    });
    report.row(&Row {
        name: "kill -9: most dials in 100 ms, over mean",
        unit: "×",
        better: Better::Less,
        value: of(|death| death.burst),
        bar: Bar::AtMost(MOST_BURST),
    });
    Ok(())
}

async fn die(stage: &Stage<'_>) -> Result<Death> {
    let Size { sessions, holders, locates, .. } = *stage.size;
    let mut fleet = Fleet::start(stage.machine, &[]).await?;
    let crowd = Crowd::new()?;
    let share = (sessions / holders) as u64;
    let home = fleet.endpoint(VICTIM)?;
    let kept = (0..holders as u64).map(|n| Kept::start(&home, &crowd, n * share, share));
    let kept = kept.collect::<Result<Vec<_>>>()?;
    try_join_all(kept.iter().map(|kept| kept.wait(PATIENCE))).await?;

    let dialer = Dialer::new(None, None).context("preparing TLS")?;
    let locator = Locator::new(network()?, &fleet.endpoints()?, dialer);
    let ids = (0..share * holders as u64).map(|number| PeerId::new(crowd.key(number).public())).collect();
    let asking = Arc::new(Asking { locator, ids, counts: Counts::default() });
    let stop = CancellationToken::new();
    let asks = tokio::spawn(Arc::clone(&asking).ask(locates, stop.clone()));
    // A span without a death.
    let _ = timeout(BEFORE, pending::<()>()).await;
    let died = now();
    fleet.kill(VICTIM).await?;
    let stories = try_join_all(kept.iter().map(Kept::story)).await?;
    stop.cancel();
    asks.await.context("asking")?;
    let story = stories.into_iter().fold(Story::default(), Story::and);
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let Counts { asked, late, wrong } = &asking.counts;
    Ok(Death {
        asked: count(asked),
        late: count(late),
        wrong: count(wrong),
        rehomed: rehomed(&story, died),
        homeless: story.homeless,
        burst: burst(&story.dials),
    })
}

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    late: AtomicU64,
    wrong: AtomicU64,
}

/// Looks for peers at a rate, whether or not earlier calls were answered.
struct Asking {
    locator: Locator,
    ids: Vec<PeerId>,
    counts: Counts,
}

impl Asking {
    /// Asks so often a second until it is stopped, and returns when everything has been answered.
    async fn ask(self: Arc<Self>, rate: u64, stop: CancellationToken) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (begin, mut made, calls) = (Instant::now(), 0, TaskTracker::new());
        while !stop.is_cancelled() {
            let due = (begin.elapsed().as_secs_f64() * rate as f64) as u64;
            while made < due {
                calls.spawn(Arc::clone(&self).call(Instant::now()));
                made += 1;
            }
            looks.tick().await;
        }
        calls.close();
        calls.wait().await;
    }

    async fn call(self: Arc<Self>, begin: Instant) {
        let Some(id) = self.ids.get(fastrand::usize(..self.ids.len())) else { return };
        let answer = timeout(DEADLINE, self.locator.locate(id)).await;
        let Counts { asked, late, wrong } = &self.counts;
        asked.fetch_add(1, Ordering::Relaxed);
        let which = match answer {
            Ok(Ok(_)) if begin.elapsed() <= DEADLINE => return,
            Ok(Ok(_)) | Err(_) => late,
            Ok(Err(_)) => wrong,
        };
        which.fetch_add(1, Ordering::Relaxed);
    }
}

/// Seconds until the last peer was at home again, or given up.
fn rehomed(story: &Story, died: u64) -> f64 {
    let last = story.homes.iter().max().copied().unwrap_or_default();
    last.saturating_sub(died) as f64 / 1e3
}

/// The fullest tenth of a second, over the mean of those from the first dial to the last.
fn burst(dials: &[u64]) -> f64 {
    let (Some(first), Some(last)) = (dials.iter().min(), dials.iter().max()) else { return 0.0 };
    let mut counts = vec![0_u64; ((last - first) / BURST + 1) as usize];
    for dial in dials {
        if let Some(count) = counts.get_mut(((dial - first) / BURST) as usize) {
            *count += 1;
        }
    }
    let most = counts.iter().max().copied().unwrap_or_default();
    most as f64 * counts.len() as f64 / dials.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_from_an_even_stream() {
        let even: Vec<u64> = (0..1000).map(|n| 7 + n * 10).collect();
        assert_eq!(burst(&even), 1.0);
        let mut crowded = even;
        crowded.extend([500; 1000]);
        assert_eq!(burst(&crowded), (10.0 + 1000.0) * 100.0 / 2000.0);
    }

    #[test]
    fn the_last_peer_decides_how_long_it_took() {
        let story = Story { homes: vec![1500, 4000, 3000], ..Story::default() };
        assert_eq!(rehomed(&story, 1000), 3.0);
    }
}
