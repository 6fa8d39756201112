//! The first phase: the manifest is read and checked whole, before anything is written.

use std::collections::HashMap;
use std::path::Path;

use p2psb_proto::model::Digest;
use p2psb_proto::model::limits;
use p2psb_proto::model::manifest::{ManifestReader, ManifestRoot, Page};

use super::error::FetchError;
use super::site::Site;
use super::{Delivered, Next, Want};

/// Pages that are wanted ahead of the one that is due.
const AHEAD: usize = 8;
/// Pages of the catalogue that are read in one step.
const STEP: usize = 16;

/// The root, once it is there, and the pages that came before their turn.
#[derive(Default)]
pub(super) struct Reading {
    reader: Option<ManifestReader>,
    /// Wanted and not here: their sizes; of the root: `None`.
    asked: HashMap<Digest, Option<u32>>,
    held: HashMap<Digest, Vec<u8>>,
}

/// What a step of reading came to.
pub(super) enum Read {
    /// More is needed.
    Next(Next),
    /// All of it was read.
    Whole(ManifestRoot),
}

impl Reading {
    /// The root, once it is there.
    pub(super) fn root(&self) -> Option<&ManifestRoot> {
        self.reader.as_ref().map(ManifestReader::root)
    }

    /// Reads what is here, then wants what is not.
    pub(super) fn next(
        &mut self,
        site: &mut Site,
        manifest: &Digest,
        target: &Path,
        max_bytes: u64,
    ) -> Result<Read, FetchError> {
        let Some(reader) = &self.reader else {
            return match site.store.page(manifest)? {
                Some(root) => {
                    self.begin(site, manifest, &root)?;
                    Ok(Read::Next(Next::Busy))
                }
                None => Ok(Read::Next(self.want([Want { digest: *manifest, size: None }], max_bytes))),
            };
        };
        let Some(due) = reader.upcoming().next() else {
            // Taken only when all was read.
            let root =
                self.reader.take().ok_or(FetchError::Misused("no manifest is being read"))?.finish()?;
            return Ok(Read::Whole(root));
        };
        if self.read_here(site, target)? > 0 {
            return Ok(Read::Next(Next::Busy));
        }
        let mut wants = Vec::new();
        for page in self.reader.iter().flat_map(ManifestReader::upcoming).take(AHEAD) {
            let digest = page.digest();
            let here = self.held.contains_key(&digest) || (page != due && site.store.has_page(&digest)?);
            if !here && !wants.iter().any(|want: &Want| want.digest == digest) {
                wants.push(Want { digest, size: Some(page.size()) });
            }
        }
        Ok(Read::Next(self.want(wants, max_bytes)))
    }

    /// Reads the pages that are due and here. Returns how many.
    fn read_here(&mut self, site: &mut Site, target: &Path) -> Result<usize, FetchError> {
        let Some(reader) = &mut self.reader else { return Ok(0) };
        for count in 0..STEP {
            let Some(due) = reader.upcoming().next() else { return Ok(count) };
            let digest = due.digest();
            let bytes = match self.held.remove(&digest) {
                Some(bytes) => bytes,
                // Should the catalogue be damaged, the page is fetched anew.
                None => match site.store.page(&digest)?.filter(|bytes| due.check(bytes).is_ok()) {
                    Some(bytes) => bytes,
                    None => return Ok(count),
                },
            };
            if let Page::Entries { entries, .. } = reader.page(&bytes)? {
                for entry in &entries {
                    site.folder.check(entry, target)?;
                }
            }
            self.asked.remove(&digest);
            site.page(digest, &bytes)?;
        }
        Ok(STEP)
    }

    fn begin(&mut self, site: &mut Site, manifest: &Digest, root: &[u8]) -> Result<(), FetchError> {
        self.reader = Some(ManifestReader::new(manifest, root)?);
        self.asked.remove(manifest);
        site.page(*manifest, root)
    }

    /// What of `wants` was not asked for yet.
    fn want(&mut self, wants: impl IntoIterator<Item = Want>, max_bytes: u64) -> Next {
        let mut list = Vec::new();
        let mut bytes = 0;
        for want in wants {
            if bytes >= max_bytes {
                break;
            }
            if self.asked.insert(want.digest, want.size).is_none() {
                bytes += want.size.map_or(limits::MANIFEST_ROOT_BYTES as u64, u64::from);
                list.push(want);
            }
        }
        if list.is_empty() { Next::Wait } else { Next::Want(list) }
    }

    /// Takes the bytes of the root or a page.
    pub(super) fn deliver(
        &mut self,
        site: &mut Site,
        manifest: &Digest,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<Delivered, FetchError> {
        let Some(size) = self.asked.get(digest).copied() else { return Ok(Delivered::Unasked) };
        if bytes.len() > limits::MANIFEST_PAGE_BYTES || Digest::of(bytes) != *digest {
            return Err(FetchError::ChunkCorrupt { digest: *digest });
        }
        if size.is_none() && self.reader.is_none() {
            self.begin(site, manifest, bytes)?;
        } else {
            self.asked.remove(digest);
            self.held.insert(*digest, bytes.to_vec());
        }
        Ok(Delivered::Taken)
    }

    /// These are wanted again.
    pub(super) fn lost(&mut self, digests: &[Digest]) {
        for digest in digests {
            self.asked.remove(digest);
        }
    }
}
