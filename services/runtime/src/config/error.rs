//! What can be wrong with a configuration, said so that the operator knows what to change.

use std::fmt::Display;
use std::path::PathBuf;

/// A wrong configuration. Its text names the key, the place it was written and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file can't be read.
    #[error("cannot read the configuration file {}: {source}; check the path given by --config or P2PSB_CONFIG", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The named file is implausibly large.
    #[error("the configuration file {} has {bytes} bytes, more than the {} allowed; is it the right file?", path.display(), super::MAX_FILE_BYTES)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        problem: String,
    },
    /// A variable that can't be a key.
    #[error(
        "the environment variable {name} is not usable: {problem}; variables are named P2PSB_KEY or P2PSB_SECTION__KEY"
    )]
    Variable {
        /// The variable.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A `--set` that can't be understood.
    #[error("--set {text:?} is not usable: write it as --set section.key=value")]
    Argument {
        /// What was given.
        text: String,
    },
    /// Nobody knows this key.
    #[error("unknown key `{key}`, {origin}; {advice}")]
    UnknownKey {
        /// Its full path.
        key: String,
        /// Where it was written ("set in …").
        origin: String,
        /// A key that was probably meant, or the known ones.
        advice: String,
    },
    /// A key that has no default is not set.
    #[error("`{key}` is not set; set it in the configuration file, or as {}", variable_for(key))]
    Missing {
        /// Its full path.
        key: String,
    },
    /// The value of a known key is wrong.
    #[error("wrong value for `{key}`, {origin}: {problem}")]
    Value {
        /// The key's full path.
        key: String,
        /// Where it was written ("set in …", or "the default").
        origin: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The configuration can't be shown.
    #[error("cannot print the configuration: {problem}")]
    Print {
        /// What the serialiser said.
        problem: String,
    },
}

/// How an origin that is not yet known is written.
const UNKNOWN_ORIGIN: &str = "";

/// How a value that nobody wrote is described.
pub(crate) const DEFAULT_ORIGIN: &str = "which is the default";

impl ConfigError {
    /// A wrong value, for the second stage: `problem` says what is wrong and what would be right.
    pub fn value(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Value { key: key.into(), origin: UNKNOWN_ORIGIN.into(), problem: problem.into() }
    }

    /// The same for `map_err`: whatever a value was refused for.
    pub fn at<E: Display>(key: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::value(key, error.to_string())
    }

    /// A key that must be set and is not, for the second stage.
    pub fn missing(key: impl Into<String>) -> Self {
        Self::Missing { key: key.into() }
    }

    /// Fills in where the value was written, if this error does not know it yet.
    pub(crate) fn written_at(self, find: impl FnOnce(&str) -> Option<String>) -> Self {
        match self {
            Self::Value { key, origin, problem } if origin == UNKNOWN_ORIGIN => {
                let origin = find(&key).unwrap_or_else(|| DEFAULT_ORIGIN.into());
                Self::Value { key, origin, problem }
            }
            other => other,
        }
    }
}

/// The variable that sets `key`.
pub(crate) fn variable_for(key: &str) -> String {
    format!("{}{}", super::ENV_PREFIX, key.replace('.', "__").to_uppercase())
}

/// What was probably meant by `wrong`.
pub(crate) fn advice(wrong: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|candidate| (distance(wrong, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().min(wrong.len()).div_ceil(3))
        .min();
    match near {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None if known.is_empty() => "nothing can be set here".into(),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// Edits between two short names (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.chars().count()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        if let Some(first) = row.first_mut() {
            *first = before;
        }
        for (cell, b) in row.iter_mut().skip(1).zip(right.chars()) {
            let best = (diagonal + usize::from(a != b)).min(*cell + 1).min(before + 1);
            diagonal = *cell;
            *cell = best;
            before = best;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_is_answered_with_the_key_that_was_meant() {
        assert_eq!(advice("lisen", &["listen", "deadline"]), "did you mean `listen`?");
        assert_eq!(advice("colour", &["listen", "deadline"]), "known here: listen, deadline");
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
