//! Which addresses of a peer were reached by a rendezvous that this locator knows.

use p2psb_proto::model::{Address, PeerId, PeerRecord, Signed};

use super::Locator;
use crate::session::now;

impl Locator {
    /// The addresses in a peer's record, as far as they are believed: one that no rendezvous of a backbone in use has confirmed
    /// is an observed one.
    #[must_use]
    pub fn believed(&self, record: &Signed<PeerRecord>) -> Vec<Address> {
        let (peer, now) = (record.peer_id(), now());
        let is_member = |id: &PeerId| self.known.lock().is_member(id);
        let addresses = record.value().addresses.iter();
        addresses.map(|address| address.believed(&peer, &self.network, now, is_member)).collect()
    }
}
