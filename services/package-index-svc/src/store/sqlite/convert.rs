//! Between the database's values and the model's. Whatever does not convert back is damage.

use std::fmt::Display;

use p2psb_proto::model::time::UnixMillis;
use rusqlite::ErrorCode;
use rusqlite::types::FromSqlError;

use crate::store::StoreError;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match &error {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::DiskFull => Self::Full(error.to_string()),
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Damaged(error.to_string()),
                _ => Self::Failed(error.to_string()),
            },
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::InvalidColumnType(..) => Self::Damaged(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<FromSqlError> for StoreError {
    fn from(error: FromSqlError) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// A value that was stored by this program and does not read back.
pub(super) fn damaged(what: impl Display) -> StoreError {
    StoreError::Damaged(what.to_string())
}

/// A number for the database, whose integers have 63 bits. Numbers of accepted records fit: a `seq` follows a clock or a chain.
pub(super) fn to_db(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number from the database.
pub(super) fn from_db(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| damaged("a number is negative"))
}

/// A time from the database.
pub(super) fn time_from_db(number: i64) -> Result<UnixMillis, StoreError> {
    from_db(number).map(UnixMillis)
}
