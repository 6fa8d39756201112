//! Releases: entries of the append-only chain of a package.

use semver::Version;

use super::digest::Digest;
use super::id::PublisherId;
use super::key::PublicKey;
use super::name::PackageName;
use super::record::{Payload, RecordError, RecordType, Signed, bounded, bounded_list, time};
use super::time::UnixMillis;
use super::{excerpt, limits};
use crate::wire::package_index::v1 as wire;
use crate::wire::package_index::v1::package_entry::Action as WireAction;

/// One immutable version of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// SemVer, without build metadata.
    pub version: Version,
    /// Its content.
    pub manifest: Digest,
    /// Bytes in all files.
    pub total_size: u64,
    /// Number of files.
    pub file_count: u64,
    /// One line.
    pub title: String,
    /// Longer text.
    pub description: String,
    /// For search.
    pub tags: Vec<String>,
    /// SPDX expression, or empty.
    pub license: String,
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Adds a version.
    Release(Release),
    /// Takes a version out of choice.
    Yank {
        /// Which.
        version: Version,
        /// For people.
        reason: String,
    },
    /// Takes a yank back.
    Unyank {
        /// Which.
        version: Version,
    },
}

impl Action {
    /// The version it is about.
    #[must_use]
    pub const fn version(&self) -> &Version {
        match self {
            Self::Release(release) => &release.version,
            Self::Yank { version, .. } | Self::Unyank { version } => version,
        }
    }
}

/// One entry of the chain of `publisher/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageEntry {
    /// The owner.
    pub publisher: PublisherId,
    /// The package's name.
    pub name: PackageName,
    /// 1, 2, 3, …
    pub seq: u64,
    /// Digest of the entry before; `None` exactly with seq 1.
    pub prev: Option<Digest>,
    /// When it was signed.
    pub issued: UnixMillis,
    /// What it does.
    pub action: Action,
}

impl Signed<PackageEntry> {
    /// Whether the owner itself signed. A delegate's signature needs its delegation beside it.
    #[must_use]
    pub fn signed_by_owner(&self) -> bool {
        self.value().publisher.key() == self.signer()
    }
}

/// Parses a version by the rules of releases.
pub fn parse_version(text: &str) -> Result<Version, RecordError> {
    let bad =
        |why: &str| RecordError::malformed(format!("{:?} is no version of a release: {why}", excerpt(text)));
    if text.len() > limits::VERSION_BYTES {
        return Err(bad("it is longer than 128 bytes"));
    }
    let version = Version::parse(text).map_err(|e| bad(&e.to_string()))?;
    if !version.build.is_empty() {
        return Err(bad("build metadata is not allowed"));
    }
    Ok(version)
}

impl Release {
    fn parse(wire: wire::Release) -> Result<Self, RecordError> {
        if wire.total_size > limits::MANIFEST_TOTAL_BYTES || wire.file_count > limits::MANIFEST_ENTRIES {
            return Err(RecordError::malformed("a release has at most 16 TiB in 10,000,000 files"));
        }
        if wire.title.contains(['\n', '\r']) {
            return Err(RecordError::malformed("the title is one line"));
        }
        Ok(Self {
            version: parse_version(&wire.version)?,
            manifest: Digest::from_slice(&wire.manifest_digest).map_err(RecordError::malformed)?,
            total_size: wire.total_size,
            file_count: wire.file_count,
            title: bounded(wire.title, limits::TITLE_BYTES, "the title")?,
            description: bounded(wire.description, limits::DESCRIPTION_BYTES, "the description")?,
            tags: bounded_list(wire.tags, limits::TAGS, "tags")?
                .into_iter()
                .map(|t| bounded(t, limits::TAG_BYTES, "a tag"))
                .collect::<Result<_, _>>()?,
            license: bounded(wire.license, limits::LICENSE_BYTES, "the license")?,
        })
    }

    fn to_wire(&self) -> wire::Release {
        wire::Release {
            version: self.version.to_string(),
            manifest_digest: self.manifest.to_wire(),
            total_size: self.total_size,
            file_count: self.file_count,
            title: self.title.clone(),
            description: self.description.clone(),
            tags: self.tags.clone(),
            license: self.license.clone(),
        }
    }
}

impl Payload for PackageEntry {
    const TYPE: RecordType = RecordType::PackageEntry;
    const MAX_BYTES: usize = limits::RECORD_BYTES;
    type Wire = wire::PackageEntry;

    fn parse(wire: wire::PackageEntry, _: &PublicKey) -> Result<Self, RecordError> {
        let prev = (!wire.prev_digest.is_empty()).then(|| Digest::from_slice(&wire.prev_digest)).transpose();
        let prev = prev.map_err(RecordError::malformed)?;
        if wire.seq == 0 || (wire.seq == 1) != prev.is_none() {
            return Err(RecordError::malformed("exactly the first entry, with seq 1, has no prev_digest"));
        }
        let action = match wire.action.ok_or_else(|| RecordError::malformed("no action"))? {
            WireAction::Release(release) => Action::Release(Release::parse(release)?),
            WireAction::Yank(yank) => Action::Yank {
                version: parse_version(&yank.version)?,
                reason: bounded(yank.reason, limits::YANK_REASON_BYTES, "the reason")?,
            },
            WireAction::Unyank(unyank) => Action::Unyank { version: parse_version(&unyank.version)? },
        };
        Ok(Self {
            publisher: PublisherId::from_slice(&wire.publisher_id).map_err(RecordError::malformed)?,
            name: wire.name.parse().map_err(RecordError::malformed)?,
            seq: wire.seq,
            prev,
            issued: time(wire.issue_time.as_ref(), "issue_time")?,
            action,
        })
    }

    fn to_wire(&self) -> wire::PackageEntry {
        let action = match &self.action {
            Action::Release(release) => WireAction::Release(release.to_wire()),
            Action::Yank { version, reason } => {
                WireAction::Yank(wire::Yank { version: version.to_string(), reason: reason.clone() })
            }
            Action::Unyank { version } => WireAction::Unyank(wire::Unyank { version: version.to_string() }),
        };
        wire::PackageEntry {
            publisher_id: self.publisher.to_wire(),
            name: self.name.to_string(),
            seq: self.seq,
            prev_digest: self.prev.map(|d| d.to_wire()).unwrap_or_default(),
            issue_time: Some(self.issued.to_wire()),
            action: Some(action),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_semver_without_build() {
        assert!(parse_version("1.2.3-rc.1").is_ok());
        for bad in ["1.2", "1.2.3+b", "v1.2.3", "", &format!("1.2.3-{}", "x".repeat(130))] {
            assert!(parse_version(bad).is_err(), "{bad}");
        }
    }
}
