//! Having the own addresses confirmed: what is asked, when, and what came of it.
//!
//! Invariants: of one address there is one question at a time, put to one home; a confirmation is kept until it expires or a later
//! dial did not reach this peer; at most as many addresses are confirmed as a record may hold.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use p2psb_proto::error::Reason;
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{Address, AddressConfirmation, NetworkId, PeerId, Signed, UnixMillis, limits};
use p2psb_proto::wire::rendezvous::v1 as wire;
use p2psb_proto::wire::rendezvous::v1::confirm_result::Result as Outcome;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::own::{OwnRecord, Reachability};
use super::{SessionKeeper, Shared, handshake, now};

/// How long a home may take to answer; an older one does not at all.
const PATIENCE: Duration = Duration::from_secs(20);
/// The first pause after a failure, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15 * 60));

/// Whether an own address was reached from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has looked yet.
    Unknown,
    /// A rendezvous has reached it.
    Confirmed {
        /// Which.
        by: PeerId,
        /// Until when that counts.
        expires: UnixMillis,
    },
    /// It was not confirmed.
    Unconfirmed {
        /// In the spelling of [`Reason`], or what an unknown server says.
        reason: String,
        /// For people.
        detail: String,
    },
}

/// An own address, as homes see it, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    /// The observed IP with the listening port.
    pub address: SocketAddr,
    /// Whether others reach it.
    pub standing: Standing,
}

#[derive(Debug)]
struct Entry {
    /// Which home was asked, and since when.
    asking: Option<(PeerId, Instant)>,
    /// When to ask next.
    next: Instant,
    failures: u32,
    granted: Option<Signed<AddressConfirmation>>,
    /// What was wrong the last time.
    problem: Option<(String, String)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Confirming {
    network: NetworkId,
    peer: PeerId,
    /// Where this peer listens by mutual TLS; `None`: nothing is to be confirmed.
    listen: Option<SocketAddr>,
    addresses: BTreeMap<IpAddr, Entry>,
}

impl Confirming {
    pub(crate) fn new(network: NetworkId, peer: PeerId, reachability: &Reachability) -> Self {
        let listen = reachability.listen.filter(|_| reachability.confirm);
        Self { network, peer, listen, addresses: BTreeMap::new() }
    }

    /// Where homes see this peer now. What is not seen there any more is not confirmed any longer; while nobody sees anything,
    /// nothing has changed.
    pub(crate) fn observed(&mut self, seen: impl Iterator<Item = IpAddr>, now: Instant) {
        let Some(listen) = self.listen else { return };
        let mut wanted: Vec<IpAddr> = Vec::new();
        for ip in seen.filter(|ip| could_reach(listen.ip(), *ip)) {
            if wanted.len() < limits::CONFIRMATIONS && !wanted.contains(&ip) {
                wanted.push(ip);
            }
        }
        if wanted.is_empty() {
            return;
        }
        self.addresses.retain(|ip, _| wanted.contains(ip));
        for ip in wanted {
            self.addresses.entry(ip).or_insert(Entry {
                asking: None,
                next: now,
                failures: 0,
                granted: None,
                problem: None,
            });
        }
    }

    /// When `home`, which sees this peer at `ip`, is to be asked, or is no longer waited for.
    pub(crate) fn due(&self, home: &PeerId, ip: IpAddr) -> Option<Instant> {
        let entry = self.addresses.get(&ip)?;
        match entry.asking {
            None => Some(entry.next),
            Some((asked, since)) => (asked == *home).then(|| since + PATIENCE),
        }
    }

    /// The port to ask `home` for, if it is to be asked now.
    pub(crate) fn begin(&mut self, home: PeerId, ip: IpAddr, now: Instant) -> Option<u16> {
        let port = self.listen?.port();
        let entry = self.addresses.get_mut(&ip)?;
        match entry.asking {
            Some((asked, since)) if asked == home && now >= since + PATIENCE => {
                let silent = "the rendezvous does not answer; it may be of an older version";
                entry.fail((Reason::NoOtherMember.as_str().into(), silent.into()), Duration::ZERO, now);
                None
            }
            Some(_) => None,
            None if now < entry.next => None,
            None => {
                entry.asking = Some((home, now));
                Some(port)
            }
        }
    }

    /// The session with `home` ended; another one may be asked.
    pub(crate) fn left(&mut self, home: &PeerId) {
        for entry in self.addresses.values_mut().filter(|entry| entry.waits_for(home)) {
            entry.asking = None;
        }
    }

    /// What `home` answered; `chance` in 0 to 1 spreads the renewals. Returns whether the record has to say something else now.
    pub(crate) fn answered(
        &mut self,
        home: &PeerId,
        result: wire::ConfirmResult,
        at: (Instant, UnixMillis),
        chance: f64,
    ) -> bool {
        let (now, wall) = at;
        let (network, peer, port) = (self.network, self.peer, self.listen.map_or(0, |listen| listen.port()));
        let asked = |(_, entry): &(&IpAddr, &mut Entry)| entry.waits_for(home);
        let Some((ip, entry)) = self.addresses.iter_mut().find(asked) else { return false };
        let fits = |confirmation: &Signed<AddressConfirmation>| {
            let said = confirmation.value();
            said.peer == peer
                && said.at == SocketAddr::new(*ip, port)
                && said.check(&network, wall).is_ok()
                && confirmation.attested_by() != *home
        };
        let before = entry.granted.is_some();
        match result.result {
            Some(Outcome::Confirmation(record)) => match Signed::verify(record) {
                Ok(confirmation) if fits(&confirmation) => entry.grant(confirmation, now, wall, chance),
                _ => {
                    let problem =
                        (Reason::SignatureInvalid.as_str().into(), "the answer proves nothing".into());
                    entry.fail(problem, Duration::ZERO, now);
                }
            },
            Some(Outcome::Error(error)) => {
                if voids(&error.reason) {
                    entry.granted = None;
                }
                let asked = duration_from_wire(error.retry_after.as_ref()).min(limits::RECORD_LIFETIME);
                entry.fail((error.reason, error.detail), asked, now);
            }
            None => {
                entry.fail((Reason::InvalidArgument.as_str().into(), "an empty answer".into()), PAUSE.1, now)
            }
        }
        before || entry.granted.is_some()
    }

    /// The confirmed addresses for the own record.
    pub(crate) fn granted(&self, wall: UnixMillis) -> impl Iterator<Item = Address> + '_ {
        let granted = self.addresses.values().filter_map(|entry| entry.granted.as_ref());
        granted.filter(move |one| one.value().expires > wall).map(Signed::to_address)
    }

    /// How every address stands.
    pub(crate) fn standing(&self, wall: UnixMillis) -> Vec<OwnAddress> {
        let Some(listen) = self.listen else { return Vec::new() };
        let all = self.addresses.iter();
        all.map(|(ip, entry)| OwnAddress {
            address: SocketAddr::new(*ip, listen.port()),
            standing: entry.standing(wall),
        })
        .collect()
    }
}

impl Entry {
    fn waits_for(&self, home: &PeerId) -> bool {
        self.asking.is_some_and(|(asked, _)| asked == *home)
    }

    /// Asks again before it ends: after half of its life, a tenth more or less.
    fn grant(
        &mut self,
        confirmation: Signed<AddressConfirmation>,
        now: Instant,
        wall: UnixMillis,
        chance: f64,
    ) {
        let life = confirmation.value().expires.since(wall);
        self.next = now + life.mul_f64(0.4 + 0.2 * chance.clamp(0.0, 1.0)).max(PAUSE.0);
        (self.asking, self.failures, self.problem) = (None, 0, None);
        self.granted = Some(confirmation);
    }

    fn fail(&mut self, problem: (String, String), asked: Duration, now: Instant) {
        let pause = PAUSE.0.saturating_mul(1 << self.failures.min(8)).min(PAUSE.1);
        self.next = now + pause.max(asked);
        self.failures = self.failures.saturating_add(1);
        (self.asking, self.problem) = (None, Some(problem));
    }

    fn standing(&self, wall: UnixMillis) -> Standing {
        let granted = self.granted.as_ref().filter(|one| one.value().expires > wall);
        if let Some(granted) = granted {
            return Standing::Confirmed { by: granted.attested_by(), expires: granted.value().expires };
        }
        match self.problem.clone() {
            Some((reason, detail)) => Standing::Unconfirmed { reason, detail },
            None => Standing::Unknown,
        }
    }
}

/// Whether whoever dials `ip` could come to a socket that listens at `listen`.
fn could_reach(listen: IpAddr, ip: IpAddr) -> bool {
    let listens_everywhere = listen == IpAddr::from([0; 16]);
    !ip.is_unspecified()
        && (listens_everywhere || listen.is_ipv4() == ip.is_ipv4())
        && (!listen.is_loopback() || ip.is_loopback())
}

/// The peer was dialed and not reached, or may not be dialed: what was confirmed before does not hold any more.
fn voids(reason: &str) -> bool {
    let reason = Reason::parse(reason);
    matches!(reason, Some(Reason::Unreachable | Reason::IdentityMismatch | Reason::NotDialed))
}

impl OwnRecord {
    /// Which addresses are to be confirmed follows from what the homes see.
    pub(super) fn observe(&mut self) {
        let observed = self.homes.values().filter_map(|seen| seen.observed);
        self.confirming.observed(observed, Instant::now());
    }

    fn seen_by(&self, home: &PeerId) -> Option<IpAddr> {
        self.homes.get(home)?.observed
    }
}

impl Shared {
    fn confirm_due(&self, home: &PeerId) -> Option<Instant> {
        let state = self.state.lock();
        state.own.confirming.due(home, state.own.seen_by(home)?)
    }

    fn confirm_begin(&self, home: PeerId) -> Option<u16> {
        let port = {
            let mut state = self.state.lock();
            let ip = state.own.seen_by(&home)?;
            state.own.confirming.begin(home, ip, Instant::now())
        };
        self.changes.send_modify(|n| *n += 1);
        port
    }

    /// A home says what came of it.
    pub(super) fn confirm_answered(&self, home: &PeerId, result: wire::ConfirmResult) {
        let at = (Instant::now(), now());
        let anew = self.state.lock().own.confirming.answered(home, result, at, fastrand::f64());
        if anew {
            self.sign_anew(0);
        }
        self.changes.send_modify(|n| *n += 1);
    }
}

impl SessionKeeper {
    /// Where homes see this peer, and whether others reach it there. Empty for a peer that does not listen by mutual TLS.
    #[must_use]
    pub fn own_addresses(&self) -> Vec<OwnAddress> {
        self.shared.state.lock().own.confirming.standing(now())
    }
}

/// Asks a home whenever it is time, for as long as its session lasts.
pub(super) async fn keep_asking(shared: Arc<Shared>, home: PeerId, up: mpsc::Sender<wire::ConnectRequest>) {
    let mut changes = shared.changes.subscribe();
    loop {
        let due = shared.confirm_due(&home);
        tokio::select! {
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if let Some(port) = shared.confirm_begin(home) {
                    let question = Up::ConfirmAddress(wire::ConfirmAddress { port: port.into() });
                    if handshake::send(&up, question).await.is_err() {
                        return;
                    }
                }
            }
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::time::duration_to_wire;
    use p2psb_proto::model::{Genesis, SecretKey, Transport};
    use p2psb_proto::wire::common::v1::ItemError;

    use super::*;

    const WALL: UnixMillis = UnixMillis(1_767_323_045_678);

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn peer(seed: u8) -> PeerId {
        PeerId::new(key(seed).public())
    }

    fn network() -> NetworkId {
        Genesis::open("test").unwrap().network_id()
    }

    fn ip() -> IpAddr {
        [203, 0, 113, 7].into()
    }

    fn confirming(listen: &str) -> Confirming {
        let reachability = Reachability {
            listen: Some(listen.parse().unwrap()),
            transport: Transport::Tls,
            advertise: Vec::new(),
            confirm: true,
        };
        Confirming::new(network(), peer(1), &reachability)
    }

    /// Homes 8 and 9 see the peer.
    fn seen(now: Instant) -> Confirming {
        let mut c = confirming("0.0.0.0:7430");
        c.observed([ip(), ip()].into_iter(), now);
        c
    }

    fn by(signer: u8, whose: u8, at: &str) -> wire::ConfirmResult {
        let value = AddressConfirmation::new(network(), peer(whose), at.parse().unwrap(), WALL);
        let record = Signed::sign(&value, &key(signer)).unwrap().to_wire();
        wire::ConfirmResult { port: 7430, result: Some(Outcome::Confirmation(record)) }
    }

    fn good() -> wire::ConfirmResult {
        by(7, 1, "203.0.113.7:7430")
    }

    fn error(reason: Reason) -> wire::ConfirmResult {
        let error = ItemError { reason: reason.as_str().into(), ..ItemError::default() };
        wire::ConfirmResult { port: 7430, result: Some(Outcome::Error(error)) }
    }

    fn granted(c: &Confirming, wall: UnixMillis) -> Vec<String> {
        c.granted(wall).map(|address| address.to_string()).collect()
    }

    #[test]
    fn one_home_is_asked_at_a_time_and_what_it_gets_is_kept_and_renewed() {
        let start = Instant::now();
        let mut c = seen(start);
        assert_eq!(c.begin(peer(8), ip(), start), Some(7430));
        assert_eq!((c.begin(peer(9), ip(), start), c.due(&peer(9), ip())), (None, None));
        assert!(!c.answered(&peer(9), good(), (start, WALL), 0.5), "it was not asked");
        assert!(c.answered(&peer(8), good(), (start, WALL), 0.5));
        assert_eq!(granted(&c, WALL), ["203.0.113.7:7430 (confirmed)"]);
        assert!(matches!(c.standing(WALL)[0].standing, Standing::Confirmed { by, .. } if by == peer(7)));
        let renewal = c.due(&peer(9), ip()).unwrap() - start;
        assert!((3500..3700).contains(&renewal.as_secs()), "{renewal:?}");
        assert!(granted(&c, WALL.plus(limits::RECORD_LIFETIME)).is_empty(), "it expires");
    }

    #[test]
    fn a_dial_that_did_not_reach_it_voids_a_confirmation_and_anything_else_does_not() {
        for (reason, stays) in [
            (Reason::Unreachable, false),
            (Reason::IdentityMismatch, false),
            (Reason::NotDialed, false),
            (Reason::NoOtherMember, true),
            (Reason::LimitExceeded, true),
        ] {
            let start = Instant::now();
            let mut c = seen(start);
            c.begin(peer(8), ip(), start);
            c.answered(&peer(8), good(), (start, WALL), 0.5);
            let later = start + Duration::from_secs(3600);
            assert_eq!(c.begin(peer(9), ip(), later), Some(7430));
            assert!(
                c.answered(&peer(9), error(reason), (later, WALL), 0.5),
                "the record says something else"
            );
            assert_eq!(granted(&c, WALL).len(), usize::from(stays), "{reason}");
            assert_eq!(c.due(&peer(8), ip()), Some(later + PAUSE.0));
        }
    }

    #[test]
    fn what_proves_nothing_is_not_believed() {
        for lie in [
            by(7, 2, "203.0.113.7:7430"),
            by(7, 1, "203.0.113.7:7431"),
            by(7, 1, "203.0.113.8:7430"),
            by(8, 1, "203.0.113.7:7430"),
            wire::ConfirmResult { port: 7430, result: None },
        ] {
            let start = Instant::now();
            let mut c = seen(start);
            c.begin(peer(8), ip(), start);
            assert!(!c.answered(&peer(8), lie.clone(), (start, WALL), 0.5), "{lie:?}");
            assert!(matches!(c.standing(WALL)[0].standing, Standing::Unconfirmed { .. }));
        }
    }

    #[test]
    fn a_silent_home_and_one_that_went_are_not_waited_for() {
        let start = Instant::now();
        let mut c = seen(start);
        c.begin(peer(8), ip(), start);
        c.left(&peer(8));
        assert_eq!(c.begin(peer(9), ip(), start), Some(7430));
        let silent = c.due(&peer(9), ip()).unwrap();
        assert_eq!((silent, c.begin(peer(9), ip(), silent)), (start + PATIENCE, None));
        assert_eq!(c.due(&peer(8), ip()), Some(silent + PAUSE.0));
        assert!(
            matches!(&c.standing(WALL)[0].standing, Standing::Unconfirmed { detail, .. } if detail.contains("older"))
        );
    }

    #[test]
    fn pauses_grow_to_a_bound_and_a_server_may_ask_for_longer_ones() {
        let mut now = Instant::now();
        let mut c = seen(now);
        let mut pause = Duration::ZERO;
        for _ in 0..20 {
            c.begin(peer(8), ip(), now);
            c.answered(&peer(8), error(Reason::Unreachable), (now, WALL), 0.5);
            let next = c.due(&peer(8), ip()).unwrap();
            assert!(next - now >= pause);
            (pause, now) = (next - now, next);
        }
        assert_eq!(pause, PAUSE.1);
        c.begin(peer(8), ip(), now);
        let mut busy = error(Reason::LimitExceeded);
        if let Some(Outcome::Error(error)) = &mut busy.result {
            error.retry_after = Some(duration_to_wire(Duration::from_secs(3600)));
        }
        c.answered(&peer(8), busy, (now, WALL), 0.5);
        assert_eq!(c.due(&peer(8), ip()), Some(now + Duration::from_secs(3600)));
    }

    #[test]
    fn a_new_address_is_asked_for_at_once_and_the_old_one_is_forgotten() {
        let start = Instant::now();
        let mut c = seen(start);
        c.begin(peer(8), ip(), start);
        c.answered(&peer(8), good(), (start, WALL), 0.5);
        c.observed(std::iter::empty(), start);
        assert_eq!(granted(&c, WALL).len(), 1, "between two sessions nothing is known to have changed");
        let moved: IpAddr = [198, 51, 100, 1].into();
        c.observed([moved].into_iter(), start);
        assert!(granted(&c, WALL).is_empty());
        assert_eq!(c.begin(peer(8), moved, start), Some(7430));
    }

    #[test]
    fn only_what_could_lead_to_the_listener_is_asked_for() {
        let now = Instant::now();
        let asked = |listen: &str, seen: &[&str]| {
            let mut c = confirming(listen);
            c.observed(seen.iter().map(|ip| ip.parse().unwrap()), now);
            c.standing(WALL).iter().map(|own| own.address.ip().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(asked("0.0.0.0:1", &["203.0.113.7", "2001:db8::1"]), ["203.0.113.7"]);
        assert_eq!(asked("[::]:1", &["203.0.113.7", "2001:db8::1"]), ["203.0.113.7", "2001:db8::1"]);
        assert_eq!(asked("127.0.0.1:1", &["203.0.113.7", "127.0.0.1"]), ["127.0.0.1"]);
        assert_eq!(asked("10.0.0.1:1", &["203.0.113.7"]), ["203.0.113.7"], "a NAT may forward the port");
        assert_eq!(asked("0.0.0.0:1", &["1.1.1.1", "1.1.1.2", "1.1.1.3"]).len(), limits::CONFIRMATIONS);
    }
}
