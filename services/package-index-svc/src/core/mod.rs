//! What the index decides: which entries a chain takes, which release fits a requirement, which claims hold,
//! what a search looks for, where a page ends.
//!
//! Pure: `now` and chance are arguments; no I/O, no wire types, no async.

pub mod chain;
pub mod hosts;
pub mod limits;
pub mod page;
pub mod resolve;
pub mod search;
pub mod version;

use std::fmt;

use p2psb_proto::model::{Digest, PackageName, PublisherId, time::UnixMillis};
use semver::Version;

/// A package: a name owned by a publisher.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageId {
    /// The owner.
    pub publisher: PublisherId,
    /// The name.
    pub name: PackageName,
}

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.publisher, self.name)
    }
}

/// A package at a glance, from its newest release that is not yanked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Which package.
    pub package: PackageId,
    /// The newest version: releases before pre-releases.
    pub version: Version,
    /// Its title.
    pub title: String,
    /// The beginning of its description.
    pub description: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its license.
    pub license: String,
    /// Bytes in all its files.
    pub total_size: u64,
    /// Number of its files.
    pub file_count: u64,
    /// Its content.
    pub manifest: Digest,
    /// When the chain last grew.
    pub updated: UnixMillis,
    /// Hosts with a running lease that claim its content; counting ends at [`limits::HOSTS_COUNTED`].
    pub hosts: u32,
}

impl Summary {
    /// Bytes it takes in an answer, at most.
    #[must_use]
    pub fn size(&self) -> usize {
        // Ids, digest, numbers, time and the tags and lengths of all fields take less than this.
        const FIXED: usize = 192;
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 4).sum();
        let version = p2psb_proto::model::limits::VERSION_BYTES;
        let texts = self.title.len() + self.description.len() + self.license.len();
        FIXED + self.package.name.as_str().len() + version + texts + tags
    }
}

/// The beginning of a text: at most `limit` bytes, cut between characters.
#[must_use]
pub fn beginning(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(beginning("aäb", 2), "a");
        assert_eq!(beginning("aäb", 3), "aä");
        assert_eq!(beginning("aäb", 100), "aäb");
    }
}
