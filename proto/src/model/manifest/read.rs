//! Reading a manifest, page by page, and checking what concerns all of it.

use std::collections::VecDeque;

use super::order::Order;
use super::{
    CHUNK_REF_BYTES, ChunkRef, Chunks, Content, Entry, EntryPage, FileContent, IndexPage, ManifestError,
    ManifestRoot, PageRef, limits,
};
use crate::model::chunking::ChunkClass;
use crate::model::digest::Digest;

/// What a page held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// References to further pages; they come next.
    Index,
    /// Entries.
    Entries {
        /// The number of the first one in the manifest, counted from 0.
        first: u64,
        /// In order. The pages of long chunk lists follow, file by file.
        entries: Vec<Entry>,
    },
    /// A part of the chunk list of a file.
    Chunks {
        /// The number of the file's entry in the manifest, counted from 0.
        entry: u64,
        /// Where in the file the first of these chunks begins.
        offset: u64,
        /// In order.
        chunks: Vec<ChunkRef>,
    },
}

enum Kind {
    /// An index page with so many levels of them below.
    Index(u32),
    Entries,
    Chunks,
}

/// Walks a manifest in order: root, then each index page before what it refers to, each entry page followed by the pages of its files'
/// chunk lists. It names the pages that come next and takes their bytes.
///
/// Invariant: everything returned so far is in order, every parent was a directory before, and no total exceeds the root's; after
/// [`ManifestReader::finish`] the totals are equal. Memory: the references of one page of each level.
pub struct ManifestReader {
    root: ManifestRoot,
    queue: VecDeque<(PageRef, Kind)>,
    lists: VecDeque<(u64, ChunkListReader)>,
    order: Order,
    entries: u64,
    files: u64,
    bytes: u64,
    chunks: u64,
}

impl ManifestReader {
    /// Begins with the bytes of the root of `manifest`.
    pub fn new(manifest: &Digest, root: &[u8]) -> Result<Self, ManifestError> {
        if root.len() > limits::MANIFEST_ROOT_BYTES || Digest::of(root) != *manifest {
            return Err(ManifestError::Corrupt(*manifest));
        }
        let root = ManifestRoot::parse(root)?;
        let mut reader = Self {
            queue: VecDeque::new(),
            lists: VecDeque::new(),
            order: Order::default(),
            entries: 0,
            files: 0,
            bytes: 0,
            chunks: 0,
            root,
        };
        reader.enqueue(&reader.root.pages.clone(), reader.root.index_levels);
        Ok(reader)
    }

    /// The root.
    #[must_use]
    pub const fn root(&self) -> &ManifestRoot {
        &self.root
    }

    /// The pages that come next, as far as they are known. Nothing comes after an empty answer.
    pub fn upcoming(&self) -> impl Iterator<Item = PageRef> {
        self.queue.iter().map(|(page, _)| *page)
    }

    /// Takes the bytes of the first upcoming page.
    pub fn page(&mut self, bytes: &[u8]) -> Result<Page, ManifestError> {
        let (page, kind) =
            self.queue.front().ok_or_else(|| super::malformed("manifest", "it has no more pages"))?;
        page.check(bytes)?;
        match *kind {
            Kind::Index(below) => {
                let index = IndexPage::parse(bytes)?;
                if index.pages.is_empty() {
                    return Err(super::malformed("index page", "it is empty"));
                }
                self.queue.pop_front();
                self.enqueue(&index.pages, below);
                Ok(Page::Index)
            }
            Kind::Entries => {
                let page = EntryPage::parse(bytes)?;
                self.queue.pop_front();
                self.entries(page)
            }
            Kind::Chunks => {
                self.queue.pop_front();
                self.chunks(bytes)
            }
        }
    }

    /// Whether the totals are those of the root, all pages having been read.
    pub fn finish(self) -> Result<ManifestRoot, ManifestError> {
        if !self.queue.is_empty() {
            return Err(super::malformed("manifest", "not all pages were read"));
        }
        for (what, stated, found) in self.totals() {
            if stated != found {
                return Err(ManifestError::Total { what, stated, found });
            }
        }
        Ok(self.root)
    }

    fn totals(&self) -> [(&'static str, u64, u64); 4] {
        [
            ("number of entries", self.root.entry_count, self.entries),
            ("number of files", self.root.file_count, self.files),
            ("size", self.root.total_size, self.bytes),
            ("number of chunks", self.root.chunk_count, self.chunks),
        ]
    }

    /// Puts pages to the front, index pages if there are levels left.
    fn enqueue(&mut self, pages: &[PageRef], levels: u32) {
        for page in pages.iter().rev() {
            let kind = levels.checked_sub(1).map_or(Kind::Entries, Kind::Index);
            self.queue.push_front((*page, kind));
        }
    }

    fn entries(&mut self, page: EntryPage) -> Result<Page, ManifestError> {
        if page.entries.is_empty() {
            return Err(super::malformed("entry page", "it is empty"));
        }
        let first = self.entries;
        let mut lists = Vec::new();
        for entry in &page.entries {
            self.order.check(entry.path(), matches!(entry.content(), Content::Directory))?;
            if let Content::File(file) = entry.content() {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(file.size());
                self.chunks = self.chunks.saturating_add(file.chunk_count());
                if let Chunks::Paged { class, pages } = file.chunks() {
                    lists.extend(pages.iter().map(|page| (*page, Kind::Chunks)));
                    self.lists.push_back((self.entries, ChunkListReader::new(*class, file)));
                }
            }
            self.entries += 1;
        }
        for list in lists.into_iter().rev() {
            self.queue.push_front(list);
        }
        for (what, stated, found) in self.totals() {
            if found > stated {
                return Err(ManifestError::Total { what, stated, found });
            }
        }
        Ok(Page::Entries { first, entries: page.entries })
    }

    fn chunks(&mut self, bytes: &[u8]) -> Result<Page, ManifestError> {
        let (entry, list) =
            self.lists.front_mut().ok_or_else(|| super::malformed("chunk list", "it belongs to no file"))?;
        let entry = *entry;
        let offset = list.offset;
        let chunks = list.page(bytes)?;
        if list.left == 0 {
            self.lists.pop_front();
        }
        Ok(Page::Chunks { entry, offset, chunks })
    }
}

/// Reads the pages of one long chunk list: lengths within their class, together the size and the digest of the file.
struct ChunkListReader {
    class: ChunkClass,
    size: u64,
    digest: Digest,
    left: u64,
    offset: u64,
    hasher: Box<blake3::Hasher>,
}

impl ChunkListReader {
    fn new(class: ChunkClass, file: &FileContent) -> Self {
        Self {
            class,
            size: file.size(),
            digest: file.digest(),
            left: file.chunk_count(),
            offset: 0,
            hasher: Box::default(),
        }
    }

    fn page(&mut self, bytes: &[u8]) -> Result<Vec<ChunkRef>, ManifestError> {
        const WHAT: &str = "chunk list";
        let count = (bytes.len() / CHUNK_REF_BYTES) as u64;
        let left = self.left.checked_sub(count).ok_or_else(|| super::malformed(WHAT, "it is too long"))?;
        let chunks =
            ChunkRef::parse_list(bytes, self.class, left == 0).map_err(|why| super::malformed(WHAT, why))?;
        self.left = left;
        self.hasher.update(bytes);
        self.offset += chunks.iter().map(|c| u64::from(c.size)).sum::<u64>();
        if self.offset > self.size || (left == 0 && self.offset != self.size) {
            return Err(super::malformed(WHAT, "its chunks are not together as long as the file"));
        }
        if left == 0 && Digest::from(self.hasher.finalize()) != self.digest {
            return Err(super::malformed(WHAT, "it does not fit the digest of the file"));
        }
        Ok(chunks)
    }
}
