//! Members of other versions: what is not known is passed over, and what is known goes on.

use bytes::Bytes;
use p2psb_proto::model::presence::PresenceState;
use p2psb_proto::wire::rendezvous::v1 as wire;
use prost::Message as _;

use crate::bridge::member;
use crate::harness::TestServer;
use crate::member::{KeyFile, RawLink};
use crate::peer::Peer;

/// A field of tomorrow: number 90, five bytes.
const UNKNOWN: &[u8] = &[0xd2, 0x05, 0x05, 1, 2, 3, 4, 5];

/// A message with a field that nobody knows yet behind all others.
fn of_tomorrow<M: prost::Message + Default>(today: &M) -> M {
    let bytes: Vec<u8> = today.encode_to_vec().into_iter().chain(UNKNOWN.iter().copied()).collect();
    M::decode(Bytes::from(bytes)).unwrap()
}

#[tokio::test]
async fn a_newer_member_is_understood_as_far_as_today_goes() {
    let key = KeyFile::new();
    let server = TestServer::start(member(&key, [])).await;
    let newer = Peer::new();
    let mut link = RawLink::dial(&newer, server.connection().await, Some(key.bytes())).await.unwrap();

    // An arm of tomorrow is no arm today.
    let arm = wire::LinkRequest::decode(UNKNOWN).unwrap();
    assert_eq!(arm, wire::LinkRequest::default());
    link.say(&arm).await;
    let peer = Peer::new();
    let batch = wire::BridgeBatch { records: vec![peer.record(1).to_wire()], ..Default::default() };
    link.send(of_tomorrow(&batch)).await;
    server.knows(&peer.id(), PresenceState::Offline).await;

    // A question of tomorrow is answered, so that who asked need not wait.
    let question = wire::BridgeQuestion { number: 5, ..Default::default() };
    link.question_of(of_tomorrow(&question)).await;
    assert_eq!(link.next_answer().await, wire::BridgeAnswer { number: 5, answer: None });

    // And the link still stands.
    let later = Peer::new();
    link.records(vec![later.record(1).to_wire()]).await;
    server.knows(&later.id(), PresenceState::Offline).await;
}
