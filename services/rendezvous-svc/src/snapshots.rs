//! The snapshot at work: it is written now and then and when the server has drained, and read when it starts. A rendezvous
//! without one, or with one that is of no use, starts empty: it is healed by its peers and by the other members.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use p2psb_client::Identity;
use p2psb_proto::model::{NetworkId, UnixMillis};
use tokio::task::spawn_blocking;

use crate::core::Now;
use crate::core::admission::Admission;
use crate::core::directory::Directory;
use crate::core::snapshot::{Head, Place, Restored, Restoring};
use crate::ending;
use crate::node::Node;
use crate::store::{SnapshotError, SnapshotFile, Written};

/// Things that are taken under one lock.
const AT_A_TIME: usize = 1000;
/// Between two of those others have the time: a million peers are written in some seconds, beside the work of the server.
const PAUSE: Duration = Duration::from_millis(5);
/// A large snapshot is written less often: on average no more than this goes to the disk in a second. While one of a million peers was
/// written, for more than ten seconds, 13 to 18 % of a core went into it, which lookups then lacked.
const BYTES_PER_SECOND: u64 = 2 * 1024 * 1024;
/// How long the last one may take.
const LAST: Duration = Duration::from_secs(10);

/// How a snapshot is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Beside the work of the server, until it drains.
    Gentle,
    /// At once.
    Last,
}

/// What a server starts with: what it knows, and whose unary registrations count.
pub(crate) type Start = (Directory, Admission);

/// Where snapshots lie, and how often they are written.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    folder: PathBuf,
    file: SnapshotFile,
    interval: Duration,
}

impl Snapshots {
    pub(crate) fn new(data_dir: &Path, identity: &Identity, interval: Duration) -> Self {
        Self { folder: data_dir.to_owned(), file: SnapshotFile::new(data_dir, identity.key()), interval }
    }

    /// What the last life left, else `empty`. It takes a while where there is much: not for an async thread.
    pub(crate) fn restore(
        &self,
        empty: impl Fn() -> Start,
        identity: &Identity,
        network: NetworkId,
        now: Now,
    ) -> Start {
        let file = self.file.path();
        if let Err(error) = self.file.clear() {
            tracing::warn!(%error, "what an earlier life left half-written stays there");
        }
        match self.read(empty(), identity, network, now) {
            Ok(Some((directory, registrations, restored))) => {
                let Restored { statements, present, gone, dropped } = restored;
                let knowledge_since = directory.knowledge_since;
                tracing::info!(statements, present, gone, dropped, %knowledge_since, "came back by the snapshot");
                (directory, registrations)
            }
            Ok(None) => {
                tracing::info!("there is no snapshot; nothing is known yet");
                empty()
            }
            Err(error) => {
                let file = file.display();
                tracing::warn!(%file, %error, "the snapshot is of no use; nothing is known yet");
                empty()
            }
        }
    }

    fn read(
        &self,
        empty: Start,
        identity: &Identity,
        network: NetworkId,
        now: Now,
    ) -> Result<Option<(Directory, Admission, Restored)>, SnapshotError> {
        // It is taken away whatever becomes of the snapshot: from now on it is not the last one any more.
        let ended = ending::take(&self.folder).unwrap_or_else(|error| {
            tracing::warn!(%error, "how the last life ended is not known");
            None
        });
        let Some(mut reading) = self.file.open()? else { return Ok(None) };
        let head = *reading.head();
        let head = Head { is_last: ended == Some(head.begun), ..head };
        let mut new = Restoring::new(empty, identity.peer_id(), network, &head, now)?;
        while let Some(kept) = reading.read()? {
            new.take(kept);
        }
        Ok(Some(new.finish()))
    }

    /// Writes a snapshot now and then until the server drains.
    pub(crate) async fn keep(self, node: Arc<Node>) {
        let mut wait = self.interval;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = node.drain.begun() => return,
            }
            let written = self.write(&node, Pace::Gentle).await;
            note(&written);
            wait = match written {
                Ok(Some((written, _))) => self.interval.max(rest(written.bytes)),
                Ok(None) => return,
                Err(_) => self.interval,
            };
        }
    }

    /// Writes the last one.
    pub(crate) async fn finish(&self, node: &Node) {
        match tokio::time::timeout(LAST, self.write(node, Pace::Last)).await {
            Ok(written) => {
                note(&written);
                self.end(&written);
            }
            Err(_) => tracing::warn!("there was no time for a last snapshot; the one before stays"),
        }
    }

    /// This life is over with what was written, if that was all.
    fn end(&self, written: &io::Result<Option<(Written, UnixMillis)>>) {
        if let Ok(Some((Written { left_out: 0, .. }, begun))) = written
            && let Err(error) = ending::leave(&self.folder, *begun)
        {
            tracing::warn!(%error, "the next life will not know that this one ended in good order");
        }
    }

    /// Returns nothing if the server drains: then the last one is to be written, when all have gone.
    async fn write(&self, node: &Node, pace: Pace) -> io::Result<Option<(Written, UnixMillis)>> {
        let knowledge_since = node.directory.read().knowledge_since;
        let begun = node.now().wall;
        let head = Head { network: node.network, own: node.id, begun, knowledge_since, is_last: false };
        let file = self.file.clone();
        let mut writing = blocking(move || file.begin(&head)).await?;
        let mut place = Some(Place::default());
        while let Some(at) = place {
            let now = node.now();
            let (things, next) = node.directory.read().taken_along(at, AT_A_TIME, now);
            writing = blocking(move || writing.put(&things).map(|()| writing)).await?;
            place = next;
            if pace == Pace::Gentle {
                tokio::time::sleep(PAUSE).await;
                if node.drain.has_begun() {
                    return Ok(None);
                }
            }
        }
        blocking(move || writing.finish()).await.map(|written| Some((written, begun)))
    }
}

/// How long after so many bytes nothing is written.
const fn rest(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / BYTES_PER_SECOND)
}

fn note(written: &io::Result<Option<(Written, UnixMillis)>>) {
    let outcome = match written {
        Ok(Some(_)) => "written",
        Ok(None) => "given_up",
        Err(_) => "failed",
    };
    metrics::counter!("rendezvous_snapshots_total", "outcome" => outcome).increment(1);
    match written {
        Ok(None) => {}
        Ok(Some((Written { bytes, things, left_out }, _))) => {
            metrics::gauge!("rendezvous_snapshot_bytes").set(*bytes as f64);
            if *left_out > 0 {
                tracing::warn!(things, left_out, "the snapshot has no room for all");
            } else {
                tracing::debug!(things, bytes, "the snapshot is written");
            }
        }
        Err(error) => tracing::warn!(%error, "no snapshot was written; the one before stays"),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_snapshot_is_followed_by_a_long_rest() {
        assert_eq!(rest(0), Duration::ZERO);
        assert_eq!(rest(BYTES_PER_SECOND * 44), Duration::from_secs(44));
        assert!(rest(u64::MAX) > Duration::from_secs(1));
    }
}
