//! Waiting for a condition, with a deadline. The one place where time is let pass.

use std::time::{Duration, Instant};

use crate::trouble::{Result, Trouble};

/// How long a condition may take when nothing else is said: far beyond what it takes on a busy machine of two cores.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// What a look at a condition finds: `true`, `Some` or `Ok` end the waiting.
pub trait Outcome {
    /// What is found in the end.
    type Found;

    /// The finding, or what is still missing.
    fn outcome(self) -> std::result::Result<Self::Found, String>;
}

impl Outcome for bool {
    type Found = ();

    fn outcome(self) -> std::result::Result<(), String> {
        if self { Ok(()) } else { Err("not yet".into()) }
    }
}

impl<T> Outcome for Option<T> {
    type Found = T;

    fn outcome(self) -> std::result::Result<T, String> {
        self.ok_or_else(|| "nothing yet".into())
    }
}

impl<T, E: std::fmt::Display> Outcome for std::result::Result<T, E> {
    type Found = T;

    fn outcome(self) -> std::result::Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

/// Looks again and again until `look` finds something, at most for `within`.
pub async fn wait_for<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let begin = Instant::now();
    let mut last = "the first look took too long".to_owned();
    loop {
        let left = within.saturating_sub(begin.elapsed());
        match tokio::time::timeout(left.max(PAUSE), look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(missing)) => last = missing,
            Err(_) => {}
        }
        if begin.elapsed() >= within {
            return Err(Trouble::new(format!("{what}: not within {within:?}; last seen: {last}")));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until an expression is `true`, `Some` or `Ok`, and gives what it found; fails the test after the deadline.
///
/// `eventually!("both are online", cluster.online().await? == 2)`, or with a deadline of its own
/// `eventually!("…", within Duration::from_secs(5), …)`.
#[macro_export]
macro_rules! eventually {
    ($what:expr, within $within:expr, $look:expr $(,)?) => {
        match $crate::eventually::wait_for(&$what, $within, async || {
            $crate::eventually::Outcome::outcome($look)
        })
        .await
        {
            Ok(found) => found,
            Err(trouble) => panic!("{trouble}"),
        }
    };
    ($what:expr, $look:expr $(,)?) => {
        $crate::eventually!($what, within $crate::eventually::PATIENCE, $look)
    };
}
