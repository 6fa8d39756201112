//! Trees that are being fetched: the journal.

use std::path::{Path, PathBuf};

use p2psb_proto::model::Digest;
use rusqlite::{OptionalExtension as _, params};

use super::trees::{COMPLETE, PARTIAL, digest_at, insert_tree, signed, unsigned_at};
use super::{Batch, ChunkRow, Store, StoreError, Totals, TreeId, path_bytes};

/// A tree at the target of a fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartialTree {
    /// Its id.
    pub(crate) id: TreeId,
    /// Its content.
    pub(crate) manifest: Digest,
    /// Whether it was finished.
    pub(crate) complete: bool,
    /// The inode of the folder that was filled, once everything was on the disk; 0 before.
    pub(crate) sealed: u64,
}

/// The right to write to a target, as long as it lives.
pub(crate) struct Claimed {
    store: std::sync::Arc<Store>,
    target: PathBuf,
}

impl Claimed {
    /// `None` if another fetch of this process has it.
    pub(crate) fn new(store: std::sync::Arc<Store>, target: &Path) -> Option<Self> {
        let free = store.targets.lock().insert(target.to_owned());
        free.then(|| Self { store, target: target.to_owned() })
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.store.targets.lock().remove(&self.target);
    }
}

impl Store {
    /// Fetched trees, and ones being fetched, at `target`; the newest first.
    pub(crate) fn trees_at(&self, target: &Path) -> Result<Vec<PartialTree>, StoreError> {
        let connection = self.read()?;
        let mut select = connection.prepare_cached(
            "SELECT id, manifest, state, inode FROM tree WHERE path = ?1 AND state IN (?2, ?3) ORDER BY id DESC",
        )?;
        let rows = select.query_map(params![path_bytes(target), PARTIAL, COMPLETE], |row| {
            Ok(PartialTree {
                id: TreeId(row.get(0)?),
                manifest: digest_at(row, 1)?,
                complete: row.get::<_, i64>(2)? == COMPLETE,
                sealed: unsigned_at(row, 3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Begins a tree that will be written to `folder` and end up at `target`.
    pub(crate) fn begin_partial(
        &self,
        manifest: &Digest,
        target: &Path,
        folder: &Path,
    ) -> Result<TreeId, StoreError> {
        self.write(|to| insert_tree(to, PARTIAL, Some(manifest), target, &[folder.to_owned()]))
    }

    /// Remembers what the root says.
    pub(crate) fn set_totals(&self, tree: TreeId, totals: Totals) -> Result<(), StoreError> {
        self.write(|to| {
            let update = "UPDATE tree SET total_size = ?1, file_count = ?2 WHERE id = ?3";
            Ok(to.execute(update, params![signed(totals.size), signed(totals.files), tree.0])?)
        })?;
        Ok(())
    }

    /// Everything is on the disk, in the folder with this inode, which is about to be moved into place; 0 takes that back. Durable.
    pub(crate) fn seal(&self, tree: TreeId, inode: u64, batch: &mut Batch) -> Result<(), StoreError> {
        self.write_durably(|to| {
            batch.insert(tree, to)?;
            let update = "UPDATE tree SET inode = ?1 WHERE id = ?2";
            Ok(to.execute(update, params![inode.cast_signed(), tree.0])?)
        })?;
        batch.clear();
        Ok(())
    }

    /// The tree lies at `target` now and is complete. Durable.
    pub(crate) fn complete(&self, tree: TreeId, target: &Path) -> Result<(), StoreError> {
        self.write_durably(|to| {
            to.execute("UPDATE tree SET state = ?1 WHERE id = ?2", params![COMPLETE, tree.0])?;
            to.execute("UPDATE base SET path = ?1 WHERE tree = ?2", params![path_bytes(target), tree.0])?;
            Ok(())
        })
    }

    /// Whether the journal holds any chunk.
    pub(crate) fn has_chunks(&self, tree: TreeId) -> Result<bool, StoreError> {
        let connection = self.read()?;
        Ok(connection.prepare_cached("SELECT 1 FROM chunk WHERE tree = ?1 LIMIT 1")?.exists([tree.0])?)
    }

    /// The chunks that the journal says lie from one place (entry, offset) up to, not including, another.
    pub(crate) fn chunks_between(
        &self,
        tree: TreeId,
        from: (u64, u64),
        to: (u64, u64),
    ) -> Result<Vec<ChunkRow>, StoreError> {
        let connection = self.read()?;
        let mut select = connection.prepare_cached(
            "SELECT entry, offset, size, digest FROM chunk WHERE tree = ?1
             AND (entry, offset) >= (?2, ?3) AND (entry, offset) < (?4, ?5) ORDER BY entry, offset",
        )?;
        let range = params![tree.0, signed(from.0), signed(from.1), signed(to.0), signed(to.1)];
        let rows = select.query_map(range, |row| {
            Ok(ChunkRow {
                entry: unsigned_at(row, 0)?,
                offset: unsigned_at(row, 1)?,
                size: row.get(2)?,
                digest: digest_at(row, 3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Takes a chunk out of the journal.
    pub(crate) fn remove_chunk(&self, tree: TreeId, entry: u64, offset: u64) -> Result<(), StoreError> {
        self.write(|to| {
            let delete = "DELETE FROM chunk WHERE tree = ?1 AND entry = ?2 AND offset = ?3";
            Ok(to.execute(delete, params![tree.0, signed(entry), signed(offset)])?)
        })?;
        Ok(())
    }

    /// Whether a page of any manifest is here.
    pub(crate) fn has_page(&self, digest: &Digest) -> Result<bool, StoreError> {
        let connection = self.read()?;
        Ok(connection.prepare_cached("SELECT 1 FROM page WHERE digest = ?1")?.exists([digest.as_bytes()])?)
    }

    /// A page of any manifest here.
    pub(crate) fn page(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let connection = self.read()?;
        let mut select = connection.prepare_cached("SELECT bytes FROM page WHERE digest = ?1")?;
        Ok(select.query_row([digest.as_bytes()], |row| row.get(0)).optional()?)
    }
}
