//! What comes out of a walk.

use std::time::{Duration, Instant};

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::presence::{LocatedPeer, PresenceSource, PresenceState};
use p2psb_proto::model::{PeerId, UnixMillis};

use super::answer::{Word, version};
use super::cache::NOT_FOUND;
use super::trace::{AskTrace, Cached, Said, Skipped, Step, StepTrace, Trace, Whom};
use super::{Walk, budget};

/// When nobody answered, or too many ask, it is worth another try after so long.
const AGAIN: Duration = Duration::from_secs(2);
/// Nobody is told to ask again sooner than that.
const SOONEST: Duration = Duration::from_secs(1);
/// How many of those that failed are named in an error.
const NAMED: usize = 5;

/// Why a lookup has no answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LocateError {
    /// Everyone who answered does not know the peer.
    #[error("no rendezvous knows {peer}: it was never online here as far as they remember ({asked} asked)")]
    Unknown {
        /// Who was looked for.
        peer: PeerId,
        /// How many answered.
        asked: usize,
        /// When to ask again.
        retry_after: Duration,
    },
    /// It was seen, but nobody who answered has a valid record of it.
    #[error("{peer} is offline, last seen at {last_seen}: it left, or its record ran out ({asked} asked)")]
    Offline {
        /// Who was looked for.
        peer: PeerId,
        /// The latest moment that anybody names.
        last_seen: UnixMillis,
        /// How many answered.
        asked: usize,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Nobody answered.
    #[error("no rendezvous answered: {detail}")]
    NoRendezvous {
        /// What each of them failed with.
        detail: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// As many lookups are under way as may be.
    #[error("{most} lookups are under way, and there may be no more; try again in a moment")]
    Busy {
        /// How many there may be.
        most: usize,
        /// When to ask again.
        retry_after: Duration,
    },
}

impl LocateError {
    /// Nobody answered, for this reason.
    pub(crate) fn nobody(detail: String) -> Self {
        Self::NoRendezvous { detail, retry_after: AGAIN }
    }

    /// There are `most` lookups.
    pub(crate) const fn busy(most: usize) -> Self {
        Self::Busy { most, retry_after: AGAIN }
    }

    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Unknown { .. } => Reason::PeerUnknown,
            Self::Offline { .. } => Reason::PeerOffline,
            Self::NoRendezvous { .. } => Reason::NoRendezvous,
            Self::Busy { .. } => Reason::LimitExceeded,
        }
    }

    /// After how long it is worth to ask again.
    #[must_use]
    pub const fn retry_after(&self) -> Duration {
        match self {
            Self::Unknown { retry_after, .. }
            | Self::Offline { retry_after, .. }
            | Self::NoRendezvous { retry_after, .. }
            | Self::Busy { retry_after, .. } => *retry_after,
        }
    }

    /// The same, to be asked again after `base` if there were no load; see [`budget::retry_after`].
    pub(crate) fn after(mut self, base: Duration, load: f64, chance: f64) -> Self {
        match &mut self {
            Self::Unknown { retry_after, .. }
            | Self::Offline { retry_after, .. }
            | Self::NoRendezvous { retry_after, .. }
            | Self::Busy { retry_after, .. } => *retry_after = budget::retry_after(base, load, chance),
        }
        self
    }
}

impl From<LocateError> for Failure {
    fn from(error: LocateError) -> Self {
        let failure = Self::new(error.reason(), error.to_string()).retry_after(error.retry_after());
        match error {
            LocateError::Offline { last_seen, .. } => failure.with("last_seen_time", last_seen),
            LocateError::Busy { .. } => failure.with("limit", "lookups"),
            LocateError::Unknown { .. } | LocateError::NoRendezvous { .. } => failure,
        }
    }
}

/// A located peer, and who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The peer.
    pub peer: LocatedPeer,
    /// Whose answer this is.
    pub answered_by: Whom,
}

/// What everybody who answered without the peer said, taken together.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// How many do not have it.
    without: usize,
    last_seen: Option<UnixMillis>,
    retry_after: Option<Duration>,
    failures: Vec<String>,
    failed: usize,
}

impl Heard {
    pub(super) fn add(&mut self, whom: &Whom, word: &Word) {
        let why = match word {
            Word::Found(_) => return,
            // A peer knows few others: that it does not know this one says nothing.
            Word::Unknown { .. } | Word::Offline { .. } if matches!(whom, Whom::Peer(_)) => return,
            Word::Unknown { retry_after, .. } | Word::Offline { retry_after, .. } => {
                self.without += 1;
                // The one who is sure that it pays to ask soon is to be believed.
                self.retry_after = match (self.retry_after, *retry_after) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                if let Word::Offline { last_seen, .. } = word {
                    self.last_seen = self.last_seen.max(*last_seen);
                }
                return;
            }
            Word::Lied(lie) => lie.to_string(),
            Word::Early(error) => error.to_string(),
            Word::Refused { detail, .. } | Word::Failed(detail) => detail.clone(),
            Word::TimedOut => "no answer in time".to_owned(),
        };
        self.failed += 1;
        if self.failures.len() < NAMED {
            self.failures.push(format!("{whom}: {why}"));
        }
    }

    fn error(&self, peer: PeerId) -> LocateError {
        let retry_after = self.retry_after.unwrap_or(NOT_FOUND).clamp(SOONEST, NOT_FOUND);
        let asked = self.without;
        match self.last_seen {
            _ if asked == 0 => LocateError::nobody(match self.failures.as_slice() {
                [] if self.failed == 0 => "there is nobody to ask".to_owned(),
                some => some.join("; "),
            }),
            Some(last_seen) => LocateError::Offline { peer, last_seen, asked, retry_after },
            None => LocateError::Unknown { peer, asked, retry_after },
        }
    }
}

/// A walk that is over.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) answer: Result<Located, LocateError>,
    pub(crate) trace: Trace,
    /// The peer was found by this walk, and not only before.
    pub(crate) is_news: bool,
    /// That the peer was not found is sure enough to be remembered.
    pub(crate) is_sure: bool,
}

impl Walk {
    /// Ends it.
    pub(crate) fn finish(mut self, now: Instant) -> Outcome {
        let cut = self.best.is_none() && now >= self.deadline;
        let is_sure = self.is_certain() && !cut && !self.steps.iter().any(|step| is_left_out(step.skipped));
        let found = self.best.take().ok_or_else(|| self.heard.error(self.peer));
        let is_news = found.is_ok();
        let (answer, cache) = better(found, self.old.take());
        let trace = Trace {
            peer: self.peer,
            cache,
            shared: false,
            cut,
            took: now.duration_since(self.begun),
            steps: self.into_steps(cut, now),
        };
        Outcome { answer, trace, is_news, is_sure }
    }

    fn into_steps(self, cut: bool, now: Instant) -> Vec<StepTrace> {
        let left = [Step::Backbones, Step::EveryRendezvous, Step::Peers].map(|step| (step, self.left(step)));
        let mut steps = self.steps;
        for (step, left) in left {
            if cut && !steps.iter().any(|known| known.step == step) {
                let begun = now.duration_since(self.begun);
                steps.push(StepTrace::begun(step, begun, Some(Skipped::NoTime)));
            }
            steps.iter_mut().filter(|known| known.step == step).for_each(|known| {
                known.left = left.unwrap_or_default();
            });
        }
        for asked in self.asked {
            let (until, said) = asked.said.unwrap_or((now, Said::Nothing));
            let ask = AskTrace {
                whom: asked.whom,
                backbone: asked.lane,
                begun: asked.begun.duration_since(self.begun),
                took: until.duration_since(asked.begun),
                said,
            };
            if let Some(step) = steps.iter_mut().find(|step| step.step == asked.step) {
                step.asks.push(ask);
            }
        }
        steps
    }
}

/// Whether a step was left out though there was somebody to ask.
const fn is_left_out(skipped: Option<Skipped>) -> bool {
    matches!(skipped, Some(Skipped::NoBudget { .. } | Skipped::NoTime))
}

/// An answer, and what is better in a former one: a newer record. Without any answer the former one is better than none; nobody vouches for
/// its presence any more. It yields to the word that the peer has left since, not to nobody's knowing it.
fn better(
    found: Result<Located, LocateError>,
    old: Option<(Located, Duration)>,
) -> (Result<Located, LocateError>, Cached) {
    let Some((mut old, age)) = old else { return (found, Cached::Nothing) };
    let version = |located: &Located| version(&located.peer);
    let (answer, given) = match found {
        Ok(mut found) => {
            let given = version(&old) > version(&found);
            if given {
                found.peer.record = old.peer.record;
            }
            (Ok(found), given)
        }
        Err(LocateError::Offline { last_seen, peer, asked, retry_after })
            if last_seen >= old.peer.presence.last_seen =>
        {
            (Err(LocateError::Offline { last_seen, peer, asked, retry_after }), false)
        }
        Err(_) => {
            old.peer.presence.state = PresenceState::Offline;
            old.peer.presence.source = PresenceSource::Record;
            old.peer.presence.home = None;
            (Ok(old), true)
        }
    };
    (answer, Cached::Old { age, given })
}
