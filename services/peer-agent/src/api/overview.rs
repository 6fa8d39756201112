//! `GetStatus`: everything there is to say of an agent, at one moment.

use std::sync::Arc;

use p2psb_client::SessionKeeper;
use p2psb_client::session::{OwnAddress, SessionState, SessionStatus, Standing};
use p2psb_proto::error::Failure;
use p2psb_proto::model::time::duration_to_wire;
use p2psb_proto::model::{Action, NetworkId, PeerId, PublisherId, UnixMillis};
use p2psb_proto::wire::agent::v1 as wire;

use crate::edge::EdgeView;
use crate::failure::{internal, store_failed};
use crate::fetch::Fetches;
use crate::index::Indexes;
use crate::store::{Store, StoreError, Tree, TreeState};

/// Packages and fetches that are shown.
const MAX_SHOWN: usize = 1000;
/// Rendezvous that are shown.
const MAX_SESSIONS: usize = 256;

/// What is shown.
pub struct Seen {
    /// Own id.
    pub peer_id: PeerId,
    /// Own publisher id.
    pub publisher_id: PublisherId,
    /// The community.
    pub network: NetworkId,
    /// Program and version.
    pub software: &'static str,
    /// Sessions with the rendezvous.
    pub sessions: Arc<SessionKeeper>,
    /// The rendezvous inside the agent, if it runs one.
    pub edge: Option<EdgeView>,
    /// What is held.
    pub store: Arc<Store>,
    /// When the agent started.
    pub started: UnixMillis,
    /// Where it listens for peers.
    pub listen: std::net::SocketAddr,
}

impl Seen {
    /// The status now.
    pub async fn status(
        &self,
        fetches: &Fetches,
        indexes: &Indexes,
    ) -> Result<wire::GetStatusResponse, Failure> {
        let store = Arc::clone(&self.store);
        let shared = tokio::task::spawn_blocking(move || shared(&store).map_err(store_failed));
        let mut fetches = fetches.progress();
        fetches.truncate(MAX_SHOWN);
        let record = self.sessions.record();
        let addresses = record.iter().flat_map(|record| &record.value().addresses);
        let now = tokio::time::Instant::now();
        Ok(wire::GetStatusResponse {
            peer_id: self.peer_id.to_string(),
            publisher_id: self.publisher_id.to_string(),
            network_id: self.network.to_string(),
            software: self.software.to_owned(),
            addresses: addresses.map(ToString::to_string).collect(),
            sessions: self
                .sessions
                .status()
                .iter()
                .take(MAX_SESSIONS)
                .map(|status| session(status, now))
                .collect(),
            indexes: indexes.in_use().iter().map(ToString::to_string).collect(),
            shared: shared.await.map_err(internal)??,
            fetches,
            start_time: Some(self.started.to_wire()),
            listen_address: self.listen.to_string(),
            own_addresses: self.sessions.own_addresses().into_iter().map(own_address).collect(),
            edge: self.edge.as_ref().map(edge),
        })
    }
}

fn edge(edge: &EdgeView) -> wire::Edge {
    wire::Edge {
        server_id: edge.server.to_string(),
        listen_address: edge.listen.to_string(),
        sessions: edge.look.sessions() as u64,
        members: edge.look.links() as u64,
    }
}

fn own_address(own: OwnAddress) -> wire::OwnAddress {
    let address = own.address.to_string();
    match own.standing {
        Standing::Unknown => wire::OwnAddress { address, ..wire::OwnAddress::default() },
        Standing::Confirmed { by, expires } => wire::OwnAddress {
            address,
            confirmed_by: by.to_string(),
            expire_time: Some(expires.to_wire()),
            ..wire::OwnAddress::default()
        },
        Standing::Unconfirmed { reason, detail } => {
            wire::OwnAddress { address, reason, detail, ..wire::OwnAddress::default() }
        }
    }
}

fn session(status: &SessionStatus, now: tokio::time::Instant) -> wire::RendezvousSession {
    let (state, error, retry_in) = match &status.state {
        SessionState::Connecting => (wire::SessionState::Connecting, String::new(), None),
        SessionState::Online => (wire::SessionState::Online, String::new(), None),
        SessionState::Standby => (wire::SessionState::Standby, String::new(), None),
        SessionState::Failed { error, retry_at } => {
            let wait = duration_to_wire(retry_at.saturating_duration_since(now));
            (wire::SessionState::Failed, error.clone(), Some(wait))
        }
    };
    wire::RendezvousSession {
        endpoint: status.endpoint.url(),
        server_id: status.server_id.map(|id| id.to_string()).unwrap_or_default(),
        state: state.into(),
        error,
        observed_address: status.observed.map(|address| address.to_string()).unwrap_or_default(),
        retry_in,
        own: status.own,
    }
}

fn shared(store: &Store) -> Result<Vec<wire::SharedPackage>, StoreError> {
    let mut shared = Vec::new();
    for tree in store.trees(MAX_SHOWN)? {
        if tree.state != TreeState::Partial {
            shared.push(package(store, tree)?);
        }
    }
    Ok(shared)
}

fn package(store: &Store, tree: Tree) -> Result<wire::SharedPackage, StoreError> {
    let reference = store.release_of(&tree.manifest)?.and_then(|entry| match &entry.value().action {
        Action::Release(release) => {
            Some(format!("{}/{}@{}", entry.value().publisher, entry.value().name, release.version))
        }
        Action::Yank { .. } | Action::Unyank { .. } => None,
    });
    let problem = match tree.problems {
        0 => String::new(),
        count => {
            let first = store.problems(tree.id, 1)?.into_iter().next();
            let what = first.map(|p| format!("{}: {}", p.path.display(), p.detail)).unwrap_or_default();
            if count == 1 { what } else { format!("{count} files, such as {what}") }
        }
    };
    Ok(wire::SharedPackage {
        reference: reference.unwrap_or_default(),
        manifest_digest: tree.manifest.to_string(),
        path: tree.path.display().to_string(),
        total_size: tree.total_size,
        file_count: tree.file_count,
        problem,
    })
}
