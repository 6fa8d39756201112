//! Which release fits a requirement.
//!
//! Rules: the highest version that matches wins; a pre-release matches only if the requirement names one of the same
//! major.minor.patch; a yanked version counts only when the requirement is exactly `=x.y.z`.

use p2psb_proto::model::limits::REQUIREMENT_BYTES;
use semver::{Comparator, Op, Version, VersionReq};

/// A requirement that can't be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no version requirement: {problem}; write for example \"^1.2\", \">=1, <3\" or \"=1.0.0-rc.1\""
)]
pub struct RequirementError {
    /// What was given, cut after 80 characters.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What is wanted of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    req: VersionReq,
    exact: Option<Version>,
}

impl Requirement {
    /// Parses a requirement as Cargo writes them; empty means the newest.
    pub fn parse(text: &str) -> Result<Self, RequirementError> {
        let fail = |problem: String| RequirementError { text: text.chars().take(80).collect(), problem };
        if text.len() > REQUIREMENT_BYTES {
            return Err(fail(format!("it has more than {REQUIREMENT_BYTES} bytes")));
        }
        let wanted = text.trim();
        if wanted.is_empty() {
            return Ok(Self { req: VersionReq::STAR, exact: None });
        }
        let req = VersionReq::parse(wanted).map_err(|error| fail(error.to_string()))?;
        let exact = match req.comparators.as_slice() {
            [only] => named_exactly(only),
            _ => None,
        };
        Ok(Self { req, exact })
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

fn named_exactly(comparator: &Comparator) -> Option<Version> {
    let Comparator { op: Op::Exact, major, minor: Some(minor), patch: Some(patch), pre } = comparator else {
        return None;
    };
    let mut version = Version::new(*major, *minor, *patch);
    version.pre = pre.clone();
    Some(version)
}

/// The best of some versions, which come highest first, each with whether it is yanked.
pub fn best<T, E>(
    requirement: &Requirement,
    versions: impl IntoIterator<Item = Result<(Version, bool, T), E>>,
) -> Result<Option<(Version, bool, T)>, E> {
    versions
        .into_iter()
        .find(|candidate| match candidate {
            Ok((version, yanked, _)) => requirement.accepts(version, *yanked),
            Err(_) => true,
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::super::version::VersionKey;
    use super::super::version::tests::any_version;
    use super::*;

    fn chosen(requirement: &str, versions: &[(&str, bool)]) -> Option<String> {
        let requirement = Requirement::parse(requirement).unwrap();
        let mut all: Vec<(Version, bool)> =
            versions.iter().map(|(text, yanked)| (text.parse().unwrap(), *yanked)).collect();
        all.sort_by(|a, b| b.0.cmp(&a.0));
        let all = all.into_iter().map(|(version, yanked)| Ok::<_, Infallible>((version, yanked, ())));
        best(&requirement, all).unwrap().map(|(version, ..)| version.to_string())
    }

    const SOME: &[(&str, bool)] = &[
        ("0.9.0", false),
        ("1.0.0", false),
        ("1.2.0", false),
        ("1.3.0", true),
        ("2.0.0-rc.1", false),
        ("2.0.0-rc.2", false),
    ];

    #[test]
    fn the_highest_that_matches_and_is_not_yanked_wins() {
        for (requirement, expected) in [
            ("", Some("1.2.0")),
            ("  ", Some("1.2.0")),
            ("*", Some("1.2.0")),
            ("^1", Some("1.2.0")),
            ("1", Some("1.2.0")),
            ("<1", Some("0.9.0")),
            (">=0.9, <1.2", Some("1.0.0")),
            ("^1.3", None),
            (">=2", None),
        ] {
            assert_eq!(chosen(requirement, SOME).as_deref(), expected, "{requirement:?}");
        }
    }

    #[test]
    fn pre_releases_and_yanked_ones_must_be_named() {
        assert_eq!(chosen(">=2.0.0-rc.1", SOME).as_deref(), Some("2.0.0-rc.2"));
        assert_eq!(chosen("=2.0.0-rc.1", SOME).as_deref(), Some("2.0.0-rc.1"));
        assert_eq!(chosen("=1.3.0", SOME).as_deref(), Some("1.3.0"), "named exactly");
        assert_eq!(chosen("=1.3", SOME), None, "not exactly");
        assert_eq!(chosen("=1.3.0, <2", SOME), None, "not alone");
        assert_eq!(chosen("=1.3.1", SOME), None);
    }

    #[test]
    fn what_is_no_requirement_is_refused() {
        for text in ["latest", "1.2.3.4", "^", "=v1", &">1".repeat(200)] {
            let error = Requirement::parse(text).unwrap_err();
            assert!(error.to_string().contains("is no version requirement"), "{error}");
        }
    }

    fn any_requirement() -> impl Strategy<Value = String> {
        let op = "=|>|>=|<|<=|~|\\^";
        let one = (op, any_version(), 1..4_usize).prop_map(|(op, version, parts)| {
            let text = version.to_string();
            match parts {
                1 => format!("{op}{}", version.major),
                2 => format!("{op}{}.{}", version.major, version.minor),
                _ => format!("{op}{text}"),
            }
        });
        proptest::collection::vec(one, 0..3).prop_map(|parts| parts.join(", "))
    }

    proptest! {
        #[test]
        fn resolving_agrees_with_trying_everything(
            requirement in any_requirement(),
            versions in proptest::collection::vec((any_version(), any::<bool>()), 0..12),
        ) {
            let wanted = Requirement::parse(&requirement).unwrap();
            let mut sorted = versions.clone();
            sorted.sort_by_key(|(version, _)| std::cmp::Reverse(VersionKey::new(version)));
            sorted.dedup_by(|a, b| a.0 == b.0);
            let known: std::collections::BTreeMap<_, _> = sorted.iter().cloned().collect();
            let items = sorted.into_iter().map(|(version, yanked)| Ok::<_, Infallible>((version, yanked, ())));
            let found = best(&wanted, items).unwrap().map(|(version, ..)| version);

            // The naive reference: all that match, then the maximum.
            let req = if requirement.is_empty() { VersionReq::STAR } else { requirement.parse().unwrap() };
            let exact = requirement.strip_prefix('=').and_then(|text| text.parse::<Version>().ok());
            let expected = known
                .into_iter()
                .filter(|(version, yanked)| match &exact {
                    Some(exact) => exact == version,
                    None => req.matches(version) && !yanked,
                })
                .map(|(version, _)| version)
                .max();
            prop_assert_eq!(found, expected);
        }
    }
}
