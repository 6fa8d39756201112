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
use tonic::Status;

use super::handshake::{self, Open};
use super::own::Seen;
use super::{SessionState, Shared, now};
use crate::endpoint::Endpoint;

/// First pause after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
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
    pub(super) configured: bool,
    /// What is known of its backbone before it was reached.
    pub(super) backbone: BTreeSet<PeerId>,
}

/// How an attempt ended.
enum End {
    /// The session was open, and ended.
    Lost(Status),
    /// It could not be opened.
    Failed(Status),
    /// No room for another home.
    Standby,
    /// The server drains: not before this.
    Drained(Duration),
    /// This peer is shutting down.
    Stopped,
}

impl Worker {
    pub(super) async fn run(mut self) {
        let stop = self.shared.stop.clone();
        let mut failures = 0;
        while !stop.is_cancelled() {
            if !self.configured && !self.wait_for_room().await {
                return;
            }
            self.shared.set(self.number, |s| s.state = SessionState::Connecting);
            let opened = tokio::select! {
                opened = self.open() => opened,
                () = stop.cancelled() => return,
            };
            let began = Instant::now();
            let end = match opened {
                Ok((open, record, _home)) => self.keep(open, &record).await,
                Err(end) => end,
            };
            match end {
                End::Stopped => return,
                End::Standby => {
                    failures = 0;
                    self.shared.set(self.number, |s| s.state = SessionState::Standby);
                    if !self.wait_for_room().await {
                        return;
                    }
                }
                End::Drained(pause) => self.pause("the server is draining", pause).await,
                End::Lost(status) => {
                    // A server that lets everybody in and closes at once must not be dialed in a tight circle.
                    failures = if began.elapsed() >= HELD { 0 } else { failures + 1 };
                    self.pause(status.message(), self.backoff(&status, failures)).await;
                }
                End::Failed(status) => {
                    self.pause(status.message(), self.backoff(&status, failures)).await;
                    failures += 1;
                    // The next address of the same server.
                    self.endpoints.rotate_left(1);
                }
            }
        }
    }

    fn backoff(&self, status: &Status, failures: u32) -> Duration {
        if error::reason_of(status) == Some(Reason::SessionReplaced) {
            return REPLACED_PAUSE;
        }
        let (first, longest) = BACKOFF;
        let pause = first.saturating_mul(1 << failures.min(10)).min(longest);
        let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        error::retry_after_of(status).map_or(jittered, |asked| asked.max(jittered).min(longest * 10))
    }

    async fn pause(&self, error: &str, pause: Duration) {
        let retry_at = Instant::now() + pause;
        tracing::info!(endpoint = %self.target(), error, retry_in = ?pause, "no session");
        let state = SessionState::Failed { error: error.to_owned(), retry_at };
        self.shared.set(self.number, |s| (s.state, s.observed) = (state, None));
        tokio::select! {
            () = sleep_until(retry_at) => {}
            () = self.shared.stop.cancelled() => {}
        }
    }

    fn target(&self) -> String {
        self.endpoints.first().map(Endpoint::url).unwrap_or_default()
    }

    /// Waits until this server may become a home. `false` when shutting down.
    async fn wait_for_room(&self) -> bool {
        let mut changes = self.shared.changes.subscribe();
        loop {
            let Some(status) = self.shared.state.lock().sessions.get(&self.number).cloned() else {
                // A configured worker turned out to be for the same server.
                return false;
            };
            let id = status.server_id;
            let room = id.is_none_or(|id| self.shared.state.lock().plan.has_room(&id, &self.backbone));
            if room && (self.configured || !self.shared.configured_pending()) {
                return true;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(STANDBY_CHECK) => {}
                () = self.shared.stop.cancelled() => return false,
            }
        }
    }

    /// Opens a session, if this server may become a home. The guard makes it one until it is dropped.
    async fn open(&mut self) -> Result<(Open, Signed<PeerRecord>, Home), End> {
        let endpoint = self.endpoints.first().cloned().ok_or(End::Stopped)?;
        let shared = Arc::clone(&self.shared);
        let connection =
            shared.config.dialer.dial_unproven(&endpoint).await.map_err(|e| End::Failed(e.into()))?;
        let backbone = handshake::backbone(&connection).await.map_err(End::Failed)?;
        self.backbone = handshake::ids(&backbone);
        let seq = shared.next_session_seq();
        let config = &shared.config;
        let (network, peer) = (config.network, config.identity.peer_id());
        let greeted = handshake::greet(connection, &endpoint, network, peer, &config.software, seq)
            .await
            .map_err(End::Failed)?;
        let server = greeted.server;
        self.backbone.insert(server);
        shared.proven(self.number, server);
        shared.set(self.number, |s| (s.server_id, s.observed) = (Some(server), greeted.observed));
        // Only now, so that the server itself is not taken for another one to learn.
        shared.learn(&backbone);
        let seen = Seen { local: greeted.local, observed: greeted.observed.map(|a| a.ip()) };
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
    async fn keep(&self, mut open: Open, sent: &Signed<PeerRecord>) -> End {
        tracing::info!(endpoint = %self.target(), "session open");
        self.shared.set(self.number, |s| s.state = SessionState::Online);
        self.shared.learn(&open.rendezvous);
        let mut records = self.shared.record.subscribe();
        let mut sent_seq = sent.value().seq;
        let mut next_record = Instant::now() + RECORD_SPACING;
        let mut refresh_at = Instant::now() + open.refresh_after;
        let mut beat = tokio::time::interval_at(Instant::now() + open.heartbeat, open.heartbeat);
        let (mut beats, mut acked) = (0u64, 0u64);
        loop {
            let seq_of = |r: &Option<Signed<PeerRecord>>| r.as_ref().map_or(0, |r| r.value().seq);
            let has_newer = seq_of(&records.borrow_and_update()) > sent_seq;
            tokio::select! {
                message = handshake::next(&mut open.down) => match message {
                    Ok(Some(Down::HeartbeatAck(ack))) => acked = acked.max(ack.number.min(beats)),
                    Ok(Some(Down::RecordResult(result))) => {
                        if let Some(after) = self.record_result(&result) {
                            refresh_at = Instant::now() + after;
                        }
                    }
                    Ok(Some(Down::Drain(drain))) => return self.drained(&drain),
                    Ok(Some(Down::Hello(_) | Down::Lease(_))) => {}
                    Ok(None) => return End::Lost(Status::unavailable("the server closed the session")),
                    Err(status) => return End::Lost(status),
                },
                _ = beat.tick() => {
                    if beats >= acked + 2 {
                        return End::Lost(Status::unavailable("the server answers no heartbeats"));
                    }
                    beats += 1;
                    if let Err(status) = handshake::send(&open.up, Up::Heartbeat(wire::Heartbeat { number: beats })).await {
                        return End::Lost(status);
                    }
                }
                () = sleep_until(next_record), if has_newer => {
                    // The newest by now: others may have come while this one waited.
                    let newest = records.borrow_and_update().clone();
                    if let Some(record) = newest {
                        sent_seq = record.value().seq;
                        next_record = Instant::now() + RECORD_SPACING;
                        if let Err(status) = handshake::send(&open.up, Up::Record(record.to_wire())).await {
                            return End::Lost(status);
                        }
                    }
                }
                changed = records.changed(), if !has_newer => if changed.is_err() { return End::Stopped },
                () = sleep_until(refresh_at) => {
                    self.shared.sign_anew(0);
                    refresh_at = Instant::now() + open.refresh_after;
                }
                () = self.shared.stop.cancelled() => {
                    goodbye(open).await;
                    return End::Stopped;
                }
            }
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

    fn drained(&self, drain: &wire::Drain) -> End {
        let others: Vec<_> = drain
            .alternatives
            .iter()
            .take(super::MAX_LEARNT)
            .filter_map(|r| Signed::<PeerRecord>::verify(r.clone()).ok())
            .filter(|r| r.value().expires > now())
            .collect();
        self.shared.learn(&others);
        End::Drained(duration_from_wire(drain.reconnect_in.as_ref()).clamp(BACKOFF.0, BACKOFF.1 * 10))
    }
}

/// Says goodbye and lets the server end the stream, so that it knows at once.
async fn goodbye(mut open: Open) {
    let farewell = async {
        handshake::send(&open.up, Up::Goodbye(wire::Goodbye::default())).await?;
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
