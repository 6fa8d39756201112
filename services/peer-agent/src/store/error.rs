//! Why the catalogue can't be used.

use std::path::PathBuf;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::RecordError;
use rusqlite::ErrorCode;

/// Why the catalogue can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder can't be used at all.
    #[error("can't use the data folder {path}: {source}; check that it can be written")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error("the data folder {path} is in use by another agent; stop it, or choose another folder")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Written by a newer version.
    #[error(
        "the catalogue was written by a newer version (format {found}, known is {known}); update this program"
    )]
    Newer {
        /// In the file.
        found: i64,
        /// Known here.
        known: i64,
    },
    /// No space left.
    #[error("the disk is full: the agent's catalogue can't grow; free some space")]
    DiskFull,
    /// The database fails.
    #[error("the agent's catalogue fails: {0}")]
    Sql(rusqlite::Error),
    /// What is stored can't be right.
    #[error("the agent's catalogue holds a record that is not valid: {0}")]
    Record(#[from] RecordError),
    /// What is stored can't be right.
    #[error("the agent's catalogue is damaged: {0}")]
    Damaged(String),
}

impl StoreError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::DiskFull => Reason::DiskFull,
            _ => Reason::StorageFailed,
        }
    }

    /// Whether it may be gone by itself, or once somebody looked after the disk.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::DiskFull | Self::Folder { .. } => true,
            Self::Sql(error) => matches!(
                error.sqlite_error_code(),
                Some(
                    ErrorCode::SystemIoFailure
                        | ErrorCode::ReadOnly
                        | ErrorCode::CannotOpen
                        | ErrorCode::PermissionDenied
                        | ErrorCode::DatabaseBusy
                        | ErrorCode::DatabaseLocked
                        | ErrorCode::OutOfMemory
                        | ErrorCode::FileLockingProtocolFailed
                )
            ),
            Self::InUse { .. } | Self::Newer { .. } | Self::Record(_) | Self::Damaged(_) => false,
        }
    }

    pub(super) fn damaged(what: impl ToString) -> Self {
        Self::Damaged(what.to_string())
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            _ => Self::Sql(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}
