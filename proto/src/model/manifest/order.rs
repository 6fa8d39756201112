//! The order of entries: strictly ascending bytewise, every parent a directory that came before. In constant memory.

use super::ManifestError;
use crate::model::path::PackagePath;

/// Invariant: `folders` holds the lengths, ascending, of those directories that are string prefixes of `last`. All paths below a
/// directory come in one run of paths that have it as a prefix, so one that is no prefix any more is never a parent again.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    last: String,
    folders: Vec<usize>,
}

impl Order {
    /// Takes the next entry.
    pub(super) fn check(&mut self, path: &PackagePath, is_folder: bool) -> Result<(), ManifestError> {
        let bad = |why| ManifestError::Entry { path: path.to_string(), why };
        let text = path.as_str();
        if text <= self.last.as_str() {
            return Err(bad("entries are not in strictly ascending order of their paths"));
        }
        let common = text.bytes().zip(self.last.bytes()).take_while(|(a, b)| a == b).count();
        while self.folders.last().is_some_and(|length| *length > common) {
            self.folders.pop();
        }
        if let Some(parent) = path.parent()
            && self.folders.binary_search(&parent.len()).is_err()
        {
            return Err(bad("its parent is no directory of the package"));
        }
        if is_folder {
            self.folders.push(text.len());
        }
        self.last.clear();
        self.last.push_str(text);
        Ok(())
    }
}
