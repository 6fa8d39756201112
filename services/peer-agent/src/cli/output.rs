//! What is said, and where: results on standard output, the rest on standard error; JSON if asked for.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use p2psb_proto::error::{Failure, Reason};
use serde_json::{Value, json};

use super::Problem;

/// How often progress is told in plain lines.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// How to say things.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// A result: the object, or the text for people.
    pub(super) fn result(&self, object: &Value, text: &str) {
        // Nobody is left to tell if standard output is closed.
        let mut out = std::io::stdout().lock();
        let _ = if self.json { writeln!(out, "{object}") } else { writeln!(out, "{text}") };
    }

    /// Something between, only for programs.
    fn object(&self, object: &Value) {
        if self.json {
            let _ = writeln!(std::io::stdout().lock(), "{object}");
        }
    }

    /// Something for people beside the result.
    pub(super) fn note(&self, text: &str) {
        if !self.json {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// What keeps the agent from running. People read it on standard error, where it is said already.
    pub(super) fn refused(&self, reason: &str, message: &str) {
        self.object(&json!({"event": "error", "reason": reason, "message": message}));
    }

    /// Why it did not work.
    pub(super) fn problem(&self, problem: &Problem) {
        let (message, reason, retry_after) = match problem {
            Problem::Usage(error) => (error.to_string(), Reason::InvalidArgument, None),
            Problem::Unavailable(Failure { message, reason, retry_after, .. })
            | Problem::Failed(Failure { message, reason, retry_after, .. }) => {
                (message.clone(), *reason, *retry_after)
            }
            Problem::Interrupted(text) => {
                self.object(&json!({"event": "interrupted", "message": text}));
                let _ = writeln!(std::io::stderr().lock(), "{text}");
                return;
            }
        };
        let mut object = json!({"event": "error", "reason": reason.as_str(), "message": message});
        if let (Some(after), Some(object)) = (retry_after, object.as_object_mut()) {
            object.insert("retry_after_seconds".into(), json!(after.as_secs_f64()));
        }
        self.object(&object);
        let _ = writeln!(std::io::stderr().lock(), "error: {message} [{reason}]");
    }
}

/// "1 file", "2,001 files".
pub(super) fn counted(count: u64, one: &str) -> String {
    format!("{} {one}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

/// Progress: a bar on a terminal, plain lines elsewhere, objects with JSON.
#[derive(Debug)]
pub(super) struct Progress {
    output: Output,
    bar: Option<ProgressBar>,
    told: Option<(Instant, String)>,
}

impl Progress {
    pub(super) fn new(output: Output) -> Self {
        let bar = (!output.json && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { output, bar, told: None }
    }

    /// How far it is: `what` happens, `done` of `total` bytes (0: unknown).
    pub(super) fn tell(&mut self, object: &Value, what: &str, done: u64, total: u64) {
        self.output.object(object);
        if let Some(bar) = &self.bar {
            draw(bar, what, done, total);
        } else if !self.output.json && self.is_due(what) {
            let amount = match total {
                0 => String::new(),
                total => {
                    format!(": {} of {} ({} %)", HumanBytes(done), HumanBytes(total), percent(done, total))
                }
            };
            self.output.note(&format!("{what}{amount}"));
        }
    }

    /// Plain lines come when something else happens, and now and then.
    fn is_due(&mut self, what: &str) -> bool {
        let now = Instant::now();
        let due = match &self.told {
            None => true,
            Some((at, told)) => told != what || now.duration_since(*at) >= LINE_EVERY,
        };
        if due {
            self.told = Some((now, what.to_owned()));
        }
        due
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn draw(bar: &ProgressBar, what: &str, done: u64, total: u64) {
    let template = if total == 0 {
        "{spinner} {msg}"
    } else {
        "{msg}\n{bar:40} {bytes} of {total_bytes}  {bytes_per_sec}  {eta}"
    };
    // The templates are constant and right; a wrong one would leave the bar as it is.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    if total > 0 {
        bar.set_length(total);
        bar.set_position(done);
    }
    bar.set_message(what.to_owned());
}

fn percent(done: u64, total: u64) -> u64 {
    // Totals are at most 16 TiB.
    done.saturating_mul(100).checked_div(total).unwrap_or(100)
}
