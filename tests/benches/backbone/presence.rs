//! How long a change at one member takes to who watches at another: records that are signed anew, and sessions that are closed
//! and opened again on a connection that stands. Changes come at their rate, whether or not earlier ones were told.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use p2psb_e2e::eventually::wait_for;
use p2psb_e2e::trouble::{Result, Trouble};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::Size;
use super::fleet::Fleet;
use super::ledger::{Kind, Ledger};
use super::stage::Stage;
use super::watchers::Watcher;
use crate::crowd::Crowd;
use crate::report::{Bar, Better, Report, Row};
use crate::sample::Sample;
use crate::session::Session;
use crate::wire::{Target, Wire};

const MOST_MILLIS: f64 = 50.0;
/// Where peers change, and where they are watched.
const AT: usize = 0;
const WATCHED_AT: usize = 2;
/// Handshakes at a time.
const AT_A_TIME: usize = 32;
/// How often it is looked which changes are due.
const LOOK: Duration = Duration::from_millis(1);
/// How long the last changes of a round may take. What is not told by then counts with the time it has waited.
const LAST: Duration = Duration::from_secs(2);

/// How many peers change, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changing {
    /// A peer may change once a second, so they are at least as many as changes in a second.
    pub(super) peers: u64,
    /// Changes in a second.
    pub(super) rate: u64,
    /// How long a round takes.
    pub(super) span: Duration,
}

pub(super) async fn measure(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    let Size { changing, rounds, .. } = *stage.size;
    // Heartbeats are not what is measured.
    let fleet = Fleet::start(stage.machine, &[("session.heartbeat", "5m")]).await?;
    let crowd = Crowd::new()?;
    report.remark(format_args!("opening {} sessions, and watching them from another member", changing.peers));
    let sessions = open(&fleet.target(AT)?, &crowd, changing.peers).await?;
    let ledger = Ledger::new((0..changing.peers).map(|number| crowd.key(number).public()));
    let watchers = Watcher::open_all(&fleet.endpoint(WATCHED_AT)?, ledger.ids()).await?;
    let ledger = RefCell::new(ledger);

    let (orders, taken): (Vec<_>, Vec<_>) = sessions.iter().map(|_| mpsc::channel(1)).unzip();
    let obeying =
        try_join_all(sessions.into_iter().zip(taken).map(|(session, orders)| obey(session, orders)));
    let watching = try_join_all(watchers.into_iter().map(|watcher| watcher.tell(&ledger)));
    let course = async {
        let peers = orders.into_iter().map(|orders| Orders { orders, passes: 0 }).collect();
        let mut turns = Turns { peers, ledger: &ledger, next: 0, left_out: 0 };
        // What a peer says within a second of its arrival waits for that second: the first round counts for nothing.
        turns.round(&changing).await?;
        let mut waits = Vec::new();
        for _ in 0..rounds {
            waits.push(turns.round(&changing).await?);
        }
        Ok::<_, Trouble>((waits, turns.left_out))
    };
    let (waits, left_out) = tokio::select! {
        done = course => done?,
        ended = obeying => return Err(ended.err().unwrap_or_else(|| Trouble::new("the sessions ended"))),
        ended = watching => return Err(ended.err().unwrap_or_else(|| Trouble::new("the watches ended"))),
    };
    let percentile = |waits: &[Duration], percent: usize| {
        let at = (waits.len() * percent / 100).min(waits.len().saturating_sub(1));
        waits.get(at).map_or(0.0, |wait| wait.as_secs_f64() * 1e3)
    };
    let of = |percent| Sample::of(waits.iter().map(|waits| percentile(waits, percent)).collect());
    report.remark(format_args!(
        "presence: the median is {:.1} ms, the longest {:.1} ms; {left_out} turns were left out",
        of(50).median,
        of(100).high
    ));
    report.row(&Row {
        name: "presence: change to watcher, p99",
        unit: "ms",
        better: Better::Less,
        value: of(99),
        bar: Bar::AtMost(MOST_MILLIS),
    });
    Ok(())
}

/// Opens a session for each peer, on a connection of its own.
async fn open<'a>(target: &Target, crowd: &'a Crowd, peers: u64) -> Result<Vec<Session<'a>>> {
    let open = |number| async move { Session::open(Wire::connect(target, None).await?, crowd, number).await };
    futures::stream::iter(0..peers).map(open).buffered(AT_A_TIME).try_collect().await
}

/// Keeps a session, and changes it as it is told.
async fn obey(mut session: Session<'_>, mut orders: mpsc::Receiver<Kind>) -> Result<()> {
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            heard = session.idle() => {
                heard?;
                continue;
            }
        };
        match order {
            None => return Ok(()),
            Some(Kind::Record) => session.change().await?,
            Some(Kind::Close) => session.end().await?,
            Some(Kind::Open) => session.begin().await?,
        }
    }
}

/// The way to a peer, and how often it had its turn.
struct Orders {
    orders: mpsc::Sender<Kind>,
    passes: usize,
}

/// Gives each peer its turn, one after the other.
struct Turns<'a> {
    peers: Vec<Orders>,
    ledger: &'a RefCell<Ledger>,
    next: usize,
    /// Turns of peers that were not done with the one before.
    left_out: u64,
}

impl Turns<'_> {
    /// Makes changes for the span of a round, and returns how long each took to be told, sorted.
    async fn round(&mut self, changing: &Changing) -> Result<Vec<Duration>> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (begin, mut made) = (Instant::now(), 0);
        while begin.elapsed() < changing.span {
            let due = (begin.elapsed().as_secs_f64() * changing.rate as f64) as u64;
            while made < due {
                self.turn();
                made += 1;
            }
            looks.tick().await;
        }
        // Whether or not all were told: those that were not are in the list of waits.
        let _ = wait_for("all changes are told", LAST, async || {
            if self.ledger.borrow().is_settled() { Ok(()) } else { Err("some are not".to_owned()) }
        })
        .await;
        let waits = self.ledger.borrow_mut().take_waits(Instant::now());
        if waits.is_empty() { Err(Trouble::new("no change was made")) } else { Ok(waits) }
    }

    /// Who is not done with its last turn is left out; how long that one takes counts.
    fn turn(&mut self) {
        let number = self.next % self.peers.len();
        self.next += 1;
        let Some(peer) = self.peers.get_mut(number) else { return };
        let Ok(place) = peer.orders.try_reserve() else {
            self.left_out += 1;
            return;
        };
        let kind = Kind::of(peer.passes, number);
        peer.passes += 1;
        self.ledger.borrow_mut().expect(number, kind, Instant::now());
        place.send(kind);
    }
}
