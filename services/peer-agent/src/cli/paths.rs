//! Paths as the user writes them, made absolute for the agent, whose working folder is another.

use std::path::{Component, Path, PathBuf};

use p2psb_proto::error::{Failure, Reason};

/// Something to publish: it must be there.
pub(super) fn existing(path: &Path) -> Result<String, Failure> {
    let resolved = std::fs::canonicalize(path).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => Reason::PathMissing,
            _ => Reason::FileUnreadable,
        };
        Failure::new(reason, format!("{}: {error}", path.display()))
    })?;
    text(resolved)
}

/// Where something is to be made.
pub(super) fn target(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::new(Reason::PathInvalid, format!("{}: {error}", path.display())))?;
    let mut plain = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    text(plain)
}

/// The folder this program was started in.
pub(super) fn working_directory() -> Result<String, Failure> {
    let folder = std::env::current_dir()
        .map_err(|error| Failure::new(Reason::PathMissing, format!("the working folder: {error}")))?;
    text(folder)
}

fn text(path: PathBuf) -> Result<String, Failure> {
    path.into_os_string().into_string().map_err(|path| {
        Failure::new(Reason::PathInvalid, format!("{} is not UTF-8; rename it", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_absolute_and_plain() {
        let here = working_directory().unwrap();
        assert_eq!(target(Path::new("a/./b")).unwrap(), format!("{here}/a/b"));
        assert_eq!(target(Path::new("/x/../y/")).unwrap(), "/y");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let failure = existing(Path::new("/nowhere/at all")).unwrap_err();
        assert_eq!(failure.reason, Reason::PathMissing);
        assert!(failure.message.contains("/nowhere/at all"));
    }
}
