//! One daemon for each data folder: a file that is locked while the daemon lives. The system frees the lock however it dies.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// The lock's file in the data folder.
pub const LOCK_FILE: &str = "agent.lock";

/// Held by the daemon; freed when dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

/// Why a data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon uses it.
    #[error("another agent is running with the data folder {}; stop it, or name another folder with --data-dir", .0.display())]
    Taken(PathBuf),
    /// The lock can't be made.
    #[error("the data folder {}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Takes a data folder for this process; it is made if it is not there, for its user alone.
pub fn take(data_dir: &Path) -> Result<Lock, LockError> {
    let failed = |source| LockError::Io { path: data_dir.to_owned(), source };
    make_private(data_dir).map_err(failed)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data_dir.join(LOCK_FILE))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(LockError::Taken(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Makes a folder, and those above it, that only its user can look into. One that is there is left as it is.
pub fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_has_one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/data");
        let lock = take(&folder).unwrap();
        assert!(matches!(take(&folder), Err(LockError::Taken(_))));
        drop(lock);
        assert!(take(&folder).is_ok());
    }
}
