//! The word to stop, passed to whoever runs long.

use tokio_util::sync::CancellationToken;

/// Told once that the server drains. Clones are told together; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    /// A server that runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says it. Streams end by themselves, then connections close.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Whether it was said.
    pub fn has_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it is said.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }

    /// The token itself, for `run_until_cancelled` and the like; cancelling it begins the drain.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}
