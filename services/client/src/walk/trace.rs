//! What a walk did and why: who was asked in which step, what they said, how long it took, what was left out. It is what `Explain` shows.

use std::fmt;
use std::time::Duration;

use p2psb_proto::model::presence::{PresenceSource, PresenceState};
use p2psb_proto::model::{PeerId, RecordError, UnixMillis};

use super::answer::{Lie, Word};
use super::budget::Scope;
use crate::endpoint::Endpoint;

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Whom {
    /// A rendezvous.
    Rendezvous(Endpoint),
    /// A peer that this one knows.
    Peer(PeerId),
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rendezvous(endpoint) => endpoint.fmt(f),
            Self::Peer(peer) => peer.fmt(f),
        }
    }
}

/// The steps of a walk, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Some rendezvous of each backbone, hedged.
    Backbones,
    /// Every other rendezvous of all backbones.
    EveryRendezvous,
    /// Peers that this one knows.
    Peers,
}

/// One walk. Times are counted from its begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Who was looked for.
    pub peer: PeerId,
    /// What was remembered.
    pub cache: Cached,
    /// An equal query was under way, and this one shared its walk; the steps are those of that walk.
    pub shared: bool,
    /// The time was over before the walk was.
    pub cut: bool,
    /// The steps that were reached, in order.
    pub steps: Vec<StepTrace>,
    /// How long all of it took.
    pub took: Duration,
}

impl Trace {
    /// Of a query that asked nobody itself.
    pub(crate) fn without_steps(peer: PeerId, cache: Cached, took: Duration) -> Self {
        Self { peer, cache, shared: false, cut: false, steps: Vec::new(), took }
    }

    /// Whether something was left out on account of who asked: others may find more.
    pub(crate) fn is_of_one_caller(&self) -> bool {
        let is_his = |skipped| matches!(skipped, Some(Skipped::NoBudget { scope: Scope::Caller, .. }));
        self.steps.iter().any(|step| is_his(step.skipped))
    }

    /// Everybody who was asked, in order.
    pub fn asks(&self) -> impl Iterator<Item = &AskTrace> {
        self.steps.iter().flat_map(|step| &step.asks)
    }
}

/// What the cache had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// Nothing.
    Nothing,
    /// The caller wanted to do without.
    Declined,
    /// An answer of so long ago, which was given.
    Found {
        /// How long ago it came.
        age: Duration,
    },
    /// That the peer was not found, so long ago. It was said again.
    NotFound {
        /// How long ago it was looked for.
        age: Duration,
    },
    /// An answer too old to be given at once, with a record that is valid still.
    Old {
        /// How long ago it came.
        age: Duration,
        /// Nobody had a better one, so it was given.
        given: bool,
    },
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepTrace {
    /// Which.
    pub step: Step,
    /// When it began.
    pub begun: Duration,
    /// Why nobody was asked, if so.
    pub skipped: Option<Skipped>,
    /// Who was asked, in order.
    pub asks: Vec<AskTrace>,
    /// How many more there were to ask, had there been need, time or budget.
    pub left: usize,
}

impl StepTrace {
    /// One in which nobody was asked yet.
    pub(crate) const fn begun(step: Step, begun: Duration, skipped: Option<Skipped>) -> Self {
        Self { step, begun, skipped, asks: Vec::new(), left: 0 }
    }
}

/// Why a step was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// There is nobody (else) to ask.
    Nobody,
    /// The caller wanted to do without.
    Declined,
    /// Too many were asked lately; again after so long.
    NoBudget {
        /// On whose account.
        scope: Scope,
        /// When there is room again.
        retry_after: Duration,
    },
    /// The time was over.
    NoTime,
}

/// One who was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskTrace {
    /// Who.
    pub whom: Whom,
    /// The number of its backbone; `None` for a peer.
    pub backbone: Option<usize>,
    /// When.
    pub begun: Duration,
    /// How long it took, or had taken when the walk ended.
    pub took: Duration,
    /// What it said.
    pub said: Said,
}

/// What one said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing yet when the walk ended.
    Nothing,
    /// Here is the peer.
    Found {
        /// Of its record.
        seq: u64,
        /// Until when the record is valid.
        expires: UnixMillis,
        /// Its presence.
        state: PresenceState,
        /// Up to when the presence is known.
        as_of: UnixMillis,
        /// What the presence rests on.
        source: PresenceSource,
    },
    /// It was never seen there.
    Unknown {
        /// How far back its knowledge reaches, if it says so.
        since: Option<UnixMillis>,
        /// Whether that is long enough to believe it.
        settled: bool,
    },
    /// It was seen, but no record of it is valid any more.
    Offline {
        /// When it was seen last.
        last_seen: Option<UnixMillis>,
    },
    /// Something untrue.
    Lied(Lie),
    /// It does not answer now.
    Refused {
        /// Why, as it says.
        detail: String,
        /// When it may.
        retry_after: Option<Duration>,
    },
    /// A record whose time has not come by the clock here.
    Early(RecordError),
    /// The call broke.
    Failed(String),
    /// Nothing, for as long as it had.
    TimedOut,
}

impl From<&Word> for Said {
    fn from(word: &Word) -> Self {
        match word {
            Word::Found(found) => Self::Found {
                seq: found.record.value().seq,
                expires: found.record.value().expires,
                state: found.presence.state,
                as_of: found.presence.as_of,
                source: found.presence.source,
            },
            Word::Unknown { since, settled, .. } => Self::Unknown { since: *since, settled: *settled },
            Word::Offline { last_seen, .. } => Self::Offline { last_seen: *last_seen },
            Word::Lied(lie) => Self::Lied(lie.clone()),
            Word::Refused { detail, retry_after } => {
                Self::Refused { detail: detail.clone(), retry_after: *retry_after }
            }
            Word::Early(error) => Self::Early(error.clone()),
            Word::Failed(detail) => Self::Failed(detail.clone()),
            Word::TimedOut => Self::TimedOut,
        }
    }
}
