//! Dialing peers back: who is reached is confirmed, by another member, and nobody else is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use p2psb_client::session::{Reachability, Standing};
use p2psb_client::tls::Certificate;
use p2psb_client::{ClientAuth, Dialer, Locator, ServerTls, SessionConfig, SessionKeeper};
use p2psb_proto::error::Reason;
use p2psb_proto::model::{
    AddressConfirmation, AddressKind, PeerId, PeerRecord, Signed, Transport, UnixMillis,
};
use p2psb_proto::wire::common::v1::ItemError;
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::bridge_answer::Answer;
use p2psb_proto::wire::rendezvous::v1::confirm_result::Result as Outcome;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use tokio::net::TcpListener;

use crate::bridge::member;
use crate::harness::{TestServer, eventually};
use crate::member::{KeyFile, RawLink};
use crate::peer::{Peer, RawSession, network, now};

/// A socket that speaks mutual TLS as somebody, and counts who comes.
struct Ear {
    addr: SocketAddr,
    heard: Arc<AtomicUsize>,
}

impl Ear {
    async fn of(peer: &Peer) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let certificate = Certificate::ephemeral(&peer.identity).unwrap();
        let tls = ServerTls::new(certificate, ClientAuth::Required).unwrap();
        let heard = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&heard);
        let handshake = tls.handshake();
        tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                // Whoever only looks is gone before it ends.
                let _ = handshake(stream, from, None).await;
            }
        });
        Self { addr, heard }
    }

    fn heard(&self) -> usize {
        self.heard.load(Ordering::Relaxed)
    }
}

/// A port at which nobody listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap()
}

/// Two members with a link.
async fn two(key: &KeyFile) -> [TestServer; 2] {
    let a = TestServer::start(member(key, [])).await;
    let b = TestServer::start(member(key, [&a])).await;
    eventually!("both are linked", a.links().await == 1 && b.links().await == 1);
    [a, b]
}

async fn ask(session: &mut RawSession, port: u16) -> Result<Signed<AddressConfirmation>, ItemError> {
    session.send(Up::ConfirmAddress(wire::ConfirmAddress { port: port.into() })).await;
    match session.next().await.unwrap() {
        Some(Down::ConfirmResult(result)) => {
            assert_eq!(result.port, u32::from(port));
            match result.result.unwrap() {
                Outcome::Confirmation(record) => Ok(Signed::verify(record).unwrap()),
                Outcome::Error(error) => Err(error),
            }
        }
        other => panic!("what came of the question was expected: {other:?}"),
    }
}

/// What comes of the first question of a fresh peer.
async fn refusal(home: &TestServer, peer: &Peer, port: u16) -> Option<Reason> {
    let mut session = peer.open(home, now().0).await.unwrap();
    Reason::parse(&ask(&mut session, port).await.unwrap_err().reason)
}

#[tokio::test]
async fn a_peer_that_answers_is_confirmed_by_another_member_than_its_home() {
    let key = KeyFile::new();
    let [home, other] = two(&key).await;
    let peer = Peer::new();
    let ear = Ear::of(&peer).await;
    let mut session = peer.open(&home, now().0).await.unwrap();
    let confirmation = ask(&mut session, ear.addr.port()).await.unwrap();
    assert_eq!((confirmation.attested_by(), ear.heard()), (other.id, 1));
    assert_eq!((confirmation.value().peer, confirmation.value().at), (peer.id(), ear.addr));
    confirmation.value().check(&network(), now()).unwrap();

    // It goes into the peer's record, and whoever locates the peer can tell that it is true.
    let record =
        PeerRecord { addresses: vec![confirmation.to_address()], ..peer.record(now().0 + 1).value().clone() };
    let record = Signed::sign(&record, peer.identity.key()).unwrap();
    session.send(Up::Record(record.to_wire())).await;
    assert_eq!(session.result().await.reason, "");
    let request = wire::LocateRequest { peer_id: peer.id().to_wire() };
    let mut client = other.client().await;
    let mut found = None;
    eventually!("the other member has it, too", {
        if let Ok(answer) = client.locate(request.clone()).await {
            found = answer.into_inner().peer.unwrap().record;
        }
        found == Some(record.to_wire())
    });
    let located = Signed::<PeerRecord>::verify(found.unwrap()).unwrap();
    let is_member = |id: &PeerId| [home.id, other.id].contains(id);
    let believed = located.value().addresses[0].believed(&peer.id(), &network(), now(), is_member);
    assert_eq!(believed.kind, AddressKind::Confirmed);
}

#[tokio::test]
async fn where_nobody_answers_or_somebody_else_does_nothing_is_confirmed() {
    let key = KeyFile::new();
    let [home, _other] = two(&key).await;
    let (absent, impostor) = (Peer::new(), Peer::new());
    let port = nowhere().await.port();
    assert_eq!(refusal(&home, &absent, port).await, Some(Reason::Unreachable));
    let ear = Ear::of(&absent).await;
    assert_eq!(refusal(&home, &impostor, ear.addr.port()).await, Some(Reason::IdentityMismatch));
}

#[tokio::test]
async fn a_socket_that_accepts_and_is_silent_is_not_waited_for() {
    let key = KeyFile::new();
    let [home, _other] = two(&key).await;
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let asked = tokio::time::Instant::now();
    let refused = refusal(&home, &Peer::new(), silent.local_addr().unwrap().port()).await;
    assert_eq!(refused, Some(Reason::Unreachable));
    assert!(asked.elapsed() < Duration::from_secs(9), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_rendezvous_alone_confirms_nothing() {
    let (home, peer) = (TestServer::start(|_| ()).await, Peer::new());
    let ear = Ear::of(&peer).await;
    assert_eq!(refusal(&home, &peer, ear.addr.port()).await, Some(Reason::NoOtherMember));
    assert_eq!(ear.heard(), 0);
}

#[tokio::test]
async fn private_addresses_are_dialed_only_where_both_operators_allow_it() {
    for (home_may, other_may) in [(false, true), (true, false)] {
        let key = KeyFile::new();
        let home = TestServer::start(|config| {
            member(&key, [])(config);
            config.dial.allow_private = home_may;
        })
        .await;
        let other = TestServer::start(|config| {
            member(&key, [&home])(config);
            config.dial.allow_private = other_may;
        })
        .await;
        eventually!("both are linked", home.links().await == 1 && other.links().await == 1);
        let peer = Peer::new();
        let ear = Ear::of(&peer).await;
        assert_eq!(refusal(&home, &peer, ear.addr.port()).await, Some(Reason::NotDialed));
        assert_eq!(ear.heard(), 0);
    }
}

#[tokio::test]
async fn a_port_that_is_none_is_refused() {
    let key = KeyFile::new();
    let [home, _other] = two(&key).await;
    let mut session = Peer::new().open(&home, now().0).await.unwrap();
    for port in [0, 65_536, u32::MAX] {
        session.send(Up::ConfirmAddress(wire::ConfirmAddress { port })).await;
        let Some(Down::ConfirmResult(result)) = session.next().await.unwrap() else { panic!("no answer") };
        assert!(matches!(result.result, Some(Outcome::Error(error)) if error.reason == "INVALID_ARGUMENT"));
    }
}

#[tokio::test]
async fn a_flood_of_questions_leads_to_few_dials_and_leaves_the_session_alone() {
    let key = KeyFile::new();
    let [home, _other] = two(&key).await;
    let peer = Peer::new();
    let ear = Ear::of(&peer).await;
    let mut session = peer.open(&home, now().0).await.unwrap();
    ask(&mut session, ear.addr.port()).await.unwrap();
    for _ in 0..100 {
        let error = ask(&mut session, ear.addr.port()).await.unwrap_err();
        assert_eq!(error.reason, "LIMIT_EXCEEDED");
        assert!(error.retry_after.is_some());
    }
    assert_eq!(ear.heard(), 1);
    // The same target, whoever asks: one was dialed already.
    for n in 1..20 {
        let reason = refusal(&home, &Peer::new(), ear.addr.port()).await;
        let expected = if n < 10 { Reason::IdentityMismatch } else { Reason::LimitExceeded };
        assert_eq!(reason, Some(expected), "{n}");
    }
    assert_eq!(ear.heard(), 10);
    session.send(Up::Heartbeat(wire::Heartbeat { number: 1 })).await;
    assert!(matches!(session.next().await.unwrap(), Some(Down::HeartbeatAck(_))));
}

#[tokio::test]
async fn a_member_gets_no_more_dials_than_the_limits_allow() {
    let key = KeyFile::new();
    let server = TestServer::start(member(&key, [])).await;
    let (stranger, victim) = (Peer::new(), Peer::new());
    let ear = Ear::of(&victim).await;
    let mut link = RawLink::dial(&stranger, server.connection().await, Some(key.bytes())).await.unwrap();
    let Some(Answer::Confirmation(record)) = link.ask(0, victim.id(), ear.addr).await.answer else {
        panic!("not reached")
    };
    assert_eq!(Signed::<AddressConfirmation>::verify(record).unwrap().attested_by(), server.id);
    for number in 1..40 {
        let answer = link.ask(number, Peer::new().id(), ear.addr).await;
        let Some(Answer::Error(error)) = answer.answer else { panic!("{answer:?}") };
        let expected = if number < 10 { "IDENTITY_MISMATCH" } else { "LIMIT_EXCEEDED" };
        assert_eq!((answer.number, error.reason.as_str()), (number, expected));
    }
    assert_eq!(ear.heard(), 10);

    link.send_question(99, wire::ConfirmQuestion::default()).await;
    assert_eq!(
        link.next_answer().await,
        wire::BridgeAnswer { number: 99, answer: None },
        "it makes no sense"
    );
}

#[tokio::test]
async fn a_member_that_lies_is_not_believed() {
    let key = KeyFile::new();
    let home = TestServer::start(member(&key, [])).await;
    let (liar, nobody) = (Peer::new(), Peer::new());
    let mut link = RawLink::dial(&liar, home.connection().await, Some(key.bytes())).await.unwrap();
    eventually!("it is a member", home.links().await == 1);
    let said = |by: &Peer, whose: PeerId, port: u16| {
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let value = AddressConfirmation::new(network(), whose, at, now());
        Answer::Confirmation(Signed::sign(&value, by.identity.key()).unwrap().to_wire())
    };
    let forever = |whose: PeerId, port: u16| {
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let old = AddressConfirmation::new(network(), whose, at, UnixMillis(1_000_000));
        Answer::Confirmation(Signed::sign(&old, liar.identity.key()).unwrap().to_wire())
    };
    let error = |reason: &str| {
        Answer::Error(ItemError { reason: reason.into(), detail: "x".repeat(9000), ..ItemError::default() })
    };
    for nth in 0..7 {
        let peer = Peer::new();
        let mut session = peer.open(&home, now().0).await.unwrap();
        session.send(Up::ConfirmAddress(wire::ConfirmAddress { port: 7 })).await;
        let (number, question) = link.question().await;
        assert_eq!(question.peer_id, peer.id().to_wire());
        let (lie, expected) = match nth {
            0 => (said(&nobody, peer.id(), 7), "NO_OTHER_MEMBER"),
            1 => (said(&liar, nobody.id(), 7), "NO_OTHER_MEMBER"),
            2 => (said(&liar, peer.id(), 8), "NO_OTHER_MEMBER"),
            3 => (forever(peer.id(), 7), "NO_OTHER_MEMBER"),
            4 => (Answer::Confirmation(peer.record(1).to_wire()), "NO_OTHER_MEMBER"),
            5 => (error("PEER_UNKNOWN"), "NO_OTHER_MEMBER"),
            _ => (error("UNREACHABLE"), "UNREACHABLE"),
        };
        // An answer to what nobody asked is passed over.
        link.answer(number + 1000, said(&liar, peer.id(), 7)).await;
        link.answer(number, lie).await;
        let Some(Down::ConfirmResult(result)) = session.next().await.unwrap() else { panic!("no answer") };
        let Some(Outcome::Error(error)) = result.result else { panic!("{nth}: the lie was believed") };
        assert_eq!(error.reason, expected, "{nth}");
        assert!(error.detail.len() < 1000, "{}", error.detail.len());
    }
    assert_eq!(home.links().await, 1, "what a peer makes of it is the home's affair");
}

#[tokio::test]
async fn a_member_that_goes_while_it_is_asked_leaves_no_question_open() {
    let key = KeyFile::new();
    let home = TestServer::start(member(&key, [])).await;
    let mut link = RawLink::dial(&Peer::new(), home.connection().await, Some(key.bytes())).await.unwrap();
    eventually!("it is a member", home.links().await == 1);
    let mut session = Peer::new().open(&home, now().0).await.unwrap();
    session.send(Up::ConfirmAddress(wire::ConfirmAddress { port: 7 })).await;
    link.question().await;
    let asked = tokio::time::Instant::now();
    drop(link);
    let Some(Down::ConfirmResult(result)) = session.next().await.unwrap() else { panic!("no answer") };
    assert!(matches!(result.result, Some(Outcome::Error(error)) if error.reason == "NO_OTHER_MEMBER"));
    assert!(asked.elapsed() < Duration::from_secs(8), "it is not waited for the deadline");
}

#[tokio::test]
async fn the_sdk_has_its_address_confirmed_and_others_believe_it() {
    let key = KeyFile::new();
    // As many homes as there are members: each of them has a session of the peer, from another port.
    let servers = two(&key).await;
    let peer = Peer::new();
    let ear = Ear::of(&peer).await;
    let endpoints: Vec<_> = servers.iter().map(TestServer::pinned).collect();
    let dialer = Dialer::new(Some(&peer.identity), None).unwrap();
    let keeper = SessionKeeper::start(SessionConfig {
        network: network(),
        dialer: dialer.clone(),
        identity: peer.identity.clone(),
        software: "test/1".into(),
        rendezvous: endpoints.clone(),
        memory: None,
        own_rendezvous: None,
        services: Vec::new(),
        reachability: Reachability {
            listen: Some(ear.addr),
            transport: Transport::Tls,
            advertise: Vec::new(),
            confirm: true,
        },
        max_homes: 3,
        record_ttl: Duration::from_secs(600),
    });
    let confirmed = || {
        keeper.own_addresses().into_iter().find_map(|own| match own.standing {
            Standing::Confirmed { by, .. } if own.address == ear.addr => Some(by),
            _ => None,
        })
    };
    eventually!("the address is confirmed", confirmed().is_some());
    assert!(servers.iter().any(|server| Some(server.id) == confirmed()));

    let locator = Locator::new(network(), &endpoints, dialer);
    let mut kinds = Vec::new();
    eventually!("the record says so, everywhere", {
        if let Ok(found) = locator.locate(&peer.id()).await {
            kinds = locator.believed(&found.peer.record).iter().map(|address| address.kind).collect();
        }
        kinds == [AddressKind::Confirmed]
    });
    assert_eq!(ear.heard(), 1);
    keeper.shutdown().await;
}
