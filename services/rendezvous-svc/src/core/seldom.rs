//! What outsiders can cause at will is logged once in a while, with how often it happened meanwhile.

use std::time::{Duration, Instant};

/// Counts, and says when it is time to speak.
#[derive(Debug)]
pub struct Seldom {
    pause: Duration,
    /// Silent until then.
    until: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// Speaks at most once in `pause`.
    #[must_use]
    pub const fn new(pause: Duration) -> Self {
        Self { pause, until: None, unsaid: 0 }
    }

    /// It happened so many times more. Returns how often it did since this spoke last, if it may speak now.
    pub fn count(&mut self, times: u64, now: Instant) -> Option<u64> {
        self.unsaid += times;
        if self.unsaid == 0 || self.until.is_some_and(|until| now < until) {
            return None;
        }
        self.until = Some(now + self.pause);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_a_flood_once_in_a_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut seldom = Seldom::new(Duration::from_secs(60));
        assert_eq!(seldom.count(0, at(0)), None, "nothing happened");
        assert_eq!(seldom.count(1, at(1)), Some(1));
        for second in 2..=60 {
            assert_eq!(seldom.count(1000, at(second)), None);
        }
        assert_eq!(seldom.count(0, at(61)), Some(59_000));
        assert_eq!(seldom.count(0, at(500)), None);
    }
}
