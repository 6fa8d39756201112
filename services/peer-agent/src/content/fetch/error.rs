//! Why a fetch failed, by name, and what to do about it.

use std::io;
use std::path::Path;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::manifest::ManifestError;
use p2psb_proto::model::{Digest, PackagePath};
use rustix::io::Errno;

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
    /// What an earlier run left is gone, perhaps with its disk.
    #[error(
        "{path} is gone, and with it what was fetched there; bring its disk back, or fetch again to begin anew"
    )]
    Gone {
        /// The target, as shown.
        path: String,
    },
    /// The target's disk is full.
    #[error("the disk is full: {path} could not be written; free some space")]
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
            Self::TargetUnwritable { .. } | Self::Gone { .. } => Reason::TargetUnwritable,
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

    /// What has to change before trying again can help, without anything being asked for anew; `None` if nothing can.
    #[must_use]
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            Self::DiskFull { .. } => Some(Remedy::TargetRoom),
            Self::Gone { .. } => Some(Remedy::Change),
            Self::TargetUnwritable { source, .. } => {
                Errno::from_io_error(source).is_some_and(may_pass).then_some(Remedy::Change)
            }
            Self::Store(StoreError::DiskFull) => Some(Remedy::CatalogueRoom),
            Self::Store(error) => error.may_pass().then_some(Remedy::Change),
            Self::ChunkCorrupt { .. }
            | Self::Manifest(_)
            | Self::Unrepresentable { .. }
            | Self::TargetExists { .. }
            | Self::TargetBusy { .. }
            | Self::Misused(_) => None,
        }
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

/// What has to change before a fetch can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The target's disk needs room.
    TargetRoom,
    /// The catalogue's disk needs room.
    CatalogueRoom,
    /// Something about the target or its disk: who may write, a mount, a cable.
    Change,
}

/// Whether an error of the system may be gone by itself, or once somebody looked after the disk.
pub(super) const fn may_pass(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOSPC
            | Errno::DQUOT
            | Errno::ROFS
            | Errno::ACCESS
            | Errno::PERM
            | Errno::IO
            | Errno::NOENT
            | Errno::NODEV
            | Errno::NXIO
            | Errno::STALE
            | Errno::BUSY
            | Errno::AGAIN
            | Errno::INTR
            | Errno::NOMEM
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOTCONN
            | Errno::TIMEDOUT
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::CONNABORTED
            | Errno::CONNRESET
    )
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}
