//! Wall-clock time as it travels: Unix milliseconds, UTC.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment, in milliseconds since 1970. Finer parts of a wire timestamp are cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

/// The latest moment that a wire timestamp can hold: the end of the year 9999.
const MAX_SECONDS: u64 = 253_402_300_799;

impl UnixMillis {
    /// `self + by`, ending at the largest value.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }

    /// `self - by`, ending at 1970.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Parses a wire timestamp; `None` outside 1970 to 9999.
    #[must_use]
    pub fn from_wire(wire: &prost_types::Timestamp) -> Option<Self> {
        let seconds = u64::try_from(wire.seconds).ok().filter(|s| *s <= MAX_SECONDS)?;
        let nanos = u64::try_from(wire.nanos).ok().filter(|n| *n < 1_000_000_000)?;
        Some(Self(seconds * 1000 + nanos / 1_000_000))
    }

    /// Reads what [`Self`] shows: RFC 3339. `None` if it is something else, or outside 1970 to 9999.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_wire(&text.parse().ok()?)
    }

    /// As a wire timestamp.
    #[must_use]
    pub fn to_wire(self) -> prost_types::Timestamp {
        let millis = self.0.min(MAX_SECONDS * 1000 + 999);
        // Both casts fit: the first by the bound above, the second is below 10^9.
        prost_types::Timestamp {
            seconds: (millis / 1000) as i64,
            nanos: ((millis % 1000) * 1_000_000) as i32,
        }
    }
}

impl From<SystemTime> for UnixMillis {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, millis))
    }
}

impl fmt::Display for UnixMillis {
    /// As RFC 3339 to the second: `2026-01-02T03:04:05Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut wire = self.to_wire();
        wire.nanos = 0;
        wire.fmt(f)
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// A duration as it travels.
#[must_use]
pub fn duration_to_wire(d: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    // Sub-second nanoseconds are below 10^9.
    prost_types::Duration { seconds, nanos: d.subsec_nanos() as i32 }
}

/// A duration from the wire; negative or absent ones become zero.
#[must_use]
pub fn duration_from_wire(wire: Option<&prost_types::Duration>) -> Duration {
    wire.and_then(|d| {
        let seconds = u64::try_from(d.seconds).ok()?;
        let nanos = u32::try_from(d.nanos).ok().filter(|n| *n < 1_000_000_000)?;
        Some(Duration::new(seconds, nanos))
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives_the_wire_to_the_millisecond() {
        let t = UnixMillis(1_767_323_045_678);
        assert_eq!(UnixMillis::from_wire(&t.to_wire()), Some(t));
        assert_eq!(t.to_string(), "2026-01-02T03:04:05Z");
    }

    #[test]
    fn moments_outside_the_calendar_are_refused() {
        for (seconds, nanos) in [(-1, 0), (253_402_300_800, 0), (0, -1), (0, 1_000_000_000)] {
            assert_eq!(UnixMillis::from_wire(&prost_types::Timestamp { seconds, nanos }), None);
        }
    }
}
