//! A fetched tree that is looked at again: what is known of its files, and which of them are to be repaired.
//!
//! A damaged file is one with a lasting [`super::Problem`]. Its replacement is filled in a partial tree of its own, with the same target,
//! and taken over from there once it lies in its place.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::params;

use super::trees::{signed, unsigned_at};
use super::{Store, StoreError, TreeId};

/// By what a file is recognised without being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// In bytes.
    pub(crate) size: u64,
    /// When it was last changed.
    pub(crate) mtime_ns: i64,
    /// On its disk.
    pub(crate) inode: u64,
}

/// What is recorded of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded {
    /// When it was complete.
    pub(crate) stamp: Stamp,
    /// By its owner, then.
    pub(crate) executable: bool,
    /// It was found to be another, or could not be read.
    pub(crate) problem: bool,
}

impl Store {
    /// What is recorded of the files from one entry up to, not including, another.
    pub(crate) fn files_between(
        &self,
        tree: TreeId,
        from: u64,
        to: u64,
    ) -> Result<BTreeMap<u64, Recorded>, StoreError> {
        let connection = self.read()?;
        let mut select = connection.prepare_cached(
            "SELECT entry, size, mtime_ns, inode, executable,
             EXISTS (SELECT 1 FROM problem p WHERE p.tree = f.tree AND p.entry = f.entry)
             FROM file f WHERE tree = ?1 AND entry >= ?2 AND entry < ?3",
        )?;
        let rows = select.query_map(params![tree.0, signed(from), signed(to)], |row| {
            let stamp =
                Stamp { size: unsigned_at(row, 1)?, mtime_ns: row.get(2)?, inode: unsigned_at(row, 3)? };
            Ok((unsigned_at(row, 0)?, Recorded { stamp, executable: row.get(4)?, problem: row.get(5)? }))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// These files are not what they were.
    pub(crate) fn mark_damaged(&self, tree: TreeId, entries: &[u64]) -> Result<(), StoreError> {
        const DETAIL: &str = "is not as it was published; fetch it again to repair it";
        if entries.is_empty() {
            return Ok(());
        }
        // Whoever looks is about to repair it, and says so; readers need not.
        self.problems.lock().noted.extend(entries.iter().map(|entry| (tree, *entry)));
        self.write(|to| {
            let mut insert = to.prepare_cached("INSERT OR REPLACE INTO problem VALUES (?1, ?2, 1, ?3)")?;
            for entry in entries {
                insert.execute(params![tree.0, signed(*entry), DETAIL])?;
            }
            Ok(())
        })
    }

    /// These files were read, and are what they should be.
    pub(crate) fn mark_sound(&self, tree: TreeId, entries: &[u64]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.write(|to| {
            let mut delete = to.prepare_cached("DELETE FROM problem WHERE tree = ?1 AND entry = ?2")?;
            for entry in entries {
                delete.execute(params![tree.0, signed(*entry)])?;
            }
            Ok(())
        })?;
        self.forget_noted(tree, entries);
        Ok(())
    }

    /// The files to repair from one entry up to, not including, another. Of all others `staged` forgets what it may hold: only what is
    /// verified from now on will be taken from there.
    pub(crate) fn to_repair(
        &self,
        tree: TreeId,
        staged: TreeId,
        from: u64,
        to: u64,
    ) -> Result<BTreeSet<u64>, StoreError> {
        self.write(|transaction| {
            for table in ["file", "chunk"] {
                let delete = format!(
                    "DELETE FROM {table} WHERE tree = ?1 AND entry >= ?2 AND entry < ?3
                     AND entry NOT IN (SELECT entry FROM problem WHERE tree = ?4)"
                );
                let mut delete = transaction.prepare_cached(&delete)?;
                delete.execute(params![staged.0, signed(from), signed(to), tree.0])?;
            }
            let select = "SELECT entry FROM problem WHERE tree = ?1 AND entry >= ?2 AND entry < ?3";
            let mut select = transaction.prepare_cached(select)?;
            let rows = select
                .query_map(params![tree.0, signed(from), signed(to)], |row| unsigned_at(row, 0))?
                .collect::<Result<_, _>>()?;
            Ok(rows)
        })
    }

    /// These files of `staged` lie in their places in `tree` now.
    pub(crate) fn take_over(&self, tree: TreeId, staged: TreeId, entries: &[u64]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.write(|to| {
            let mut forget = to.prepare_cached("DELETE FROM chunk WHERE tree = ?1 AND entry = ?2")?;
            let mut sound = to.prepare_cached("DELETE FROM problem WHERE tree = ?1 AND entry = ?2")?;
            let mut file = to.prepare_cached(
                "INSERT OR REPLACE INTO file SELECT ?1, entry, 0, path, size, mtime_ns, inode, executable
                 FROM file WHERE tree = ?2 AND entry = ?3",
            )?;
            let mut chunks =
                to.prepare_cached("UPDATE chunk SET tree = ?1 WHERE tree = ?2 AND entry = ?3")?;
            let mut done = to.prepare_cached("DELETE FROM file WHERE tree = ?1 AND entry = ?2")?;
            for entry in entries.iter().map(|entry| signed(*entry)) {
                forget.execute(params![tree.0, entry])?;
                sound.execute(params![tree.0, entry])?;
                file.execute(params![tree.0, staged.0, entry])?;
                chunks.execute(params![tree.0, staged.0, entry])?;
                done.execute(params![staged.0, entry])?;
            }
            Ok(())
        })?;
        self.forget_noted(tree, entries);
        Ok(())
    }

    /// New problems of these files are told again.
    fn forget_noted(&self, tree: TreeId, entries: &[u64]) {
        let mut problems = self.problems.lock();
        for entry in entries {
            problems.noted.remove(&(tree, *entry));
        }
    }
}
