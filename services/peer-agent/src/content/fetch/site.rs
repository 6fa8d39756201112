//! Where a fetch writes: its folder and its journal.

use std::collections::HashSet;
use std::sync::Arc;

use p2psb_proto::model::Digest;

use super::error::FetchError;
use super::folder::Folder;
use crate::store::{Batch, ChunkRow, FileRow, Store, StoreError, TreeId};

/// Bytes of chunks after which the journal is written.
const UNSAVED_BYTES: u64 = 16 << 20;

/// The folder and the journal of one fetch.
///
/// Invariant: a row of the journal is written after its chunk.
pub(super) struct Site {
    pub(super) store: Arc<Store>,
    pub(super) tree: TreeId,
    pub(super) folder: Folder,
    pub(super) batch: Batch,
    unsaved: u64,
    /// Chunks that lie in the folder and not yet in the journal.
    recent: HashSet<Digest>,
}

impl Site {
    pub(super) fn new(store: Arc<Store>, tree: TreeId, folder: Folder) -> Self {
        Self { store, tree, folder, batch: Batch::default(), unsaved: 0, recent: HashSet::new() }
    }

    /// A chunk lies in its place.
    pub(super) fn chunk(&mut self, row: ChunkRow) {
        self.batch.chunk(row);
        self.recent.insert(row.digest);
        self.unsaved += u64::from(row.size);
    }

    /// Writes the journal if it is time to.
    pub(super) fn flush_due(&mut self) -> Result<(), FetchError> {
        if self.unsaved >= UNSAVED_BYTES || self.batch.is_full() { self.flush() } else { Ok(()) }
    }

    /// A file was made, or is complete.
    pub(super) fn file(&mut self, row: FileRow) {
        self.batch.file(row);
    }

    /// A page of the manifest was read.
    pub(super) fn page(&mut self, digest: Digest, bytes: &[u8]) -> Result<(), FetchError> {
        self.batch.page(digest, bytes);
        self.flush()
    }

    /// A page that was read before.
    pub(super) fn read_page(&self, digest: &Digest) -> Result<Vec<u8>, FetchError> {
        let page = self.store.page(digest)?;
        Ok(page.ok_or_else(|| StoreError::Damaged(format!("the page {digest} of a manifest is missing")))?)
    }

    /// Before the catalogue is asked for a chunk: it should know of all that was written.
    pub(super) fn settle(&mut self, digest: &Digest) -> Result<(), FetchError> {
        if self.recent.contains(digest) { self.flush() } else { Ok(()) }
    }

    /// Writes the journal.
    pub(super) fn flush(&mut self) -> Result<(), FetchError> {
        self.store.append(self.tree, &mut self.batch)?;
        self.recent.clear();
        self.unsaved = 0;
        Ok(())
    }
}
