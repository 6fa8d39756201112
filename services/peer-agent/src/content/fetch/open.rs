//! Where a fetch begins: the target, and what is there already.
//!
//! `TARGET.partial` belongs to this agent exactly if the catalogue has an unfinished tree for TARGET; anything else of that name is
//! somebody's and stays untouched. Beside a finished folder it holds what repairs it. A tree whose folder was moved into place right before a crash is known by the folder's inode.

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

/// Who begins a fetch, which decides what may be made for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The user asks for it now: what is not there is made.
    Asked,
    /// It goes on by itself. What an earlier run left must be there, or its disk may just be away: then nothing is made in its stead.
    GoingOn,
}

/// In which condition the target was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing was there.
    Fresh,
    /// An earlier run left something.
    Resumed,
    /// The same manifest was fetched there before. It may have been damaged since.
    Finished,
}

/// A place to fetch to.
pub(super) struct Spot {
    pub(super) claimed: Claimed,
    pub(super) target: PathBuf,
    pub(super) site: Site,
    pub(super) made: Vec<PathBuf>,
    pub(super) condition: Condition,
}

/// Finds out what is at the target, and makes or opens the folder to fill, or the one that is finished.
pub(super) fn open(
    store: Arc<Store>,
    manifest: &Digest,
    target: &Path,
    start: Start,
) -> Result<Spot, FetchError> {
    let target = located(target)?;
    if start == Start::GoingOn && is_gone(&store, &target)? {
        return Err(FetchError::Gone { path: shown_path(&target) });
    }
    let made = make_parents(target.parent().unwrap_or(&target))?;
    let claimed = Claimed::new(Arc::clone(&store), &target)
        .ok_or_else(|| FetchError::TargetBusy { path: shown_path(&target) })?;

    let result = settle(&store, manifest, &target);
    let (tree, folder, condition) = match result {
        Ok(found) => found,
        Err(error) => {
            remove_made(&made);
            return Err(error);
        }
    };
    Ok(Spot { claimed, target, site: Site::new(store, tree, folder), made, condition })
}

/// Gives up what was begun at a target: removes `TARGET.partial` and forgets its tree. `false` if nothing was begun; a finished folder
/// stays. Like all of this it blocks.
pub fn give_up(store: Arc<Store>, target: &Path) -> Result<bool, FetchError> {
    let target = located(target)?;
    let _claimed = Claimed::new(Arc::clone(&store), &target)
        .ok_or_else(|| FetchError::TargetBusy { path: shown_path(&target) })?;
    let Some(tree) = store.trees_at(&target)?.into_iter().find(|tree| !tree.complete) else {
        return Ok(false);
    };
    let partial = partial_of(&target);
    let begun = look(&partial)?;
    if begun.is_none() && look(&target)?.is_some_and(|there| there.ino() == tree.sealed) {
        // Moved into place right before a crash.
        store.complete(tree.id, &target)?;
        return Ok(false);
    }
    remove(&store, tree.id, &partial)?;
    Ok(true)
}

/// Removes the folder of an unfinished tree, and forgets the tree.
pub(super) fn remove(store: &Store, tree: TreeId, partial: &Path) -> Result<(), FetchError> {
    match fs::remove_dir_all(partial) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(FetchError::at(partial, error)),
        Ok(()) | Err(_) => {}
    }
    Ok(store.forget(tree)?)
}

/// A target by the path that the catalogue knows it by: without symlinks above it, as far as they can be followed.
fn located(target: &Path) -> Result<PathBuf, FetchError> {
    let (Some(_), Some(parent), true) = (target.file_name(), target.parent(), target.is_absolute()) else {
        let source = io::Error::new(ErrorKind::InvalidInput, "it is not the absolute path of a folder");
        return Err(FetchError::at(target, source));
    };
    let there = parent.ancestors().find(|folder| folder.exists()).unwrap_or(parent);
    let canonical = there.canonicalize().map_err(|e| FetchError::at(there, e))?;
    // Below `there` nothing exists, so no symlink either.
    Ok(canonical.join(target.strip_prefix(there).unwrap_or(target)))
}

fn partial_of(target: &Path) -> PathBuf {
    let mut partial = target.as_os_str().to_owned();
    partial.push(".partial");
    partial.into()
}

/// Whether something was fetched to here, and nothing of it is left.
fn is_gone(store: &Store, target: &Path) -> Result<bool, FetchError> {
    if stands(target)?.is_some() || look(&partial_of(target))?.is_some() {
        return Ok(false);
    }
    for tree in store.trees_at(target)? {
        if tree.complete || store.has_chunks(tree.id)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What stands at a target; an empty folder is as good as none.
fn stands(target: &Path) -> Result<Option<Metadata>, FetchError> {
    Ok(look(target)?.filter(|there| !there.is_dir() || !is_empty(target)))
}

fn settle(
    store: &Store,
    manifest: &Digest,
    target: &Path,
) -> Result<(TreeId, Folder, Condition), FetchError> {
    let trees = store.trees_at(target)?;
    let begun = look(&partial_of(target))?;
    if let Some(there) = stands(target)? {
        let same =
            trees.iter().find(|t| t.manifest == *manifest && t.sealed == there.ino() && there.is_dir());
        let Some(tree) = same.filter(|tree| tree.complete || begun.is_none()) else {
            return Err(FetchError::exists(target));
        };
        if !tree.complete {
            store.complete(tree.id, target)?;
        }
        return Ok((tree.id, Folder::open(target)?, Condition::Finished));
    }
    // What was finished here before is gone.
    for tree in trees.iter().filter(|tree| tree.complete) {
        store.forget(tree.id)?;
    }
    stage(store, manifest, target)
}

/// Makes the folder to fill, `TARGET.partial`, or opens the one of an earlier run.
pub(super) fn stage(
    store: &Store,
    manifest: &Digest,
    target: &Path,
) -> Result<(TreeId, Folder, Condition), FetchError> {
    let partial = partial_of(target);
    let trees = store.trees_at(target)?;
    let mut unfinished = trees.iter().filter(|tree| !tree.complete);
    if let Some(begun) = look(&partial)? {
        return match unfinished.next() {
            Some(tree) if tree.manifest == *manifest && begun.is_dir() => resume(store, tree, &partial),
            _ => Err(FetchError::exists(&partial)),
        };
    }
    // What was begun is gone.
    for tree in unfinished {
        store.forget(tree.id)?;
    }
    let tree = store.begin_partial(manifest, target, &partial)?;
    match Folder::create(&partial) {
        Ok(folder) => Ok((tree, folder, Condition::Fresh)),
        Err(error) => {
            store.forget(tree)?;
            Err(error)
        }
    }
}

/// The folder at the target is whole: nothing that was begun to repair it is needed.
pub(super) fn unstage(store: &Store, manifest: &Digest, target: &Path) -> Result<(), FetchError> {
    let trees = store.trees_at(target)?;
    let begun = trees.iter().find(|tree| !tree.complete && tree.manifest == *manifest);
    begun.map_or(Ok(()), |tree| remove(store, tree.id, &partial_of(target)))
}

fn resume(
    store: &Store,
    tree: &PartialTree,
    partial: &Path,
) -> Result<(TreeId, Folder, Condition), FetchError> {
    let folder = Folder::open(partial)?;
    folder.check_writable()?;
    if tree.sealed != 0 {
        store.seal(tree.id, 0, &mut crate::store::Batch::default())?;
    }
    if store.has_chunks(tree.id)? {
        return Ok((tree.id, folder, Condition::Resumed));
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
