//! Publishing: reads files and folders, chunks and hashes them on all cores with bounded memory, and records the tree in the catalogue.
//! Files stay where they are and are shared in place.
//!
//! Promises: nothing is published unless all of it could be read and nothing changed meanwhile; a publish that fails, is cancelled or
//! killed leaves nothing behind. Equal trees give equal manifests.

mod error;
mod hash;
mod walk;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use p2psb_proto::model::chunking::ChunkClass;
use p2psb_proto::model::manifest::{
    ChunkListBuilder, ChunkRef, Entry, ManifestBuilder, ManifestRoot, PageRef,
};
use p2psb_proto::model::{Digest, PackagePath};

pub use error::PublishError;
pub(crate) use error::shown_path;
use hash::{Item, Part};
use walk::{Inputs, Kind};

use crate::store::{Batch, ChunkRow, FileRow, Store, Totals, TreeId};

/// Bytes and files after which progress is told again.
const PROGRESS_BYTES: u64 = 8 << 20;
const PROGRESS_FILES: u64 = 256;

/// How far a publish is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishProgress {
    /// Files found so far. Final once `bytes_done` rises.
    pub files: u64,
    /// Files chunked and hashed.
    pub files_done: u64,
    /// Bytes found so far. Final once `bytes_done` rises.
    pub bytes: u64,
    /// Bytes chunked and hashed.
    pub bytes_done: u64,
}

/// What was published: recorded, and held by the store from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The tree.
    pub tree: TreeId,
    /// Its content.
    pub manifest: Digest,
    /// Bytes in all files.
    pub total_size: u64,
    /// Number of files.
    pub file_count: u64,
    /// Number of files, directories and symlinks.
    pub entry_count: u64,
    /// Chunks of all files.
    pub chunk_count: u64,
}

/// Publishes `inputs` (absolute paths). A single folder is published as its content, a single file as that one file; several paths become
/// the top of the package. `progress` is called from this thread now and then; setting `cancel` ends it soon with
/// [`PublishError::Cancelled`].
pub fn publish(
    store: &Store,
    inputs: &[PathBuf],
    progress: &mut dyn FnMut(PublishProgress),
    cancel: &AtomicBool,
) -> Result<Published, PublishError> {
    let named = inputs;
    let inputs = Inputs::resolve(named)?;
    refuse_private(store, named)?;
    let mut meter =
        Meter { now: PublishProgress::default(), told: PublishProgress::default(), tell: progress, cancel };
    survey(&inputs, &mut meter)?;
    let tree = Building { store, tree: store.begin(inputs.path(), inputs.bases())?, done: false };
    let (manifest, root) = hash::run(inputs.walk(), |items| {
        let recorder = Recorder {
            store,
            tree: tree.tree,
            batch: Batch::default(),
            manifest: ManifestBuilder::default(),
            entry: 0,
        };
        recorder.record(items, &mut meter)
    })?;
    meter.tell_now();
    let tree = tree.share(&manifest, &root)?;
    Ok(Published {
        tree,
        manifest,
        total_size: root.total_size(),
        file_count: root.file_count(),
        entry_count: root.entry_count(),
        chunk_count: root.chunk_count(),
    })
}

/// The data folder holds the secret keys: neither it, nor what lies in it, nor what it lies in can be published.
fn refuse_private(store: &Store, inputs: &[PathBuf]) -> Result<(), PublishError> {
    let private = store.folder();
    let private = private.canonicalize().unwrap_or_else(|_| private.to_owned());
    for input in inputs {
        let path = input.canonicalize().map_err(|e| PublishError::at(input, e))?;
        if path.starts_with(&private) || private.starts_with(&path) {
            return Err(PublishError::Private { path: shown_path(input), private: shown_path(&private) });
        }
    }
    Ok(())
}

/// Walks everything once before the first byte is read: what can't be published by its name or kind is refused at once, and the totals
/// are known.
fn survey(inputs: &Inputs, meter: &mut Meter<'_>) -> Result<(), PublishError> {
    for found in inputs.walk() {
        let found = found?;
        if matches!(found.kind, Kind::File) {
            meter.now.files += 1;
            meter.now.bytes = meter.now.bytes.saturating_add(found.size()?);
        }
        meter.step()?;
    }
    meter.tell_now();
    Ok(())
}

/// Tells progress, and notices cancellation.
struct Meter<'a> {
    now: PublishProgress,
    told: PublishProgress,
    tell: &'a mut dyn FnMut(PublishProgress),
    cancel: &'a AtomicBool,
}

impl Meter<'_> {
    fn step(&mut self) -> Result<(), PublishError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(PublishError::Cancelled);
        }
        let (now, told) = (self.now, self.told);
        if now.bytes_done - told.bytes_done >= PROGRESS_BYTES
            || now.files + now.files_done - told.files - told.files_done >= PROGRESS_FILES
        {
            self.tell_now();
        }
        Ok(())
    }

    fn tell_now(&mut self) {
        self.told = self.now;
        (self.tell)(self.now);
    }
}

/// A tree that nobody sees yet, removed unless it is shared.
struct Building<'a> {
    store: &'a Store,
    tree: TreeId,
    done: bool,
}

impl Building<'_> {
    fn share(mut self, manifest: &Digest, root: &ManifestRoot) -> Result<TreeId, PublishError> {
        let totals = Totals { size: root.total_size(), files: root.file_count() };
        self.store.share(self.tree, manifest, totals)?;
        self.done = true;
        Ok(self.tree)
    }
}

impl Drop for Building<'_> {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = self.store.remove(self.tree)
        {
            // It stays invisible, and the next start removes it.
            tracing::warn!(%error, "the rows of an aborted publish could not be removed");
        }
    }
}

/// Writes entries, in order, into the manifest and the catalogue.
struct Recorder<'a> {
    store: &'a Store,
    tree: TreeId,
    batch: Batch,
    manifest: ManifestBuilder,
    entry: u64,
}

impl Recorder<'_> {
    fn record(
        mut self,
        items: Receiver<Result<Item, PublishError>>,
        meter: &mut Meter<'_>,
    ) -> Result<(Digest, ManifestRoot), PublishError> {
        for item in items {
            let Item { found, parts } = item?;
            let entry = match (found.kind, parts) {
                (Kind::Directory, _) => Entry::directory(found.path),
                (Kind::Symlink(target), _) => Entry::symlink(found.path, &target)?,
                (Kind::File, None) => return Err(PublishError::Interrupted),
                (Kind::File, Some(parts)) => self.file(found.path, found.base, parts, meter)?,
            };
            self.manifest.push(&entry, &mut keep(&mut self.batch))?;
            self.entry += 1;
            self.flush_full()?;
            meter.step()?;
        }
        let done = self.manifest.finish(&mut keep(&mut self.batch))?;
        self.store.append(self.tree, &mut self.batch)?;
        Ok(done)
    }

    fn file(
        &mut self,
        path: PackagePath,
        base: u32,
        parts: Receiver<Result<Part, PublishError>>,
        meter: &mut Meter<'_>,
    ) -> Result<Entry, PublishError> {
        let mut list: Option<ChunkListBuilder> = None;
        let mut offset = 0;
        for part in parts {
            let Part { file, chunks, last } = part?;
            let list_builder =
                list.get_or_insert_with(|| ChunkListBuilder::new(ChunkClass::of_size(file.size)));
            for ChunkRef { size, digest } in chunks {
                list_builder.push(ChunkRef { size, digest }, &mut keep(&mut self.batch))?;
                self.batch.chunk(ChunkRow { entry: self.entry, offset, size, digest });
                offset += u64::from(size);
                meter.now.bytes_done += u64::from(size);
            }
            self.flush_full()?;
            if let Some(list) = list.take_if(|_| last) {
                self.batch.file(FileRow {
                    entry: self.entry,
                    base,
                    path: path.as_str().into(),
                    size: file.size,
                    mtime_ns: file.mtime_ns,
                    inode: file.inode,
                    executable: file.executable,
                });
                meter.now.files_done += 1;
                let content = list.finish(&path, file.executable, &mut keep(&mut self.batch))?;
                return Ok(Entry::file(path, content));
            }
            meter.step()?;
        }
        Err(PublishError::Interrupted)
    }

    fn flush_full(&mut self) -> Result<(), PublishError> {
        if self.batch.is_full() {
            self.store.append(self.tree, &mut self.batch)?;
        }
        Ok(())
    }
}

/// Pages go to the catalogue with the rows.
fn keep(batch: &mut Batch) -> impl FnMut(PageRef, &[u8]) -> Result<(), PublishError> {
    |page, bytes| {
        batch.page(page.digest(), bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
