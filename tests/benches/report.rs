//! The rows of a measurement: printed as they come, one for each bar, and judged.
//!
//! With `--json` standard output holds one object a row and nothing else; what is for people goes to standard error.

use std::fmt;
use std::io::Write as _;

use serde::Serialize;

use crate::sample::{Figure, Sample};

/// Which way a value is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// A cost.
    Less,
    /// A rate.
    More,
}

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    /// At least so much of the floor, which was measured beside the value.
    OfFloor(f64, Sample),
    /// At most so much.
    AtMost(f64),
    /// At least so much.
    AtLeast(f64),
}

/// One promise, and what was measured of it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) value: Sample,
    pub(crate) bar: Bar,
}

impl Row {
    /// Value and floor compared; higher is better.
    fn ratio(&self) -> Option<f64> {
        let Bar::OfFloor(_, floor) = self.bar else { return None };
        Some(match self.better {
            Better::Less => floor.median / self.value.median,
            Better::More => self.value.median / floor.median,
        })
    }

    fn floor(&self) -> Option<Sample> {
        match self.bar {
            Bar::OfFloor(_, floor) => Some(floor),
            Bar::AtMost(_) | Bar::AtLeast(_) => None,
        }
    }

    fn holds(&self) -> bool {
        match self.bar {
            Bar::OfFloor(least, _) => self.ratio().is_some_and(|ratio| ratio >= least),
            Bar::AtMost(most) => self.value.median <= most,
            Bar::AtLeast(least) => self.value.median >= least,
        }
    }

    fn as_line(&self, is_judged: bool) -> Line {
        let rounded = |number: f64| (number * 1000.0).round() / 1000.0;
        Line {
            name: self.name,
            value: rounded(self.value.median),
            unit: self.unit,
            floor: self.floor().map(|floor| rounded(floor.median)),
            ratio: self.ratio().map(rounded),
            bar: self.bar.to_string(),
            holds: is_judged.then(|| self.holds()),
        }
    }
}

/// A row as programs read it.
#[derive(Debug, PartialEq, Serialize)]
struct Line {
    name: &'static str,
    value: f64,
    unit: &'static str,
    floor: Option<f64>,
    ratio: Option<f64>,
    bar: String,
    /// `null` in a short run, which judges nothing.
    holds: Option<bool>,
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfFloor(least, _) => write!(f, "ratio >= {least:.2}"),
            Self::AtMost(most) => write!(f, "value <= {most}"),
            Self::AtLeast(least) => write!(f, "value >= {least}"),
        }
    }
}

/// Prints rows, and remembers whether all hold.
pub(crate) struct Report {
    json: bool,
    /// A short run shows that everything runs; its figures say nothing.
    is_judged: bool,
    only: Option<String>,
    failed: Vec<&'static str>,
}

impl Report {
    pub(crate) fn new(json: bool, is_judged: bool, only: Option<String>) -> Self {
        Self { json, is_judged, only, failed: Vec::new() }
    }

    /// Whether the rows of a topic are wanted.
    pub(crate) fn wants(&self, topic: &str) -> bool {
        self.only.as_deref().is_none_or(|only| topic.contains(only))
    }

    /// Begins the table.
    pub(crate) fn begin(&self, machine: &str) {
        self.remark(format_args!("machine: {machine}"));
        if !self.json {
            self.print(format_args!("{}\n{}", line(&HEAD.map(String::from)), "-".repeat(118)));
        }
    }

    /// For people, while they wait.
    pub(crate) fn remark(&self, text: fmt::Arguments<'_>) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// A row is done.
    pub(crate) fn row(&mut self, row: &Row) {
        if self.is_judged && !row.holds() {
            self.failed.push(row.name);
        }
        if self.json {
            let line = serde_json::to_string(&row.as_line(self.is_judged)).unwrap_or_default();
            self.print(format_args!("{line}"));
            // Its keys are fixed, so the spread stands here.
            let floor = row.floor().map(|floor| format!(", floor {floor}")).unwrap_or_default();
            self.remark(format_args!("{}: spread {}{floor}", row.name, row.value));
            return;
        }
        let shown = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |n| Figure(n).to_string());
        let verdict = match (self.is_judged, row.holds()) {
            (false, _) => "not judged",
            (true, true) => "yes",
            (true, false) => "NO",
        };
        let spread = match row.floor() {
            Some(floor) => format!("{}; floor {floor}", row.value),
            None => row.value.to_string(),
        };
        self.print(format_args!(
            "{}",
            line(&[
                row.name.to_owned(),
                shown(Some(row.value.median)),
                row.unit.to_owned(),
                shown(row.floor().map(|floor| floor.median)),
                shown(row.ratio()),
                row.bar.to_string(),
                verdict.to_owned(),
                spread,
            ])
        ));
    }

    /// Whether every row holds.
    pub(crate) fn end(&self) -> bool {
        if !self.failed.is_empty() {
            self.remark(format_args!("does not hold: {}", self.failed.join("; ")));
        }
        self.failed.is_empty()
    }

    fn print(&self, text: fmt::Arguments<'_>) {
        // That nobody listens any more ends nothing.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

const HEAD: [&str; 8] = ["name", "value", "unit", "floor", "ratio", "bar", "holds", "spread of the rounds"];

fn line(cells: &[String; 8]) -> String {
    let [name, value, unit, floor, ratio, bar, holds, spread] = cells;
    format!("{name:<38} {value:>8} {unit:<8} {floor:>8} {ratio:>6}  {bar:<14} {holds:<10}  {spread}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(better: Better, value: f64, bar: Bar) -> Row {
        Row { name: "a row", unit: "µs", better, value: Sample::once(value), bar }
    }

    #[test]
    fn a_ratio_reads_higher_is_better() {
        let cost = row(Better::Less, 10.0, Bar::OfFloor(0.9, Sample::once(9.0)));
        assert_eq!((cost.ratio(), cost.holds()), (Some(0.9), true));
        let rate = row(Better::More, 80.0, Bar::OfFloor(0.9, Sample::once(100.0)));
        assert_eq!((rate.ratio(), rate.holds()), (Some(0.8), false));
    }

    #[test]
    fn an_absolute_bar_has_neither_floor_nor_ratio() {
        let row = row(Better::Less, 600.0, Bar::AtMost(600.0));
        let line = serde_json::to_string(&row.as_line(true)).unwrap();
        assert_eq!(
            line,
            r#"{"name":"a row","value":600.0,"unit":"µs","floor":null,"ratio":null,"bar":"value <= 600","holds":true}"#
        );
    }

    #[test]
    fn a_short_run_judges_nothing() {
        let bad = row(Better::Less, 601.0, Bar::AtMost(600.0));
        assert_eq!(bad.as_line(false).holds, None);
        for (is_judged, good) in [(true, false), (false, true)] {
            let mut report = Report::new(true, is_judged, None);
            report.row(&bad);
            assert_eq!(report.end(), good);
        }
    }
}
