//! Reading for others, and for copies: verified, or not at all.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use p2psb_proto::model::Digest;
use p2psb_proto::model::chunking::ChunkClass;
use rusqlite::{OptionalExtension as _, params};

use super::trees::{HIDDEN, Holding, holding, signed, unsigned_at};
use super::{Pooled, Store, StoreError, TreeId, path_from};

/// Places of one chunk that are tried.
const PLACES: u32 = 64;
/// New problems that are kept for [`Store::take_new_problems`].
const NEW_PROBLEMS: usize = 1000;
/// Files that are remembered as noted, so that they are not written down again and again.
const NOTED: usize = 100_000;

/// A file that is not (wholly) served any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Of this tree.
    pub tree: TreeId,
    /// Where it lies.
    pub path: PathBuf,
    /// What is wrong, for people.
    pub detail: String,
}

/// Reads verified pages and chunks of one manifest. Cheap to make; keeps a database connection and the last file open while it lives, so
/// make one for each request rather than one for ever.
///
/// Access is decided by the manifest: its pages, and chunks of any tree, since all that is published so far is public to everybody of
/// the community.
pub struct Reader<'a> {
    manifest: Digest,
    chunks: ChunkReader<'a>,
}

impl Reader<'_> {
    /// The bytes of the page or chunk with this digest into `buffer` (cleared first). `false` if this agent does not hold it (any more).
    pub fn read(&mut self, digest: &Digest, buffer: &mut Vec<u8>) -> Result<bool, StoreError> {
        Ok(self.chunks.read(digest, buffer)? || self.page(digest, buffer)?)
    }

    fn page(&self, digest: &Digest, buffer: &mut Vec<u8>) -> Result<bool, StoreError> {
        let mut select = self.chunks.connection.prepare_cached(
            "SELECT p.bytes FROM page p JOIN tree_page tp ON tp.page = p.id JOIN tree t ON t.id = tp.tree
             WHERE p.digest = ?1 AND t.manifest = ?2 AND t.state <> ?3 LIMIT 1",
        )?;
        buffer.clear();
        let found = select
            .query_row(params![digest.as_bytes(), self.manifest.as_bytes(), HIDDEN], |row| {
                buffer.extend_from_slice(row.get_ref(0)?.as_blob()?);
                Ok(())
            })
            .optional()?;
        if found.is_some() && Digest::of(buffer) != *digest {
            return Err(StoreError::damaged(format_args!("the page {digest} does not fit its digest")));
        }
        Ok(found.is_some())
    }
}

/// Where a chunk lies.
struct Place {
    tree: TreeId,
    entry: u64,
    offset: u64,
    size: usize,
    path: PathBuf,
}

/// Reads verified chunks wherever they lie on this disk.
pub(crate) struct ChunkReader<'a> {
    store: &'a Store,
    connection: Pooled<'a>,
    last: Option<(TreeId, u64, File)>,
}

impl ChunkReader<'_> {
    /// The bytes of a chunk into `buffer`; `false` if it lies nowhere.
    pub(crate) fn read(&mut self, digest: &Digest, buffer: &mut Vec<u8>) -> Result<bool, StoreError> {
        for place in self.places(digest)? {
            match self.try_place(&place, digest, buffer) {
                Ok(true) => return Ok(true),
                Ok(false) => self.store.withdraw(&place)?,
                Err(error) => self.store.note(&place, false, &unreadable(&error))?,
            }
        }
        Ok(false)
    }

    fn places(&self, digest: &Digest) -> Result<Vec<Place>, StoreError> {
        let mut select = self.connection.prepare_cached(
            "SELECT c.tree, c.entry, c.offset, c.size, b.path, f.path FROM chunk c JOIN tree t ON t.id = c.tree
             JOIN file f ON f.tree = c.tree AND f.entry = c.entry
             JOIN base b ON b.tree = c.tree AND b.number = f.base
             WHERE c.digest = ?1 AND t.state <> ?2 LIMIT ?3",
        )?;
        let rows = select.query_map(params![digest.as_bytes(), HIDDEN, PLACES], |row| {
            Ok(Place {
                tree: TreeId(row.get(0)?),
                entry: unsigned_at(row, 1)?,
                offset: unsigned_at(row, 2)?,
                size: row.get::<_, u32>(3)? as usize,
                path: path_from(row.get(4)?).join(row.get_ref(5)?.as_str()?),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether the bytes at a place are the chunk. An error: they can't be read at the moment.
    fn try_place(&mut self, place: &Place, digest: &Digest, buffer: &mut Vec<u8>) -> io::Result<bool> {
        if self.last.as_ref().is_none_or(|(tree, entry, _)| (*tree, *entry) != (place.tree, place.entry)) {
            self.last = Some((place.tree, place.entry, open(&place.path)?));
        }
        let Some((_, _, file)) = &self.last else { return Ok(false) };
        buffer.resize(place.size.min(ChunkClass::LONGEST), 0);
        match file.read_exact_at(buffer, place.offset) {
            Ok(()) => Ok(Digest::of(buffer) == *digest),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Opens a file as it was published: no symlink in its place, and without waiting if it is a pipe by now.
fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn unreadable(error: &io::Error) -> String {
    format!("can't be read: {error}; bring it back, or publish or fetch it again")
}

impl Store {
    /// For serving `manifest`; `None` if nothing of it is held. Access is decided here.
    pub fn reader(&self, manifest: &Digest) -> Result<Option<Reader<'_>>, StoreError> {
        let chunks = self.chunk_reader()?;
        Ok(match holding(&chunks.connection, manifest)? {
            Holding::None => None,
            Holding::Partial | Holding::Complete => Some(Reader { manifest: *manifest, chunks }),
        })
    }

    /// For copying chunks of whichever tree.
    pub(crate) fn chunk_reader(&self) -> Result<ChunkReader<'_>, StoreError> {
        Ok(ChunkReader { store: self, connection: self.read()?, last: None })
    }

    /// Problems found since the last call (by readers, on whichever thread), to be logged. At most 1000 are kept.
    pub fn take_new_problems(&self) -> Vec<Problem> {
        self.problems.lock().fresh.drain(..).collect()
    }

    /// The bytes of a chunk are others by now: it is never served from there again.
    fn withdraw(&self, place: &Place) -> Result<(), StoreError> {
        self.remove_chunk(place.tree, place.entry, place.offset)?;
        self.note(place, true, "changed since it was published or fetched; it is no longer served as it was")
    }

    fn note(&self, place: &Place, lasting: bool, detail: &str) -> Result<(), StoreError> {
        {
            let mut problems = self.problems.lock();
            if problems.noted.len() >= NOTED {
                problems.noted.clear();
            }
            if !problems.noted.insert((place.tree, place.entry)) {
                return Ok(());
            }
            if problems.fresh.len() < NEW_PROBLEMS {
                let problem =
                    Problem { tree: place.tree, path: place.path.clone(), detail: detail.to_owned() };
                problems.fresh.push_back(problem);
            }
        }
        self.write(|to| {
            let insert = "INSERT OR REPLACE INTO problem VALUES (?1, ?2, ?3, ?4)";
            Ok(to.execute(insert, params![place.tree.0, signed(place.entry), lasting, detail])?)
        })?;
        Ok(())
    }
}
