//! Whom to use for a reserved service: providers that a configured rendezvous vouches for, however many others there are.

use std::collections::BTreeSet;

use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::model::{PeerId, ServiceName};

use super::{LocateError, Locator, Providers};

impl Locator {
    /// Providers of a reserved service that a configured rendezvous vouches for, online ones first.
    pub async fn endorsed(&self, service: &ServiceName) -> Result<Vec<LocatedPeer>, LocateError> {
        let Providers { peers: mut providers, sampled } =
            self.find_by_service(&service.clone().into()).await?;
        let vouchers = self.rendezvous().into_iter().filter(|r| r.configured).filter_map(|r| r.record);
        let mut endorsed: BTreeSet<PeerId> = vouchers
            .flat_map(|voucher| voucher.value().endorsements.clone())
            .filter(|endorsement| endorsement.service == *service)
            .map(|endorsement| endorsement.peer)
            .collect();
        providers.retain(|p| endorsed.remove(&p.peer_id()));
        if sampled {
            // Strangers who offer the service, too, must not hide whom to use.
            let missing = endorsed.iter().map(|peer| self.locate(peer));
            let found = futures::future::join_all(missing).await.into_iter().flatten();
            providers.extend(found.map(|f| f.peer).filter(|p| p.record.value().offers(service.as_str())));
        }
        providers.sort_by_key(|p| p.presence.state != PresenceState::Online);
        Ok(providers)
    }
}
