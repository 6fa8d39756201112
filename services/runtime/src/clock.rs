//! The time, as a value that can be passed around: services ask their [`Clock`] at the edge and
//! hand `now` to the pure core; tests hand out a clock that they move themselves.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Where the time comes from. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<Mutex<Manual>>>);

#[derive(Debug)]
struct Manual {
    now: Instant,
    wall: SystemTime,
}

impl Clock {
    /// The clock of the system.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still until its [`ManualClock`] moves it. The wall begins at `wall`.
    pub fn manual(wall: SystemTime) -> (Self, ManualClock) {
        let state = Arc::new(Mutex::new(Manual { now: Instant::now(), wall }));
        (Self(Some(Arc::clone(&state))), ManualClock(state))
    }

    /// Monotonic time, for deadlines and durations.
    pub fn now(&self) -> Instant {
        match &self.0 {
            None => Instant::now(),
            Some(manual) => manual.lock().now,
        }
    }

    /// Wall time, for what is signed or shown.
    pub fn wall(&self) -> SystemTime {
        match &self.0 {
            None => SystemTime::now(),
            Some(manual) => manual.lock().wall,
        }
    }

    /// Wall time in milliseconds since 1970; 0 for a clock set before that.
    pub fn unix_millis(&self) -> u64 {
        let since = self.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Moves a manual [`Clock`].
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<Manual>>);

impl ManualClock {
    /// Lets time pass, on both clocks.
    pub fn advance(&self, by: Duration) {
        let mut state = self.0.lock();
        state.now += by;
        state.wall += by;
    }

    /// Somebody set the wall clock; monotonic time does not care.
    pub fn set_wall(&self, wall: SystemTime) {
        self.0.lock().wall = wall;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told_and_all_clones_see_it() {
        let (clock, hand) = Clock::manual(UNIX_EPOCH + Duration::from_secs(10));
        let other = clock.clone();
        let before = clock.now();
        assert_eq!(clock.unix_millis(), 10_000);
        hand.advance(Duration::from_secs(5));
        assert_eq!(other.now() - before, Duration::from_secs(5));
        assert_eq!(other.unix_millis(), 15_000);
        hand.set_wall(UNIX_EPOCH);
        assert_eq!((clock.unix_millis(), clock.now() - before), (0, Duration::from_secs(5)));
    }

    #[test]
    fn the_system_clock_does_not_go_backwards() {
        let clock = Clock::system();
        let before = clock.now();
        assert!(clock.now() >= before);
        assert!(clock.unix_millis() > 1_600_000_000_000);
    }
}
