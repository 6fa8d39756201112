//! Pauses between attempts, the same way everywhere in the SDK: each lies between the first pause and three times the last one, by
//! chance, so that clients which failed together come back apart ("decorrelated jitter"). Pure: chance is an argument.
//!
//! Those who had what they wanted from a server that then died were not refused by anybody, and yet would all come to the next one in the same
//! moment: they wait a random part of [`spread`].
//!
//! The runtime of the services has a backoff as well; the SDK must not depend on it.

use std::time::Duration;

/// How much longer the next pause may be than the last.
const GROWTH: u32 = 3;

/// How many clients of a server that is gone come elsewhere in a second, as members of a backbone tell their peers, too.
const COME_BACK_PER_SECOND: f64 = 2000.0;
/// The least time over which they are spread, and the longest.
const SPREAD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// Over how long the clients of a server with so many sessions come elsewhere when it is gone.
pub(crate) fn spread(sessions: u64) -> Duration {
    Duration::try_from_secs_f64(sessions as f64 / COME_BACK_PER_SECOND)
        .unwrap_or(SPREAD.1)
        .clamp(SPREAD.0, SPREAD.1)
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    last: Duration,
}

impl Backoff {
    /// No pause is shorter than `first` or longer than `longest`.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, last: first }
    }

    /// The next pause, by `chance` in 0 to 1.
    pub(crate) fn next(&mut self, chance: f64) -> Duration {
        let longest = self.last.saturating_mul(GROWTH).min(self.longest);
        self.last = self.first + longest.saturating_sub(self.first).mul_f64(chance.clamp(0.0, 1.0));
        self.last
    }

    /// The next pause where a server asked for one: never shorter than that, up to half of it longer.
    pub(crate) fn at_least(&mut self, asked: Duration, chance: f64) -> Duration {
        self.next(chance).max(asked.mul_f64(1.0 + chance.clamp(0.0, 1.0) / 2.0))
    }

    /// An attempt succeeded: the next failure begins with the first pause again.
    pub(crate) const fn reset(&mut self) {
        self.last = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(60);

    #[test]
    fn pauses_grow_up_to_the_longest_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        let most: Vec<_> = (0..6).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(most, [1500, 4500, 13_500, 40_500, 60_000, 60_000]);
        assert_eq!(backoff.next(0.0), FIRST, "never shorter than the first");
        backoff.next(1.0);
        backoff.reset();
        assert!(backoff.next(1.0) <= FIRST * 3);
    }

    #[test]
    fn clients_that_failed_together_come_back_apart() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut pauses: Vec<_> = (0..1000).map(|_| Backoff::new(FIRST, LONGEST).next(rng.f64())).collect();
        pauses.sort_unstable();
        let within = |from: Duration| pauses.iter().filter(|p| (from..from + FIRST / 5).contains(*p)).count();
        assert!((0..10).all(|n| (60..150).contains(&within(FIRST + FIRST / 5 * n))), "{pauses:?}");
    }

    #[test]
    fn the_clients_of_a_server_that_died_come_back_spread_by_how_many_they_are() {
        assert_eq!(spread(10_000), Duration::from_secs(5));
        assert_eq!((spread(0), spread(u64::MAX)), SPREAD);
        let mut rng = fastrand::Rng::with_seed(1);
        let moments: Vec<_> = (0..10_000).map(|_| spread(10_000).mul_f64(rng.f64()).as_millis()).collect();
        let in_each = |n: u128| moments.iter().filter(|at| (n * 100..(n + 1) * 100).contains(*at)).count();
        assert!((0..50).all(|n| (100..300).contains(&in_each(n))), "{moments:?}");
    }

    #[test]
    fn what_a_server_asks_for_is_kept() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        let asked = Duration::from_secs(600);
        assert_eq!(backoff.at_least(asked, 0.0), asked);
        assert_eq!(backoff.at_least(asked, 1.0), asked * 3 / 2);
        assert!(backoff.at_least(Duration::ZERO, 0.5) >= FIRST);
    }
}
