//! Trees: manifests on this disk.
//!
//! Invariant: a tree that can be seen has all its pages (a partial one: those read so far), and a row for each file and chunk that lies
//! on the disk.

use std::path::{Path, PathBuf};

use p2psb_proto::model::Digest;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::{Problem, Store, StoreError, path_bytes, path_from};

/// Rows of a batch after which it should be written.
const BATCH_ROWS: usize = 8192;
/// Bytes of pages in a batch after which it should be written.
const BATCH_BYTES: usize = 4 << 20;
/// Rows removed in one transaction.
const REMOVED_ROWS: u32 = 20_000;

/// Nobody sees it: being built, or being removed.
pub(super) const HIDDEN: i64 = 0;
pub(super) const SHARED: i64 = 1;
pub(super) const PARTIAL: i64 = 2;
pub(super) const COMPLETE: i64 = 3;

/// A tree of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeId(pub(super) i64);

/// How a tree came here, and whether all of it is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeState {
    /// Published here, shared in place.
    Shared,
    /// Being fetched.
    Partial,
    /// Fetched.
    Complete,
}

/// How much of a manifest this agent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Nothing.
    None,
    /// It is being fetched.
    Partial,
    /// All of it (apart from files that changed since; see [`Store::problems`]).
    Complete,
}

/// One tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Its id.
    pub id: TreeId,
    /// Its content.
    pub manifest: Digest,
    /// How it came here.
    pub state: TreeState,
    /// The folder (or single file) that was published, or the target of the fetch. Of several published paths the first.
    pub path: PathBuf,
    /// Bytes in all files; 0 while the root is not known.
    pub total_size: u64,
    /// Number of files; 0 while the root is not known.
    pub file_count: u64,
    /// Number of files with a [`Problem`].
    pub problems: u64,
}

/// A file of a tree.
#[derive(Clone, Debug)]
pub(crate) struct FileRow {
    /// Number of its entry in the manifest.
    pub(crate) entry: u64,
    /// Number of the base that its path begins at.
    pub(crate) base: u32,
    /// Path in the package.
    pub(crate) path: Box<str>,
    /// In bytes.
    pub(crate) size: u64,
    /// When it was last changed; 0 while it is being written.
    pub(crate) mtime_ns: i64,
    /// On its disk; 0 while it is being written.
    pub(crate) inode: u64,
    /// By its owner.
    pub(crate) executable: bool,
}

/// A chunk in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkRow {
    /// Number of the file's entry in the manifest.
    pub(crate) entry: u64,
    /// Where in the file.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) size: u32,
    /// Of its bytes.
    pub(crate) digest: Digest,
}

/// What the root of a manifest says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// Bytes of all files.
    pub(crate) size: u64,
    /// Number of files.
    pub(crate) files: u64,
}

/// Rows on their way into the catalogue.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    files: Vec<FileRow>,
    chunks: Vec<ChunkRow>,
    pages: Vec<(Digest, Box<[u8]>)>,
    page_bytes: usize,
}

impl Batch {
    /// Adds a file, or replaces its row.
    pub(crate) fn file(&mut self, row: FileRow) {
        self.files.push(row);
    }

    /// Adds a chunk.
    pub(crate) fn chunk(&mut self, row: ChunkRow) {
        self.chunks.push(row);
    }

    /// Adds a page of the manifest, the root included.
    pub(crate) fn page(&mut self, digest: Digest, bytes: &[u8]) {
        self.page_bytes += bytes.len();
        self.pages.push((digest, bytes.into()));
    }

    /// Whether it is time to write it.
    pub(crate) fn is_full(&self) -> bool {
        self.files.len() + self.chunks.len() >= BATCH_ROWS || self.page_bytes >= BATCH_BYTES
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.chunks.is_empty() && self.pages.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.files.clear();
        self.chunks.clear();
        self.pages.clear();
        self.page_bytes = 0;
    }

    pub(super) fn insert(&self, tree: TreeId, to: &Transaction<'_>) -> Result<(), StoreError> {
        let mut page = to.prepare_cached("INSERT OR IGNORE INTO page(digest, bytes) VALUES (?1, ?2)")?;
        let mut tree_page =
            to.prepare_cached("INSERT OR IGNORE INTO tree_page SELECT ?1, id FROM page WHERE digest = ?2")?;
        for (digest, bytes) in &self.pages {
            page.execute(params![digest.as_bytes(), bytes])?;
            tree_page.execute(params![tree.0, digest.as_bytes()])?;
        }
        let mut file =
            to.prepare_cached("INSERT OR REPLACE INTO file VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
        for row in &self.files {
            file.execute(params![
                tree.0,
                signed(row.entry),
                row.base,
                row.path,
                signed(row.size),
                row.mtime_ns,
                row.inode.cast_signed(),
                row.executable,
            ])?;
        }
        let mut chunk = to.prepare_cached("INSERT OR REPLACE INTO chunk VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for row in &self.chunks {
            chunk.execute(params![
                tree.0,
                signed(row.entry),
                signed(row.offset),
                row.size,
                row.digest.as_bytes()
            ])?;
        }
        Ok(())
    }
}

/// Numbers of a manifest stay far below 2^63.
pub(super) const fn signed(number: u64) -> i64 {
    number.cast_signed()
}

pub(super) fn digest_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get(column).map(Digest::from_bytes)
}

pub(super) fn unsigned_at(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get(column).map(i64::cast_unsigned)
}

impl Store {
    /// How much of a manifest is here.
    pub fn holding(&self, manifest: &Digest) -> Result<Holding, StoreError> {
        holding(&*self.read()?, manifest)
    }

    /// Every manifest of which something is held: what is claimed at the indexes. Shared content counts once a release points at it.
    pub fn manifests(&self) -> Result<Vec<(Digest, Holding)>, StoreError> {
        let connection = self.read()?;
        let mut select = connection.prepare_cached(
            "SELECT manifest, max(state <> ?1) FROM tree
             WHERE state <> ?2 AND (state <> ?3 OR EXISTS (SELECT 1 FROM release r WHERE r.manifest = tree.manifest))
             GROUP BY manifest ORDER BY min(id)",
        )?;
        let rows = select.query_map(params![PARTIAL, HIDDEN, SHARED], |row| {
            let holding = if row.get(1)? { Holding::Complete } else { Holding::Partial };
            Ok((digest_at(row, 0)?, holding))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Trees, newest first, at most `limit`.
    pub fn trees(&self, limit: usize) -> Result<Vec<Tree>, StoreError> {
        self.select_trees("state <> 0 ORDER BY id DESC LIMIT ?1", i64::try_from(limit).unwrap_or(i64::MAX))
    }

    /// One tree.
    pub fn tree(&self, id: TreeId) -> Result<Option<Tree>, StoreError> {
        Ok(self.select_trees("state <> 0 AND id = ?1", id.0)?.pop())
    }

    fn select_trees(&self, which: &str, value: i64) -> Result<Vec<Tree>, StoreError> {
        let connection = self.read()?;
        let mut select = connection.prepare_cached(&format!(
            "SELECT id, manifest, state, path, total_size, file_count,
             (SELECT count(*) FROM problem WHERE tree = id) FROM tree WHERE {which}"
        ))?;
        let rows = select.query_map([value], |row| {
            Ok(Tree {
                id: TreeId(row.get(0)?),
                manifest: digest_at(row, 1)?,
                state: match row.get::<_, i64>(2)? {
                    SHARED => TreeState::Shared,
                    PARTIAL => TreeState::Partial,
                    _ => TreeState::Complete,
                },
                path: path_from(row.get(3)?),
                total_size: unsigned_at(row, 4)?,
                file_count: unsigned_at(row, 5)?,
                problems: unsigned_at(row, 6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Files of a tree that are not (wholly) served any more, at most `limit`.
    pub fn problems(&self, id: TreeId, limit: usize) -> Result<Vec<Problem>, StoreError> {
        let connection = self.read()?;
        let mut select = connection.prepare_cached(
            "SELECT b.path, f.path, p.detail FROM problem p JOIN file f ON f.tree = p.tree AND f.entry = p.entry
             JOIN base b ON b.tree = f.tree AND b.number = f.base WHERE p.tree = ?1 ORDER BY p.entry LIMIT ?2",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = select.query_map(params![id.0, limit], |row| {
            let path = path_from(row.get(0)?).join(row.get::<_, String>(1)?);
            Ok(Problem { tree: id, path, detail: row.get(2)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Forgets a tree; its files stay.
    pub fn forget(&self, id: TreeId) -> Result<(), StoreError> {
        self.write(|to| Ok(to.execute("UPDATE tree SET state = ?1 WHERE id = ?2", params![HIDDEN, id.0])?))?;
        self.remove(id)
    }

    /// Begins a tree of published files, which nobody sees before [`Store::share`].
    pub(crate) fn begin(&self, path: &Path, bases: &[PathBuf]) -> Result<TreeId, StoreError> {
        self.write(|to| insert_tree(to, HIDDEN, None, path, bases))
    }

    /// Appends to a tree, and empties the batch.
    pub(crate) fn append(&self, tree: TreeId, batch: &mut Batch) -> Result<(), StoreError> {
        if !batch.is_empty() {
            self.write(|to| batch.insert(tree, to))?;
            batch.clear();
        }
        Ok(())
    }

    /// Makes a published tree visible. Durable. It replaces one of the same content at the same path.
    pub(crate) fn share(&self, tree: TreeId, manifest: &Digest, totals: Totals) -> Result<(), StoreError> {
        let replaced: Vec<i64> = self.write_durably(|to| {
            let mut older = to.prepare(
                "UPDATE tree SET state = ?1 WHERE state = ?2 AND manifest = ?3
                 AND path = (SELECT path FROM tree WHERE id = ?4) RETURNING id",
            )?;
            let ids = older
                .query_map(params![HIDDEN, SHARED, manifest.as_bytes(), tree.0], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            to.execute(
                "UPDATE tree SET state = ?1, manifest = ?2, total_size = ?3, file_count = ?4 WHERE id = ?5",
                params![SHARED, manifest.as_bytes(), signed(totals.size), signed(totals.files), tree.0],
            )?;
            Ok(ids)
        })?;
        replaced.into_iter().try_for_each(|id| self.remove(TreeId(id)))
    }

    /// Removes the rows of a hidden tree, a bounded number at a time.
    pub(crate) fn remove(&self, tree: TreeId) -> Result<(), StoreError> {
        for (table, key) in
            [("chunk", "tree, entry, offset"), ("file", "tree, entry"), ("problem", "tree, entry")]
        {
            let delete = format!(
                "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE tree = ?1 LIMIT ?2)"
            );
            while self.write(|to| Ok(to.execute(&delete, params![tree.0, REMOVED_ROWS])?))? > 0 {}
        }
        self.write(|to| {
            to.execute(
                "DELETE FROM page WHERE id IN (SELECT page FROM tree_page WHERE tree = ?1)
                 AND NOT EXISTS (SELECT 1 FROM tree_page o WHERE o.page = page.id AND o.tree <> ?1)",
                [tree.0],
            )?;
            to.execute("DELETE FROM tree_page WHERE tree = ?1", [tree.0])?;
            to.execute("DELETE FROM base WHERE tree = ?1", [tree.0])?;
            to.execute("DELETE FROM tree WHERE id = ?1", [tree.0])?;
            Ok(())
        })
    }

    /// What was read to be published, but not released before the agent ended, is not shared.
    pub(super) fn hide_unreleased(&self) -> Result<(), StoreError> {
        self.write(|to| {
            to.execute(
                "UPDATE tree SET state = ?1 WHERE state = ?2
                 AND NOT EXISTS (SELECT 1 FROM release r WHERE r.manifest = tree.manifest)",
                params![HIDDEN, SHARED],
            )?;
            Ok(())
        })
    }

    /// Removes what was never finished.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        let hidden: Vec<i64> = {
            let connection = self.read()?;
            let mut select = connection.prepare("SELECT id FROM tree WHERE state = ?1")?;
            select.query_map([HIDDEN], |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        hidden.into_iter().try_for_each(|id| self.remove(TreeId(id)))
    }
}

pub(super) fn insert_tree(
    to: &Transaction<'_>,
    state: i64,
    manifest: Option<&Digest>,
    path: &Path,
    bases: &[PathBuf],
) -> Result<TreeId, StoreError> {
    to.execute(
        "INSERT INTO tree(state, manifest, path) VALUES (?1, ?2, ?3)",
        params![state, manifest.map(Digest::as_bytes), path_bytes(path)],
    )?;
    let tree = TreeId(to.last_insert_rowid());
    for (number, base) in (0i64..).zip(bases) {
        to.execute("INSERT INTO base VALUES (?1, ?2, ?3)", params![tree.0, number, path_bytes(base)])?;
    }
    Ok(tree)
}

pub(super) fn holding(connection: &Connection, manifest: &Digest) -> Result<Holding, StoreError> {
    let mut select =
        connection.prepare_cached("SELECT max(state <> ?1) FROM tree WHERE manifest = ?2 AND state <> ?3")?;
    let whole: Option<Option<bool>> =
        select.query_row(params![PARTIAL, manifest.as_bytes(), HIDDEN], |row| row.get(0)).optional()?;
    Ok(match whole.flatten() {
        None => Holding::None,
        Some(false) => Holding::Partial,
        Some(true) => Holding::Complete,
    })
}
