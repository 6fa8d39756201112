//! Why the store refuses something, or fails.

use p2psb_proto::model::record::RecordError;
use p2psb_proto::wire::common::v1::SignedRecord;

use crate::core::chain::ChainError;
use crate::core::limits::QuotaError;

/// The store itself can't.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No room.
    #[error("the disk is full, or the database has reached limits.database_bytes: {0}")]
    Full(String),
    /// What is on disk is not what was written.
    #[error("the database is damaged: {0}; restore it from a backup")]
    Damaged(String),
    /// A newer program made the database.
    #[error("the database has schema version {found}, this program knows {known}; run a newer program")]
    TooNew {
        /// Of the database.
        found: i64,
        /// Of this program.
        known: i64,
    },
    /// The file is some other database.
    #[error("{0} is not a database of a package index; is index.database right?")]
    Foreign(String),
    /// Anything else that the database says.
    #[error("the database failed: {0}")]
    Failed(String),
}

/// Why an entry was not appended.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PublishError {
    /// The chain does not take it.
    #[error("{error}")]
    Refused {
        /// Why.
        error: ChainError,
        /// The head's record, where the publisher needs it.
        head: Option<Box<SignedRecord>>,
    },
    /// The publisher has too much.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ChainError> for PublishError {
    fn from(error: ChainError) -> Self {
        Self::Refused { error, head: None }
    }
}

/// Why an announcement was refused as a whole.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AnnounceError {
    /// The lease does not count now.
    #[error(transparent)]
    Lease(#[from] RecordError),
    /// A newer lease is known.
    #[error("the lease has seq {offered}, one with seq {stored} is known; sign the next with a higher seq")]
    Stale {
        /// Its seq.
        offered: u64,
        /// The known one's.
        stored: u64,
        /// The known one.
        lease: Box<SignedRecord>,
    },
    /// Another lease with the same seq is known.
    #[error(
        "another lease with seq {seq} is known: the key signed two truths; sign the next with a higher seq"
    )]
    Equivocation {
        /// Of both.
        seq: u64,
        /// The known one.
        lease: Box<SignedRecord>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An error that may be a failure of the store itself.
pub(super) trait MayFail: From<StoreError> {
    /// The failure.
    fn failure(&self) -> Option<&StoreError>;
}

impl MayFail for StoreError {
    fn failure(&self) -> Option<&StoreError> {
        Some(self)
    }
}

impl MayFail for PublishError {
    fn failure(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Refused { .. } | Self::Quota(_) => None,
        }
    }
}

impl MayFail for AnnounceError {
    fn failure(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Lease(_) | Self::Stale { .. } | Self::Equivocation { .. } => None,
        }
    }
}
