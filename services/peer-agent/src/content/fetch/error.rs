//! Why a fetch failed, by name, and what to do about it.

use std::io;
use std::path::Path;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::manifest::ManifestError;
use p2psb_proto::model::{Digest, PackagePath};

use crate::content::publish::shown_path;
use crate::store::StoreError;

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Bytes do not fit their digest. The fetch goes on; the host lied.
    #[error("the bytes for {digest} do not fit that digest; nothing was written")]
    ChunkCorrupt {
        /// What was asked for.
        digest: Digest,
    },
    /// The manifest breaks its rules. Final.
    #[error("the package can't be fetched, its manifest is invalid: {0}")]
    Manifest(#[from] ManifestError),
    /// The target's disk can't hold a path. Final, for this disk.
    #[error("the disk of {target} can't hold {path}: {why}; fetch to another disk")]
    Unrepresentable {
        /// The path in the package, as shown.
        path: String,
        /// The target, as shown.
        target: String,
        /// What the matter is.
        why: String,
    },
    /// Something is at the target already.
    #[error("{path} exists and is not from this fetch; move it away, or choose another folder")]
    TargetExists {
        /// What, as shown.
        path: String,
    },
    /// Another fetch is writing to the target.
    #[error("another fetch is writing to {path}; wait for it, or choose another folder")]
    TargetBusy {
        /// The target, as shown.
        path: String,
    },
    /// The target can't be written.
    #[error(
        "can't write {path}: {source}; check that the folder is there and may be written, or choose another"
    )]
    TargetUnwritable {
        /// What, as shown.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The target's disk is full.
    #[error(
        "the disk is full: {path} could not be written; free some space, then the fetch goes on where it stopped"
    )]
    DiskFull {
        /// What, as shown.
        path: String,
    },
    /// The catalogue fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not complete, or it is over.
    #[error("the fetch can't do that now: {0}")]
    Misused(&'static str),
}

impl FetchError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::ChunkCorrupt { .. } => Reason::ChunkCorrupt,
            Self::Manifest(error) => error.reason(),
            Self::Unrepresentable { .. } => Reason::PathUnrepresentable,
            Self::TargetExists { .. } | Self::TargetBusy { .. } => Reason::TargetExists,
            Self::TargetUnwritable { .. } => Reason::TargetUnwritable,
            Self::DiskFull { .. } => Reason::DiskFull,
            Self::Store(error) => error.reason(),
            Self::Misused(_) => Reason::Internal,
        }
    }

    /// Whether trying again can't help: the manifest is invalid, or this disk can't hold it. `TARGET.partial` is gone.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Manifest(_) | Self::Unrepresentable { .. })
    }

    /// `path` could not be written.
    pub(super) fn at(path: &Path, source: io::Error) -> Self {
        let path = shown_path(path);
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::TargetUnwritable { path, source },
        }
    }

    pub(super) fn exists(path: &Path) -> Self {
        Self::TargetExists { path: shown_path(path) }
    }

    pub(super) fn unrepresentable(path: &PackagePath, target: &Path, why: impl ToString) -> Self {
        Self::Unrepresentable { path: path.to_string(), target: shown_path(target), why: why.to_string() }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}
