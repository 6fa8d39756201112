//! Who watches peers at one member: as many watches as it takes, each with what a watch may follow.

use std::cell::RefCell;
use std::time::Instant;

use p2psb_client::watch::WATCH_PEERS;
use p2psb_client::{Endpoint, Identity};
use p2psb_e2e::peer::client;
use p2psb_e2e::trouble::{Context as _, Result, Trouble};
use p2psb_proto::model::proof::{ChallengeAction, answer_challenge};
use p2psb_proto::model::{Digest, PeerId, PublicKey};
use p2psb_proto::wire::common::v1::{LocatedPeer, PeerRecord, PresenceState};
use p2psb_proto::wire::rendezvous::v1::watch_presence_response::Message;
use p2psb_proto::wire::rendezvous::v1::{GetChallengeRequest, WatchPresenceRequest, WatchPresenceResponse};
use prost::Message as _;
use tonic::Streaming;

use super::ledger::{Ledger, Told};

/// A watch that has been told how everything is.
pub(super) struct Watcher {
    messages: Streaming<WatchPresenceResponse>,
    beginning: Vec<LocatedPeer>,
}

impl Watcher {
    /// Watches all of these peers, and returns when their beginning was told.
    pub(super) async fn open_all(endpoint: &Endpoint, peers: &[PeerId]) -> Result<Vec<Self>> {
        let mut watchers = Vec::new();
        for some in peers.chunks(WATCH_PEERS) {
            watchers.push(Self::open(endpoint, some).await?);
        }
        Ok(watchers)
    }

    async fn open(endpoint: &Endpoint, peers: &[PeerId]) -> Result<Self> {
        let watcher = Identity::ephemeral().context("making a key")?;
        let watcher_id = watcher.peer_id().to_wire();
        let mut client = client(endpoint).await?;
        let request = GetChallengeRequest { peer_id: watcher_id.clone() };
        let given = client.get_challenge(request).await.context("asking for a challenge")?.into_inner();
        let server = PeerId::from_slice(&given.server_id).context("the server's id")?;
        let peer_ids: Vec<_> = peers.iter().map(PeerId::to_wire).collect();
        let (action, digest) = (ChallengeAction::Watch, Digest::of(&peer_ids.concat()));
        let proof = Some(answer_challenge(watcher.key(), &server, &given.challenge, action, &digest));
        let request = WatchPresenceRequest { peer_ids, watcher_id, proof, resume_token: String::new() };
        let mut messages = client.watch_presence(request).await.context("watching")?.into_inner();
        let mut beginning = Vec::new();
        loop {
            match next(&mut messages).await? {
                Message::Peer(peer) => beginning.push(peer),
                Message::Gone(_) | Message::Resync(_) => {}
                Message::Progress(_) => return Ok(Self { messages, beginning }),
            }
        }
    }

    /// Writes down what is told, for ever.
    pub(super) async fn tell(mut self, ledger: &RefCell<Ledger>) -> Result<()> {
        for peer in std::mem::take(&mut self.beginning) {
            note(ledger, &peer)?;
        }
        loop {
            if let Message::Peer(peer) = next(&mut self.messages).await? {
                note(ledger, &peer)?;
            }
        }
    }
}

async fn next(messages: &mut Streaming<WatchPresenceResponse>) -> Result<Message> {
    let message = messages.message().await.context("a watch ended")?;
    message.ok_or_else(|| Trouble::new("a watch ended"))?.message.context("an empty message of a watch")
}

fn note(ledger: &RefCell<Ledger>, peer: &LocatedPeer) -> Result<()> {
    let record = peer.record.as_ref().context("a peer without a record")?;
    let key = <[u8; 32]>::try_from(&*record.key).ok().context("the key of a record")?;
    let id = PeerId::new(PublicKey::from_bytes(key));
    // Not verified here: that is work of a watcher, not of the backbone.
    let seq = PeerRecord::decode(&*record.payload).context("a record")?.seq;
    let online = peer.presence.as_ref().is_some_and(|presence| presence.state() == PresenceState::Online);
    ledger.borrow_mut().told(&id, Told { seq, online }, Instant::now());
    Ok(())
}
