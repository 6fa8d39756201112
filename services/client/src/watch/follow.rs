//! One backbone followed: a stream at one of its rendezvous, and at the next when it ends. Watches are many: those of a rendezvous that
//! died go on elsewhere spread over a while, those of one that drains when it ends them, which it does one after the other.

use std::collections::HashSet;
use std::time::Duration;

use p2psb_proto::error::{self, Failure, Reason};
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::proof::{ChallengeAction, answer_challenge};
use p2psb_proto::model::{Digest, PeerId, UnixMillis};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::watch_presence_response::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, Streaming};

use crate::backoff::{self, Backoff};
use crate::endpoint::Endpoint;
use crate::identity::Identity;
use crate::locator::{Client, Locator};
use crate::register::challenge;
use crate::session::now;

/// Marks come every 5 s; a rendezvous that is silent for so long is left.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a stream may take to open.
const OPEN: Duration = Duration::from_secs(5);
/// A stream that lasted so long was a good one.
const HELD: Duration = Duration::from_secs(10);
/// The shortest pause after all rendezvous were tried, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// What a follower hears.
#[derive(Debug)]
pub(super) enum Heard {
    Is(Box<LocatedPeer>),
    Gone { peer: PeerId, last_seen: Option<UnixMillis> },
    Progress(UnixMillis),
    Lost { detail: String },
}

pub(super) struct Follower {
    pub(super) number: usize,
    pub(super) locator: Locator,
    pub(super) watcher: Identity,
    pub(super) peers: Vec<PeerId>,
    /// A rendezvous of the backbone.
    pub(super) anchor: Endpoint,
    /// Where to go on, and at which rendezvous.
    pub(super) token: Option<(Endpoint, String)>,
}

/// How following at one rendezvous ended.
enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// No stream was opened.
    Refused(Status),
    /// It was open.
    Lost(Status),
}

type Said = mpsc::Sender<(usize, Heard)>;

impl Follower {
    /// Follows until nobody listens.
    pub(super) async fn run(mut self, said: Said) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let mut failures = Vec::new();
            for endpoint in self.locator.backbone_of(&self.anchor) {
                let began = Instant::now();
                let (status, was_open) = match self.follow(&endpoint, &said).await {
                    Ended::Unheard => return,
                    Ended::Refused(status) => (status, false),
                    Ended::Lost(status) => (status, true),
                };
                self.locator.failed(&endpoint, status.message());
                tracing::debug!(endpoint = endpoint.url(), problem = status.message(), "a watch ended");
                failures.push(format!("{}: {}", endpoint.url(), status.message()));
                let was_good = began.elapsed() >= HELD;
                if was_open {
                    let spread = backoff::spread(self.locator.sessions(&endpoint));
                    sleep(pause_after_loss(&status, spread, fastrand::f64())).await;
                }
                if was_good {
                    // The order may be another one by now.
                    backoff.reset();
                    failures.clear();
                    break;
                }
            }
            if failures.is_empty() {
                continue;
            }
            let lost = Heard::Lost { detail: failures.join("; ") };
            if said.send((self.number, lost)).await.is_err() {
                return;
            }
            sleep(backoff.next(fastrand::f64())).await;
        }
    }

    /// Follows at one rendezvous until that ends.
    async fn follow(&mut self, endpoint: &Endpoint, said: &Said) -> Ended {
        let opened = timeout(OPEN, self.open(endpoint)).await;
        match opened.unwrap_or_else(|_| Err(silent("the rendezvous did not answer"))) {
            Err(status) => Ended::Refused(status),
            Ok(messages) => match self.listen(endpoint, messages, said).await {
                Ok(()) => Ended::Unheard,
                Err(status) => Ended::Lost(status),
            },
        }
    }

    /// Tells what an open stream says. Returns how it ended; `Ok` if nobody listens any more.
    async fn listen(
        &mut self,
        endpoint: &Endpoint,
        mut messages: Streaming<wire::WatchPresenceResponse>,
        said: &Said,
    ) -> Result<(), Status> {
        let followed: HashSet<PeerId> = self.peers.iter().copied().collect();
        loop {
            let message = timeout(SILENCE, messages.message()).await;
            let message = message.unwrap_or_else(|_| Err(silent("the rendezvous is silent")))?;
            let Some(message) = message else { return Err(silent("the rendezvous ended the watch")) };
            let Some(heard) = self.hear(endpoint, &followed, message) else { continue };
            if said.send((self.number, heard)).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn open(&self, endpoint: &Endpoint) -> Result<Streaming<wire::WatchPresenceResponse>, Status> {
        let mut client: Client = self.locator.client(endpoint).await?;
        let (server, challenge) = challenge(&mut client, &self.watcher.peer_id(), endpoint.pin()).await?;
        let peer_ids: Vec<_> = self.peers.iter().map(PeerId::to_wire).collect();
        let digest = Digest::of(&peer_ids.concat());
        let action = ChallengeAction::Watch;
        let proof = answer_challenge(self.watcher.key(), &server, &challenge, action, &digest);
        let token = self.token.as_ref().filter(|(at, _)| at == endpoint).map(|(_, token)| token.clone());
        let request = wire::WatchPresenceRequest {
            peer_ids,
            watcher_id: self.watcher.peer_id().to_wire(),
            proof: Some(proof),
            resume_token: token.unwrap_or_default(),
        };
        Ok(client.watch_presence(request).await?.into_inner())
    }

    /// What a message says, if it can be believed.
    fn hear(
        &mut self,
        endpoint: &Endpoint,
        followed: &HashSet<PeerId>,
        message: wire::WatchPresenceResponse,
    ) -> Option<Heard> {
        match message.message? {
            Message::Peer(peer) => {
                let peer = LocatedPeer::try_from(peer).ok()?;
                let counts = peer.record.value().check(self.locator.network(), now()).is_ok();
                (counts && followed.contains(&peer.peer_id())).then(|| Heard::Is(Box::new(peer)))
            }
            Message::Gone(gone) => {
                let peer = PeerId::from_slice(&gone.peer_id).ok().filter(|peer| followed.contains(peer))?;
                let facts = gone.error.map(|error| error.facts).unwrap_or_default();
                let last_seen = facts.iter().find(|fact| fact.key == "last_seen_time");
                let last_seen = last_seen.and_then(|fact| UnixMillis::parse(&fact.value));
                Some(Heard::Gone { peer, last_seen: last_seen.map(|seen| seen.min(now())) })
            }
            Message::Progress(progress) => {
                self.token = Some((endpoint.clone(), progress.resume_token));
                let as_of = UnixMillis::from_wire(&progress.as_of_time?)?;
                Some(Heard::Progress(as_of.min(now())))
            }
            // Every peer is told anew behind it.
            Message::Resync(_) => None,
        }
    }
}

fn silent(text: &str) -> Status {
    Failure::new(Reason::Unreachable, text).into()
}

/// How long to wait before an open stream that ended is opened elsewhere; `chance` in 0 to 1.
fn pause_after_loss(status: &Status, spread: Duration, chance: f64) -> Duration {
    match error::reason_of(status) {
        // Each watch is told so at another moment.
        Some(Reason::Draining) => Duration::ZERO,
        _ => spread.mul_f64(chance.clamp(0.0, 1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watches_of_a_rendezvous_that_died_go_on_spread_and_those_of_one_that_drains_at_once() {
        let spread = backoff::spread(10_000);
        let broken = Status::unavailable("the connection broke");
        for status in [broken, silent("the rendezvous is silent")] {
            assert_eq!(pause_after_loss(&status, spread, 0.5), Duration::from_millis(2500));
            assert_eq!(pause_after_loss(&status, spread, 1.0), spread);
        }
        let draining = Failure::new(Reason::Draining, "it goes").into_status();
        assert_eq!(pause_after_loss(&draining, spread, 1.0), Duration::ZERO);
    }
}
