//! The last phase of a repair: what was filled beside the folder goes to its places, and what has no content is made again.
//!
//! Invariant: each file is replaced at once by one that is whole and on the disk; what the package does not name is never touched.

use p2psb_proto::model::Digest;
use p2psb_proto::model::manifest::{Content, ManifestReader, Page};

use super::error::FetchError;
use super::folder::Found;
use super::site::Site;

/// Makes the folder at `home` what the manifest says. Everything in `staged` is on the disk. Returns how many files and symlinks were
/// repaired.
pub(super) fn mend(home: &mut Site, staged: &mut Site, manifest: &Digest) -> Result<u64, FetchError> {
    let mut repaired = 0;
    let mut reader = ManifestReader::new(manifest, &home.read_page(manifest)?)?;
    // In order, every folder comes before what is in it.
    while let Some(due) = { reader.upcoming().next() } {
        let page = reader.page(&home.read_page(&due.digest())?)?;
        let Page::Entries { first, entries } = page else { continue };
        let end = first + entries.len() as u64;
        let recorded = home.store.files_between(home.tree, first, end)?;
        let filled = staged.store.files_between(staged.tree, first, end)?;
        let mut moved = Vec::new();
        for (number, entry) in (first..).zip(&entries) {
            let path = entry.path();
            match entry.content() {
                Content::Directory => home.folder.restore_dir(path)?,
                Content::Symlink(target) => {
                    if !home.folder.has_link(path, target.as_str()) {
                        staged.folder.make_parents(path)?;
                        staged.folder.link(path, target.as_str())?;
                        home.folder.take_in(&mut staged.folder, path)?;
                        repaired += 1;
                    }
                }
                // Begun and not complete has no inode; there is none of that once all is filled.
                Content::File(_) if filled.get(&number).is_some_and(|file| file.stamp.inode != 0) => {
                    home.folder.take_in(&mut staged.folder, path)?;
                    moved.push(number);
                }
                Content::File(file) => {
                    let known = recorded.get(&number).map(|known| known.executable);
                    if let Found::File(_, executable) = home.folder.look(path)?
                        && executable != file.executable()
                        && known != Some(executable)
                        && home.folder.set_executable(path, file.executable())?
                    {
                        repaired += 1;
                    }
                }
            }
        }
        home.store.take_over(home.tree, staged.tree, &moved)?;
        repaired += moved.len() as u64;
    }
    home.folder.sync_all()?;
    Ok(repaired)
}
