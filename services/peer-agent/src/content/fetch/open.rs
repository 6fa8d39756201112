//! Where a fetch begins: the target, and what is there already.
//!
//! `TARGET.partial` belongs to this agent exactly if the catalogue has an unfinished tree for TARGET; anything else of that name is
//! somebody's and stays untouched. A tree whose folder was moved into place right before a crash is known by the folder's inode.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use p2psb_proto::model::Digest;

use super::error::FetchError;
use super::folder::Folder;
use super::site::Site;
use crate::content::publish::shown_path;
use crate::store::{Claimed, PartialTree, Store, TreeId};

/// In which condition the target was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing was there.
    Fresh,
    /// An earlier run left something.
    Resumed,
    /// The same manifest was fetched there before.
    Done,
}

/// A place to fetch to.
pub(super) struct Spot {
    pub(super) claimed: Claimed,
    pub(super) target: PathBuf,
    pub(super) site: Site,
    pub(super) made: Vec<PathBuf>,
    pub(super) condition: Condition,
}

/// Finds out what is at the target, and makes or opens the folder to fill.
pub(super) fn open(store: Arc<Store>, manifest: &Digest, target: &Path) -> Result<Spot, FetchError> {
    let (Some(name), Some(parent), true) = (target.file_name(), target.parent(), target.is_absolute()) else {
        let source = io::Error::new(ErrorKind::InvalidInput, "it is not the absolute path of a folder");
        return Err(FetchError::at(target, source));
    };
    let made = make_parents(parent)?;
    let parent = parent.canonicalize().map_err(|e| FetchError::at(parent, e))?;
    let target = parent.join(name);
    let mut partial = name.to_owned();
    partial.push(".partial");
    let partial = parent.join(partial);
    let claimed = Claimed::new(Arc::clone(&store), &target)
        .ok_or_else(|| FetchError::TargetBusy { path: shown_path(&target) })?;

    let result = settle(&store, manifest, &target, &partial);
    let (tree, folder, condition) = match result {
        Ok(found) => found,
        Err(error) => {
            remove_made(&made);
            return Err(error);
        }
    };
    Ok(Spot { claimed, target, site: Site::new(store, tree, folder), made, condition })
}

fn settle(
    store: &Store,
    manifest: &Digest,
    target: &Path,
    partial: &Path,
) -> Result<(TreeId, Folder, Condition), FetchError> {
    let trees = store.trees_at(target)?;
    let (there, begun) = (look(target)?, look(partial)?);
    if let Some(there) = there.filter(|there| !there.is_dir() || !is_empty(target)) {
        let same =
            trees.iter().find(|t| t.manifest == *manifest && t.sealed == there.ino() && there.is_dir());
        let Some(tree) = same.filter(|tree| tree.complete || begun.is_none()) else {
            return Err(FetchError::exists(target));
        };
        if !tree.complete {
            store.complete(tree.id, target)?;
        }
        return Ok((tree.id, Folder::open(target)?, Condition::Done));
    }
    let unfinished = trees.iter().find(|tree| !tree.complete);
    if let Some(begun) = begun {
        return match unfinished {
            Some(tree) if tree.manifest == *manifest && begun.is_dir() => resume(store, tree, partial),
            _ => Err(FetchError::exists(partial)),
        };
    }
    // What was fetched to here, or begun, is gone.
    for tree in &trees {
        store.forget(tree.id)?;
    }
    let tree = store.begin_partial(manifest, target, partial)?;
    match Folder::create(partial) {
        Ok(folder) => Ok((tree, folder, Condition::Fresh)),
        Err(error) => {
            store.forget(tree)?;
            Err(error)
        }
    }
}

fn resume(
    store: &Store,
    tree: &PartialTree,
    partial: &Path,
) -> Result<(TreeId, Folder, Condition), FetchError> {
    if tree.sealed != 0 {
        store.seal(tree.id, 0, &mut crate::store::Batch::default())?;
    }
    if store.has_chunks(tree.id)? {
        return Ok((tree.id, Folder::open(partial)?, Condition::Resumed));
    }
    // Nothing but names, perhaps: those are made anew.
    fs::remove_dir_all(partial).map_err(|e| FetchError::at(partial, e))?;
    Ok((tree.id, Folder::create(partial)?, Condition::Fresh))
}

fn look(path: &Path) -> Result<Option<Metadata>, FetchError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FetchError::at(path, error)),
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Makes the folders above the target. Returns those that were made, the deepest first.
fn make_parents(parent: &Path) -> Result<Vec<PathBuf>, FetchError> {
    let missing =
        parent.ancestors().take_while(|folder| !folder.exists()).map(Path::to_owned).collect::<Vec<_>>();
    if let Err(error) = fs::create_dir_all(parent) {
        remove_made(&missing);
        return Err(FetchError::at(parent, error));
    }
    Ok(missing)
}

/// Removes folders that were made, as far as they are empty.
pub(super) fn remove_made(made: &[PathBuf]) {
    for folder in made {
        let _ = fs::remove_dir(folder);
    }
}
