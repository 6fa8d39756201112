//! Members that lie, stammer, or say nothing: each is refused by its reason, and nobody else is harmed.

use std::time::Duration;

use p2psb_proto::error::Reason;
use p2psb_proto::model::presence::PresenceState;
use p2psb_proto::model::time::duration_to_wire;
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as SessionUp;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as SessionDown;
use p2psb_proto::wire::rendezvous::v1::link_request::Message as Up;
use tokio::time::Instant;

use crate::bridge::member;
use crate::harness::{TestServer, eventually, reason};
use crate::member::{HalfLink, KeyFile, RawLink};
use crate::peer::{Peer, RawSession};
use crate::ring::five;

/// Batches that may be under way to a member.
const WINDOW: u64 = 32;

/// Two linked members, and a peer at the second: who is not to be harmed.
struct Others {
    key: KeyFile,
    server: TestServer,
    member: TestServer,
    peer: Peer,
    _session: RawSession,
}

impl Others {
    async fn start() -> Self {
        let key = KeyFile::new();
        let server = TestServer::start(member(&key, [])).await;
        let member = TestServer::start(member(&key, [&server])).await;
        let peer = Peer::new();
        let session = peer.open(&member, 1).await.unwrap();
        server.knows(&peer.id(), PresenceState::Online).await;
        Self { key, server, member, peer, _session: session }
    }

    async fn dial(&self, as_member: &Peer) -> Result<RawLink, tonic::Status> {
        RawLink::dial(as_member, self.server.connection().await, Some(self.key.bytes())).await
    }

    async fn greet(&self, as_member: &Peer) -> HalfLink {
        let record = as_member.record(1).to_wire();
        HalfLink::greet(as_member.id(), record, self.server.connection().await).await.unwrap()
    }

    /// The link between the two goes on, over which is told what happens now.
    async fn are_well(&self) {
        assert!(self.member.links().await >= 1);
        assert_eq!(self.server.state(&self.peer.id()).await, Some(PresenceState::Online));
        let newcomer = Peer::new();
        newcomer.register(&self.member, 1).await.unwrap();
        self.server.knows(&newcomer.id(), PresenceState::Online).await;
    }
}

#[tokio::test]
async fn who_knows_the_key_and_dials_as_another_member_is_refused() {
    let others = Others::start().await;
    let (liar, victim) = (Peer::new(), others.member.id);
    let record = others.server.locate(&victim).await.unwrap().record.to_wire();
    // With the id and the record of the other one, and its own signature.
    let half = HalfLink::greet(victim, record.clone(), others.server.connection().await).await.unwrap();
    let proof = half.prove(&liar, Some(others.key.bytes()));
    assert_eq!(reason(half.authenticate(proof).await), Reason::ProofInvalid);
    // With its own id, and the record of the other one.
    let half = HalfLink::greet(liar.id(), record, others.server.connection().await).await;
    assert_eq!(reason(half), Reason::InvalidArgument);
    // With the record of the other one in its own name.
    let forged = SignedRecord { key: others.peer.record(9).to_wire().key, ..liar.record(9).to_wire() };
    let half = HalfLink::greet(others.peer.id(), forged, others.server.connection().await).await.unwrap();
    let proof = half.prove(&others.peer, Some(others.key.bytes()));
    assert_eq!(reason(half.authenticate(proof).await), Reason::SignatureInvalid);
    assert_eq!(others.server.links().await, 1);
    others.are_well().await;
}

#[tokio::test]
async fn a_replayed_proof_of_a_member_is_refused() {
    let (others, one) = (Others::start().await, Peer::new());
    let half = others.greet(&one).await;
    let proof = half.prove(&one, Some(others.key.bytes()));
    let connection = half.connection.clone();
    let link = half.authenticate(proof.clone()).await.unwrap();
    drop(link);
    // Over the same connection, and over another one.
    for connection in [connection, others.server.connection().await] {
        let again = HalfLink::greet(one.id(), one.record(1).to_wire(), connection).await.unwrap();
        assert_eq!(reason(again.authenticate(proof.clone()).await), Reason::ProofInvalid);
    }
    others.are_well().await;
}

#[tokio::test]
async fn a_member_that_says_hello_and_nothing_more_is_told() {
    let others = Others::start().await;
    let half = others.greet(&Peer::new()).await;
    let (mut nothing, _held) = HalfLink::open(others.server.connection().await).await;
    others.are_well().await;
    assert_eq!(reason(half.end().await), Reason::HandshakeTimeout);
    let end = async {
        loop {
            match nothing.message().await {
                Ok(Some(_)) => {}
                ended => break ended.map(drop),
            }
        }
    };
    assert_eq!(reason(end.await), Reason::HandshakeTimeout);
}

#[tokio::test]
async fn what_is_wrong_in_a_batch_is_passed_over_and_the_link_goes_on() {
    let others = Others::start().await;
    let mut link = others.dial(&Peer::new()).await.unwrap();
    let marker = Peer::new();
    let too_large = SignedRecord { payload: vec![1; 5000].into(), ..marker.record(1).to_wire() };
    let nonsense = vec![7; 3];
    link.send(wire::BridgeBatch {
        records: vec![SignedRecord::default(), too_large],
        members: vec![SignedRecord { key: nonsense.clone().into(), ..SignedRecord::default() }],
        presence: vec![
            wire::HomePresence::default(),
            wire::HomePresence {
                peer_id: marker.id().to_wire(),
                state: 99,
                source: -1,
                revision: u64::MAX,
                ..wire::HomePresence::default()
            },
        ],
        words: vec![wire::MemberWord { member_id: nonsense.clone().into(), ..wire::MemberWord::default() }],
        interest: vec![wire::PresenceInterest { peer_id: nonsense.clone().into(), wanted: true }],
        unheard: vec![nonsense.into()],
        synced: true,
        begins: true,
        ..wire::BridgeBatch::default()
    })
    .await;
    link.say(&wire::LinkRequest { message: None }).await;
    link.say(&wire::LinkRequest {
        message: Some(Up::Answer(wire::BridgeAnswer { number: 77, answer: None })),
    })
    .await;
    link.records(vec![marker.record(1).to_wire()]).await;
    eventually!(
        "it is heard as before",
        matches!(link.locate(&marker.id()).await.unwrap(), Answer::Found(_))
    );
    others.are_well().await;
}

#[tokio::test]
async fn garbage_in_an_open_link_ends_it_with_its_reason_and_no_other() {
    let others = Others::start().await;
    let hello = Up::Hello(wire::BridgeHello::default());
    let far = Up::Batch(wire::BridgeBatch { number: 1000, ..wire::BridgeBatch::default() });
    for (what, expected) in [
        (None, Reason::InvalidArgument),
        (Some(hello), Reason::UnexpectedMessage),
        (Some(far), Reason::UnexpectedMessage),
    ] {
        let mut link = others.dial(&Peer::new()).await.unwrap();
        match what {
            None => link.garbage().await,
            Some(message) => link.say(&wire::LinkRequest { message: Some(message) }).await,
        }
        assert_eq!(reason(link.end().await), expected);
    }
    assert_eq!(others.member.links().await, 1);
    others.are_well().await;
}

#[tokio::test]
async fn garbage_in_an_open_session_ends_it_with_its_reason_and_no_other() {
    let (server, one, other) = (TestServer::start(|_| ()).await, Peer::new(), Peer::new());
    let mut session = one.open(&server, 1).await.unwrap();
    let mut stays = other.open(&server, 1).await.unwrap();
    session.garbage().await;
    assert_eq!(reason(session.end().await), Reason::InvalidArgument);
    assert_eq!(server.state(&one.id()).await, Some(PresenceState::Suspect), "it may come again");
    stays.send(SessionUp::Heartbeat(wire::Heartbeat { number: 1 })).await;
    assert!(matches!(stays.next().await.unwrap(), Some(SessionDown::HeartbeatAck(_))));
    one.open(&server, 2).await.unwrap();
}

#[tokio::test]
async fn what_is_told_to_a_member_that_is_slow_or_silent_is_bounded_and_it_is_cut() {
    const PEERS: usize = 10_000;
    let others = Others::start().await;
    let mut link = others.dial(&Peer::new()).await.unwrap();
    let (begun, before) = (Instant::now(), link.received);
    let peers: Vec<Vec<u8>> = (0..PEERS as u32)
        .map(|n| {
            let mut id = others.peer.id().to_wire().to_vec();
            id[5..9].copy_from_slice(&n.to_be_bytes());
            id
        })
        .collect();
    for some in peers.chunks(256) {
        let interest = |id: &Vec<u8>| wire::PresenceInterest { peer_id: id.clone().into(), wanted: true };
        link.send(wire::BridgeBatch { interest: some.iter().map(interest).collect(), ..Default::default() })
            .await;
    }
    // Of each it is told that nobody said anything; but only so much is under way as was not acknowledged.
    let mut told = 0;
    while link.received < WINDOW {
        told += link.batch().await.unwrap().unheard.len();
    }
    others.are_well().await;
    assert!(begun.elapsed() < Duration::from_secs(14), "too slow for what comes now");
    let more = tokio::time::timeout(Duration::from_millis(500), link.batch()).await;
    assert!(more.is_err() && told < PEERS, "{told} were told, from batch {before} on");
    link.acknowledge(link.received).await;
    while told < PEERS {
        told += link.batch().await.unwrap().unheard.len();
        if link.received % 8 == 0 {
            link.acknowledge(link.received).await;
        }
    }
    // From now on it says nothing any more.
    assert_eq!(reason(link.end().await), Reason::SessionLost);
    assert_eq!(others.server.links().await, 1);
    others.are_well().await;
}

#[tokio::test]
async fn members_that_nobody_has_proven_do_not_own_what_all_look_for() {
    const MADE_UP: usize = 500;
    let key = KeyFile::new();
    let servers = five(&key).await;
    let peers: Vec<Peer> = std::iter::repeat_with(Peer::new).take(10).collect();
    let mut sessions: Vec<RawSession> = Vec::new();
    for (peer, server) in peers.iter().zip(servers.iter().cycle()) {
        sessions.push(peer.open(server, 1).await.unwrap());
    }
    let made_up: Vec<Peer> =
        std::iter::repeat_with(|| Peer::offering("p2psb.rendezvous")).take(MADE_UP).collect();
    let word = |one: &Peer| wire::MemberWord {
        member_id: one.id().to_wire(),
        linked: true,
        age: Some(duration_to_wire(Duration::from_secs(3600))),
        in_ring: true,
    };
    let lie = wire::BridgeBatch {
        members: made_up.iter().map(|one| one.record(1).to_wire()).collect(),
        words: made_up.iter().map(word).collect(),
        ..wire::BridgeBatch::default()
    };
    let liar = Peer::new();
    let mut links = Vec::new();
    for server in &servers {
        let mut link = RawLink::dial(&liar, server.connection().await, Some(key.bytes())).await.unwrap();
        link.send(lie.clone()).await;
        // What it counts it says to everybody, in one go.
        let is_made_up = |word: &wire::MemberWord| {
            word.in_ring && made_up.iter().any(|one| one.id().to_wire() == word.member_id)
        };
        while !link.batch().await.unwrap().words.iter().any(is_made_up) {}
        links.push(link);
    }
    for server in &servers {
        for peer in &peers {
            server.knows(&peer.id(), PresenceState::Online).await;
        }
    }
    // The liar owns a part of all keys itself, and one that it made up does; the other owners can say that nobody knows a peer.
    let mut unknown = 0;
    for server in &servers {
        for _ in 0..10 {
            let refusal = reason(server.locate(&Peer::new().id()).await);
            unknown += usize::from(refusal == Reason::PeerUnknown);
        }
    }
    assert!(unknown > 25, "{unknown} of 50 strangers");
}
