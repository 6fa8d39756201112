//! A backbone of several rendezvous, each the program itself, all on the core of servers.

use std::time::Duration;

use p2psb_client::Endpoint;
use p2psb_e2e::eventually::wait_for;
use p2psb_e2e::peer::client;
use p2psb_e2e::trouble::{Context as _, Result};
use p2psb_e2e::{Cluster, Service};
use p2psb_proto::wire::rendezvous::v1::ListRendezvousRequest;

use super::stage::{AMPLE, LIMITS};
use crate::machine::Machine;
use crate::wire::Target;

/// Members of the backbones that bars speak of.
pub(super) const MEMBERS: usize = 5;
/// How long they may take to find each other.
const SETTLE: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Fleet {
    cluster: Cluster,
}

impl Fleet {
    /// Starts the members, and waits until each is linked with all others. `settings` go into the configuration of each.
    pub(super) async fn start(machine: &Machine, settings: &[(&str, &str)]) -> Result<Self> {
        let mut plan = Cluster::plan().prefix("p2psb-bench-").rendezvous(MEMBERS).bare();
        for limit in LIMITS {
            plan = plan.with(limit, AMPLE);
        }
        for (key, value) in settings {
            plan = plan.with(key, *value);
        }
        let on_its_core = machine.as_server()?;
        let cluster = plan.start().await?;
        drop(on_its_core);
        for service in &cluster.rendezvous {
            let endpoint = service.dialed()?;
            wait_for("every member is linked with all", SETTLE, async || {
                let linked = linked(&endpoint).await.map_err(|trouble| trouble.to_string())?;
                if linked == MEMBERS { Ok(()) } else { Err(format!("{linked} of {MEMBERS} are linked")) }
            })
            .await?;
        }
        Ok(Self { cluster })
    }

    fn service(&self, number: usize) -> Result<&Service> {
        self.cluster.rendezvous.get(number).context("no such member")
    }

    pub(super) fn target(&self, number: usize) -> Result<Target> {
        let service = self.service(number)?;
        Ok(Target { addr: service.addr()?, pem: Some(service.data_dir().join("tls.pem")) })
    }

    pub(super) fn endpoint(&self, number: usize) -> Result<Endpoint> {
        self.service(number)?.dialed()
    }

    pub(super) fn endpoints(&self) -> Result<Vec<Endpoint>> {
        self.cluster.endpoints()
    }

    /// `kill -9`.
    pub(super) async fn kill(&mut self, number: usize) -> Result<()> {
        self.cluster.rendezvous.get_mut(number).context("no such member")?.kill().await
    }
}

/// How many rendezvous one is linked with, itself included.
async fn linked(endpoint: &Endpoint) -> Result<usize> {
    let list = client(endpoint).await?.list_rendezvous(ListRendezvousRequest {}).await;
    let list = list.context("asking for all rendezvous")?.into_inner();
    Ok(list.rendezvous.iter().filter(|one| one.connected).count())
}
