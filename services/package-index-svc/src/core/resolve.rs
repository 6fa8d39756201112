//! Which release fits a requirement: the highest version that it accepts.

pub use p2psb_proto::model::requirement::{Requirement, RequirementError};
use semver::Version;

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
    use semver::VersionReq;

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
