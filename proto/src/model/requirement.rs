//! Requirements: which versions of a package somebody wants, written as Cargo writes them.
//!
//! Rules: a pre-release fits only if the requirement names one of the same major.minor.patch; a yanked version fits only
//! if the requirement is exactly `=x.y.z`. Of several that fit, the highest is meant.

use std::fmt;

use semver::{Comparator, Op, Version, VersionReq};

use super::excerpt;
use super::limits::REQUIREMENT_BYTES;

/// A text that is no requirement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no version requirement: {problem}; write for example \"^1.2\", \">=1, <3\" or \"=1.0.0-rc.1\""
)]
pub struct RequirementError {
    text: String,
    problem: String,
}

/// What is wanted of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    text: String,
    req: VersionReq,
    exact: Option<Version>,
}

impl Requirement {
    /// Parses a requirement; empty means the newest.
    pub fn parse(text: &str) -> Result<Self, RequirementError> {
        let fail = |problem: String| RequirementError { text: excerpt(text), problem };
        if text.len() > REQUIREMENT_BYTES {
            return Err(fail(format!("it has more than {REQUIREMENT_BYTES} bytes")));
        }
        let wanted = text.trim();
        if wanted.is_empty() {
            return Ok(Self { text: String::new(), req: VersionReq::STAR, exact: None });
        }
        let req = VersionReq::parse(wanted).map_err(|error| fail(error.to_string()))?;
        let exact = match req.comparators.as_slice() {
            [only] => named_exactly(only),
            _ => None,
        };
        Ok(Self { text: wanted.to_owned(), req, exact })
    }

    /// As it was written; empty: the newest.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The one version that is named as `=x.y.z`.
    #[must_use]
    pub const fn exact(&self) -> Option<&Version> {
        self.exact.as_ref()
    }

    /// Whether a version fits.
    #[must_use]
    pub fn accepts(&self, version: &Version, yanked: bool) -> bool {
        match &self.exact {
            Some(exact) => exact == version,
            None => !yanked && self.req.matches(version),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn named_exactly(comparator: &Comparator) -> Option<Version> {
    let Comparator { op: Op::Exact, major, minor: Some(minor), patch: Some(patch), pre } = comparator else {
        return None;
    };
    let mut version = Version::new(*major, *minor, *patch);
    version.pre = pre.clone();
    Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(requirement: &str, version: &str, yanked: bool) -> bool {
        Requirement::parse(requirement).unwrap().accepts(&version.parse().unwrap(), yanked)
    }

    #[test]
    fn a_yanked_version_or_a_pre_release_must_be_named() {
        assert!(accepts("", "1.0.0", false) && !accepts("", "1.0.0", true));
        assert!(accepts("=1.0.0", "1.0.0", true) && !accepts("=1.0", "1.0.0", true));
        assert!(!accepts("=1.0.0, <2", "1.0.0", true), "not alone");
        assert!(!accepts("", "1.0.0-rc.1", false) && !accepts("*", "1.0.0-rc.1", false));
        assert!(accepts(">=1.0.0-rc.0", "1.0.0-rc.1", false));
        assert!(accepts("=1.0.0-rc.1", "1.0.0-rc.1", false));
    }

    #[test]
    fn what_is_no_requirement_is_refused() {
        for text in ["latest", "1.2.3.4", "^", "=v1", &">1".repeat(200)] {
            let error = Requirement::parse(text).unwrap_err().to_string();
            assert!(error.contains("is no version requirement") && error.len() < 300, "{error}");
        }
        let spaced = Requirement::parse(" ^1.2 ").unwrap();
        assert_eq!((spaced.as_str(), spaced.to_string().as_str()), ("^1.2", "^1.2"));
    }
}
