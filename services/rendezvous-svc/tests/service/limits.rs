//! Who brings much pays for it: neither one network nor one member takes the room of all.

use std::time::{Duration, SystemTime};

use p2psb_client::Locator;
use p2psb_proto::error::{Reason, fact_of, reason_of, retry_after_of};
use p2psb_proto::model::peer::ServiceOffer;
use p2psb_proto::model::presence::{LocatedPeer, PresenceState};
use p2psb_proto::model::proof::ChallengeAction;
use p2psb_proto::model::{Digest, PeerId, PeerRecord, ServiceName, ServiceQuery, Signed, limits};
use p2psb_proto::wire::common::v1::SignedRecord;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_rendezvous_svc::Config;
use p2psb_rendezvous_svc::core::services::{Day, rank};
use p2psb_runtime::Clock;
use prost::Message as _;
use tonic::Status;

use crate::harness::{TestServer, Wire, dialer, eventually, reason};
use crate::member::{KeyFile, RawLink};
use crate::peer::{Peer, network, now};

/// The limit that a refusal names.
#[track_caller]
fn limit<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    let status = result.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::LimitExceeded), "{status:?}");
    fact_of(&status, "limit").unwrap()
}

/// A session that was closed.
async fn visit(peer: &Peer, server: &TestServer, seq: u64) -> Result<(), Status> {
    let (mut down, _connection) = peer.open(server, seq).await?.close();
    while down.message().await?.is_some() {}
    Ok(())
}

struct Found {
    peers: Vec<PeerId>,
    sampled: bool,
}

async fn find(server: &TestServer, service: &str) -> Found {
    let mut client = server.client().await;
    let (mut found, mut page_token) = (Found { peers: Vec::new(), sampled: false }, String::new());
    loop {
        let request = wire::FindByServiceRequest {
            service: service.into(),
            page_size: 1000,
            page_token,
            filters: vec![],
        };
        let page = client.find_by_service(request).await.unwrap().into_inner();
        let ids = page.peers.into_iter().map(|peer| LocatedPeer::try_from(peer).unwrap().peer_id());
        found.peers.extend(ids);
        found.sampled |= page.sampled;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

#[tokio::test]
async fn records_are_charged_to_their_network_also_when_their_peers_have_gone() {
    let (clock, hand) = Clock::manual(SystemTime::now());
    let server = TestServer::start_at(clock, |c| c.limits.records_per_ip = 3).await;
    let [one, two, three, four] = [(); 4].map(|()| Peer::new());
    visit(&one, &server, 1).await.unwrap();
    two.register(&server, 1).await.unwrap();
    visit(&three, &server, 1).await.unwrap();
    assert_eq!(limit(visit(&four, &server, 1).await), "limits.records_per_ip");
    assert_eq!(limit(four.register(&server, 1).await), "limits.records_per_ip");
    hand.advance(Duration::from_secs(1));
    two.unregister(&server, 2).await.unwrap();
    assert_eq!(limit(four.register(&server, 1).await), "limits.records_per_ip", "a withdrawal stays, too");
    visit(&one, &server, 2).await.unwrap();
    assert_eq!(server.locate(&one.id()).await.unwrap().record.value().seq, 2, "its own is never refused");
    // The records end ten minutes after they were signed; a withdrawal lives longer.
    hand.advance(Duration::from_secs(601));
    eventually!("there is room again", four.register(&server, 1).await.is_ok());
}

fn bridged(key: &KeyFile, change: impl FnOnce(&mut Config)) -> impl FnOnce(&mut Config) {
    let key = key.path();
    move |config| {
        config.bridge.key_file = Some(key);
        change(config);
    }
}

#[tokio::test]
async fn what_members_pass_on_is_charged_to_each_of_them() {
    let key = KeyFile::new();
    let server = TestServer::start(bridged(&key, |c| c.limits.records_per_member = 3)).await;
    let dial = async || RawLink::dial(&Peer::new(), server.connection().await, Some(key.bytes())).await;
    let (one, other) = (dial().await.unwrap(), dial().await.unwrap());
    let peers: Vec<Peer> = (0..5).map(|_| Peer::new()).collect();
    let (withdrawn, unknown) = (Peer::new(), Peer::new());
    one.records(vec![withdrawn.withdrawal(2).to_wire()]).await;
    one.records(peers.iter().map(|peer| peer.record(1).to_wire()).collect()).await;
    other.records(vec![unknown.record(1).to_wire(), peers[4].record(1).to_wire()]).await;
    eventually!("the other member's share is its own", server.state(&peers[4].id()).await.is_some());
    eventually!("the first ones fit", server.state(&peers[1].id()).await.is_some());
    assert_eq!(server.state(&peers[2].id()).await, None, "the withdrawal took its place");
    // What it may not bring, the peer may itself.
    peers[2].register(&server, 1).await.unwrap();
    // An older record by another way does not win over the withdrawal of a peer that nobody knew.
    let marker = Peer::new();
    other.records(vec![withdrawn.record(1).to_wire(), marker.record(1).to_wire()]).await;
    eventually!("it was looked at", server.state(&marker.id()).await.is_some());
    assert_eq!(server.state(&withdrawn.id()).await, None);
    assert_eq!(reason(withdrawn.register(&server, 1).await), Reason::RecordStale);
}

#[tokio::test]
async fn a_peer_with_one_name_too_many_is_found_by_its_id() {
    let server = TestServer::start(|c| c.limits.services_per_ip = 1).await;
    let (one, two, three) = (Peer::offering("chat"), Peer::offering("games"), Peer::offering("chat"));
    for peer in [&one, &two, &three] {
        peer.register(&server, 1).await.unwrap();
        assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));
    }
    let chat = find(&server, "chat").await;
    assert_eq!((chat.peers.len(), chat.sampled), (2, false));
    let games = find(&server, "games").await;
    assert_eq!((games.peers.len(), games.sampled), (0, true), "and that one may be missing is told");
}

#[tokio::test]
async fn a_flood_of_providers_is_sampled_and_does_not_hide_the_endorsed_one() {
    const SERVICE: &str = "p2psb.discovery";
    const BATCH: usize = 250;
    let wall = SystemTime::now();
    let day = Day::of(wall.into());
    let kept = limits::SERVICE_PROVIDERS;
    // One that is not among the chosen ones today.
    let unlucky =
        || Some(Peer::offering(SERVICE)).filter(|peer| rank(&peer.id(), day) > u64::MAX / 1000 * 999);
    let endorsed = std::iter::repeat_with(unlucky).flatten().next().unwrap();
    let key = KeyFile::new();
    let endorse = format!("{SERVICE}={}", endorsed.id());
    let (clock, _) = Clock::manual(wall);
    let server = TestServer::start_at(clock, bridged(&key, |c| c.endorse = vec![endorse])).await;
    endorsed.register(&server, 1).await.unwrap();
    let service: ServiceName = SERVICE.parse().unwrap();
    let wanted = ServiceQuery::from(service.clone());
    let locator = Locator::new(network(), &[server.pinned()], dialer());
    let found = locator.find_by_service(&wanted).await.unwrap();
    assert_eq!((found.peers.len(), found.sampled), (1, false));

    let link = RawLink::dial(&Peer::new(), server.connection().await, Some(key.bytes())).await.unwrap();
    let mut last = endorsed.id();
    for _ in 0..kept.div_ceil(BATCH) + 1 {
        let flood: Vec<Peer> = (0..BATCH).map(|_| Peer::offering(SERVICE)).collect();
        last = flood[BATCH - 1].id();
        link.records(flood.iter().map(|peer| peer.record(1).to_wire()).collect()).await;
    }
    eventually!("all of them are known", server.state(&last).await.is_some());
    let found = find(&server, SERVICE).await;
    assert_eq!((found.peers.len(), found.sampled), (kept, true));
    assert!(!found.peers.contains(&endorsed.id()));
    let usable = locator.endorsed(&service).await.unwrap();
    assert_eq!(usable.iter().map(LocatedPeer::peer_id).collect::<Vec<_>>(), [endorsed.id()]);
}

#[tokio::test]
async fn a_flood_of_sessions_from_one_network_is_refused_and_others_are_served() {
    let server = TestServer::start(|c| c.limits.sessions_per_prefix = 3).await;
    let open = async |ip: [u8; 4]| {
        let (peer, wire) = (Peer::new(), Wire::from(ip, &server).await);
        let connection = dialer().dial(&wire.endpoint).await.unwrap();
        let session = peer.open_over(connection, 1, peer.record(1).to_wire()).await;
        session.map(|session| (peer, session, wire))
    };
    let mut held = Vec::new();
    for host in 1..=40 {
        // Each from an address of its own.
        match open([127, 0, 7, host]).await {
            Ok(session) => held.push(session),
            Err(status) => {
                assert!(retry_after_of(&status).is_some());
                assert_eq!(limit(Err::<(), _>(status)), "limits.sessions_per_prefix");
            }
        }
    }
    assert_eq!(held.len(), 3);
    held.push(open([127, 0, 8, 1]).await.unwrap());
    for (peer, ..) in &held {
        assert_eq!(server.state(&peer.id()).await, Some(PresenceState::Online));
    }
    drop(held.remove(0));
    eventually!("who leaves makes room", open([127, 0, 7, 99]).await.is_ok());
}

/// A record of exactly so many bytes; one more than there may be is made of a good one, with a signature that is right no more.
fn sized(peer: &Peer, seq: u64, bytes: usize) -> SignedRecord {
    let largest = limits::PEER_RECORD_BYTES.min(bytes);
    let base = peer.record(seq).value().clone();
    let with = |(first, last): (usize, usize)| {
        let offer = |name: &str| {
            let mut offer = ServiceOffer::new(name.parse().unwrap());
            for n in 0..5 {
                let length = match (name, n) {
                    ("a", 0) => first,
                    ("c", 4) => last,
                    _ => limits::ATTRIBUTE_VALUE_BYTES,
                };
                offer.attributes.push((format!("k{n}"), "v".repeat(length)));
            }
            offer
        };
        let record = PeerRecord { services: ["a", "b", "c"].map(offer).to_vec(), ..base.clone() };
        Some(Signed::sign(&record, peer.identity.key()).ok()?.to_wire())
    };
    // Lengths of lengths leave gaps, so there are two to choose.
    let lengths =
        (250..=255).flat_map(|first| (1..=limits::ATTRIBUTE_VALUE_BYTES).map(move |last| (first, last)));
    let mut record = lengths.filter_map(with).find(|record| record.encoded_len() == largest).unwrap();
    if bytes > largest {
        record.payload = [record.payload.as_ref(), &vec![0; bytes - largest]].concat().into();
    }
    assert_eq!(record.encoded_len(), bytes);
    record
}

#[tokio::test]
async fn a_record_may_be_as_large_as_the_limit_and_not_a_byte_larger() {
    let key = KeyFile::new();
    let server = TestServer::start(bridged(&key, |_| ())).await;
    let (most, peer, other) = (limits::PEER_RECORD_BYTES, Peer::new(), Peer::new());
    let register = async |record: SignedRecord, digest: Digest| {
        let proof = other.proof(&server.connection().await, ChallengeAction::Register, digest).await;
        let request = wire::RegisterRequest { record: Some(record), proof: Some(proof) };
        server.client().await.register(request).await
    };
    let too_large = sized(&peer, now().0, most + 1);
    let refused = peer.open_over(server.connection().await, 1, too_large.clone()).await;
    assert_eq!(reason(refused), Reason::RecordTooLarge);
    let refused = register(sized(&other, 1, most + 1), Digest::of(b"")).await;
    assert_eq!(reason(refused), Reason::RecordTooLarge);
    assert_eq!((server.state(&peer.id()).await, server.state(&other.id()).await), (None, None));

    let mut session = peer.open_over(server.connection().await, 1, sized(&peer, 1, most)).await.unwrap();
    session.send(Up::Record(sized(&peer, 2, most + 1))).await;
    assert_eq!(session.result().await.reason, "RECORD_TOO_LARGE");
    assert_eq!(server.locate(&peer.id()).await.unwrap().record.to_wire().encoded_len(), most);

    // What a member passes on is passed over by itself.
    let link = RawLink::dial(&Peer::new(), server.connection().await, Some(key.bytes())).await.unwrap();
    let (passed_on, marker) = (Peer::new(), Peer::new());
    link.records(vec![sized(&passed_on, 1, most + 1), sized(&marker, 1, most)]).await;
    eventually!("the one behind it is taken", server.state(&marker.id()).await.is_some());
    assert_eq!(server.state(&passed_on.id()).await, None);
}
