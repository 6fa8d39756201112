//! Signing this server's own record: at the start, at half of its life, and when somebody turns out to hold a newer one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use p2psb_client::files::read_bounded;
use p2psb_proto::model::peer::Endorsement;
use p2psb_proto::model::{PeerStatement, ServiceName, Signed, limits};
use p2psb_proto::wire::common::v1::SignedRecord;
use parking_lot::Mutex;

use crate::convert;
use crate::core::own::{OwnRecord, REFRESH};
use crate::core::table::TableError;
use crate::core::telling::Origin;
use crate::node::Node;

/// A file with an id is no longer than this.
const ID_FILE_BYTES: u64 = 1024;

/// Why the own record can't be made.
#[derive(Debug, thiserror::Error)]
pub enum OwnRecordError {
    /// Too many addresses or endorsements for one record.
    #[error("this server's own record can't be signed: {0}")]
    Record(#[from] p2psb_proto::model::RecordError),
    /// The folder with endorsements can't be read.
    #[error("endorse_dir {path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Refused by the own table.
    #[error("this server's own record: {0}")]
    Table(#[from] TableError),
}

/// Parses an endorsement; the error is for people.
pub(crate) fn parse_endorsement(service: &str, peer: &str) -> Result<Endorsement, String> {
    let service: ServiceName = service.trim().parse().map_err(|error| format!("{error}"))?;
    if !service.is_reserved() {
        return Err(format!("{service} needs no endorsement, only names that begin with p2psb. do"));
    }
    let peer = peer.trim().parse().map_err(|error| format!("{error}"))?;
    Ok(Endorsement { service, peer })
}

/// What the own record is made of.
pub(crate) struct OwnSigner {
    record: OwnRecord,
    endorsed: Mutex<Vec<Endorsement>>,
    folder: Option<PathBuf>,
    current: Mutex<Option<Signed<p2psb_proto::model::PeerRecord>>>,
}

impl OwnSigner {
    pub(crate) fn new(record: OwnRecord, configured: Vec<Endorsement>, folder: Option<PathBuf>) -> Self {
        Self { record, endorsed: Mutex::new(configured), folder, current: Mutex::new(None) }
    }

    /// Vouches for these from the next record on, in the place of those before. Returns whether they are others.
    pub(crate) fn endorse(&self, endorsed: Vec<Endorsement>) -> bool {
        let mut now = self.endorsed.lock();
        let are_others = *now != endorsed;
        *now = endorsed;
        are_others
    }

    /// The newest record, for the wire.
    pub(crate) fn current(&self) -> Option<SignedRecord> {
        self.current.lock().as_ref().map(Signed::to_wire)
    }

    fn endorsements(&self) -> Result<Vec<Endorsement>, OwnRecordError> {
        let mut all = self.endorsed.lock().clone();
        if let Some(folder) = &self.folder {
            let found = read_folder(folder)
                .map_err(|source| OwnRecordError::Folder { path: folder.clone(), source })?;
            all.extend(found);
        }
        all.sort_by(|a, b| (a.service.as_str(), a.peer).cmp(&(b.service.as_str(), b.peer)));
        all.dedup();
        Ok(all)
    }

    /// What was endorsed last, for when the folder can't be read for a moment.
    fn previous(&self) -> Option<Vec<Endorsement>> {
        self.current.lock().as_ref().map(|record| record.value().endorsements.clone())
    }
}

/// The endorsements in a folder: a file named `service@anything` for each, that holds the id. Other files are not looked at.
fn read_folder(folder: &Path) -> std::io::Result<Vec<Endorsement>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder)?.take(4 * limits::ENDORSEMENTS) {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some((service, _)) = name.and_then(|name| name.split_once('@')) else { continue };
        if service.starts_with('.') {
            continue;
        }
        let text =
            read_bounded(&path, ID_FILE_BYTES).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let parsed = text.map_err(|error| error.to_string()).and_then(|id| parse_endorsement(service, &id));
        match parsed {
            Ok(endorsement) => found.push(endorsement),
            Err(problem) => tracing::warn!(file = %path.display(), problem, "an endorsement can't be used"),
        }
    }
    Ok(found)
}

/// Signs a new record and tells it to the backbone.
pub(crate) fn sign(node: &Node) -> Result<(), OwnRecordError> {
    let endorsements = match (node.own.endorsements(), node.own.previous()) {
        (Err(error), Some(previous)) => {
            tracing::warn!(%error, "the endorsements stay as they were");
            previous
        }
        (read, _) => read?,
    };
    let last = node.directory.read().table.seq(&node.id).unwrap_or_default();
    let record = node.own.record.next(endorsements, last, node.now().wall);
    let signed = Signed::sign(&record, node.identity.key())?;
    let item = convert::item(&PeerStatement::Record(signed.clone()));
    let merged = node.directory.write().table.put_own(item, node.now().wall);
    // What it offers is the same in all its records.
    node.account(&node.id, Vec::new(), Origin::Here, &merged);
    merged?;
    *node.own.current.lock() = Some(signed);
    Ok(())
}

/// Keeps the own record fresh until the server drains.
pub(crate) async fn keep_fresh(node: Arc<Node>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            () = node.sign_anew.notified() => {}
            () = node.drain.begun() => return,
        }
        let signer = Arc::clone(&node);
        // The folder may lie on a slow disk.
        match tokio::task::spawn_blocking(move || sign(&signer)).await {
            Ok(Ok(())) => tracing::debug!("signed this server's record anew"),
            Ok(Err(error)) => tracing::error!(%error, "this server's record was not renewed"),
            Err(error) => tracing::error!(%error, "this server's record was not renewed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::peer;

    #[test]
    fn a_folder_of_endorsements_is_read_and_what_is_none_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let id = &peer(1).to_string();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("p2psb.discovery@d1", &format!("{id}\n"));
        write("p2psb.package-index@i1", id);
        write("p2psb.package-index@i2", "peer1typo");
        write("chat@x", id);
        write("README", "not one");
        write(".p2psb.discovery@d1.0000", id);
        let mut found: Vec<_> = read_folder(dir.path())
            .unwrap()
            .into_iter()
            .map(|e| (e.service.to_string(), e.peer.to_string()))
            .collect();
        found.sort();
        assert_eq!(
            found,
            ["p2psb.discovery", "p2psb.package-index"].map(|name| (name.to_owned(), id.clone()))
        );
    }

    #[test]
    fn only_reserved_services_are_endorsed() {
        assert!(parse_endorsement("p2psb.discovery", &peer(1).to_string()).is_ok());
        assert!(parse_endorsement("chat", &peer(1).to_string()).unwrap_err().contains("no endorsement"));
        assert!(parse_endorsement("p2psb.discovery", "peer1x").is_err());
    }
}
