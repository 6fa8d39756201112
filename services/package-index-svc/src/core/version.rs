//! Versions as keys that sort bytewise as SemVer orders them, so that a database can walk them from the highest down.
//!
//! Invariant: for versions without build metadata, `VersionKey::new(a) < VersionKey::new(b)` exactly if `a < b`.

use semver::Version;

/// How the parts of a pre-release are marked: the end sorts before a further identifier, numbers before words, and no
/// pre-release at all after any.
const END: u8 = 0;
const NUMBER: u8 = 1;
const WORD: u8 = 2;
const RELEASE: u8 = 3;

/// A version as a sort key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionKey(Vec<u8>);

impl VersionKey {
    /// The key of a version.
    #[must_use]
    pub fn new(version: &Version) -> Self {
        let mut key = Vec::with_capacity(32);
        for number in [version.major, version.minor, version.patch] {
            key.extend_from_slice(&number.to_be_bytes());
        }
        if version.pre.is_empty() {
            key.push(RELEASE);
            return Self(key);
        }
        for identifier in version.pre.as_str().split('.') {
            push_identifier(&mut key, identifier.as_bytes());
        }
        key.push(END);
        Self(key)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn push_identifier(key: &mut Vec<u8>, identifier: &[u8]) {
    if identifier.iter().all(u8::is_ascii_digit) {
        // Without leading zeros the longer number is the greater one; a version has at most 128 bytes.
        key.push(NUMBER);
        key.push(u8::try_from(identifier.len()).unwrap_or(u8::MAX));
        key.extend_from_slice(identifier);
    } else {
        key.push(WORD);
        key.extend_from_slice(identifier);
        key.push(END);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use semver::{BuildMetadata, Prerelease};

    use super::*;

    /// Versions that are near enough to one another to be confused.
    pub(in crate::core) fn any_version() -> impl Strategy<Value = Version> {
        let number = prop_oneof![0..4_u64, 9..11_u64, Just(u64::MAX)];
        let identifier = prop_oneof!["0|1|2|9|10|99999999999999999999999", "[a-c]{1,2}", "a-|-a|-|A|rc|0a"];
        let pre = proptest::collection::vec(identifier, 0..3).prop_map(|parts| parts.join("."));
        (number.clone(), number.clone(), number, pre).prop_map(|(major, minor, patch, pre)| Version {
            major,
            minor,
            patch,
            pre: Prerelease::new(&pre).unwrap(),
            build: BuildMetadata::EMPTY,
        })
    }

    proptest! {
        #[test]
        fn keys_sort_as_versions_do(a in any_version(), b in any_version()) {
            prop_assert_eq!(VersionKey::new(&a).cmp(&VersionKey::new(&b)), a.cmp(&b), "{} and {}", a, b);
        }
    }

    #[test]
    fn the_example_of_semver_is_in_order() {
        let order = [
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1-0",
            "1.0.10",
            "1.1.0",
        ];
        let keys: Vec<_> = order.iter().map(|text| VersionKey::new(&text.parse().unwrap())).collect();
        assert!(keys.is_sorted());
    }
}
