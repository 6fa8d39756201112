//! Paths inside a package.
//!
//! Invariant: a [`PackagePath`] is relative and stays inside: its parts can be joined to any folder without leaving it. It is kept
//! exactly as published, never renormalised. A [`LinkTarget`] was resolved against the folder of its link and stays inside too.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use super::limits;
use crate::error::Reason;

/// Why a path or the target of a symlink is refused. Paths are shown escaped, and cut when they are long.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PathError {
    /// No bytes at all.
    #[error("a path in a package can't be empty")]
    Empty,
    /// Begins with a slash.
    #[error("{0} is absolute; paths in a package are relative")]
    Absolute(String),
    /// A part is empty, "." or "..".
    #[error("{path} has the part {part:?}, which is not allowed in a package")]
    Part {
        /// The path, as shown.
        path: String,
        /// The offending part.
        part: &'static str,
    },
    /// Holds a NUL.
    #[error("{0} holds a NUL character")]
    Nul(String),
    /// Not UTF-8.
    #[error("{0} is not UTF-8; rename it")]
    NotUtf8(String),
    /// Too many bytes.
    #[error("{path} has {bytes} bytes; a path in a package has at most {limit}", limit = limits::PATH_BYTES)]
    TooLong {
        /// The path, as shown.
        path: String,
        /// Its length.
        bytes: usize,
    },
    /// Too many parts.
    #[error("{path} has {parts} parts; a path in a package has at most {limit}", limit = limits::PATH_DEPTH)]
    TooDeep {
        /// The path, as shown.
        path: String,
        /// How many.
        parts: usize,
    },
    /// A symlink that leads out.
    #[error("the symlink {link} leads out of the package, to {target}")]
    Escapes {
        /// The link, as shown.
        link: String,
        /// Its target, as shown.
        target: String,
    },
    /// A symlink whose target goes up behind a name, which may be a symlink itself.
    #[error(
        "the symlink {link} may lead out of the package, to {target}: \"..\" stands behind a name, which may be a symlink"
    )]
    Winds {
        /// The link, as shown.
        link: String,
        /// Its target, as shown.
        target: String,
    },
}

impl PathError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Escapes { .. } | Self::Winds { .. } => Reason::SymlinkEscapes,
            _ => Reason::PathInvalid,
        }
    }
}

/// A text as it may be shown: control characters escaped, at most 200 characters.
#[must_use]
pub fn shown(text: &str) -> String {
    const MOST: usize = 200;
    let mut out: String = text.chars().take(MOST).flat_map(escape).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

fn escape(c: char) -> impl Iterator<Item = char> {
    let (plain, escaped) = if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
    plain.into_iter().chain(escaped.into_iter().flatten())
}

/// The path of an entry: relative UTF-8, parts joined by "/". Ordered bytewise, as manifests are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackagePath(Box<str>);

impl PackagePath {
    /// Parses bytes from a file system.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        std::str::from_utf8(bytes)
            .map_err(|_| PathError::NotUtf8(shown(&bytes.escape_ascii().to_string())))?
            .parse()
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its parts, at least one.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The path without its last part; `None` at the top.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// The last part.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl FromStr for PackagePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > limits::PATH_BYTES {
            return Err(PathError::TooLong { path: shown(text), bytes: text.len() });
        }
        if text.contains('\0') {
            return Err(PathError::Nul(shown(text)));
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute(shown(text)));
        }
        let mut parts = 0;
        for part in text.split('/') {
            parts += 1;
            if let Some(part) = ["", ".", ".."].into_iter().find(|bad| *bad == part) {
                return Err(PathError::Part { path: shown(text), part });
            }
        }
        if parts > limits::PATH_DEPTH {
            return Err(PathError::TooDeep { path: shown(text), parts });
        }
        Ok(Self(text.into()))
    }
}

impl Borrow<str> for PackagePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PackagePath {
    /// As it may be shown: control characters escaped, long ones cut. For the path itself there is [`PackagePath::as_str`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

impl fmt::Debug for PackagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Where a symlink of a package leads: relative, and inside when resolved against the folder of the link, whatever other symlinks are
/// on the way: "..", which leaves the folder that a symlink led to and not the one it lies in, comes only before every name. Whether
/// anything is there does not matter. Kept exactly as published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkTarget(Box<str>);

impl LinkTarget {
    /// Parses the target of the symlink `link`.
    pub fn parse(target: &str, link: &PackagePath) -> Result<Self, PathError> {
        if target.is_empty() {
            return Err(PathError::Empty);
        }
        if target.len() > limits::PATH_BYTES {
            return Err(PathError::TooLong { path: shown(target), bytes: target.len() });
        }
        if target.contains('\0') {
            return Err(PathError::Nul(shown(target)));
        }
        let escapes = || PathError::Escapes { link: link.to_string(), target: shown(target) };
        if target.starts_with('/') {
            return Err(escapes());
        }
        // The folders above a link are directories of the package; what a name in its target is, only the disk will know.
        let (mut depth, mut named, mut winds) = (link.parts().count() - 1, false, false);
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    depth = depth.checked_sub(1).ok_or_else(escapes)?;
                    winds |= named;
                }
                _ => (depth, named) = (depth + 1, true),
            }
        }
        if winds {
            return Err(PathError::Winds { link: link.to_string(), target: shown(target) });
        }
        Ok(Self(target.into()))
    }

    /// Parses bytes from a file system.
    pub fn from_bytes(target: &[u8], link: &PackagePath) -> Result<Self, PathError> {
        let text = std::str::from_utf8(target).map_err(|_| {
            PathError::NotUtf8(format!("the target of the symlink {link}, {},", target.escape_ascii()))
        })?;
        Self::parse(text, link)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> PackagePath {
        text.parse().unwrap()
    }

    #[test]
    fn awkward_names_are_kept_exactly() {
        let deep = vec!["d"; 64].join("/");
        for good in ["a", "a/b", " ", "a\nb", "-", "…", "e\u{301}", "\u{e9}", "a\\b", "C:", "...", &deep] {
            assert_eq!(path(good).as_str(), good);
        }
        assert!("x".repeat(1024).parse::<PackagePath>().is_ok());
        assert_ne!(path("e\u{301}"), path("\u{e9}"));
    }

    #[test]
    fn what_could_leave_the_folder_is_refused() {
        for bad in
            ["", "/", "/etc", "..", "../x", "a/../b", "a/..", ".", "./a", "a/./b", "a//b", "a/", "a\0b"]
        {
            assert!(bad.parse::<PackagePath>().is_err(), "{bad:?}");
        }
        assert!(matches!("x".repeat(1025).parse::<PackagePath>(), Err(PathError::TooLong { .. })));
        assert!(matches!(vec!["d"; 65].join("/").parse::<PackagePath>(), Err(PathError::TooDeep { .. })));
        assert!(matches!(PackagePath::from_bytes(b"a\xff"), Err(PathError::NotUtf8(_))));
    }

    #[test]
    fn links_may_lead_anywhere_inside() {
        for (link, target) in
            [("a", "b"), ("d/a", "../b"), ("d/e/a", "../../b"), ("a", "./b//c"), ("d/a", "..")]
        {
            assert_eq!(LinkTarget::parse(target, &path(link)).unwrap().as_str(), target);
        }
    }

    #[test]
    fn links_that_lead_out_are_refused() {
        for (link, target) in [
            ("a", ".."),
            ("a", "../b"),
            ("a", "/etc/passwd"),
            ("d/a", "../../b"),
            ("a", "b/../../a"),
            ("d/a", "../../d/b"),
            // Inside if x is a directory; outside if it is a symlink to "..".
            ("d/a", "x/../b"),
            ("d/a", "../x/.."),
            ("d/a", "x/../../b"),
        ] {
            let error = LinkTarget::parse(target, &path(link)).unwrap_err();
            assert_eq!(error.reason(), Reason::SymlinkEscapes, "{link} -> {target}");
        }
        assert!(LinkTarget::parse("", &path("a")).is_err());
        assert!(LinkTarget::parse("b\0", &path("a")).is_err());
    }

    #[test]
    fn what_is_shown_holds_no_control_characters() {
        let text = path("a\u{1b}[2Jb\n").to_string();
        assert!(!text.chars().any(char::is_control), "{text}");
        assert!(path(&"x".repeat(1000)).to_string().chars().count() <= 201);
    }
}
