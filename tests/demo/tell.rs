//! How the demo speaks: lines for people, or one JSON object a line.

use std::fmt::{self, Display};
use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Speaks on standard output. That nobody listens any more ends nothing.
pub(crate) struct Teller {
    json: bool,
    begin: Instant,
}

impl Teller {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, begin: Instant::now() }
    }

    /// Something happened: `text` for people, `facts` for programs.
    pub(crate) fn say(&self, event: &str, text: impl Display, facts: Value) {
        if self.json {
            self.print(&object(event, self.begin.elapsed(), facts));
        } else {
            self.print(&format_args!("{:>7.1} s  {text}", self.begin.elapsed().as_secs_f64()));
        }
    }

    /// More of what happened last, without a time.
    pub(crate) fn add(&self, event: &str, text: impl Display, facts: Value) {
        if self.json {
            self.print(&object(event, self.begin.elapsed(), facts));
        } else {
            self.print(&format_args!("           {text}"));
        }
    }

    /// Words for people only.
    pub(crate) fn remark(&self, text: impl Display) {
        if !self.json {
            self.print(&text);
        }
    }

    /// Facts for programs only.
    pub(crate) fn only_json(&self, event: &str, facts: Value) {
        if self.json {
            self.print(&object(event, self.begin.elapsed(), facts));
        }
    }

    /// The demo failed.
    pub(crate) fn failed(&self, why: &str) {
        if self.json {
            self.print(&object("failed", self.begin.elapsed(), json!({ "error": why })));
        } else {
            let _ = writeln!(std::io::stderr(), "\nthe demo failed: {why}");
        }
    }

    fn print(&self, line: &dyn Display) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

fn object(event: &str, at: Duration, facts: Value) -> Value {
    let mut object = json!({ "event": event, "seconds": rounded(at.as_secs_f64()) });
    if let (Some(object), Value::Object(facts)) = (object.as_object_mut(), facts) {
        object.extend(facts);
    }
    object
}

/// To the millisecond.
pub(crate) fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// A number of bytes as people read it.
pub(crate) struct Size(pub(crate) u64);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEP: f64 = 1024.0;
        let mut number = self.0 as f64;
        for unit in ["bytes", "KiB", "MiB", "GiB"] {
            if number < STEP || unit == "GiB" {
                let digits = usize::from(unit != "bytes" && number < 100.0);
                return write!(f, "{number:.digits$} {unit}");
            }
            number /= STEP;
        }
        Ok(())
    }
}

/// So much in so long: time, and rate where one says something.
pub(crate) struct Pace(pub(crate) u64, pub(crate) Duration);

impl Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.1.as_secs_f64();
        write!(f, "{seconds:.2} s")?;
        if self.0 >= 1 << 20 && seconds > 0.0 {
            write!(f, " ({} a second)", Size((self.0 as f64 / seconds) as u64))?;
        }
        Ok(())
    }
}

/// A number with its word.
pub(crate) struct Count<'a>(pub(crate) u64, pub(crate) &'a str);

impl Display for Count<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_read_well() {
        assert_eq!(Size(0).to_string(), "0 bytes");
        assert_eq!(Size(1536).to_string(), "1.5 KiB");
        assert_eq!(Size(300 << 20).to_string(), "300 MiB");
        assert_eq!(Size(4 << 30).to_string(), "4.0 GiB");
        assert_eq!(Count(1, "file").to_string(), "1 file");
        assert_eq!(Pace(2 << 20, Duration::from_secs(2)).to_string(), "2.00 s (1.0 MiB a second)");
        assert_eq!(Pace(5, Duration::from_secs(2)).to_string(), "2.00 s");
    }
}
