//! A session of a peer as it is on the wire, at little cost: opened, changed, closed, opened again on the same connection.

use bytes::Bytes;
use p2psb_e2e::peer::{network, now};
use p2psb_e2e::trouble::{Context as _, Result, Trouble};
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::proof::{ProofRole, Transcript, nonce};
use p2psb_proto::model::{PeerId, SecretKey};
use p2psb_proto::wire::rendezvous::v1 as rendezvous;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use prost::Message as _;

use crate::crowd::Crowd;
use crate::wire::{Heard, Wire};

pub(crate) const CONNECT: &str = "/p2psb.rendezvous.v1.RendezvousService/Connect";

/// A peer on a connection of its own.
pub(crate) struct Session<'a> {
    crowd: &'a Crowd,
    number: u64,
    key: SecretKey,
    wire: Wire,
    /// Of the session; `None` between two.
    stream: Option<u32>,
}

impl<'a> Session<'a> {
    /// Leads a peer of the crowd to its lease.
    pub(crate) async fn open(wire: Wire, crowd: &'a Crowd, number: u64) -> Result<Self> {
        let mut session = Self { crowd, number, key: crowd.key(number), wire, stream: None };
        session.begin().await?;
        Ok(session)
    }

    /// The connection, with the session on it.
    pub(crate) fn into_wire(self) -> Wire {
        self.wire
    }

    /// Opens a session on the connection, from hello to lease.
    pub(crate) async fn begin(&mut self) -> Result<()> {
        let stream = self.wire.open(CONNECT);
        let (peer, session_seq, client_nonce) = (PeerId::new(self.key.public()), now().0, [7; 32]);
        let hello = rendezvous::SessionHello {
            hello: Some(Hello::own(network()?, peer, "bench/1", now())),
            client_nonce: Bytes::copy_from_slice(&client_nonce),
            session_seq,
        };
        let Down::Hello(theirs) = self.exchange(stream, Up::Hello(hello)).await? else {
            return Err(Trouble::new("the server did not say hello"));
        };
        let server = theirs.hello.context("an empty hello")?.peer_id;
        let transcript = Transcript {
            network: network()?,
            peer,
            server: PeerId::from_slice(&server).context("the server's id")?,
            client_nonce,
            server_nonce: nonce(&theirs.server_nonce).context("the server's nonce")?,
            session_seq,
        };
        let proof = transcript.prove(ProofRole::SessionPeer, &self.wire.binding(), &self.key);
        let record = self.crowd.record(self.number, &self.key)?.to_wire();
        let answer = rendezvous::Authenticate { proof: Some(proof), record: Some(record) };
        match self.exchange(stream, Up::Authenticate(answer)).await? {
            Down::Lease(_) => self.stream = Some(stream),
            _ => return Err(Trouble::new("the server gave no lease")),
        }
        Ok(())
    }

    /// Says goodbye, and waits until the server has ended the session. The connection stays.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let stream = self.stream.take().context("no session is open")?;
        self.say(stream, Up::Goodbye(rendezvous::Goodbye::default()));
        self.wire.finish(stream);
        let mut ended = false;
        while !ended {
            self.wire.flush().await?;
            self.wire.hear(|heard| ended |= heard == Heard::End(stream)).await?;
        }
        self.wire.flush().await
    }

    /// Signs the record anew, and sends it.
    pub(crate) async fn change(&mut self) -> Result<()> {
        let stream = self.stream.context("no session is open")?;
        let record = self.crowd.record(self.number, &self.key)?.to_wire();
        self.say(stream, Up::Record(record));
        self.wire.flush().await
    }

    /// Waits for whatever the server says next; a record that it refused, and an end that nobody asked for, are errors. Safe to
    /// drop while it waits.
    pub(crate) async fn idle(&mut self) -> Result<()> {
        let mut trouble = None;
        let own = self.stream;
        self.wire
            .hear(|heard| match heard {
                Heard::Message(_, message) => trouble = trouble.take().or_else(|| refusal(message)),
                Heard::End(stream) if Some(stream) == own => {
                    trouble = Some("the server ended a session".to_owned());
                }
                Heard::End(_) => {}
            })
            .await?;
        trouble.map_or(Ok(()), |trouble| Err(Trouble::new(trouble)))?;
        self.wire.flush().await
    }

    fn say(&mut self, stream: u32, message: Up) {
        let message = rendezvous::ConnectRequest { message: Some(message) }.encode_to_vec();
        self.wire.say(stream, &message, false);
    }

    async fn exchange(&mut self, stream: u32, message: Up) -> Result<Down> {
        let message = rendezvous::ConnectRequest { message: Some(message) }.encode_to_vec();
        let answer = say_and_hear(&mut self.wire, stream, &message).await?;
        let answer = rendezvous::ConnectResponse::decode(&*answer).context("an answer of the session")?;
        answer.message.context("an empty answer")
    }
}

/// Why a record was refused, if that is what a message says.
fn refusal(message: &[u8]) -> Option<String> {
    match rendezvous::ConnectResponse::decode(message).ok()?.message? {
        Down::RecordResult(result) if !result.reason.is_empty() => {
            Some(format!("a record was refused: {} {}", result.reason, result.detail))
        }
        _ => None,
    }
}

/// Says a message on a stream, and waits for one.
pub(crate) async fn say_and_hear(wire: &mut Wire, stream: u32, message: &[u8]) -> Result<Vec<u8>> {
    wire.say(stream, message, false);
    let (mut answer, mut ended) = (None, false);
    while answer.is_none() {
        wire.flush().await?;
        wire.hear(|heard| match heard {
            Heard::Message(from, message) if from == stream => answer = Some(message.to_vec()),
            Heard::End(from) if from == stream => ended = true,
            Heard::Message(..) | Heard::End(_) => {}
        })
        .await?;
        if ended {
            return Err(Trouble::new("the server ended the stream"));
        }
    }
    wire.flush().await?;
    answer.context("no answer")
}
