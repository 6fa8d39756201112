//! What the scenarios are played on.

use std::path::Path;
use std::time::Duration;

use p2psb_client::config::NetworkConfig;
use p2psb_client::{Endpoint, Identity};
use p2psb_discovery_svc::config as discovery;
use p2psb_discovery_svc::server::Server as Discovery;
use p2psb_e2e::inside::{bind, endpoint};
use p2psb_e2e::peer::NETWORK;
use p2psb_package_index_svc::config as index;
use p2psb_package_index_svc::server::Server as Index;
use p2psb_rendezvous_svc::config as rendezvous;
use p2psb_rendezvous_svc::server::Server as Rendezvous;
use p2psb_runtime::{Clock, Service as _, Settings as _};
use tempfile::TempDir;

/// A heartbeat that lets a test see a session being lost.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(200);

/// Rendezvous in this process, and where they are.
pub(crate) struct Backbone {
    pub(crate) servers: Vec<Rendezvous>,
    pub(crate) endpoints: Vec<Endpoint>,
    dir: TempDir,
}

/// The settings of a rendezvous on a free port.
pub(crate) fn rendezvous_settings(data_dir: &Path) -> rendezvous::Config {
    rendezvous::Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: data_dir.to_owned(),
        network: NetworkConfig { name: NETWORK.into() },
        dial: rendezvous::DialConfig { allow_private: true },
        session: rendezvous::SessionConfig { heartbeat: HEARTBEAT, ..Default::default() },
        ..rendezvous::Config::default()
    }
}

/// So many rendezvous, each bridged with those before it.
pub(crate) async fn bridged(count: usize) -> Backbone {
    backbone(count, true).await
}

/// So many rendezvous that know nothing of each other.
pub(crate) async fn unbridged(count: usize) -> Backbone {
    backbone(count, false).await
}

async fn backbone(count: usize, bridge: bool) -> Backbone {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("bridge.key");
    std::fs::write(&key, hex::encode([7; 32])).unwrap();
    let mut backbone = Backbone { servers: Vec::new(), endpoints: Vec::new(), dir };
    for number in 0..count {
        let mut settings = rendezvous_settings(&backbone.dir.path().join(format!("r{number}")));
        if bridge {
            settings.bridge.key_file = Some(key.clone());
            settings.bridge.peers = backbone.endpoints.clone();
        }
        let server = bind::<Rendezvous>(settings).await.unwrap();
        backbone.endpoints.push(endpoint(&server).unwrap());
        backbone.servers.push(server);
    }
    backbone
}

/// One rendezvous, and an index that it endorses, so that agents use it.
pub(crate) async fn with_index() -> (Backbone, Index) {
    let mut backbone = backbone(0, false).await;
    let id = Identity::load_or_create(&backbone.folder("index")).unwrap().peer_id();
    let mut settings = rendezvous_settings(&backbone.folder("r0"));
    settings.endorse = vec![format!("p2psb.package-index={id}")];
    let server = bind::<Rendezvous>(settings).await.unwrap();
    backbone.endpoints.push(endpoint(&server).unwrap());
    backbone.servers.push(server);
    let index = backbone.index().await;
    (backbone, index)
}

impl Backbone {
    /// A folder for one more service.
    pub(crate) fn folder(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A discovery service that knows only these rendezvous.
    pub(crate) async fn discovery(&self, rendezvous: &[Endpoint]) -> Discovery {
        let settings = discovery::Settings {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: self.folder("discovery"),
            rendezvous: rendezvous.to_vec(),
            network: NetworkConfig { name: NETWORK.into() },
            ..discovery::Settings::default()
        };
        bind::<Discovery>(settings).await.unwrap()
    }

    /// A package index that registers at these rendezvous.
    pub(crate) async fn index(&self) -> Index {
        self.index_at(Clock::system()).await
    }

    /// The same with a clock of its own.
    pub(crate) async fn index_at(&self, clock: Clock) -> Index {
        let mut settings = index::Settings {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: self.folder("index"),
            ..index::Settings::default()
        };
        settings.rendezvous = self.endpoints.clone();
        settings.network.name = NETWORK.into();
        let mut meant = settings.meant().unwrap();
        meant.clock = clock;
        Index::bind(meant).await.unwrap()
    }
}
