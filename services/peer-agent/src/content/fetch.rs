//! Fetching: a manifest becomes a folder. The core without network: it says what it wants, is given bytes, verifies and writes them.
//!
//! ```text
//! let mut fetch = Fetch::open(store, manifest, target)?;        // blocking: use a thread of its own
//! loop {
//!     match fetch.next(free_budget_in_bytes)? {
//!         Next::Want(list) => ask a host for them,              // pages and chunks alike, best asked in this order
//!         Next::Busy => continue,                               // some local work was done; call again soon
//!         Next::Wait => wait for an answer of a host, then
//!             fetch.deliver(&digest, &bytes)?                   // Err(ChunkCorrupt): the host lied; drop it, `lost` the rest
//!             or fetch.lost(&digests),                          // missing, refused, host gone: they will be wanted again
//!         Next::Ready => break,
//!     }
//!     about once a second: fetch.checkpoint()?                  // what was written so far survives `kill -9`
//! }
//! let fetched = fetch.finish()?;                                // syncs, renames `TARGET.partial` to TARGET; the store serves it
//! ```
//!
//! Invariant: only verified bytes are ever written, each to its own place below `TARGET.partial`, and no path or symlink leads out of
//! it. What the journal (the catalogue) holds was written before. TARGET appears whole or not at all, and never replaces anything but an
//! empty folder.
//!
//! A TARGET that was finished before is compared with the manifest. What is missing in it or differs is filled in `TARGET.partial` and
//! then replaced, each file at once; what the manifest does not name stays as it is.
//!
//! Dropping a `Fetch` keeps everything: opening the same manifest and target again resumes, after hashing again what the journal holds.
//! After any error but [`FetchError::ChunkCorrupt`] the fetch is over: drop it, and open it again when there is hope (the disk has room
//! again). [`FetchError::is_final`] errors (a lying manifest, a path this disk can't hold) have already removed `TARGET.partial`.
//! While a fetch runs, the store serves what it has.

mod checking;
mod error;
mod folder;
mod mending;
mod open;
mod reading;
mod site;
mod writing;

use std::io::ErrorKind;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use p2psb_proto::model::Digest;
use p2psb_proto::model::manifest::ManifestRoot;

use checking::Checking;
pub use error::{FetchError, Remedy};
use open::{Condition, Spot};
pub use open::{Start, give_up};
use reading::{Read, Reading};
use site::Site;
use writing::Writing;

use crate::store::{Batch, Claimed, Store, Totals, TreeId};

/// Something to ask a host for: a page of the manifest or a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its digest.
    pub digest: Digest,
    /// Its exact size in bytes; `None` for the root, which has at most 64 KiB. A host that announces another size lies.
    pub size: Option<u32>,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask for these. Never empty.
    Want(Vec<Want>),
    /// Local work was done and there may be more: call again soon.
    Busy,
    /// Nothing to do before something is delivered or lost, or the budget is larger.
    Wait,
    /// Everything is in place: call [`Fetch::finish`].
    Ready,
}

/// What became of delivered bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Verified, and written to its places.
    Taken,
    /// Nobody waits for it (any more); ignored. A host that sends much of it is not worth keeping.
    Unasked,
}

/// What a fetch is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading the manifest: nothing is written yet.
    Manifest,
    /// It was finished before: looking whether all of it is still as it was published.
    Checking,
    /// Getting chunks.
    Chunks,
    /// Everything is in place.
    Ready,
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchProgress {
    /// Where it stands.
    pub phase: Phase,
    /// Bytes in place.
    pub bytes_done: u64,
    /// Bytes of all files; 0 until the root is there.
    pub bytes_total: u64,
    /// Of `bytes_done`: found on this disk rather than delivered.
    pub bytes_local: u64,
    /// Files in all; 0 until the root is there.
    pub files_total: u64,
}

/// A finished fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The tree, complete now.
    pub tree: TreeId,
    /// Where it lies.
    pub path: PathBuf,
    /// Files and symlinks of a folder that was finished before, which were missing or differed.
    pub repaired: u64,
}

/// One fetch; see the module.
pub struct Fetch {
    manifest: Digest,
    target: PathBuf,
    /// Where is written. As long as no damage is found, that of a finished folder is only looked at.
    site: Site,
    /// The finished folder that is being repaired.
    home: Option<Site>,
    state: State,
    totals: Totals,
    /// Folders above the target that were made for it, the deepest first.
    made: Vec<PathBuf>,
    condition: Condition,
    _claimed: Claimed,
}

enum State {
    Reading(Box<Reading>),
    Checking(Box<Checking>),
    Writing(Box<Writing>),
    /// Everything is in place; the folder is not yet at the target.
    Ready(Box<Writing>),
    /// It was finished before, and nothing of it is damaged.
    Done,
    /// It failed.
    Over,
}

impl Fetch {
    /// Begins, or resumes, the fetch of `manifest` into the folder `target` (absolute; its parents are created). A folder that was
    /// finished before is checked, and repaired.
    pub fn open(
        store: Arc<Store>,
        manifest: Digest,
        target: &Path,
        start: Start,
    ) -> Result<Self, FetchError> {
        let Spot { claimed, target, site, made, condition } = open::open(store, &manifest, target, start)?;
        Ok(Self {
            manifest,
            target,
            site,
            home: None,
            state: State::Reading(Box::default()),
            totals: Totals::default(),
            made,
            condition,
            _claimed: claimed,
        })
    }

    /// What to do next; wants at most about `max_bytes`, and at least one thing unless it is 0. Does a bounded slice of local work
    /// (copying chunks that lie on this disk, hashing what was there before).
    pub fn next(&mut self, max_bytes: u64) -> Result<Next, FetchError> {
        let result = self.step(max_bytes);
        self.ended_by(result)
    }

    /// Takes bytes from a host. [`FetchError::ChunkCorrupt`] if they do not fit the digest: then nothing was written, and the fetch goes
    /// on; it is wanted again after [`Fetch::lost`].
    pub fn deliver(&mut self, digest: &Digest, bytes: &[u8]) -> Result<Delivered, FetchError> {
        let site = &mut self.site;
        let result = match &mut self.state {
            State::Reading(reading) => reading.deliver(site, &self.manifest, digest, bytes),
            State::Writing(writing) => writing.deliver(site, digest, bytes),
            State::Checking(_) | State::Ready(_) | State::Done => Ok(Delivered::Unasked),
            State::Over => Err(OVER),
        };
        self.ended_by(result)
    }

    /// These will not come: they are wanted again, elsewhere. Those nobody waits for are ignored.
    pub fn lost(&mut self, digests: &[Digest]) {
        match &mut self.state {
            State::Reading(reading) => reading.lost(digests),
            State::Writing(writing) => writing.lost(digests),
            State::Checking(_) | State::Ready(_) | State::Done | State::Over => {}
        }
    }

    /// Writes the journal. Also done by itself every 16 MiB, and when dropped.
    pub fn checkpoint(&mut self) -> Result<(), FetchError> {
        let result = self.site.flush();
        self.ended_by(result)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> FetchProgress {
        let (phase, done, local) = match &self.state {
            State::Reading(_) => (Phase::Manifest, 0, 0),
            State::Checking(checking) => (Phase::Checking, checking.done, checking.done),
            State::Writing(writing) => (Phase::Chunks, writing.done, writing.local),
            State::Ready(writing) => (Phase::Ready, writing.done, writing.local),
            State::Done => (Phase::Ready, self.totals.size, self.totals.size),
            State::Over => (Phase::Chunks, 0, 0),
        };
        let root = match &self.state {
            State::Reading(reading) => reading.root(),
            State::Checking(_) | State::Writing(_) | State::Ready(_) | State::Done | State::Over => None,
        };
        FetchProgress {
            phase,
            bytes_done: done,
            bytes_total: root.map_or(self.totals.size, ManifestRoot::total_size),
            bytes_local: local,
            files_total: root.map_or(self.totals.files, ManifestRoot::file_count),
        }
    }

    /// Creates the symlinks, syncs, moves the folder into place, or the repaired files into theirs. On an error the fetch can be opened
    /// again.
    pub fn finish(mut self) -> Result<Fetched, FetchError> {
        let mut repaired = 0;
        match mem::replace(&mut self.state, State::Over) {
            State::Done => {}
            State::Ready(writing) => {
                writing.finish(&mut self.site, &self.manifest)?;
                match self.home.take() {
                    None => self.move_into_place()?,
                    Some(home) => repaired = self.mend(home)?,
                }
            }
            State::Reading(_) | State::Checking(_) | State::Writing(_) => {
                return Err(FetchError::Misused("it is not complete"));
            }
            State::Over => return Err(OVER),
        }
        Ok(Fetched { tree: self.site.tree, path: self.target.clone(), repaired })
    }

    /// Ends as `kill -9` would: what is not in the journal is forgotten.
    #[cfg(test)]
    fn kill(mut self) {
        self.site.batch = Batch::default();
    }

    fn step(&mut self, max_bytes: u64) -> Result<Next, FetchError> {
        let site = &mut self.site;
        match &mut self.state {
            State::Reading(reading) => {
                let root = match reading.next(site, &self.manifest, &self.target, max_bytes)? {
                    Read::Next(next) => return Ok(next),
                    Read::Whole(root) => root,
                };
                self.totals = Totals { size: root.total_size(), files: root.file_count() };
                self.state = if self.condition == Condition::Finished {
                    State::Checking(Box::new(Checking::new(site, &self.manifest)?))
                } else {
                    site.store.set_totals(site.tree, self.totals)?;
                    let resumed = self.condition == Condition::Resumed;
                    State::Writing(Box::new(Writing::new(site, &self.manifest, resumed, None)?))
                };
                Ok(Next::Busy)
            }
            State::Checking(checking) => {
                if !checking.next(site)? {
                    return Ok(Next::Busy);
                }
                if checking.found_damage {
                    self.repair()?;
                    return Ok(Next::Busy);
                }
                open::unstage(&site.store, &self.manifest, &self.target)?;
                self.state = State::Done;
                Ok(Next::Ready)
            }
            State::Writing(writing) => {
                let next = writing.next(site, max_bytes)?;
                if next == Next::Ready
                    && let State::Writing(writing) = mem::replace(&mut self.state, State::Over)
                {
                    self.state = State::Ready(writing);
                }
                Ok(next)
            }
            State::Ready(_) | State::Done => Ok(Next::Ready),
            State::Over => Err(OVER),
        }
    }

    /// After an error, other than by a host, the fetch is over; after a final one nothing of it is left.
    fn ended_by<T>(&mut self, result: Result<T, FetchError>) -> Result<T, FetchError> {
        match &result {
            Ok(_) | Err(FetchError::ChunkCorrupt { .. }) => {}
            Err(error) => {
                self.state = State::Over;
                if error.is_final()
                    && let Err(error) = self.remove()
                {
                    tracing::warn!(%error, "a fetch that can't succeed could not be cleared away");
                }
            }
        }
        result
    }

    /// From here on the damaged files of the finished folder are filled, beside it.
    fn repair(&mut self) -> Result<(), FetchError> {
        let store = Arc::clone(&self.site.store);
        let (tree, folder, condition) = open::stage(&store, &self.manifest, &self.target)?;
        let home = mem::replace(&mut self.site, Site::new(store, tree, folder));
        let resumed = condition == Condition::Resumed;
        let writing = Writing::new(&self.site, &self.manifest, resumed, Some(home.tree))?;
        self.home = Some(home);
        self.state = State::Writing(Box::new(writing));
        Ok(())
    }

    fn remove(&mut self) -> Result<(), FetchError> {
        if self.condition == Condition::Finished && self.home.is_none() {
            // Nothing was begun: the folder is the target itself.
            return Ok(());
        }
        self.site.batch = Batch::default();
        open::remove(&self.site.store, self.site.tree, self.site.folder.path())?;
        open::remove_made(&self.made);
        Ok(())
    }

    /// Everything that was missing is on the disk, beside the folder.
    fn mend(&mut self, mut home: Site) -> Result<u64, FetchError> {
        self.site.flush()?;
        let repaired = mending::mend(&mut home, &mut self.site, &self.manifest)?;
        let staged = mem::replace(&mut self.site, home);
        if let Err(error) = open::remove(&staged.store, staged.tree, staged.folder.path()) {
            tracing::warn!(%error, "what is left of a repair could not be removed; the next fetch to here does it");
        }
        Ok(repaired)
    }

    /// Everything is on the disk. A folder can only take the place of nothing, or of an empty folder: the system refuses all else.
    fn move_into_place(&mut self) -> Result<(), FetchError> {
        let Site { store, tree, folder, batch, .. } = &mut self.site;
        store.seal(*tree, folder.inode()?, batch)?;
        std::fs::rename(folder.path(), &self.target).map_err(|error| match error.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                FetchError::exists(&self.target)
            }
            _ => FetchError::at(&self.target, error),
        })?;
        if let Some(parent) = self.target.parent() {
            let synced = std::fs::File::open(parent).and_then(|parent| parent.sync_all());
            synced.map_err(|e| FetchError::at(parent, e))?;
        }
        Ok(store.complete(*tree, &self.target)?)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        if let Err(error) = self.site.flush() {
            tracing::warn!(%error, "the last chunks of a fetch could not be journaled; they will be fetched again");
        }
    }
}

const OVER: FetchError = FetchError::Misused("it failed before; open it again");

#[cfg(test)]
mod tests;
