//! Why a publish failed, by name, and what to do about it.

use std::io;
use std::path::Path;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::manifest::ManifestError;
use p2psb_proto::model::path::{PathError, shown};

use crate::store::StoreError;

/// Why a publish failed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It was cancelled.
    #[error("publishing was cancelled")]
    Cancelled,
    /// A worker ended before its work.
    #[error("publishing was interrupted by a failure of the program")]
    Interrupted,
    /// No path was given.
    #[error("nothing to publish was named; name a folder or files")]
    NoInput,
    /// An input is relative.
    #[error("{0} is not an absolute path")]
    Relative(String),
    /// An input is the root of the file system, next to others.
    #[error("{0} has no name under which it could stand in a package")]
    Nameless(String),
    /// Two inputs of one name.
    #[error("{first} and {second} would have the same name in the package; rename one")]
    SameName {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// The agent's own data folder would be in it.
    #[error(
        "{path} holds, or lies in, the agent's data folder {private} with its secret keys; publish another folder, or move that one"
    )]
    Private {
        /// What was to be published.
        path: String,
        /// The data folder.
        private: String,
    },
    /// Nothing is there.
    #[error("nothing is at {0}")]
    Missing(String),
    /// Can't be read.
    #[error(
        "can't read {path}: {source}; give yourself the right to read it, or move it out of what you publish"
    )]
    Unreadable {
        /// What, as shown.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// A device, socket or pipe.
    #[error(
        "{path} is a {kind}; only files, folders and symlinks can be published: move it out of what you publish"
    )]
    Kind {
        /// What, as shown.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// It changed while it was read.
    #[error("{0} changed while it was read; publish again when nothing writes to it")]
    Changed(String),
    /// A name that can't be published.
    #[error("{0}; rename it or move it out of what you publish")]
    Path(PathError),
    /// A symlink that leads out.
    #[error("{0}; remove it, or publish the folder that holds both")]
    Symlink(PathError),
    /// A symlink that may lead out, by way of another one.
    #[error("{0}; let it lead there directly")]
    Winding(PathError),
    /// The package is too large.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The catalogue fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PublishError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Cancelled => Reason::Draining,
            Self::Interrupted => Reason::Internal,
            Self::NoInput | Self::Relative(_) | Self::Nameless(_) | Self::SameName { .. } => {
                Reason::InvalidArgument
            }
            Self::Private { .. } => Reason::PathInvalid,
            Self::Missing(_) => Reason::PathMissing,
            Self::Unreadable { .. } => Reason::FileUnreadable,
            Self::Kind { .. } => Reason::FileKindUnsupported,
            Self::Changed(_) => Reason::FileChanged,
            Self::Path(error) | Self::Symlink(error) | Self::Winding(error) => error.reason(),
            Self::Manifest(error) => error.reason(),
            Self::Store(error) => error.reason(),
        }
    }

    /// `path` could not be looked at or read.
    pub(super) fn at(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(shown_path(path)),
            _ => Self::Unreadable { path: shown_path(path), source },
        }
    }

    /// `path` was found before and can't be opened now.
    pub(super) fn gone(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Changed(shown_path(path)),
            _ => Self::Unreadable { path: shown_path(path), source },
        }
    }
}

impl From<PathError> for PublishError {
    fn from(error: PathError) -> Self {
        match error {
            PathError::Escapes { .. } => Self::Symlink(error),
            PathError::Winds { .. } => Self::Winding(error),
            _ => Self::Path(error),
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// A path of this disk as it may be shown: control characters escaped, bytes that are not UTF-8 too.
pub(crate) fn shown_path(path: &Path) -> String {
    match path.to_str() {
        Some(text) => shown(text),
        None => shown(&path.as_os_str().as_encoded_bytes().escape_ascii().to_string()),
    }
}
