//! One worker for each rendezvous: dial, decide whether it becomes a home, keep the session, come back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use p2psb_proto::error::{self, Reason};
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{PeerId, PeerRecord, PeerStatement, Signed, limits};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::confirm;
use super::handshake::{self, Open};
use super::own::{Seen, local_ip};
use super::turns::{Candidate, HEAD_START, cost};
use super::{Kind, SessionState, Shared, now};
use crate::backoff::Backoff;
use crate::conn::Connection;
use crate::endpoint::Endpoint;

/// The shortest pause after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// The longest pause that a server may ask for, and the longest time it may take to drain.
const LONGEST_ASKED: Duration = Duration::from_secs(600);
const LONGEST_DRAIN: Duration = Duration::from_secs(600);
/// How long another home may take to be opened before one that drains is left without it.
const HANDOVER: Duration = Duration::from_secs(2);
/// A rendezvous that was learnt from others is forgotten after so many failures one after the other.
const FORGOTTEN_AFTER: u32 = 6;
/// A peer that was replaced by a newer session of its own does not come back by itself for this long.
const REPLACED_PAUSE: Duration = Duration::from_secs(60);
/// A standby looks again this often even if nothing seems to have changed.
const STANDBY_CHECK: Duration = Duration::from_secs(60);
/// A session that lasted this long was a good one.
const HELD: Duration = Duration::from_secs(10);
/// Records are sent at most this often.
const RECORD_SPACING: Duration = Duration::from_secs(1);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) number: usize,
    /// Addresses of one server, tried in turn.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) kind: Kind,
    /// What is known of its backbone before it was reached.
    pub(super) backbone: BTreeSet<PeerId>,
}

/// How an attempt ended.
enum End {
    /// The session was open, and ended; others like it come back over the spread.
    Lost { status: Status, spread: Duration },
    /// It could not be opened.
    Failed(Status),
    /// No room for another home.
    Standby,
    /// The server drains, and was left.
    Drained,
    /// This peer is shutting down.
    Stopped,
}

impl Worker {
    pub(super) async fn run(mut self) {
        let stop = self.shared.stop.clone();
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let is_learnt = self.kind == Kind::Learnt;
        let (mut failures, mut waits) = (0, is_learnt);
        while !stop.is_cancelled() {
            if waits && !self.wait_for_turn().await {
                break;
            }
            waits = is_learnt;
            self.shared.set(self.number, |s| s.state = SessionState::Connecting);
            let opened = tokio::select! {
                opened = self.open() => opened,
                () = stop.cancelled() => break,
            };
            self.end_turn();
            let (end, home, held) = match opened {
                Err(end) => (end, None, Duration::ZERO),
                Ok((open, record, home)) => {
                    let began = Instant::now();
                    (self.keep(open, &record, home.server).await, Some(home), began.elapsed())
                }
            };
            failures = if matches!(end, End::Failed(_)) { failures + 1 } else { 0 };
            if held >= HELD {
                backoff.reset();
            }
            match end {
                End::Stopped => break,
                End::Standby => {
                    self.shared.set(self.number, |s| s.state = SessionState::Standby);
                    waits = true;
                }
                End::Drained => {
                    drop(home);
                    self.pause("the server is draining", backoff.next(fastrand::f64())).await;
                }
                End::Lost { status, .. } if is_replaced(&status) => {
                    drop(home);
                    self.pause(status.message(), REPLACED_PAUSE).await;
                }
                End::Lost { status, spread } => {
                    // A server that lets everybody in and closes at once must not be dialed in a tight circle.
                    let least = if held >= HELD { Duration::ZERO } else { backoff.next(fastrand::f64()) };
                    self.pause(status.message(), spread.mul_f64(fastrand::f64()).max(least)).await;
                    // Until now nobody takes its place: that others are to come later counts for all of them.
                    drop(home);
                }
                End::Failed(_) if is_learnt && failures >= FORGOTTEN_AFTER => {
                    self.shared.forget(self.number);
                    break;
                }
                End::Failed(status) => self.pause(status.message(), pause_after(&status, &mut backoff)).await,
            }
        }
        self.end_turn();
    }

    async fn pause(&self, error: &str, pause: Duration) {
        let retry_at = Instant::now() + pause;
        tracing::info!(endpoint = %self.target(), error, retry_in = ?pause, "no session");
        let state = SessionState::Failed { error: error.to_owned(), retry_at };
        self.shared.state.lock().failed.insert(self.number);
        self.shared.set(self.number, |s| (s.state, s.observed) = (state, None));
        tokio::select! {
            () = sleep_until(retry_at) => {}
            () = self.shared.stop.cancelled() => {}
        }
    }

    /// Others may have theirs; they look when the state of this one changes.
    fn end_turn(&self) {
        self.shared.state.lock().turns.end(self.number);
    }

    fn target(&self) -> String {
        self.endpoints.first().map(Endpoint::url).unwrap_or_default()
    }

    /// Waits until this server is the next that may become a home. `false` when shutting down.
    async fn wait_for_turn(&self) -> bool {
        let mut changes = self.shared.changes.subscribe();
        let chance = fastrand::f64();
        loop {
            let looks_again = match self.turn(chance) {
                None => return false,
                Some(Turn::Mine) => return true,
                Some(Turn::Anothers) => HEAD_START,
                Some(Turn::Nobodys) => STANDBY_CHECK,
            };
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(looks_again) => {}
                () = self.shared.stop.cancelled() => return false,
            }
        }
    }

    /// Whose turn it is; `None` if a configured worker turned out to be for the same server.
    fn turn(&self, chance: f64) -> Option<Turn> {
        let mut state = self.shared.state.lock();
        let first_others = self.kind == Kind::Learnt && state.configured_pending();
        let status = state.sessions.get(&self.number)?;
        let (server, cost) = (status.server_id, cost(status.latency, status.sessions, chance));
        if first_others {
            return Some(Turn::Anothers);
        }
        let room = state.plan.room(server.as_ref(), &self.backbone);
        let backbone = self.backbone.clone();
        state.turns.wait(self.number, Candidate { server, backbone, cost });
        if room == 0 {
            return Some(Turn::Nobodys);
        }
        let is_mine = state.turns.begin(self.number, room, Instant::now());
        Some(if is_mine { Turn::Mine } else { Turn::Anothers })
    }

    /// Opens a session, if this server may become a home. The guard makes it one until it is dropped.
    async fn open(&mut self) -> Result<(Open, Signed<PeerRecord>, Home), End> {
        let shared = Arc::clone(&self.shared);
        let (connection, endpoint) = self.dial().await?;
        let asked = Instant::now();
        let listed = handshake::backbone(&connection).await.map_err(End::Failed)?;
        let latency = asked.elapsed();
        self.backbone = handshake::ids(&listed.records);
        let seq = shared.next_session_seq();
        let config = &shared.config;
        let (network, peer) = (config.network, config.identity.peer_id());
        let greeted = handshake::greet(connection, &endpoint, network, peer, &config.software, seq)
            .await
            .map_err(End::Failed)?;
        let server = greeted.server;
        self.backbone.insert(server);
        shared.proven(self.number, server);
        shared.set(self.number, |s| {
            (s.server_id, s.observed, s.latency) = (Some(server), greeted.observed, Some(latency));
            s.endpoint.clone_from(&endpoint);
        });
        // Only now, so that the server itself is not taken for another one to learn.
        shared.learn_listed(&listed);
        let seen = match self.kind {
            // Over loopback nothing is seen. Whoever comes here from the outside comes over the network that this machine is in.
            Kind::Own => Seen { local: local_ip(), observed: None },
            _ => Seen { local: greeted.local, observed: greeted.observed.map(|a| a.ip()) },
        };
        let record = shared
            .join(server, self.backbone.clone(), seen)
            .map_err(|e| End::Failed(p2psb_proto::error::Failure::from(e).into()))?
            .ok_or(End::Standby)?;
        let home = Home { shared: Arc::clone(&shared), server };
        match greeted.authenticate(&shared.config, &record).await {
            Ok(open) => Ok((open, record, home)),
            Err(status) => {
                self.sign_past(&status);
                Err(End::Failed(status))
            }
        }
    }

    /// The first of its addresses to answer, which comes first from now on.
    async fn dial(&mut self) -> Result<(Connection, Endpoint), End> {
        let mut failed = End::Stopped;
        for _ in 0..self.endpoints.len() {
            let Some(endpoint) = self.endpoints.first().cloned() else { break };
            match self.shared.config.dialer.dial_unproven(&endpoint).await {
                Ok(connection) => return Ok((connection, endpoint)),
                Err(error) => failed = End::Failed(error.into()),
            }
            self.endpoints.rotate_left(1);
        }
        Err(failed)
    }

    /// A server that holds a newer record of this peer says so, and the next attempt signs past it.
    fn sign_past(&self, status: &Status) {
        if error::reason_of(status) == Some(Reason::RecordStale)
            && let Some(seq) = error::record_of(status).and_then(|stored| self.own_seq(stored))
        {
            self.shared.sign_past(seq);
        }
    }

    /// The `seq` of what a server holds of this peer, which may be a withdrawal as well: both are in one sequence.
    fn own_seq(&self, stored: SignedRecord) -> Option<u64> {
        let stored = PeerStatement::verify(stored).ok()?;
        let (seq, _) = stored.rank();
        (stored.peer_id() == self.shared.config.identity.peer_id()).then_some(seq)
    }

    /// Keeps an open session until it ends.
    async fn keep(&self, mut open: Open, sent: &Signed<PeerRecord>, home: PeerId) -> End {
        tracing::info!(endpoint = %self.target(), "session open");
        if open.replaced {
            tracing::info!(endpoint = %self.target(), "an older session of this peer ended for this one; if that happens again and again, its key is used twice");
        }
        self.shared.set(self.number, |s| s.state = SessionState::Online);
        self.shared.learn(&open.rendezvous);
        let asking = confirm::keep_asking(Arc::clone(&self.shared), home, open.up.clone());
        let _asking = AbortOnDropHandle::new(tokio::spawn(asking));
        let mut records = self.shared.record.subscribe();
        let mut sent_seq = sent.value().seq;
        let mut next_record = Instant::now() + RECORD_SPACING;
        let mut beat = tokio::time::interval_at(Instant::now() + open.heartbeat, open.heartbeat);
        let mut course = Course::of(&open, home);
        loop {
            let seq_of = |r: &Option<Signed<PeerRecord>>| r.as_ref().map_or(0, |r| r.value().seq);
            let has_newer = seq_of(&records.borrow_and_update()) > sent_seq;
            tokio::select! {
                message = handshake::next(&mut open.down) => match message {
                    Ok(Some(message)) => self.hear(message, &mut course),
                    Ok(None) => return course.lost(Status::unavailable("the server closed the session")),
                    Err(status) => return course.lost(status),
                },
                _ = beat.tick() => {
                    let Some(number) = course.next_beat() else {
                        return course.lost(Status::unavailable("the server answers no heartbeats"));
                    };
                    if let Err(status) = handshake::send(&open.up, Up::Heartbeat(wire::Heartbeat { number })).await {
                        return course.lost(status);
                    }
                }
                () = sleep_until(next_record), if has_newer => {
                    // The newest by now: others may have come while this one waited.
                    let newest = records.borrow_and_update().clone();
                    if let Some(record) = newest {
                        sent_seq = record.value().seq;
                        next_record = Instant::now() + RECORD_SPACING;
                        if let Err(status) = handshake::send(&open.up, Up::Record(record.to_wire())).await {
                            return course.lost(status);
                        }
                    }
                }
                changed = records.changed(), if !has_newer => if changed.is_err() { return End::Stopped },
                () = sleep_until(course.refresh_at) => {
                    if self.kind == Kind::Own {
                        self.shared.moved_to(home, local_ip());
                    }
                    self.shared.sign_anew(0);
                    self.look_around(&open.connection);
                    course.refresh_at = Instant::now() + open.refresh_after;
                }
                () = sleep_until(course.leave_at.unwrap_or(course.refresh_at)), if course.leave_at.is_some() => {
                    self.hand_over().await;
                    close(open, None).await;
                    return End::Drained;
                }
                () = self.shared.stop.cancelled() => {
                    close(open, Some(Up::Goodbye(wire::Goodbye::default()))).await;
                    return End::Stopped;
                }
            }
        }
    }

    fn hear(&self, message: Down, course: &mut Course) {
        match message {
            Down::HeartbeatAck(ack) => {
                course.acked = course.acked.max(ack.number.min(course.beats));
                if let Some(spread) = ack.reconnect_spread.as_ref() {
                    course.spread = handshake::reconnect_spread(duration_from_wire(Some(spread)));
                }
            }
            Down::RecordResult(result) => {
                if let Some(after) = self.record_result(&result) {
                    course.refresh_at = Instant::now() + after;
                }
            }
            Down::ConfirmResult(result) => self.shared.confirm_answered(&course.home, result),
            Down::Drain(drain) => course.leave_at = Some(Instant::now() + self.drained(&drain)),
            Down::Hello(_) | Down::Lease(_) => {}
        }
    }

    /// Asks anew who is in the backbone and how many sessions each has, beside everything else.
    fn look_around(&self, connection: &Connection) {
        let (shared, connection) = (Arc::clone(&self.shared), connection.clone());
        self.shared.tasks.spawn(async move {
            if let Ok(listed) = handshake::backbone(&connection).await {
                shared.learn_listed(&listed);
            }
        });
    }

    /// Lets another rendezvous become a home in the place of this one, if there is one; not for ever.
    async fn hand_over(&self) {
        let server = self.shared.state.lock().sessions.get(&self.number).and_then(|s| s.server_id);
        let Some(server) = server else { return };
        let mut changes = self.shared.changes.subscribe();
        self.shared.retire(&server);
        let filled =
            async { while self.shared.is_filling(&self.backbone) && changes.changed().await.is_ok() {} };
        tokio::select! {
            _ = timeout(HANDOVER, filled) => {}
            () = self.shared.stop.cancelled() => {}
        }
    }

    /// Returns when to sign anew, if the record was accepted.
    fn record_result(&self, result: &wire::RecordResult) -> Option<Duration> {
        if result.reason.is_empty() {
            let asked = result.refresh_after.as_ref().map(|d| duration_from_wire(Some(d)));
            return asked.map(|d| d.clamp(Duration::from_secs(1), limits::RECORD_LIFETIME));
        }
        if Reason::parse(&result.reason) == Some(Reason::RecordStale)
            && let Some(seq) = result.stored.clone().and_then(|stored| self.own_seq(stored))
        {
            self.shared.sign_past(seq);
            return None;
        }
        tracing::warn!(reason = result.reason, detail = result.detail, "the own record was refused");
        None
    }

    /// Returns after how long to leave.
    fn drained(&self, drain: &wire::Drain) -> Duration {
        let others: Vec<_> = drain
            .alternatives
            .iter()
            .take(super::MAX_LEARNT)
            .filter_map(|r| Signed::<PeerRecord>::verify(r.clone()).ok())
            .filter(|r| r.value().expires > now())
            .collect();
        self.shared.learn(&others);
        let leave_in = duration_from_wire(drain.reconnect_in.as_ref()).min(LONGEST_DRAIN);
        tracing::info!(endpoint = %self.target(), ?leave_in, "the server is draining");
        leave_in
    }
}

/// Whose turn it is to become a home.
enum Turn {
    Mine,
    /// There may be room, and others come first.
    Anothers,
    /// There is no room.
    Nobodys,
}

/// What an open session has come to.
struct Course {
    /// With whom the session is.
    home: PeerId,
    beats: u64,
    acked: u64,
    /// When the record is signed anew.
    refresh_at: Instant,
    /// Over how long to come back if the session is lost.
    spread: Duration,
    /// When to leave a server that drains.
    leave_at: Option<Instant>,
}

impl Course {
    fn of(open: &Open, home: PeerId) -> Self {
        let refresh_at = Instant::now() + open.refresh_after;
        Self { home, beats: 0, acked: 0, refresh_at, spread: open.reconnect_spread, leave_at: None }
    }

    /// The number of the next heartbeat; `None` if the last ones were not answered.
    const fn next_beat(&mut self) -> Option<u64> {
        if self.beats >= self.acked + 2 {
            return None;
        }
        self.beats += 1;
        Some(self.beats)
    }

    const fn lost(&self, status: Status) -> End {
        End::Lost { status, spread: self.spread }
    }
}

/// Whether a newer session of this peer took the place of this one.
fn is_replaced(status: &Status) -> bool {
    error::reason_of(status) == Some(Reason::SessionReplaced)
}

/// How long to wait after a refusal or a failure.
fn pause_after(status: &Status, backoff: &mut Backoff) -> Duration {
    let chance = fastrand::f64();
    match error::retry_after_of(status) {
        _ if is_replaced(status) => REPLACED_PAUSE,
        Some(asked) => backoff.at_least(asked.min(LONGEST_ASKED), chance),
        None => backoff.next(chance),
    }
}

/// Says the last word, if there is one, and lets the server end the stream, so that it knows at once.
async fn close(mut open: Open, last_word: Option<Up>) {
    let farewell = async {
        if let Some(last_word) = last_word {
            handshake::send(&open.up, last_word).await?;
        }
        drop(open.up);
        while handshake::next(&mut open.down).await?.is_some() {}
        Ok::<(), Status>(())
    };
    let _ = timeout(GOODBYE, farewell).await;
}

/// While it lives, a server is one of this peer's homes.
struct Home {
    shared: Arc<Shared>,
    server: PeerId,
}

impl Drop for Home {
    fn drop(&mut self) {
        self.shared.leave(&self.server);
    }
}
