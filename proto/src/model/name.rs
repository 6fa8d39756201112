//! Names of packages and services.

use std::fmt;
use std::str::FromStr;

use super::{excerpt, limits};

/// A text that is no name.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Not a package name.
    #[error(
        "{0:?} is no package name: 1 to 64 characters out of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit"
    )]
    Package(String),
    /// Not a service name.
    #[error("{0:?} is no service name: at most 255 characters, parts of a-z, 0-9 and '-' joined by dots")]
    Service(String),
}

/// The name of a package: `[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageName(String);

impl PackageName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = bytes.first().copied().is_some_and(alnum) && bytes.last().copied().is_some_and(alnum);
        let inner = bytes.iter().all(|b| alnum(*b) || matches!(b, b'.' | b'_' | b'-'));
        if ends && inner && bytes.len() <= limits::PACKAGE_NAME_BYTES {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Package(excerpt(text)))
        }
    }
}

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a service, such as `p2psb.package-index`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

impl ServiceName {
    /// What discovery services register as.
    pub const DISCOVERY: &'static str = "p2psb.discovery";
    /// What package indexes register as.
    pub const PACKAGE_INDEX: &'static str = "p2psb.package-index";

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether providers need an endorsement.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with("p2psb.")
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let part = |p: &str| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if text.len() <= limits::SERVICE_NAME_BYTES && text.split('.').all(part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Service(excerpt(text)))
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names_follow_the_grammar() {
        for good in ["a", "0", "demo", "a.b_c-d", &"x".repeat(64)] {
            assert!(good.parse::<PackageName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", ".", "A", "a/b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<PackageName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn service_names_are_dotted() {
        assert!("p2psb.package-index".parse::<ServiceName>().unwrap().is_reserved());
        assert!(!"chat".parse::<ServiceName>().unwrap().is_reserved());
        for bad in ["", ".", "a..b", "A", "a b", &"x".repeat(256)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }
}
