//! Writing a manifest, page by page.

use prost::Message as _;

use super::entry::List;
use super::order::Order;
use super::{
    CHUNK_REF_BYTES, ChunkRef, Content, Entry, FileContent, INDEX_PAGES, INLINE_CHUNKS, IndexPage,
    ManifestError, ManifestRoot, PAGE_CHUNKS, PageRef, ROOT_PAGES,
};
use crate::model::chunking::ChunkClass;
use crate::model::digest::Digest;
use crate::model::limits;
use crate::model::path::PackagePath;

/// An entry page is ended after an entry chosen by the hash of its path, so that a new or longer entry changes its own page and not all
/// that follow: the next version's pages are mostly those of the last.
const PAGE_LEAST: usize = 64 * 1024;
/// Bytes, beyond the least, after which a page ends on average.
const PAGE_AVERAGE: u32 = 192 * 1024;
/// The field `entries = 1` of an `EntryPage`, length-delimited.
const ENTRY_TAG: u8 = 0x0a;

/// Builds a manifest from entries in order. Pages go to a callback as soon as they are full, with their references; the last one is the
/// root, whose digest is the manifest's. Memory: one page.
#[derive(Debug, Default)]
pub struct ManifestBuilder {
    order: Order,
    page: Vec<u8>,
    pages: Vec<PageRef>,
    total_size: u64,
    file_count: u64,
    entry_count: u64,
    chunk_count: u64,
}

impl ManifestBuilder {
    /// Adds the next entry: bytewise after the one before, its parent added before.
    pub fn push<E: From<ManifestError>>(
        &mut self,
        entry: &Entry,
        emit: &mut impl FnMut(PageRef, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.order.check(entry.path(), matches!(entry.content(), Content::Directory))?;
        self.entry_count += 1;
        if let Content::File(file) = entry.content() {
            self.file_count += 1;
            self.chunk_count = self.chunk_count.saturating_add(file.chunk_count());
            self.total_size = self.total_size.saturating_add(file.size());
        }
        if self.entry_count > limits::MANIFEST_ENTRIES || self.total_size > limits::MANIFEST_TOTAL_BYTES {
            return Err(super::malformed("package", "it has at most 10,000,000 entries and 16 TiB").into());
        }
        let wire = entry.to_wire();
        let body = wire.encoded_len();
        let size = 1 + prost::length_delimiter_len(body) + body;
        if self.page.len() + size > limits::MANIFEST_PAGE_BYTES {
            self.end_page(emit)?;
        }
        self.page.push(ENTRY_TAG);
        wire.encode_length_delimited(&mut self.page).map_err(|e| super::malformed("entry", e))?;
        if self.page.len() >= PAGE_LEAST && ends_page(entry.path(), size) {
            self.end_page(emit)?;
        }
        Ok(())
    }

    /// Ends the manifest. Returns its digest and root; the root was emitted as the last page.
    pub fn finish<E: From<ManifestError>>(
        mut self,
        emit: &mut impl FnMut(PageRef, &[u8]) -> Result<(), E>,
    ) -> Result<(Digest, ManifestRoot), E> {
        self.end_page(emit)?;
        let mut pages = self.pages;
        let mut index_levels = 0;
        while pages.len() > ROOT_PAGES {
            index_levels += 1;
            let mut level = Vec::new();
            for run in pages.chunks(INDEX_PAGES) {
                level.push(emit_page(&IndexPage { pages: run.to_vec() }.encode(), emit)?);
            }
            pages = level;
        }
        let root = ManifestRoot {
            total_size: self.total_size,
            file_count: self.file_count,
            entry_count: self.entry_count,
            chunk_count: self.chunk_count,
            index_levels,
            pages,
        };
        let digest = emit_page(&root.encode(), emit)?.digest();
        Ok((digest, root))
    }

    fn end_page<E: From<ManifestError>>(
        &mut self,
        emit: &mut impl FnMut(PageRef, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.page.is_empty() {
            self.pages.push(emit_page(&self.page, emit)?);
            self.page.clear();
        }
        Ok(())
    }
}

fn emit_page<E: From<ManifestError>>(
    page: &[u8],
    emit: &mut impl FnMut(PageRef, &[u8]) -> Result<(), E>,
) -> Result<PageRef, E> {
    let page_ref = PageRef::to(page)?;
    emit(page_ref, page)?;
    Ok(page_ref)
}

/// Whether a page ends after this entry of `size` bytes: with a probability in proportion to them.
fn ends_page(path: &PackagePath, size: usize) -> bool {
    let digest = Digest::of(path.as_str().as_bytes());
    let dice = digest.as_bytes().first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    ((dice % PAGE_AVERAGE) as usize) < size
}

/// Builds the chunk list of one file. Memory: one page.
#[derive(Debug)]
pub struct ChunkListBuilder {
    class: ChunkClass,
    size: u64,
    count: u64,
    list: Vec<u8>,
    pages: Vec<PageRef>,
    hasher: blake3::Hasher,
}

impl ChunkListBuilder {
    /// For a file of this class.
    #[must_use]
    pub fn new(class: ChunkClass) -> Self {
        Self { class, size: 0, count: 0, list: Vec::new(), pages: Vec::new(), hasher: blake3::Hasher::new() }
    }

    /// Adds the next chunk.
    pub fn push<E: From<ManifestError>>(
        &mut self,
        chunk: ChunkRef,
        emit: &mut impl FnMut(PageRef, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.list.len() == PAGE_CHUNKS * CHUNK_REF_BYTES {
            self.end_page(emit)?;
        }
        chunk.append_to(&mut self.list);
        self.count += 1;
        self.size = self.size.saturating_add(chunk.size.into());
        Ok(())
    }

    /// Ends the file.
    pub fn finish<E: From<ManifestError>>(
        mut self,
        path: &PackagePath,
        executable: bool,
        emit: &mut impl FnMut(PageRef, &[u8]) -> Result<(), E>,
    ) -> Result<FileContent, E> {
        let list = if self.count <= INLINE_CHUNKS as u64 {
            List::Inline(std::mem::take(&mut self.list))
        } else {
            self.end_page(emit)?;
            List::Paged { digest: self.hasher.finalize().into(), pages: std::mem::take(&mut self.pages) }
        };
        FileContent::from_list(executable, self.class, self.size, list)
            .map_err(|why| ManifestError::Entry { path: path.to_string(), why }.into())
    }

    fn end_page<E: From<ManifestError>>(
        &mut self,
        emit: &mut impl FnMut(PageRef, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.hasher.update(&self.list);
        self.pages.push(emit_page(&self.list, emit)?);
        self.list.clear();
        Ok(())
    }
}
