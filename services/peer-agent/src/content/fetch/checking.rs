//! What was finished before is looked at again: is all of it still as it was published?
//!
//! A file whose size, time and inode are those in the catalogue counts as unchanged; of any other, and of one that could not be served
//! any more, every chunk is compared. Damaged files become problems of the tree, for the next phase to fill anew.
//!
//! Invariant: nothing on the disk is changed here.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use p2psb_proto::model::manifest::{ChunkRef, Chunks, Content, Entry, FileContent, ManifestReader, Page};
use p2psb_proto::model::{Digest, PackagePath};

use super::error::FetchError;
use super::folder::Found;
use super::site::Site;
use crate::store::{ChunkRow, FileRow, Recorded, Stamp};

/// Bytes that are compared in one step.
const STEP_BYTES: u64 = 16 << 20;
/// What a page of the manifest counts, in bytes: each of its entries is looked at.
const PAGE_BYTES: u64 = 4 << 20;
/// Verdicts after which they are written down.
const VERDICTS: usize = 4096;

/// A chunk of a file that may have changed.
struct Look {
    entry: u64,
    offset: u64,
    chunk: ChunkRef,
}

/// A file that may have changed.
struct Suspect {
    path: PackagePath,
    stamp: Stamp,
    executable: bool,
    /// Chunks that were not compared.
    left: u64,
}

/// The phase between reading the manifest and repairing.
pub(super) struct Checking {
    reader: ManifestReader,
    looks: VecDeque<Look>,
    suspects: HashMap<u64, Suspect>,
    open: Option<(u64, File)>,
    buffer: Vec<u8>,
    damaged: Vec<u64>,
    sound: Vec<u64>,
    /// Anything is not as it was published.
    pub(super) found_damage: bool,
    /// Bytes that are as they were.
    pub(super) done: u64,
}

impl Checking {
    pub(super) fn new(site: &Site, manifest: &Digest) -> Result<Self, FetchError> {
        Ok(Self {
            reader: ManifestReader::new(manifest, &site.read_page(manifest)?)?,
            looks: VecDeque::new(),
            suspects: HashMap::new(),
            open: None,
            buffer: Vec::new(),
            damaged: Vec::new(),
            sound: Vec::new(),
            found_damage: false,
            done: 0,
        })
    }

    /// Looks at some more; `true` if that was all.
    pub(super) fn next(&mut self, site: &mut Site) -> Result<bool, FetchError> {
        let mut work = 0;
        while work < STEP_BYTES {
            site.flush_due()?;
            if self.damaged.len() + self.sound.len() >= VERDICTS {
                self.note(site)?;
            }
            if let Some(look) = self.looks.pop_front() {
                work += self.compare(site, &look);
            } else if self.load(site)? {
                work += PAGE_BYTES;
            } else {
                self.note(site)?;
                site.flush()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn load(&mut self, site: &mut Site) -> Result<bool, FetchError> {
        let Some(due) = self.reader.upcoming().next() else { return Ok(false) };
        match self.reader.page(&site.read_page(&due.digest())?)? {
            Page::Index => {}
            Page::Entries { first, entries } => {
                let end = first + entries.len() as u64;
                let recorded = site.store.files_between(site.tree, first, end)?;
                for (number, entry) in (first..).zip(&entries) {
                    self.entry(site, number, entry, recorded.get(&number))?;
                }
            }
            Page::Chunks { entry, offset, chunks } => self.add(entry, offset, &chunks),
        }
        Ok(true)
    }

    fn entry(
        &mut self,
        site: &mut Site,
        number: u64,
        entry: &Entry,
        recorded: Option<&Recorded>,
    ) -> Result<(), FetchError> {
        let path = entry.path();
        match entry.content() {
            Content::Directory => self.found_damage |= site.folder.look(path)? != Found::Folder,
            Content::Symlink(target) => {
                let stands = site.folder.has_link(path, target.as_str());
                self.found_damage |= !stands;
                if !stands {
                    refuse_full_folder(site, path)?;
                }
            }
            Content::File(file) => self.file(site, number, path, file, recorded)?,
        }
        Ok(())
    }

    fn file(
        &mut self,
        site: &mut Site,
        number: u64,
        path: &PackagePath,
        file: &FileContent,
        recorded: Option<&Recorded>,
    ) -> Result<(), FetchError> {
        let (stamp, executable) = match site.folder.look(path)? {
            Found::File(stamp, executable) if stamp.size == file.size() => (stamp, executable),
            _ => {
                refuse_full_folder(site, path)?;
                self.is_damaged(number);
                return Ok(());
            }
        };
        // A disk that knows no such bit had it like this when the file was complete.
        self.found_damage |=
            executable != file.executable() && recorded.is_none_or(|known| known.executable != executable);
        if recorded.is_some_and(|known| known.stamp == stamp && !known.problem) {
            self.done += stamp.size;
            return Ok(());
        }
        // What was recorded stays: a bit that differs from it is set right later.
        let executable = recorded.map_or(file.executable(), |known| known.executable);
        let suspect = Suspect { path: path.clone(), stamp, executable, left: file.chunk_count() };
        if suspect.left == 0 {
            self.is_sound(site, number, &suspect);
            return Ok(());
        }
        self.suspects.insert(number, suspect);
        match file.chunks() {
            // At most 256 KiB.
            Chunks::One => {
                self.add(number, 0, &[ChunkRef { size: file.size() as u32, digest: file.digest() }])
            }
            Chunks::Listed { list, .. } => self.add(number, 0, list),
            // Its pages follow.
            Chunks::None | Chunks::Paged { .. } => {}
        }
        Ok(())
    }

    fn add(&mut self, entry: u64, mut offset: u64, chunks: &[ChunkRef]) {
        if !self.suspects.contains_key(&entry) {
            return;
        }
        for chunk in chunks {
            self.looks.push_back(Look { entry, offset, chunk: *chunk });
            offset += u64::from(chunk.size);
        }
    }

    /// Compares a chunk with what is in its place. Returns how many bytes were read.
    fn compare(&mut self, site: &mut Site, look: &Look) -> u64 {
        let Look { entry, offset, chunk: ChunkRef { size, digest } } = *look;
        // Not there: it was found to be damaged already.
        let Some(suspect) = self.suspects.get_mut(&entry) else { return 0 };
        if self.open.as_ref().is_none_or(|(open, _)| *open != entry) {
            self.open = site.folder.read_file(&suspect.path).map(|file| (entry, file));
        }
        self.buffer.resize(size as usize, 0);
        // What can't be read, for whatever reason, is to be replaced.
        let read =
            self.open.as_ref().is_some_and(|(_, file)| file.read_exact_at(&mut self.buffer, offset).is_ok());
        if !read || Digest::of(&self.buffer) != digest {
            self.suspects.remove(&entry);
            self.is_damaged(entry);
            return u64::from(size);
        }
        // A reader that found it damaged once had forgotten it.
        site.chunk(ChunkRow { entry, offset, size, digest });
        suspect.left -= 1;
        if suspect.left == 0
            && let Some(suspect) = self.suspects.remove(&entry)
        {
            self.is_sound(site, entry, &suspect);
        }
        u64::from(size)
    }

    fn is_damaged(&mut self, entry: u64) {
        self.found_damage = true;
        self.damaged.push(entry);
    }

    /// It has another time or inode, and the same content.
    fn is_sound(&mut self, site: &mut Site, entry: u64, suspect: &Suspect) {
        let Stamp { size, mtime_ns, inode } = suspect.stamp;
        let (path, executable) = (suspect.path.as_str().into(), suspect.executable);
        site.file(FileRow { entry, base: 0, path, size, mtime_ns, inode, executable });
        self.done += size;
        self.sound.push(entry);
    }

    /// Writes the verdicts down.
    fn note(&mut self, site: &Site) -> Result<(), FetchError> {
        site.store.mark_damaged(site.tree, &self.damaged)?;
        site.store.mark_sound(site.tree, &self.sound)?;
        self.damaged.clear();
        self.sound.clear();
        Ok(())
    }
}

/// What is in a folder that stands where a file belongs is somebody's.
fn refuse_full_folder(site: &mut Site, path: &PackagePath) -> Result<(), FetchError> {
    if site.folder.look(path)? == Found::Folder && !site.folder.is_empty_dir(path)? {
        return Err(FetchError::exists(&site.folder.path().join(path.as_str())));
    }
    Ok(())
}
