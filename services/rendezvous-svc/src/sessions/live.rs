//! A session with its lease: heartbeats, records, and its end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use p2psb_proto::error::Failure;
use p2psb_proto::error::Reason;
use p2psb_proto::model::time::duration_to_wire;
use p2psb_proto::model::{PeerId, PeerStatement};
use p2psb_proto::wire::common::v1::{PeerRecord as WirePeerRecord, SignedRecord};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use prost::Message as _;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Stream;
use super::handshake::{from_stream, named_rendezvous};
use crate::api::status::{draining, session_replaced};
use crate::confirm;
use crate::core::session::{Ending, Ticket};
use crate::core::table::{CHANGE_INTERVAL, TableError};
use crate::core::telling::Origin;
use crate::node::Node;
use crate::records::{only_withdrawal, refresh_after};

/// How a session ended.
enum End {
    /// The peer said goodbye, or closed the stream.
    Clean,
    /// The stream broke.
    Lost,
    /// The peer was silent for too long.
    Silent,
    /// A newer session took its place.
    Replaced,
    /// This server goes.
    Drained,
    /// The peer broke a rule.
    Broken(Failure),
}

impl End {
    const fn name(&self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Lost => "lost",
            Self::Silent => "silent",
            Self::Replaced => "replaced",
            Self::Drained => "drained",
            Self::Broken(_) => "broken",
        }
    }
}

/// A record that waits until the peer may change what it says.
enum Waiting {
    /// It opened the session; the lease is the answer to it.
    Opening(PeerStatement),
    /// It was sent in the session, and not looked at yet.
    Sent(SignedRecord),
}

/// What became of a record when its moment had come.
enum Taken {
    Accepted(wire::RecordResult),
    TooSoon(Duration),
    Refused(Failure),
}

/// A live session.
pub(super) struct Session {
    node: Arc<Node>,
    pub(super) peer: PeerId,
    /// Where the session comes from, if that is known.
    from: Option<SocketAddr>,
    ticket: Ticket,
    replaced: CancellationToken,
    /// Silence that ends it.
    patience: Duration,
    /// When the next change of the record may be taken.
    next_change: Instant,
    /// The newest record that waits for that moment. It is gone with its session: the next one brings a newer one.
    waiting: Option<Waiting>,
    /// This server drains, and the peer has to be gone by then.
    leaves_by: Option<Instant>,
}

impl Session {
    pub(super) fn new(
        node: Arc<Node>,
        peer: PeerId,
        from: Option<SocketAddr>,
        ticket: Ticket,
        replaced: CancellationToken,
    ) -> Self {
        let timing = *node.directory.read().sessions.timing();
        let patience = timing.suspect_after() + timing.suspected_for();
        let next_change = Instant::now() + CHANGE_INTERVAL;
        Self { node, peer, from, ticket, replaced, patience, next_change, waiting: None, leaves_by: None }
    }

    /// The same session, whose first record has to wait.
    pub(super) fn waiting(mut self, opening: PeerStatement, wait: Duration) -> Self {
        self.next_change = Instant::now() + wait;
        self.waiting = Some(Waiting::Opening(opening));
        self
    }

    /// Keeps the session until it ends, and says how.
    pub(super) async fn live(mut self, stream: &mut Stream, lease: wire::Lease) -> Result<(), Failure> {
        let end = match stream.send(Down::Lease(lease)) {
            Ok(()) => self.serve(stream).await,
            // The peer left while it proved itself.
            Err(_) => End::Lost,
        };
        metrics::counter!("rendezvous_sessions_ended_total", "how" => end.name()).increment(1);
        tracing::debug!(peer = %self.peer, how = end.name(), "session ended");
        let ending = match &end {
            End::Clean => Ending::Clean,
            End::Silent => Ending::Silent,
            End::Lost | End::Drained | End::Broken(_) | End::Replaced => Ending::Lost,
        };
        self.node.streams.lock().remove(&self.ticket);
        let now = self.node.now().mono;
        if self.node.directory.write().close(&self.peer, self.ticket, ending, now) {
            self.node.presence(self.peer, Origin::Here);
        }
        match end {
            End::Clean | End::Lost => Ok(()),
            End::Silent => Err(Failure::new(Reason::SessionLost, "the peer was silent for too long")),
            End::Replaced => Err(session_replaced()),
            End::Drained => Err(draining()),
            End::Broken(failure) => Err(failure),
        }
    }

    async fn serve(&mut self, stream: &mut Stream) -> End {
        let mut silent_at = Instant::now() + self.patience;
        loop {
            let (has_waiting, leaves_by) = (self.waiting.is_some(), self.leaves_by);
            tokio::select! {
                message = stream.next() => match message {
                    Ok(Some(message)) => {
                        silent_at = Instant::now() + self.patience;
                        self.beat();
                        if let Some(end) = self.handle(stream, message) {
                            return end;
                        }
                    }
                    // Who goes because this server does is about to be elsewhere.
                    Ok(None) if leaves_by.is_some() => return End::Drained,
                    Ok(None) => return End::Clean,
                    Err(status) => match from_stream(&status) {
                        failure if failure.reason == Reason::Unreachable => return End::Lost,
                        failure => return End::Broken(failure),
                    },
                },
                () = sleep_until(self.next_change), if has_waiting => {
                    if let Err(failure) = self.take_waiting(stream) {
                        return End::Broken(failure);
                    }
                }
                () = sleep_until(silent_at) => return End::Silent,
                () = self.replaced.cancelled() => return End::Replaced,
                () = self.node.drain.begun(), if leaves_by.is_none() => {
                    if let Err(failure) = self.ask_to_leave(stream) {
                        return End::Broken(failure);
                    }
                }
                () = sleep_until(leaves_by.unwrap_or(silent_at)), if leaves_by.is_some() => return End::Drained,
            }
        }
    }

    fn beat(&self) {
        let now = self.node.now().mono;
        if self.node.directory.write().beat(&self.peer, self.ticket, now) {
            self.node.presence(self.peer, Origin::Here);
        }
    }

    /// Handles a message; returns the end if it is one.
    fn handle(&mut self, stream: &Stream, message: Up) -> Option<End> {
        let done = match message {
            Up::Heartbeat(heartbeat) => stream.send(Down::HeartbeatAck(wire::HeartbeatAck {
                number: heartbeat.number,
                server_time: Some(self.node.now().wall.to_wire()),
                reconnect_spread: Some(duration_to_wire(self.node.reconnect_spread())),
            })),
            Up::Record(record) => self.queue(stream, record),
            Up::ConfirmAddress(question) => self.confirm(stream, &question),
            Up::Goodbye(goodbye) => {
                self.withdraw(goodbye.withdrawal);
                return Some(End::Clean);
            }
            Up::Hello(_) | Up::Authenticate(_) => {
                Err(Failure::new(Reason::UnexpectedMessage, "the session is open already"))
            }
        };
        done.err().map(End::Broken)
    }

    /// Has another member look whether the peer can be reached. It answers by itself, if the session is still there.
    fn confirm(&self, stream: &Stream, question: &wire::ConfirmAddress) -> Result<(), Failure> {
        let port = question.port;
        let say = move |result| Down::ConfirmResult(wire::ConfirmResult { port, result: Some(result) });
        match confirm::ask(&self.node, self.peer, self.from, port) {
            Ok(answer) => {
                let outbound = stream.outbound.downgrade();
                let task = async move {
                    let message = Some(say(confirm::result(answer.await)));
                    if let Some(outbound) = outbound.upgrade() {
                        // A peer that does not read loses its session by the next answer that must not be missing.
                        let _ = outbound.try_send(Box::new(Ok(wire::ConnectResponse { message })));
                    }
                };
                tokio::spawn(task.in_current_span());
                Ok(())
            }
            Err(failure) => stream.send(say(confirm::result(Err(failure)))),
        }
    }

    /// Takes a record now, or when the peer may change it again. Of those that wait only the newest counts.
    fn queue(&mut self, stream: &Stream, record: SignedRecord) -> Result<(), Failure> {
        let wait = self.next_change.saturating_duration_since(Instant::now());
        if let Some(Waiting::Sent(passed_over)) = self.waiting.replace(Waiting::Sent(record)) {
            let failure = Failure::from(TableError::TooOften { wait });
            stream.send(Down::RecordResult(refused(&passed_over, failure)))?;
        }
        if wait.is_zero() { self.take_waiting(stream) } else { Ok(()) }
    }

    fn take_waiting(&mut self, stream: &Stream) -> Result<(), Failure> {
        let Some(waiting) = self.waiting.take() else { return Ok(()) };
        self.next_change = Instant::now() + CHANGE_INTERVAL;
        match (self.take(&waiting), waiting) {
            (Taken::TooSoon(wait), waiting) => {
                // The peer has said something elsewhere meanwhile.
                (self.next_change, self.waiting) = (Instant::now() + wait, Some(waiting));
                Ok(())
            }
            (Taken::Accepted(_), Waiting::Opening(_)) => Ok(()),
            (Taken::Accepted(result), Waiting::Sent(_)) => stream.send(Down::RecordResult(result)),
            (Taken::Refused(failure), Waiting::Opening(statement)) => {
                stream.send(Down::RecordResult(refused(&statement.to_wire(), failure)))
            }
            (Taken::Refused(failure), Waiting::Sent(record)) => {
                stream.send(Down::RecordResult(refused(&record, failure)))
            }
        }
    }

    fn take(&self, waiting: &Waiting) -> Taken {
        let statement = match waiting {
            Waiting::Opening(statement) => statement.clone(),
            Waiting::Sent(record) => match self.own(record.clone()) {
                Ok(statement) => statement,
                Err(failure) => return Taken::Refused(failure),
            },
        };
        match self.node.offer(&statement, self.ip()) {
            Ok(_) => Taken::Accepted(self.accepted(&statement)),
            Err(TableError::TooOften { wait }) => Taken::TooSoon(wait),
            Err(error) => Taken::Refused(error.into()),
        }
    }

    fn ip(&self) -> Option<IpAddr> {
        self.from.map(|from| from.ip())
    }

    /// A statement of this peer, verified.
    fn own(&self, record: SignedRecord) -> Result<PeerStatement, Failure> {
        let statement = self.node.verify(record)?;
        self.check_owner(&statement)?;
        Ok(statement)
    }

    fn accepted(&self, statement: &PeerStatement) -> wire::RecordResult {
        let refresh = match statement {
            PeerStatement::Record(record) => {
                let left = record.value().expires.since(self.node.now().wall);
                Some(duration_to_wire(refresh_after(left, fastrand::f64())))
            }
            PeerStatement::Withdrawal(_) => None,
        };
        let (seq, _) = statement.rank();
        wire::RecordResult { seq, refresh_after: refresh, ..wire::RecordResult::default() }
    }

    fn check_owner(&self, statement: &PeerStatement) -> Result<(), Failure> {
        let found = statement.peer_id();
        if found == self.peer {
            return Ok(());
        }
        let text = format!("this is the session of {}, the record is of {found}", self.peer);
        Err(Failure::new(Reason::InvalidArgument, text))
    }

    /// The peer leaves for good, if it says so. It does not wait for an answer.
    fn withdraw(&self, withdrawal: Option<SignedRecord>) {
        let Some(withdrawal) = withdrawal else { return };
        let withdrawn = self.own(withdrawal).and_then(|statement| {
            let withdrawal = only_withdrawal(statement)?;
            Ok(self.node.offer(&withdrawal, self.ip())?)
        });
        if let Err(failure) = withdrawn {
            tracing::debug!(peer = %self.peer, reason = %failure.reason, "a withdrawal was refused");
        }
    }

    /// Tells the peer when to leave and where to go. Until then the session goes on.
    fn ask_to_leave(&mut self, stream: &Stream) -> Result<(), Failure> {
        let (moment, patience) = self.node.next_to_leave();
        self.leaves_by = Some(Instant::now() + moment + patience);
        stream.send(Down::Drain(wire::Drain {
            reconnect_in: Some(duration_to_wire(moment)),
            alternatives: named_rendezvous(&self.node, false),
        }))
    }
}

fn refused(record: &SignedRecord, failure: Failure) -> wire::RecordResult {
    // Only to tell the peer which of its records is meant: nothing is believed of it.
    let seq = WirePeerRecord::decode(record.payload.clone()).map(|record| record.seq).unwrap_or_default();
    wire::RecordResult {
        seq,
        reason: failure.reason.as_str().to_owned(),
        detail: failure.message,
        stored: failure.record.filter(|_| failure.reason == Reason::RecordStale).map(|record| *record),
        refresh_after: None,
    }
}
