//! Entries: one file, directory or symlink each.

use bytes::Bytes;

use super::{CHUNK_REF_BYTES, INLINE_CHUNKS, ManifestError, PAGE_CHUNKS, PageRef};
use crate::model::chunking::ChunkClass;
use crate::model::digest::Digest;
use crate::model::limits;
use crate::model::path::{LinkTarget, PackagePath};
use crate::wire::peer::v1 as wire;
use crate::wire::peer::v1::EntryKind;

/// A chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// Its bytes. At least 1.
    pub size: u32,
    /// Its digest.
    pub digest: Digest,
}

impl ChunkRef {
    pub(super) fn append_to(self, list: &mut Vec<u8>) {
        list.extend_from_slice(&self.size.to_le_bytes());
        list.extend_from_slice(self.digest.as_bytes());
    }

    /// The chunks of a list whose last one may end the file.
    pub(super) fn parse_list(list: &[u8], class: ChunkClass, ends: bool) -> Result<Vec<Self>, &'static str> {
        let (chunks, rest) = list.as_chunks::<CHUNK_REF_BYTES>();
        if !rest.is_empty() {
            return Err("a chunk list has 36 bytes for each chunk");
        }
        let last = chunks.len().saturating_sub(1);
        let parse = |(at, chunk): (usize, &[u8; CHUNK_REF_BYTES])| {
            let (size, digest) = chunk.split_first_chunk::<4>().ok_or("a chunk list is cut")?;
            let size = u32::from_le_bytes(*size);
            let shortest = if ends && at == last { 1 } else { class.shortest() };
            if (size as usize) < shortest || size as usize > class.longest() {
                return Err("a chunk is shorter or longer than its class allows");
            }
            Ok(Self { size, digest: Digest::from_slice(digest).map_err(|_| "a chunk list is cut")? })
        };
        chunks.iter().enumerate().map(parse).collect()
    }
}

/// The chunks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// Of an empty file.
    None,
    /// The file is one chunk, and its digest the file's.
    One,
    /// 2 to 256 chunks.
    Listed {
        /// Their class.
        class: ChunkClass,
        /// In order.
        list: Vec<ChunkRef>,
    },
    /// More: in pages of their own.
    Paged {
        /// Their class.
        class: ChunkClass,
        /// Pages whose bytes, joined, are the chunk list.
        pages: Vec<PageRef>,
    },
}

/// A file without its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    size: u64,
    executable: bool,
    digest: Digest,
    chunks: Chunks,
}

impl FileContent {
    /// An empty file.
    #[must_use]
    pub fn empty(executable: bool) -> Self {
        Self { size: 0, executable, digest: Digest::of(b""), chunks: Chunks::None }
    }

    /// A file of one chunk: at most the longest chunk of the smallest class.
    pub fn one(executable: bool, chunk: ChunkRef) -> Result<Self, &'static str> {
        if chunk.size == 0 || chunk.size as usize > ChunkClass::Small.longest() {
            return Err("a file of one chunk has 1 byte to 256 KiB");
        }
        Ok(Self { size: chunk.size.into(), executable, digest: chunk.digest, chunks: Chunks::One })
    }

    /// A file of 2 to 256 chunks.
    fn listed(executable: bool, class: ChunkClass, list: &[u8]) -> Result<Self, &'static str> {
        let digest = Digest::of(list);
        let list = ChunkRef::parse_list(list, class, true)?;
        if list.len() < 2 || list.len() > INLINE_CHUNKS {
            return Err("a chunk list in an entry has 2 to 256 chunks");
        }
        let size = list.iter().map(|c| u64::from(c.size)).sum();
        if !class.allows(size) {
            return Err("a file of this size has chunks of another class");
        }
        Ok(Self { size, executable, digest, chunks: Chunks::Listed { class, list } })
    }

    /// A file of more chunks; its pages are checked when they are read.
    fn paged(
        executable: bool,
        class: ChunkClass,
        size: u64,
        digest: Digest,
        pages: Vec<PageRef>,
    ) -> Result<Self, &'static str> {
        let full = (PAGE_CHUNKS * CHUNK_REF_BYTES) as u32;
        let (last, others) = pages.split_last().ok_or("a file of more than 256 chunks has pages for them")?;
        if others.iter().any(|p| p.size() != full)
            || last.size() > full
            || last.size() % CHUNK_REF_BYTES as u32 != 0
        {
            return Err("each page of a chunk list but the last holds 29,127 chunks");
        }
        let content = Self { size, executable, digest, chunks: Chunks::Paged { class, pages } };
        let count = content.chunk_count();
        if count <= INLINE_CHUNKS as u64 {
            return Err("a file of 256 chunks or less has no pages for them");
        }
        let (shortest, longest) = (class.shortest() as u64, class.longest() as u64);
        if size <= (count - 1) * shortest || size > count * longest || !class.allows(size) {
            return Err("the size does not fit the number and class of the chunks");
        }
        Ok(content)
    }

    /// A file whose chunk list is `list`, or lies in `pages`.
    pub(super) fn from_list(
        executable: bool,
        class: ChunkClass,
        size: u64,
        list: List,
    ) -> Result<Self, &'static str> {
        match list {
            List::Inline(list) if list.is_empty() => Ok(Self::empty(executable)),
            List::Inline(list) if list.len() == CHUNK_REF_BYTES => {
                let chunks = ChunkRef::parse_list(&list, class, true)?;
                Self::one(executable, *chunks.first().ok_or("a chunk list is cut")?)
            }
            List::Inline(list) => Self::listed(executable, class, &list),
            List::Paged { digest, pages } => Self::paged(executable, class, size, digest, pages),
        }
    }

    /// In bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Whether the owner may execute it.
    #[must_use]
    pub const fn executable(&self) -> bool {
        self.executable
    }

    /// Of the only chunk, or of the chunk list.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Its chunks.
    #[must_use]
    pub const fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// How many.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        match &self.chunks {
            Chunks::None => 0,
            Chunks::One => 1,
            Chunks::Listed { list, .. } => list.len() as u64,
            Chunks::Paged { pages, .. } => {
                pages.iter().map(|p| u64::from(p.size()) / CHUNK_REF_BYTES as u64).sum()
            }
        }
    }

    fn from_wire(wire: &wire::Entry) -> Result<Self, EntryError> {
        if wire.size > limits::MANIFEST_TOTAL_BYTES {
            return Err("a file has at most 16 TiB".into());
        }
        let digest = Digest::from_slice(&wire.file_digest).map_err(|_| "a file has a digest of 32 bytes")?;
        let class = || ChunkClass::from_bits(wire.chunk_bits).ok_or("chunk_bits is 16, 18 or 20");
        let content = if wire.size == 0 {
            Self::empty(wire.executable)
        } else if !wire.chunk_pages.is_empty() {
            Self::paged(wire.executable, class()?, wire.size, digest, PageRef::list(&wire.chunk_pages)?)?
        } else if !wire.chunks.is_empty() {
            Self::listed(wire.executable, class()?, &wire.chunks)?
        } else {
            let size = u32::try_from(wire.size).map_err(|_| "a file of one chunk has at most 256 KiB")?;
            Self::one(wire.executable, ChunkRef { size, digest })?
        };
        if content.size != wire.size || content.digest != digest {
            return Err("size and digest do not fit the chunks".into());
        }
        Ok(content)
    }

    fn fill(&self, wire: &mut wire::Entry) {
        wire.size = self.size;
        wire.executable = self.executable;
        wire.file_digest = self.digest.to_wire();
        match &self.chunks {
            Chunks::None | Chunks::One => {}
            Chunks::Listed { class, list } => {
                let mut bytes = Vec::with_capacity(list.len() * CHUNK_REF_BYTES);
                list.iter().for_each(|chunk| chunk.append_to(&mut bytes));
                wire.chunk_bits = class.bits();
                wire.chunks = Bytes::from(bytes);
            }
            Chunks::Paged { class, pages } => {
                wire.chunk_bits = class.bits();
                wire.chunk_pages = pages.iter().map(|p| p.to_wire()).collect();
            }
        }
    }
}

/// A chunk list as it was built.
pub(super) enum List {
    /// Short enough for the entry.
    Inline(Vec<u8>),
    /// In pages.
    Paged {
        /// Of all pages' bytes.
        digest: Digest,
        /// The pages.
        pages: Vec<PageRef>,
    },
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A regular file.
    File(FileContent),
    /// A directory.
    Directory,
    /// A symlink that stays inside.
    Symlink(LinkTarget),
}

/// One file, directory or symlink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    path: PackagePath,
    content: Content,
}

impl Entry {
    /// A file.
    #[must_use]
    pub const fn file(path: PackagePath, content: FileContent) -> Self {
        Self { path, content: Content::File(content) }
    }

    /// A directory.
    #[must_use]
    pub const fn directory(path: PackagePath) -> Self {
        Self { path, content: Content::Directory }
    }

    /// A symlink.
    pub fn symlink(path: PackagePath, target: &str) -> Result<Self, ManifestError> {
        let target = LinkTarget::parse(target, &path)?;
        Ok(Self { path, content: Content::Symlink(target) })
    }

    /// Where it stands in the package.
    #[must_use]
    pub const fn path(&self) -> &PackagePath {
        &self.path
    }

    /// What it is.
    #[must_use]
    pub const fn content(&self) -> &Content {
        &self.content
    }

    pub(super) fn from_wire(wire: &wire::Entry) -> Result<Self, ManifestError> {
        let path: PackagePath = wire.path.parse()?;
        let invalid = |why| ManifestError::Entry { path: path.to_string(), why };
        let content = match EntryKind::try_from(wire.kind) {
            Ok(EntryKind::File) => match FileContent::from_wire(wire) {
                Ok(content) => Content::File(content),
                Err(EntryError::Why(why)) => return Err(invalid(why)),
                Err(EntryError::Manifest(error)) => return Err(error),
            },
            Ok(EntryKind::Directory) => Content::Directory,
            Ok(EntryKind::Symlink) => Content::Symlink(LinkTarget::parse(&wire.link_target, &path)?),
            Ok(EntryKind::Unspecified) | Err(_) => {
                return Err(invalid("it is neither file, directory nor symlink"));
            }
        };
        Ok(Self { path, content })
    }

    pub(super) fn to_wire(&self) -> wire::Entry {
        let mut wire = wire::Entry { path: self.path.as_str().to_owned(), ..wire::Entry::default() };
        match &self.content {
            Content::File(file) => {
                wire.set_kind(EntryKind::File);
                file.fill(&mut wire);
            }
            Content::Directory => wire.set_kind(EntryKind::Directory),
            Content::Symlink(target) => {
                wire.set_kind(EntryKind::Symlink);
                target.as_str().clone_into(&mut wire.link_target);
            }
        }
        wire
    }
}

/// A rule of an entry that is broken, or of something in it.
enum EntryError {
    Why(&'static str),
    Manifest(ManifestError),
}

impl From<&'static str> for EntryError {
    fn from(why: &'static str) -> Self {
        Self::Why(why)
    }
}

impl From<ManifestError> for EntryError {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(error)
    }
}
