//! What this agent holds, and where it lies: the catalogue, in SQLite.
//!
//! - Trees: a manifest on this disk, shared in place (published), complete (fetched) or partial (being fetched), with its pages, files
//!   and the place of every chunk, so that any chunk can be found by its digest, whichever package it came with.
//! - Releases published or fetched here, the highest head seen of each chain, own host claims, and fetch jobs.
//!
//! Promises: what is read for others is verified first ([`Reader`]); a place whose bytes changed is never served again and becomes a
//! [`Problem`] of its tree. Nothing of a publish is visible before all of it is. Everything survives `kill -9`; what is acknowledged as
//! durable survives a power cut. All calls block: use them from `spawn_blocking` or threads of your own. A [`Store`] is shared by `Arc`.

mod error;
mod jobs;
mod partial;
mod reader;
mod releases;
mod repair;
mod schema;
mod trees;

use std::collections::{HashSet, VecDeque};
use std::fs::{File, TryLockError};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::{Connection, Transaction};

pub use error::StoreError;
pub use jobs::{Job, JobId, JobState};
pub(crate) use partial::{Claimed, PartialTree};
pub use reader::{Problem, Reader};
pub use releases::HeadSeen;
pub(crate) use repair::{Recorded, Stamp};
pub(crate) use trees::{Batch, ChunkRow, FileRow, Totals};
pub use trees::{Holding, Tree, TreeId, TreeState};

/// Idle connections for reading that are kept.
const IDLE_READERS: usize = 16;

/// The catalogue. `Send + Sync`; one for the process.
pub struct Store {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    /// Targets that a fetch of this process is writing.
    targets: Mutex<HashSet<PathBuf>>,
    problems: Mutex<NewProblems>,
    /// Held as long as the catalogue is open, so that two agents never share one.
    _lock: File,
}

/// Problems found since they were last taken, and which files were noted already.
#[derive(Default)]
struct NewProblems {
    fresh: VecDeque<Problem>,
    noted: HashSet<(TreeId, u64)>,
}

impl Store {
    /// Opens, or creates, `catalogue.db` in `folder`. What an aborted publish left is removed.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = lock(folder)?;
        let path = folder.join("catalogue.db");
        let writer = schema::open_writer(&path)?;
        // Files that could not be read may be back.
        writer.execute("DELETE FROM problem WHERE NOT lasting", [])?;
        let store = Self {
            path,
            writer: Mutex::new(writer),
            readers: Mutex::default(),
            targets: Mutex::default(),
            problems: Mutex::default(),
            _lock: lock,
        };
        store.hide_unreleased()?;
        store.sweep()?;
        Ok(store)
    }

    /// Where the catalogue, and all else that the agent keeps, lies.
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// A connection for reading.
    fn read(&self) -> Result<Pooled<'_>, StoreError> {
        let idle = self.readers.lock().pop();
        let connection = idle.map_or_else(|| schema::open_reader(&self.path), Ok)?;
        Ok(Pooled { store: self, connection: Some(connection) })
    }

    /// Runs `work` in one transaction.
    fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = self.writer.lock();
        in_transaction(&mut connection, work)
    }

    /// As [`Self::write`]; returns once the transaction, and all before it, are on the disk.
    fn write_durably<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = self.writer.lock();
        connection.pragma_update(None, "synchronous", "FULL")?;
        let result = in_transaction(&mut connection, work);
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        result
    }
}

fn in_transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let value = work(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

fn lock(folder: &Path) -> Result<File, StoreError> {
    let failed = |source| StoreError::Folder { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let options =
        || File::options().create(true).truncate(false).write(true).open(folder.join("catalogue.lock"));
    let file = options().map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// A connection for reading, on loan.
struct Pooled<'a> {
    store: &'a Store,
    connection: Option<Connection>,
}

impl Deref for Pooled<'_> {
    type Target = Connection;

    #[expect(clippy::expect_used, reason = "the connection leaves only when this is dropped")]
    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("on loan until dropped")
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        let mut idle = self.store.readers.lock();
        if let Some(connection) = self.connection.take()
            && idle.len() < IDLE_READERS
        {
            idle.push(connection);
        }
    }
}

/// A path as it is stored: its bytes, whatever they are.
fn path_bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

/// A path as it was stored.
fn path_from(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes))
}

#[cfg(test)]
mod tests;
