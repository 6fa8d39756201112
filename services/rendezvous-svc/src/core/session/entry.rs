//! One peer that is, or was, here: what is said of it follows from its entry and the time alone.
//!
//! Times are kept as what has passed since the first, which takes half of the room.

use std::time::Duration;

use p2psb_proto::model::presence::{PresenceSource, PresenceState};

use super::{REMEMBERED, TELLING, Ticket, Timing};
use crate::core::admission::Origin;

/// What time changes is noticed so much later, at most.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// What has passed since the first moment, in nanoseconds: enough for 500 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) u64);

impl Moment {
    pub(super) fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }

    /// The first tick at which it is over. They are enough for 13 years.
    pub(super) fn tick(self) -> u32 {
        u32::try_from(self.0.div_ceil(nanos(TICK))).unwrap_or(u32::MAX)
    }
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Live(Ticket),
    Lost {
        at: Moment,
    },
    Ended,
    /// It holds for a while from when it was heard.
    Registered {
        from: Origin,
    },
}

/// A proof of so many bytes, as every registration has, stands in its entry: a million of them have no session. Any other stands
/// beside.
pub(super) const PROOF: usize = 128;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) session_seq: u64,
    pub(super) phase: Phase,
    pub(super) heard: Moment,
    /// What convinces others; see [`PROOF`].
    pub(super) proof: [u8; PROOF],
    /// In the row of deadlines.
    pub(super) due: u32,
    /// What the rest of the backbone was told last.
    pub(super) told: PresenceState,
}

impl Entry {
    pub(super) fn state(&self, timing: &Timing, now: Moment) -> PresenceState {
        let suspect_at = match self.phase {
            Phase::Ended => return PresenceState::Offline,
            Phase::Registered { .. } if self.until(timing) <= now => return PresenceState::Offline,
            Phase::Registered { .. } => return PresenceState::Online,
            Phase::Live(_) => self.heard.plus(timing.suspect_after()),
            Phase::Lost { at } => at,
        };
        if now < suspect_at {
            PresenceState::Online
        } else if now < suspect_at.plus(timing.suspected_for()) {
            PresenceState::Suspect
        } else {
            PresenceState::Offline
        }
    }

    /// When it ends, as a registration.
    pub(super) fn until(&self, timing: &Timing) -> Moment {
        self.heard.plus(timing.registration)
    }

    /// When its state may change next; for one that is OFFLINE, when it is forgotten.
    pub(super) fn next_change(&self, timing: &Timing, now: Moment) -> Moment {
        let suspect_at = match self.phase {
            Phase::Live(_) => self.heard.plus(timing.suspect_after()),
            Phase::Lost { at } => at,
            Phase::Registered { .. } if self.until(timing) > now => return self.until(timing),
            Phase::Registered { .. } | Phase::Ended => return self.heard.plus(REMEMBERED),
        };
        let offline_at = suspect_at.plus(timing.suspected_for());
        if now < suspect_at {
            suspect_at
        } else if now < offline_at {
            offline_at
        } else {
            self.heard.max(offline_at).plus(REMEMBERED)
        }
    }

    /// The same for one whose state `told` is; of one that is OFFLINE and one too many, soon.
    pub(super) fn due_after(&self, timing: &Timing, full: bool, now: Moment) -> Moment {
        let due = self.next_change(timing, now);
        if full && self.told == PresenceState::Offline { due.min(now.plus(TELLING)) } else { due }
    }

    pub(super) const fn source(&self) -> PresenceSource {
        match self.phase {
            Phase::Registered { .. } => PresenceSource::Registration,
            Phase::Live(_) | Phase::Lost { .. } | Phase::Ended => PresenceSource::Session,
        }
    }
}
