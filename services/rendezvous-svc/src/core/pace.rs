//! What somebody says costs time: so long each thing, beyond a first burst.
//!
//! Invariant: in any span of time no more is said without waiting than the span and [`BURST`] together pay for.

use std::time::{Duration, Instant};

/// So long takes each thing: 1000 a second. Signatures cost time.
pub const STEP: Duration = Duration::from_millis(1);
/// What may be said at once.
pub const BURST: Duration = Duration::from_secs(4);

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Up to when the time for what was said is spent; none was at first.
    spent: Option<Instant>,
}

impl Pace {
    /// So many things are said. Returns how long to wait before they are heard.
    pub fn spend(&mut self, things: usize, now: Instant) -> Duration {
        let cost = STEP.saturating_mul(u32::try_from(things).unwrap_or(u32::MAX));
        let least = now.checked_sub(BURST).unwrap_or(now);
        let spent = self.spent.map_or(least, |spent| spent.max(least)) + cost;
        self.spent = Some(spent);
        spent.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::Time;

    #[test]
    fn a_burst_is_free_and_then_each_thing_takes_its_time() {
        let (mut pace, t) = (Pace::default(), Time::start());
        let at = |millis| t.at(100).mono + Duration::from_millis(millis);
        assert_eq!(pace.spend(4000, at(0)), Duration::ZERO);
        assert_eq!(pace.spend(1, at(0)), Duration::from_millis(1));
        assert_eq!(pace.spend(499, at(0)), Duration::from_millis(500));
        assert_eq!(pace.spend(0, at(500)), Duration::ZERO);
        assert_eq!(pace.spend(200, at(600)), Duration::from_millis(100), "one tenth of a second was saved");
    }

    #[test]
    fn nobody_saves_more_than_the_burst() {
        let (mut pace, t) = (Pace::default(), Time::start());
        pace.spend(10, t.at(100).mono);
        assert_eq!(pace.spend(5000, t.at(1000).mono), Duration::from_secs(1));
        assert!(pace.spend(usize::MAX, t.at(1000).mono) > Duration::from_secs(1_000_000));
    }

    #[test]
    fn who_waits_says_1000_things_a_second() {
        let (mut pace, t) = (Pace::default(), Time::start());
        let (start, mut now, mut said) = (t.at(100).mono, t.at(100).mono, 0_u32);
        while now < start + Duration::from_secs(60) {
            now += pace.spend(100, now);
            said += 100;
        }
        assert_eq!(said, 64_000);
    }
}
