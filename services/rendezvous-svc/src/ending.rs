//! How the life before ended: a server that ends in good order leaves `snapshot.last` beside its snapshot, which names it as its
//! last one. The next life takes that away, so it says something of one life only. Without it nobody knows what happened after the
//! snapshot was begun.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use p2psb_client::files::{Existing, read_bounded, write_atomically};
use p2psb_proto::model::UnixMillis;

/// Its name in the data folder.
const LAST: &str = "snapshot.last";
/// It is no longer than this.
const LAST_BYTES: u64 = 64;

/// The snapshot that was begun then is the last one of this life, which is over.
pub(crate) fn leave(folder: &Path, begun: UnixMillis) -> io::Result<()> {
    write_atomically(&folder.join(LAST), format!("{}\n", begun.0).as_bytes(), 0o600, Existing::Replace)
}

/// When the last snapshot of an earlier life was begun, if that ended in good order. This is said once.
pub(crate) fn take(folder: &Path) -> io::Result<Option<UnixMillis>> {
    let path = folder.join(LAST);
    let bytes = match read_bounded(&path, LAST_BYTES) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    std::fs::remove_file(&path)?;
    File::open(folder)?.sync_all()?;
    Ok(String::from_utf8_lossy(&bytes).trim().parse().ok().map(UnixMillis))
}
