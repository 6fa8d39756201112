//! Manifests: which files a release has, and which chunks they are made of, as a tree of pages. See `p2psb/peer/v1/manifest.proto`.
//!
//! Invariant: what was parsed here is canonical (encoding it again gives the same bytes) and within its bounds, so equal trees have
//! equal digests and a page has one meaning. What concerns several pages (order, parents, totals) is held by [`ManifestReader`] when
//! reading and by [`ManifestBuilder`] when writing.

mod build;
mod entry;
mod order;
mod read;

use bytes::Bytes;
use prost::Message;

pub use build::{ChunkListBuilder, ManifestBuilder};
pub use entry::{ChunkRef, Chunks, Content, Entry, FileContent};
pub use read::{ManifestReader, Page};

use super::digest::Digest;
use super::limits;
use super::path::PathError;
use crate::error::Reason;
use crate::wire::peer::v1 as wire;

const FORMAT: u32 = 1;
const BLAKE3: i32 = wire::DigestAlgorithm::Blake3 as i32;
/// Levels of index pages.
const INDEX_LEVELS: u32 = 2;
/// Pages that a root refers to itself; more are put behind index pages. So many always fit.
const ROOT_PAGES: usize = 1600;
/// Pages that one index page refers to. So many always fit.
const INDEX_PAGES: usize = 26_000;
/// Bytes of one chunk in a chunk list.
const CHUNK_REF_BYTES: usize = 36;
/// Chunks in a list that stands in its entry.
const INLINE_CHUNKS: usize = 256;
/// Chunks in each page of a chunk list but the last.
const PAGE_CHUNKS: usize = 29_127;

/// Why a manifest is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Bytes that are not the page.
    #[error("these bytes are not the page {0} of the manifest")]
    Corrupt(Digest),
    /// Larger than allowed, or of another size than its reference says.
    #[error("the {what} has {size} bytes, {limit} are allowed")]
    Size {
        /// Which part.
        what: &'static str,
        /// Its bytes.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Can't be decoded, or breaks a rule.
    #[error("the {what} is malformed: {why}")]
    Malformed {
        /// Which part.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Encoded in another way than the canonical one.
    #[error("the {0} is not encoded canonically")]
    NotCanonical(&'static str),
    /// A path or symlink is not allowed.
    #[error("the manifest holds a path that is not allowed: {0}")]
    Path(#[from] PathError),
    /// An entry breaks a rule.
    #[error("the entry {path} is invalid: {why}")]
    Entry {
        /// The entry, as shown.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A total of the root is wrong.
    #[error("the root states a {what} of {stated}, the pages have {found}")]
    Total {
        /// Which total.
        what: &'static str,
        /// In the root.
        stated: u64,
        /// Counted, so far.
        found: u64,
    },
}

impl ManifestError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Corrupt(_) => Reason::ChunkCorrupt,
            Self::Path(error) => error.reason(),
            _ => Reason::ManifestInvalid,
        }
    }
}

fn malformed(what: &'static str, why: impl ToString) -> ManifestError {
    ManifestError::Malformed { what, why: why.to_string() }
}

/// A page by its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRef {
    digest: Digest,
    size: u32,
}

impl PageRef {
    /// Refers to a page.
    pub fn to(page: &[u8]) -> Result<Self, ManifestError> {
        Self::new(Digest::of(page), page.len())
    }

    fn new(digest: Digest, size: usize) -> Result<Self, ManifestError> {
        let limit = limits::MANIFEST_PAGE_BYTES;
        match u32::try_from(size) {
            Ok(short) if size > 0 && size <= limit => Ok(Self { digest, size: short }),
            _ => Err(ManifestError::Size { what: "page", size, limit }),
        }
    }

    /// The digest of the encoded page.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The bytes of the encoded page: 1 to [`limits::MANIFEST_PAGE_BYTES`].
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Whether these bytes are the page.
    pub fn check(&self, page: &[u8]) -> Result<(), ManifestError> {
        if page.len() == self.size as usize && Digest::of(page) == self.digest {
            Ok(())
        } else {
            Err(ManifestError::Corrupt(self.digest))
        }
    }

    fn from_wire(wire: &wire::PageRef) -> Result<Self, ManifestError> {
        let digest = Digest::from_slice(&wire.digest).map_err(|e| malformed("page reference", e))?;
        Self::new(digest, wire.size as usize)
    }

    fn list(wire: &[wire::PageRef]) -> Result<Vec<Self>, ManifestError> {
        wire.iter().map(Self::from_wire).collect()
    }

    fn to_wire(self) -> wire::PageRef {
        wire::PageRef { digest: self.digest.to_wire(), size: self.size }
    }
}

/// The root of a manifest. Its digest is the manifest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestRoot {
    total_size: u64,
    file_count: u64,
    entry_count: u64,
    chunk_count: u64,
    index_levels: u32,
    pages: Vec<PageRef>,
}

impl ManifestRoot {
    /// Parses the bytes of a root, which were compared with the manifest's digest before.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        const WHAT: &str = "root";
        let wire: wire::ManifestRoot = decode(WHAT, bytes, limits::MANIFEST_ROOT_BYTES)?;
        if wire.format != FORMAT || wire.digest_algorithm != BLAKE3 {
            return Err(malformed(WHAT, "only format 1 with digest algorithm 1 (BLAKE3) is known"));
        }
        let root = Self {
            total_size: wire.total_size,
            file_count: wire.file_count,
            entry_count: wire.entry_count,
            chunk_count: wire.chunk_count,
            index_levels: wire.index_levels,
            pages: PageRef::list(&wire.pages)?,
        };
        root.check()?;
        canonical(WHAT, &root.encode(), bytes)?;
        Ok(root)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let bad = |why: &str| Err(malformed("root", why));
        if self.total_size > limits::MANIFEST_TOTAL_BYTES {
            return bad("a manifest has at most 16 TiB");
        }
        if self.entry_count > limits::MANIFEST_ENTRIES {
            return bad("a manifest has at most 10,000,000 entries");
        }
        if self.file_count > self.entry_count {
            return bad("there are more files than entries");
        }
        // Every chunk but the last of a file has at least the shortest length of the smallest class.
        let shortest = super::chunking::ChunkClass::Small.shortest() as u64;
        if self.chunk_count > self.total_size / shortest + self.file_count {
            return bad("there are more chunks than such files can have");
        }
        if self.index_levels > INDEX_LEVELS {
            return bad("there are at most 2 levels of index pages");
        }
        if self.pages.is_empty() != (self.entry_count == 0)
            || (self.pages.is_empty() && self.index_levels > 0)
        {
            return bad("exactly a manifest without entries has no pages");
        }
        Ok(())
    }

    /// Bytes in all files.
    #[must_use]
    pub const fn total_size(&self) -> u64 {
        self.total_size
    }

    /// Number of files.
    #[must_use]
    pub const fn file_count(&self) -> u64 {
        self.file_count
    }

    /// Number of files, directories and symlinks.
    #[must_use]
    pub const fn entry_count(&self) -> u64 {
        self.entry_count
    }

    /// Chunks of all files, repeated ones counted each time.
    #[must_use]
    pub const fn chunk_count(&self) -> u64 {
        self.chunk_count
    }

    /// The pages of the next level.
    #[must_use]
    pub fn pages(&self) -> &[PageRef] {
        &self.pages
    }

    /// The canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::ManifestRoot {
            format: FORMAT,
            digest_algorithm: BLAKE3,
            total_size: self.total_size,
            file_count: self.file_count,
            entry_count: self.entry_count,
            chunk_count: self.chunk_count,
            index_levels: self.index_levels,
            pages: self.pages.iter().map(|p| p.to_wire()).collect(),
        }
        .encode_to_vec()
    }
}

/// Fans out to further pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexPage {
    pages: Vec<PageRef>,
}

impl IndexPage {
    /// Parses a page.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        const WHAT: &str = "index page";
        let wire: wire::IndexPage = decode(WHAT, bytes, limits::MANIFEST_PAGE_BYTES)?;
        let page = Self { pages: PageRef::list(&wire.pages)? };
        canonical(WHAT, &page.encode(), bytes)?;
        Ok(page)
    }

    /// The pages of the next level.
    #[must_use]
    pub fn pages(&self) -> &[PageRef] {
        &self.pages
    }

    /// The canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::IndexPage { pages: self.pages.iter().map(|p| p.to_wire()).collect() }.encode_to_vec()
    }
}

/// A run of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPage {
    entries: Vec<Entry>,
}

impl EntryPage {
    /// Parses a page. Its order is checked by [`ManifestReader`], which sees the pages around it too.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        const WHAT: &str = "entry page";
        let wire: wire::EntryPage = decode(WHAT, bytes, limits::MANIFEST_PAGE_BYTES)?;
        let entries = wire.entries.iter().map(Entry::from_wire).collect::<Result<_, _>>()?;
        let page = Self { entries };
        canonical(WHAT, &page.encode(), bytes)?;
        Ok(page)
    }

    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::EntryPage { entries: self.entries.iter().map(Entry::to_wire).collect() }.encode_to_vec()
    }
}

fn decode<T: Message + Default>(what: &'static str, bytes: &[u8], limit: usize) -> Result<T, ManifestError> {
    if bytes.len() > limit {
        return Err(ManifestError::Size { what, size: bytes.len(), limit });
    }
    // One copy, which all byte fields then share.
    let message = T::decode(Bytes::copy_from_slice(bytes)).map_err(|e| malformed(what, e))?;
    Ok(message)
}

fn canonical(what: &'static str, encoded: &[u8], bytes: &[u8]) -> Result<(), ManifestError> {
    if encoded == bytes { Ok(()) } else { Err(ManifestError::NotCanonical(what)) }
}

#[cfg(test)]
mod tests;
