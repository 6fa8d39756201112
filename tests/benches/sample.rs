//! What was measured several times.

use std::fmt;

/// How often everything is measured whose result varies.
pub(crate) const ROUNDS: usize = 5;

/// The median of some measurements, with the lowest and the highest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Sample {
    /// Of at least one measurement; 0 of none.
    pub(crate) fn of(mut measured: Vec<f64>) -> Self {
        measured.sort_by(f64::total_cmp);
        let at = |n: usize| measured.get(n).copied().unwrap_or_default();
        let last = measured.len().saturating_sub(1);
        // The lower of the two in the middle, if there are two: it was measured.
        Self { median: at(last / 2), low: at(0), high: at(last) }
    }

    /// What was measured once.
    pub(crate) fn once(measured: f64) -> Self {
        Self { median: measured, low: measured, high: measured }
    }
}

/// The spread.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high {
            return f.write_str("once");
        }
        write!(f, "{}–{}", Figure(self.low), Figure(self.high))
    }
}

/// A number with as many digits as say something.
pub(crate) struct Figure(pub(crate) f64);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.0.abs() {
            size if size >= 100.0 => 0,
            size if size >= 10.0 => 1,
            _ => 2,
        };
        write!(f, "{:.digits$}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_between_the_ends() {
        let sample = Sample::of(vec![3.0, 9.0, 1.0, 2.0, 5.0]);
        assert_eq!((sample.low, sample.median, sample.high), (1.0, 3.0, 9.0));
        assert_eq!(Sample::of(vec![4.0, 2.0]).median, 2.0);
        assert_eq!(Sample::of(Vec::new()), Sample::once(0.0));
    }

    #[test]
    fn figures_have_three_digits() {
        let shown: Vec<_> = [8.345, 83.45, 834.5, 83_450.0].map(|n| Figure(n).to_string()).into();
        assert_eq!(shown, ["8.35", "83.5", "834", "83450"]);
    }
}
