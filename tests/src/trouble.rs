//! What went wrong around a test: a text for people, with what led to it.

use std::fmt;

/// Why the harness could not do its work.
#[derive(Clone, PartialEq, Eq)]
pub struct Trouble(String);

/// The harness' results.
pub type Result<T> = std::result::Result<T, Trouble>;

impl Trouble {
    /// A trouble in these words.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Trouble {
    /// As it is displayed: a test that unwraps shows readable lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Trouble {}

impl From<String> for Trouble {
    fn from(what: String) -> Self {
        Self(what)
    }
}

impl From<&str> for Trouble {
    fn from(what: &str) -> Self {
        Self(what.to_owned())
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// `what: error`.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Trouble(format!("{what}: {error}")))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Trouble(what.to_string()))
    }
}
