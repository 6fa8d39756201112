//! Registering by single calls, for peers that keep no session open: each proves itself by a challenge of the server, and counts for a
//! while. Whoever can keep a session has more of it: see [`crate::session`].

use std::time::Duration;

use bytes::Bytes;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::proof::{ChallengeAction, answer_challenge};
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{Digest, PeerId, PeerRecord, PeerWithdrawal, Signed, limits};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::rendezvous_service_client::RendezvousServiceClient;
use tonic::Status;

use crate::conn::Connection;
use crate::identity::Identity;

/// How long a rendezvous may take to answer one call.
const CALL: Duration = Duration::from_secs(5);

type Client = RendezvousServiceClient<Connection>;

/// The right to be listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// For logs.
    pub lease_id: String,
    /// How long the peer counts as online by this call; register again within it, with a newer record.
    pub ttl: Duration,
}

/// Lists the peer by its record at a rendezvous, until the lease ends or [`unregister`] ends it. A refusal has its reason: with
/// `RECORD_STALE` comes the record that is known there, see [`p2psb_proto::error::record_of`]; sign past its `seq`.
pub async fn register_once(
    connection: &Connection,
    identity: &Identity,
    record: &Signed<PeerRecord>,
) -> Result<Registered, Status> {
    let mut client = client(connection);
    let proof = prove(&mut client, connection, identity, ChallengeAction::Register, &record.digest()).await?;
    let request = wire::RegisterRequest { record: Some(record.to_wire()), proof: Some(proof) };
    let lease = within(client.register(request)).await?;
    let ttl = duration_from_wire(lease.ttl.as_ref()).min(limits::RECORD_LIFETIME);
    Ok(Registered { lease_id: lease.lease_id, ttl })
}

/// Ends a registration for good, by a withdrawal with a higher `seq` than the record's.
pub async fn unregister(
    connection: &Connection,
    identity: &Identity,
    withdrawal: &Signed<PeerWithdrawal>,
) -> Result<(), Status> {
    let mut client = client(connection);
    let (action, digest) = (ChallengeAction::Unregister, withdrawal.digest());
    let proof = prove(&mut client, connection, identity, action, &digest).await?;
    let request = wire::UnregisterRequest { withdrawal: Some(withdrawal.to_wire()), proof: Some(proof) };
    within(client.unregister(request)).await.map(drop)
}

fn client(connection: &Connection) -> Client {
    Client::with_origin(connection.clone(), connection.origin())
        .max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES)
}

async fn prove(
    client: &mut Client,
    connection: &Connection,
    identity: &Identity,
    action: ChallengeAction,
    of: &Digest,
) -> Result<wire::ChallengeProof, Status> {
    let (server, challenge) = challenge(client, &identity.peer_id(), connection.expected()).await?;
    Ok(answer_challenge(identity.key(), &server, &challenge, action, of))
}

/// A challenge for a peer, and the server whose it is; that must be who is expected, if anybody is.
pub(crate) async fn challenge(
    client: &mut Client,
    peer: &PeerId,
    expected: Option<PeerId>,
) -> Result<(PeerId, Bytes), Status> {
    let request = wire::GetChallengeRequest { peer_id: peer.to_wire() };
    let given = within(client.get_challenge(request)).await?;
    let server = PeerId::from_slice(&given.server_id)
        .map_err(|error| Failure::new(Reason::InvalidArgument, format!("server_id: {error}")))?;
    match expected.filter(|expected| *expected != server) {
        None => Ok((server, given.challenge)),
        Some(expected) => {
            let text = format!("{server} gives the challenge where {expected} must");
            Err(Failure::new(Reason::IdentityMismatch, text).into())
        }
    }
}

async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => {
            let text = format!("the rendezvous did not answer within {} s", CALL.as_secs());
            Err(Failure::new(Reason::Unreachable, text).into())
        }
    }
}
