//! The second phase: every file gets its chunks, from this disk or from hosts.
//!
//! The manifest is walked once more, now from the catalogue. Each place of a chunk is looked at in order: it may lie there already (an
//! earlier run), somewhere else on this disk, or be needed. Memory: the places of one page, and what is on its way.
//!
//! Repairing a folder that was finished before is the same, for its damaged files only: they are filled anew, beside it.
//!
//! Invariant: only bytes that fit their digest are written, and a place is counted, and journaled, once.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;

use p2psb_proto::model::manifest::{
    ChunkRef, Chunks, Content, Entry, FileContent, ManifestError, ManifestReader, Page,
};
use p2psb_proto::model::{Digest, PackagePath};

use super::error::FetchError;
use super::folder::{stamp, write_chunk};
use super::site::Site;
use super::{Delivered, Next, Want};
use crate::store::{ChunkRow, FileRow, Stamp, TreeId};

/// Bytes that are copied or hashed in one step.
const STEP_BYTES: u64 = 16 << 20;
/// What looking at one place counts, in bytes.
const LOOK_BYTES: u64 = 1024;
/// Bytes that are looked for ahead of what is wanted.
const AHEAD_BYTES: u64 = 8 << 20;
/// Chunks that may be needed at a time.
const NEEDS: usize = 32_768;
/// Files that are kept open.
const OPEN_FILES: usize = 16;
/// Up to so many entries each one is synced by itself.
const FEW: usize = 16;

/// Where a chunk belongs.
#[derive(Clone, Copy)]
struct Place {
    entry: u64,
    offset: u64,
}

/// A place that was not looked at yet.
struct Look {
    place: Place,
    chunk: ChunkRef,
    /// The journal says that the chunk lies there.
    journaled: bool,
}

/// A chunk that is nowhere on this disk.
struct Need {
    size: u32,
    places: Vec<Place>,
    asked: bool,
}

/// A file that is not complete.
struct Filling {
    path: PackagePath,
    size: u64,
    executable: bool,
    /// Chunks that are not in their places.
    left: u64,
    /// Whether the journal knows of it.
    begun: bool,
}

/// The second phase of a fetch.
pub(super) struct Writing {
    reader: ManifestReader,
    /// Whether an earlier run left something.
    resumed: bool,
    /// The finished tree whose damaged files are filled; all else of it is as it should be.
    repairs: Option<TreeId>,
    looks: VecDeque<Look>,
    needs: HashMap<Digest, Need>,
    /// Needed and not asked for, with their sizes.
    queue: VecDeque<(Digest, u32)>,
    queued: u64,
    files: HashMap<u64, Filling>,
    open: VecDeque<(u64, File)>,
    /// Entries so far; emptied for good once there are more than a few.
    few: Option<Vec<PackagePath>>,
    has_links: bool,
    buffer: Vec<u8>,
    /// Bytes in their places, and how many of them were copied on this disk.
    pub(super) done: u64,
    pub(super) local: u64,
}

impl Writing {
    pub(super) fn new(
        site: &Site,
        manifest: &Digest,
        resumed: bool,
        repairs: Option<TreeId>,
    ) -> Result<Self, FetchError> {
        let reader = ManifestReader::new(manifest, &site.read_page(manifest)?)?;
        Ok(Self {
            reader,
            resumed,
            repairs,
            looks: VecDeque::new(),
            needs: HashMap::new(),
            queue: VecDeque::new(),
            queued: 0,
            files: HashMap::new(),
            open: VecDeque::new(),
            few: Some(Vec::new()),
            has_links: false,
            buffer: Vec::new(),
            done: 0,
            local: 0,
        })
    }

    /// What to do next.
    pub(super) fn next(&mut self, site: &mut Site, max_bytes: u64) -> Result<Next, FetchError> {
        let mut work = 0;
        while self.queued < max_bytes.max(AHEAD_BYTES) && self.needs.len() < NEEDS && work < STEP_BYTES {
            site.flush_due()?;
            if let Some(look) = self.looks.pop_front() {
                work += LOOK_BYTES + self.look(site, look)?;
            } else if !self.load(site)? {
                break;
            }
        }
        let wants = self.wants(max_bytes);
        Ok(if !wants.is_empty() {
            Next::Want(wants)
        } else if work > 0 {
            Next::Busy
        } else if self.needs.is_empty() && self.looks.is_empty() {
            Next::Ready
        } else {
            Next::Wait
        })
    }

    fn wants(&mut self, max_bytes: u64) -> Vec<Want> {
        let mut wants = Vec::new();
        let mut bytes = 0;
        while bytes < max_bytes
            && let Some((digest, size)) = self.queue.pop_front()
        {
            self.queued -= u64::from(size);
            if let Some(need) = self.needs.get_mut(&digest).filter(|need| !need.asked) {
                need.asked = true;
                bytes += u64::from(size);
                wants.push(Want { digest, size: Some(size) });
            }
        }
        wants
    }

    /// Loads the places of the next page; `false` if there is none.
    fn load(&mut self, site: &mut Site) -> Result<bool, FetchError> {
        let Some(due) = self.reader.upcoming().next() else { return Ok(false) };
        let bytes = site.read_page(&due.digest())?;
        match self.reader.page(&bytes)? {
            Page::Index => {}
            Page::Entries { first, entries } => {
                let end = first + entries.len() as u64;
                let damaged = match self.repairs {
                    Some(tree) => Some(site.store.to_repair(tree, site.tree, first, end)?),
                    None => None,
                };
                let journal = self.journal(site, (first, 0), (end, 0))?;
                for (number, entry) in (first..).zip(&entries) {
                    match &damaged {
                        None => self.entry(site, number, entry, &journal)?,
                        Some(damaged) => {
                            self.repair(site, number, entry, damaged.contains(&number), &journal)?;
                        }
                    }
                }
            }
            // Of a file that is as it should be.
            Page::Chunks { entry, .. } if self.repairs.is_some() && !self.files.contains_key(&entry) => {}
            Page::Chunks { entry, offset, chunks } => {
                let end = offset + chunks.iter().map(|c| u64::from(c.size)).sum::<u64>();
                let journal = self.journal(site, (entry, offset), (entry, end))?;
                self.add(entry, offset, &chunks, &journal);
            }
        }
        Ok(true)
    }

    fn journal(
        &self,
        site: &Site,
        from: (u64, u64),
        to: (u64, u64),
    ) -> Result<HashMap<(u64, u64), ChunkRow>, FetchError> {
        if !self.resumed {
            return Ok(HashMap::new());
        }
        let rows = site.store.chunks_between(site.tree, from, to)?;
        Ok(rows.into_iter().map(|row| ((row.entry, row.offset), row)).collect())
    }

    fn entry(
        &mut self,
        site: &mut Site,
        number: u64,
        entry: &Entry,
        journal: &HashMap<(u64, u64), ChunkRow>,
    ) -> Result<(), FetchError> {
        match entry.content() {
            Content::Directory => site.folder.make_dir(entry.path())?,
            Content::Symlink(_) => self.has_links = true,
            Content::File(file) => self.file(site, number, entry.path(), file, journal)?,
        }
        if !matches!(entry.content(), Content::Symlink(_))
            && let Some(few) = &mut self.few
        {
            few.push(entry.path().clone());
            if few.len() > FEW {
                self.few = None;
            }
        }
        Ok(())
    }

    /// Of a folder that stands: only its damaged files are filled anew.
    fn repair(
        &mut self,
        site: &mut Site,
        number: u64,
        entry: &Entry,
        damaged: bool,
        journal: &HashMap<(u64, u64), ChunkRow>,
    ) -> Result<(), FetchError> {
        let Content::File(file) = entry.content() else { return Ok(()) };
        if damaged {
            site.folder.make_parents(entry.path())?;
            return self.entry(site, number, entry, journal);
        }
        self.done += file.size();
        self.local += file.size();
        Ok(())
    }

    fn file(
        &mut self,
        site: &mut Site,
        number: u64,
        path: &PackagePath,
        file: &FileContent,
        journal: &HashMap<(u64, u64), ChunkRow>,
    ) -> Result<(), FetchError> {
        let filling = Filling {
            path: path.clone(),
            size: file.size(),
            executable: file.executable(),
            left: file.chunk_count(),
            begun: false,
        };
        self.files.insert(number, filling);
        match file.chunks() {
            Chunks::None => {
                let made = site.folder.open_file(path, file.executable())?;
                self.complete(site, number, &made)?;
            }
            Chunks::One => {
                // At most 256 KiB.
                let chunk = ChunkRef { size: file.size() as u32, digest: file.digest() };
                self.add(number, 0, &[chunk], journal);
            }
            Chunks::Listed { list, .. } => self.add(number, 0, list, journal),
            // Its pages follow.
            Chunks::Paged { .. } => {}
        }
        Ok(())
    }

    fn add(
        &mut self,
        entry: u64,
        mut offset: u64,
        chunks: &[ChunkRef],
        journal: &HashMap<(u64, u64), ChunkRow>,
    ) {
        for chunk in chunks {
            let place = Place { entry, offset };
            let journaled = journal.get(&(entry, offset)).is_some_and(|row| row.digest == chunk.digest);
            self.looks.push_back(Look { place, chunk: *chunk, journaled });
            offset += u64::from(chunk.size);
        }
    }

    /// Looks at one place. Returns how many bytes were read for it.
    fn look(&mut self, site: &mut Site, look: Look) -> Result<u64, FetchError> {
        let Look { place, chunk: ChunkRef { size, digest }, journaled } = look;
        if journaled {
            if self.lies_there(site, place, size, &digest) {
                self.placed(site, place, size)?;
                return Ok(size.into());
            }
            site.store.remove_chunk(site.tree, place.entry, place.offset)?;
        }
        if let Some(need) = self.needs.get_mut(&digest) {
            if need.size != size {
                return Err(two_lengths(&digest));
            }
            need.places.push(place);
            return Ok(0);
        }
        site.settle(&digest)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let found = site.store.chunk_reader()?.read(&digest, &mut buffer)?;
        let here = found && buffer.len() == size as usize;
        if here {
            self.put(site, place, &digest, &buffer)?;
            self.local += u64::from(size);
        }
        self.buffer = buffer;
        if here {
            return Ok(size.into());
        }
        if found {
            return Err(two_lengths(&digest));
        }
        self.needs.insert(digest, Need { size, places: vec![place], asked: false });
        self.queue.push_back((digest, size));
        self.queued += u64::from(size);
        Ok(0)
    }

    fn lies_there(&mut self, site: &mut Site, place: Place, size: u32, digest: &Digest) -> bool {
        let Some(filling) = self.files.get(&place.entry) else { return false };
        let Some(file) = site.folder.read_file(&filling.path) else { return false };
        drop_from_memory(&file, place.offset, u64::from(size));
        self.buffer.resize(size as usize, 0);
        file.read_exact_at(&mut self.buffer, place.offset).is_ok() && Digest::of(&self.buffer) == *digest
    }

    /// Takes a chunk from a host.
    pub(super) fn deliver(
        &mut self,
        site: &mut Site,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<Delivered, FetchError> {
        let Some(need) = self.needs.get_mut(digest) else { return Ok(Delivered::Unasked) };
        if Digest::of(bytes) != *digest {
            return Err(FetchError::ChunkCorrupt { digest: *digest });
        }
        if bytes.len() != need.size as usize {
            let why =
                format!("it says that the chunk {digest} has {} bytes, it has {}", need.size, bytes.len());
            return Err(ManifestError::Malformed { what: "chunk list", why }.into());
        }
        let places = std::mem::take(&mut need.places);
        self.needs.remove(digest);
        places.into_iter().try_for_each(|place| self.put(site, place, digest, bytes))?;
        site.flush_due()?;
        Ok(Delivered::Taken)
    }

    /// These are wanted again, first.
    pub(super) fn lost(&mut self, digests: &[Digest]) {
        for digest in digests.iter().rev() {
            if let Some(need) = self.needs.get_mut(digest).filter(|need| need.asked) {
                need.asked = false;
                self.queue.push_front((*digest, need.size));
                self.queued += u64::from(need.size);
            }
        }
    }

    /// Writes a verified chunk to a place.
    fn put(
        &mut self,
        site: &mut Site,
        place: Place,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), FetchError> {
        self.begin(site, place.entry)?;
        let Some((_, file)) = self.open.front() else { return Err(FetchError::Misused("no file is open")) };
        let Some(filling) = self.files.get(&place.entry) else {
            return Err(FetchError::Misused("no such file"));
        };
        write_chunk(file, place.offset, bytes).map_err(|e| site.folder.failed(&filling.path, e))?;
        // A chunk has at most 4 MiB.
        let size = bytes.len() as u32;
        site.chunk(ChunkRow { entry: place.entry, offset: place.offset, size, digest: *digest });
        self.placed(site, place, size)
    }

    /// Opens a file, to the front of those that are open.
    fn begin(&mut self, site: &mut Site, entry: u64) -> Result<(), FetchError> {
        if let Some(at) = self.open.iter().position(|(open, _)| *open == entry) {
            self.open.swap(0, at);
            return Ok(());
        }
        let Some(filling) = self.files.get_mut(&entry) else {
            return Err(FetchError::Misused("no such file"));
        };
        let file = site.folder.open_file(&filling.path, filling.executable)?;
        if filling.left > 1 && !filling.begun {
            file.set_len(filling.size).map_err(|e| site.folder.failed(&filling.path, e))?;
            site.file(row(entry, filling, Stamp { size: filling.size, mtime_ns: 0, inode: 0 }));
            filling.begun = true;
        }
        self.open.truncate(OPEN_FILES - 1);
        self.open.push_front((entry, file));
        Ok(())
    }

    /// A chunk lies in its place. With the last one the file is complete.
    fn placed(&mut self, site: &mut Site, place: Place, size: u32) -> Result<(), FetchError> {
        let Some(filling) = self.files.get_mut(&place.entry) else {
            return Err(FetchError::Misused("no such file"));
        };
        filling.left = filling.left.saturating_sub(1);
        self.done += u64::from(size);
        if filling.left > 0 {
            return Ok(());
        }
        let file = match self.open.iter().position(|(open, _)| *open == place.entry) {
            Some(at) => self.open.remove(at).map(|(_, file)| file),
            None => None,
        };
        let file = match file {
            Some(file) => file,
            None => site.folder.open_file(&filling.path, filling.executable)?,
        };
        self.complete(site, place.entry, &file)
    }

    fn complete(&mut self, site: &mut Site, entry: u64, file: &File) -> Result<(), FetchError> {
        let Some(filling) = self.files.get(&entry) else { return Err(FetchError::Misused("no such file")) };
        let failed = |e| site.folder.failed(&filling.path, e);
        let mut stat = rustix::fs::fstat(file).map_err(|e| failed(e.into()))?;
        if stamp(&stat).size != filling.size {
            file.set_len(filling.size).map_err(failed)?;
            stat = rustix::fs::fstat(file).map_err(|e| failed(e.into()))?;
        }
        // As the disk has it: some know no such bit, and that is no damage later.
        let executable = stat.st_mode & 0o100 != 0;
        site.file(FileRow { executable, ..row(entry, filling, stamp(&stat)) });
        self.files.remove(&entry);
        Ok(())
    }

    /// Makes the symlinks, and brings everything to the disk.
    pub(super) fn finish(mut self, site: &mut Site, manifest: &Digest) -> Result<(), FetchError> {
        self.open.clear();
        if self.has_links {
            make_links(site, manifest)?;
        }
        match &self.few {
            Some(few) => few.iter().map(Some).chain([None]).try_for_each(|path| site.folder.sync(path)),
            None => site.folder.sync_all(),
        }
    }
}

fn row(entry: u64, filling: &Filling, Stamp { size, mtime_ns, inode }: Stamp) -> FileRow {
    let (path, executable) = (filling.path.as_str().into(), filling.executable);
    FileRow { entry, base: 0, path, size, mtime_ns, inode, executable }
}

/// What is read next comes from the disk: bytes that a failing disk refused may look fine in memory.
fn drop_from_memory(file: &File, offset: u64, size: u64) {
    // Only whole pages are dropped.
    const PAGE: u64 = 64 * 1024;
    let begin = offset / PAGE * PAGE;
    let length = NonZeroU64::new((offset + size).div_ceil(PAGE) * PAGE - begin);
    // A wish; where it can't be had, what is in memory must do.
    let _ = rustix::fs::fadvise(file, begin, length, rustix::fs::Advice::DontNeed);
}

/// Makes the symlinks, last of all, so that none can be followed while files are written.
fn make_links(site: &mut Site, manifest: &Digest) -> Result<(), FetchError> {
    let mut reader = ManifestReader::new(manifest, &site.read_page(manifest)?)?;
    while let Some(due) = { reader.upcoming().next() } {
        let Page::Entries { entries, .. } = reader.page(&site.read_page(&due.digest())?)? else { continue };
        for entry in &entries {
            if let Content::Symlink(target) = entry.content() {
                site.folder.link(entry.path(), target.as_str())?;
            }
        }
    }
    Ok(())
}

/// One digest can't be of two lengths: whoever wrote that manifest lies in one place at least.
fn two_lengths(digest: &Digest) -> FetchError {
    ManifestError::Malformed { what: "chunk list", why: format!("{digest} stands with two lengths") }.into()
}
