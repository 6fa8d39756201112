//! Pauses between attempts: they double up to a bound, and chance takes up to half of each away, so
//! that clients which failed together do not come back together. Pure: chance is an argument, and
//! nothing here waits.

use std::time::Duration;

/// An endless row of pauses.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    next: Duration,
    rng: fastrand::Rng,
}

impl Backoff {
    /// Begins with a pause of at most `initial` and never exceeds `max`.
    pub fn new(initial: Duration, max: Duration, rng: fastrand::Rng) -> Self {
        let initial = initial.min(max);
        Self { initial, max, next: initial, rng }
    }

    /// The next pause: between half of the current bound and all of it; then the bound doubles.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.next;
        self.next = bound.saturating_mul(2).min(self.max);
        let half = bound / 2;
        half + (bound - half).mul_f64(self.rng.f64())
    }

    /// The next pause, but at least what the server asked for: jitter is added, never taken away.
    pub fn at_least(&mut self, asked: Duration) -> Duration {
        let delay = self.next_delay();
        if delay >= asked { delay } else { asked.saturating_add(delay.mul_f64(self.rng.f64())) }
    }

    /// After a success: the next failure begins at the first pause again.
    pub fn reset(&mut self) {
        self.next = self.initial;
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.next_delay())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(seed: u64) -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(2), fastrand::Rng::with_seed(seed))
    }

    #[test]
    fn pauses_double_up_to_the_bound_and_jitter_takes_at_most_half() {
        for seed in 0..200 {
            let bounds = [100, 200, 400, 800, 1600, 2000, 2000, 2000];
            for (pause, bound) in backoff(seed).zip(bounds) {
                let bound = Duration::from_millis(bound);
                assert!(pause >= bound / 2 && pause <= bound, "seed {seed}: {pause:?} against {bound:?}");
            }
        }
    }

    #[test]
    fn clients_that_failed_together_come_back_apart() {
        let pauses: std::collections::HashSet<_> = (0..100).filter_map(|seed| backoff(seed).next()).collect();
        assert!(pauses.len() > 90);
    }

    #[test]
    fn a_success_begins_anew_and_the_servers_wish_is_kept() {
        let mut backoff = backoff(1);
        for _ in 0..10 {
            backoff.next_delay();
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
        assert!(backoff.at_least(Duration::from_secs(30)) >= Duration::from_secs(30));
    }

    #[test]
    fn extreme_bounds_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::MAX / 4, Duration::MAX / 4, fastrand::Rng::with_seed(3));
        for _ in 0..5 {
            assert!(backoff.next_delay() <= Duration::MAX / 4);
        }
    }
}
