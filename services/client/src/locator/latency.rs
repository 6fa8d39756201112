//! How quick a rendezvous answers, and how long to wait for it before another one is asked as well. Pure.

use std::time::Duration;

/// What is waited before the next is asked, at least and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(150));
/// The same for one that has not answered yet: it is dialed first.
const FIRST_PATIENCE: Duration = Duration::from_millis(100);

/// A smoothed latency and its deviation, as TCP keeps them (RFC 6298).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Latency(Option<(Duration, Duration)>);

impl Latency {
    /// It took so long this time.
    pub(crate) fn add(&mut self, took: Duration) {
        self.0 = Some(match self.0 {
            None => (took, took / 2),
            Some((smooth, deviation)) => {
                ((smooth * 7 + took) / 8, (deviation * 3 + smooth.abs_diff(took)) / 4)
            }
        });
    }

    /// As a rule it takes so long.
    pub(crate) fn smooth(&self) -> Option<Duration> {
        self.0.map(|(smooth, _)| smooth)
    }

    /// Longer than that it takes seldom.
    pub(crate) fn patience(&self) -> Duration {
        let (least, most) = PATIENCE;
        self.0.map_or(FIRST_PATIENCE, |(smooth, deviation)| (smooth + deviation * 4).clamp(least, most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_what_is_usual_within_its_bounds() {
        let of = |samples: &[u64]| {
            let mut latency = Latency::default();
            samples.iter().for_each(|ms| latency.add(Duration::from_millis(*ms)));
            latency
        };
        assert_eq!(of(&[]).patience(), FIRST_PATIENCE);
        assert_eq!(of(&[1; 20]).patience(), PATIENCE.0);
        assert_eq!(of(&[900; 20]).patience(), PATIENCE.1);
        let usual = of(&[40; 30]);
        assert!(
            (Duration::from_millis(40)..Duration::from_millis(60)).contains(&usual.patience()),
            "{usual:?}"
        );
        assert!(of(&[20, 60, 20, 60, 20, 60]).patience() > Duration::from_millis(60), "it varies");
    }
}
