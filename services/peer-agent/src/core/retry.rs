//! When a fetch that could not go on is tried again by itself.
//!
//! Trying costs: all that is there is read again. So a disk that lacks room is only looked at until it has enough, and anything else is
//! tried after pauses that grow.

use std::time::{Duration, Instant};

/// The pauses between attempts.
pub const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest of them.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How often a full disk is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A disk that seems to lack room is tried all the same after this: holes and content that is here already need less.
const LONGEST_WITHOUT_ROOM: Duration = Duration::from_secs(3600);
/// Room that the rest needs beside its bytes, at least.
const SPARE_BYTES: u64 = 1 << 20;
/// The share of the rest that names and block lists may take.
const SPARE_SHARE: u64 = 64;

/// Room for so many bytes that are still to come, and what the disk needs beside them.
#[must_use]
pub const fn room_for(left: u64) -> u64 {
    left.saturating_add(left / SPARE_SHARE).saturating_add(SPARE_BYTES)
}

/// The wait after one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    due: Instant,
    /// Until so much is free.
    room: Option<u64>,
}

impl Wait {
    /// Waits from `now` on for `pause`, or until there is room for `needed` bytes, if that is what is missing: `free` is what there is.
    #[must_use]
    pub fn new(now: Instant, pause: Duration, needed: Option<u64>, free: Option<u64>) -> Self {
        match (needed, free) {
            (Some(needed), Some(free)) if free < needed => {
                Self { due: now + LONGEST_WITHOUT_ROOM, room: Some(needed) }
            }
            // A quota, or no more names: free bytes say nothing.
            _ => Self { due: now + pause, room: None },
        }
    }

    /// How long until the next look.
    #[must_use]
    pub fn next_look(&self, now: Instant) -> Duration {
        let left = self.due.saturating_duration_since(now);
        if self.room.is_some() { left.min(LOOK) } else { left }
    }

    /// Whether it is over, so much being free.
    #[must_use]
    pub fn is_over(&self, now: Instant, free: Option<u64>) -> bool {
        now >= self.due || self.room.zip(free).is_some_and(|(needed, free)| free >= needed)
    }

    /// Whether it ends with room on the disk.
    #[must_use]
    pub const fn is_for_room(&self) -> bool {
        self.room.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_tried_as_soon_as_it_has_room_for_the_rest() {
        let now = Instant::now();
        let wait = Wait::new(now, FIRST_PAUSE, Some(room_for(100 << 20)), Some(3 << 20));
        assert!(wait.is_for_room());
        assert_eq!(wait.next_look(now), LOOK);
        for (free, over) in [(Some(3 << 20), false), (None, false), (Some(103 << 20), true)] {
            assert_eq!(wait.is_over(now + LONGEST_PAUSE, free), over, "{free:?}");
        }
        assert!(wait.is_over(now + LONGEST_WITHOUT_ROOM, Some(0)), "now and then it is tried all the same");
    }

    #[test]
    fn what_room_does_not_help_is_tried_after_a_pause() {
        let now = Instant::now();
        for (needed, free) in [(None, None), (Some(5), Some(5)), (Some(5), None)] {
            let wait = Wait::new(now, FIRST_PAUSE, needed, free);
            assert_eq!(wait.next_look(now), FIRST_PAUSE);
            assert!(!wait.is_for_room() && !wait.is_over(now, Some(u64::MAX)));
            assert!(wait.is_over(now + FIRST_PAUSE, free));
        }
    }
}
