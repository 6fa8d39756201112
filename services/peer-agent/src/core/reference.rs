//! References to packages as people write them: `publisher/name[@requirement]`, or `name[@requirement]` when only one
//! publisher has the name.
//!
//! A [`Reference`] is well formed, its requirement included.

use std::fmt;
use std::str::FromStr;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::id::IdError;
use p2psb_proto::model::name::NameError;
use p2psb_proto::model::requirement::RequirementError;
use p2psb_proto::model::{PackageName, PublisherId, Requirement};
use semver::Version;

/// Which package, and which of its releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Whose package; `None`: whoever has the name.
    pub publisher: Option<PublisherId>,
    /// Its name.
    pub name: PackageName,
    /// Which of its releases.
    requirement: Requirement,
}

/// A text that is no reference.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// What stands before the slash is no publisher.
    #[error("{0}; a reference is publisher/name[@requirement] or name[@requirement]")]
    Publisher(#[from] IdError),
    /// No package name.
    #[error("{0}; a reference is publisher/name[@requirement] or name[@requirement]")]
    Name(#[from] NameError),
    /// No version requirement.
    #[error(transparent)]
    Requirement(#[from] RequirementError),
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        let reason = match error {
            ReferenceError::Publisher(_) | ReferenceError::Name(_) => Reason::ReferenceInvalid,
            ReferenceError::Requirement(_) => Reason::RequirementInvalid,
        };
        Self::new(reason, error.to_string())
    }
}

impl Reference {
    /// The requirement as it was written; empty: the newest.
    #[must_use]
    pub fn requirement(&self) -> &str {
        self.requirement.as_str()
    }

    /// Whether a release with this version is what the reference asks for. Which of several fits best is the index's choice.
    #[must_use]
    pub fn admits(&self, version: &Version) -> bool {
        // Who names none takes what the index holds for the newest, and whether one is yanked the index knows.
        self.requirement().is_empty() || self.requirement.accepts(version, false)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let text = text.trim();
        let (package, requirement) = text.split_once('@').unwrap_or((text, ""));
        let (publisher, name) = match package.split_once('/') {
            Some((publisher, name)) => (Some(publisher.parse()?), name),
            None => (None, package),
        };
        Ok(Self { publisher, name: name.parse()?, requirement: Requirement::parse(requirement)? })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(publisher) = &self.publisher {
            write!(f, "{publisher}/")?;
        }
        write!(f, "{}", self.name)?;
        if self.requirement().is_empty() { Ok(()) } else { write!(f, "@{}", self.requirement) }
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::SecretKey;

    use super::*;

    fn publisher() -> PublisherId {
        PublisherId::new(SecretKey::from_seed(&[3; 32]).public())
    }

    #[test]
    fn every_form_survives_its_text() {
        let whole = format!("{}/demo@^1.2", publisher());
        for text in ["demo", "demo@1", "demo@>=1, <3", whole.as_str()] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
        }
        let reference: Reference = whole.parse().unwrap();
        assert_eq!(reference.publisher, Some(publisher()));
        assert_eq!((reference.name.as_str(), reference.requirement()), ("demo", "^1.2"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let reason = |text: &str| Failure::from(text.parse::<Reference>().unwrap_err()).reason;
        assert_eq!(reason(""), Reason::ReferenceInvalid);
        assert_eq!(reason("Demo"), Reason::ReferenceInvalid);
        assert_eq!(reason("pub1xyz/demo"), Reason::ReferenceInvalid);
        assert_eq!(reason("a/b/c"), Reason::ReferenceInvalid);
        assert_eq!(reason("demo@one"), Reason::RequirementInvalid);
        assert_eq!(reason(&format!("demo@={}", "1".repeat(300))), Reason::RequirementInvalid);
    }

    #[test]
    fn a_requirement_admits_what_cargo_would() {
        let admits = |text: &str, version: &str| {
            text.parse::<Reference>().unwrap().admits(&Version::parse(version).unwrap())
        };
        assert!(admits("demo", "2.0.0-rc.1"));
        assert!(admits("demo@1.2", "1.9.0"));
        assert!(!admits("demo@1.2", "2.0.0"));
        assert!(!admits("demo@=1.0.0", "1.0.1"));
        assert!(admits("demo@=1.0.0-rc.1", "1.0.0-rc.1"));
    }
}
