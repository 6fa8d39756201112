//! Defaults of a publish: a name made out of a path, the version after the highest one.

use p2psb_proto::model::{PackageName, limits};
use semver::{Prerelease, Version};

/// The first version of a package that names none.
pub const FIRST: Version = Version::new(0, 1, 0);

/// Makes a package name out of a file name: lower case, everything foreign becomes one `-`. `None` if nothing is left.
#[must_use]
pub fn fitting_name(text: &str) -> Option<PackageName> {
    let mut fitted = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') {
            fitted.push(c);
        } else if !fitted.ends_with('-') {
            fitted.push('-');
        }
    }
    let begun = fitted.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    // Only ASCII is left, so bytes are characters.
    let cut = begun.get(..limits::PACKAGE_NAME_BYTES).unwrap_or(begun);
    cut.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).parse().ok()
}

/// The next minor version after the highest released one. A pre-release of a minor version is followed by that version itself.
#[must_use]
pub fn next_version(highest: Option<&Version>) -> Version {
    let Some(highest) = highest else { return FIRST };
    let already_next = highest.patch == 0 && highest.pre != Prerelease::EMPTY;
    let minor = if already_next { highest.minor } else { highest.minor.saturating_add(1) };
    Version::new(highest.major, minor, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_to_fit() {
        let name = |text: &str| fitting_name(text).map(|name| name.to_string());
        assert_eq!(name("My Photos (2024)").as_deref(), Some("my-photos-2024"));
        assert_eq!(name("proto").as_deref(), Some("proto"));
        assert_eq!(name(".config").as_deref(), Some("config"));
        assert_eq!(name("a__b.tar.gz").as_deref(), Some("a__b.tar.gz"));
        assert_eq!(name("übung").as_deref(), Some("bung"));
        assert_eq!(name("日本"), None);
        assert_eq!(name(""), None);
        assert_eq!(name(&format!("{}-tail", "x".repeat(63))), Some("x".repeat(63)));
    }

    #[test]
    fn the_next_version_is_the_next_minor_one() {
        let next = |text: &str| next_version(Some(&Version::parse(text).unwrap())).to_string();
        assert_eq!(next_version(None), FIRST);
        assert_eq!(next("0.1.0"), "0.2.0");
        assert_eq!(next("1.2.3"), "1.3.0");
        assert_eq!(next("2.0.0-rc.1"), "2.0.0");
        assert_eq!(next("1.2.3-rc.1"), "1.3.0");
    }
}
