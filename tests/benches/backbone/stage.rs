//! What the rows share: a rendezvous, and one that knows a crowd.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use p2psb_e2e::memory::rss_anon;
use p2psb_e2e::trouble::{Context as _, Result, Trouble};
use p2psb_e2e::{Cluster, Service};
use p2psb_proto::model::proof::{ChallengeAction, answer_challenge};
use p2psb_proto::model::{PeerId, SecretKey};
use p2psb_proto::wire::rendezvous::v1::{GetChallengeRequest, GetChallengeResponse, RegisterRequest};
use prost::Message as _;

use super::Size;
use crate::crowd::Crowd;
use crate::load::{CONNECTIONS, Caller, IN_FLIGHT, connect, drive};
use crate::machine::Machine;
use crate::report::Report;
use crate::wire::{Target, Wire};

pub(super) const REGISTER: &str = "/p2psb.rendezvous.v1.RendezvousService/Register";
const GET_CHALLENGE: &str = "/p2psb.rendezvous.v1.RendezvousService/GetChallenge";

/// Above everything that is measured.
pub(super) const AMPLE: i64 = 2_000_000;

/// Limits of a rendezvous that would end a measurement from one address.
pub(super) const LIMITS: [&str; 10] = [
    "limits.sessions",
    "limits.sessions_per_ip",
    "limits.sessions_per_prefix",
    "limits.registrations",
    "limits.registrations_per_ip",
    "limits.registrations_per_prefix",
    "limits.records",
    "limits.records_per_ip",
    "limits.records_per_prefix",
    "limits.records_per_member",
];

/// The program `rendezvous-svc`, on the core of servers.
pub(super) struct Rendezvous {
    cluster: Cluster,
}

impl Rendezvous {
    pub(super) async fn start(machine: &Machine) -> Result<Self> {
        let plan = Cluster::plan().prefix("p2psb-bench-").rendezvous(1).unbridged().bare();
        let mut cluster = plan.start().await?;
        let service = cluster.rendezvous.first_mut().context("no rendezvous")?;
        service.stop().await?;
        for limit in LIMITS {
            service.set(limit, AMPLE);
        }
        // Nobody has to be heard while the memory of silent sessions is measured, and no registration ends.
        service.set("session.heartbeat", "5m");
        service.set("session.registration_ttl", "2h");
        let on_its_core = machine.as_server()?;
        service.start().await?;
        drop(on_its_core);
        Ok(Self { cluster })
    }

    fn service(&self) -> Result<&Service> {
        self.cluster.rendezvous.first().context("no rendezvous")
    }

    pub(super) fn pid(&self) -> Result<u32> {
        self.service()?.pid().context("the rendezvous does not run")
    }

    pub(super) fn target(&self) -> Result<Target> {
        let service = self.service()?;
        Ok(Target { addr: service.addr()?, pem: Some(service.data_dir().join("tls.pem")) })
    }

    /// The anonymous memory it holds.
    pub(super) fn memory(&self) -> Result<u64> {
        rss_anon(self.pid()?).context("the system does not tell what memory a process holds")
    }
}

/// A rendezvous that knows a crowd.
pub(super) struct Populated {
    pub(super) rendezvous: Rendezvous,
    pub(super) wires: Vec<Wire>,
    pub(super) registrar: Registrar,
    /// What each peer of the crowd takes, in bytes.
    pub(super) memory_per_peer: f64,
}

impl Populated {
    async fn start(machine: &Machine, peers: u64, report: &Report) -> Result<Self> {
        let rendezvous = Rendezvous::start(machine).await?;
        let mut wires = connect(&rendezvous.target()?, CONNECTIONS).await?;
        let registrar = Registrar::new(rendezvous.service()?.peer_id()?)?;
        let (before, begin) = (rendezvous.memory()?, Instant::now());
        report.remark(format_args!("registering {peers} peers"));
        let calls = registrar.calls(peers, CONNECTIONS);
        drive_all(&mut wires, calls).await?;
        let grown = rendezvous.memory()?.saturating_sub(before);
        let took: Duration = begin.elapsed();
        report.remark(format_args!("registered {peers} peers in {:.1} s", took.as_secs_f64()));
        Ok(Self { rendezvous, wires, registrar, memory_per_peer: grown as f64 / peers as f64 })
    }
}

/// Everything a row may need; what is costly is made when it is asked for.
pub(super) struct Stage<'a> {
    pub(super) machine: &'a Machine,
    pub(super) size: &'a Size,
    populated: Option<Populated>,
}

impl<'a> Stage<'a> {
    pub(super) const fn new(machine: &'a Machine, size: &'a Size) -> Self {
        Self { machine, size, populated: None }
    }

    /// The rendezvous that knows a crowd.
    pub(super) async fn populated(&mut self, report: &Report) -> Result<&mut Populated> {
        let populated = match self.populated.take() {
            Some(populated) => populated,
            None => Populated::start(self.machine, self.size.peers, report).await?,
        };
        Ok(self.populated.insert(populated))
    }

    /// Stops it: the next rows need the memory for themselves.
    pub(super) fn clear(&mut self) {
        self.populated = None;
    }
}

/// Registers the peers of a crowd, each as a peer does it: it asks for a challenge, signs its record and the answer.
pub(super) struct Registrar {
    crowd: Crowd,
    server: PeerId,
    next: Cell<u64>,
    ids: RefCell<Vec<[u8; 33]>>,
    /// The sizes of a request and its answer.
    sizes: Cell<(usize, usize)>,
}

impl Registrar {
    fn new(server: PeerId) -> Result<Self> {
        let (next, ids, sizes) = (Cell::new(0), RefCell::default(), Cell::default());
        Ok(Self { crowd: Crowd::new()?, server, next, ids, sizes })
    }

    /// Registrations of `count` peers more, for several connections.
    pub(super) fn calls(&self, count: u64, connections: usize) -> Vec<Registrations<'_>> {
        let end = self.next.get() + count;
        let make =
            |_| Registrations { registrar: self, end, asked: HashMap::new(), ready: Vec::new(), hold: false };
        (0..connections).map(make).collect()
    }

    /// The ids of all that are registered.
    pub(super) fn ids(&self) -> Vec<[u8; 33]> {
        self.ids.borrow().clone()
    }

    /// The sizes of the last request and of the answer to it.
    pub(super) const fn sizes(&self) -> (usize, usize) {
        self.sizes.get()
    }
}

/// The calls of one connection.
pub(super) struct Registrations<'a> {
    registrar: &'a Registrar,
    end: u64,
    asked: HashMap<u64, SecretKey>,
    ready: Vec<(u64, Vec<u8>)>,
    /// Ask for challenges only; what is signed waits.
    pub(super) hold: bool,
}

/// Calls of `Register` have this bit in their number.
const REGISTERS: u64 = 1 << 63;

impl Caller for Registrations<'_> {
    fn next(&mut self, request: &mut Vec<u8>) -> Option<(&'static str, u64)> {
        if !self.hold
            && let Some((number, signed)) = self.ready.pop()
        {
            request.extend_from_slice(&signed);
            return Some((REGISTER, number | REGISTERS));
        }
        let number = self.registrar.next.get();
        if number >= self.end {
            return None;
        }
        self.registrar.next.set(number + 1);
        let key = self.registrar.crowd.key(number);
        let peer_id = PeerId::new(key.public()).to_wire();
        self.asked.insert(number, key);
        request.extend_from_slice(&GetChallengeRequest { peer_id }.encode_to_vec());
        Some((GET_CHALLENGE, number))
    }

    fn answered(&mut self, number: u64, answer: Option<&[u8]>) -> Result<()> {
        let answer = answer.ok_or_else(|| Trouble::new("a registration was refused"))?;
        if number & REGISTERS != 0 {
            let (request, _) = self.registrar.sizes.get();
            self.registrar.sizes.set((request, answer.len()));
            return Ok(());
        }
        let key = self.asked.remove(&number).context("an answer nobody waits for")?;
        let challenge = GetChallengeResponse::decode(answer).context("a challenge")?.challenge;
        let record = self.registrar.crowd.record(number, &key)?;
        let action = ChallengeAction::Register;
        let proof = answer_challenge(&key, &self.registrar.server, &challenge, action, &record.digest());
        let request = RegisterRequest { record: Some(record.to_wire()), proof: Some(proof) }.encode_to_vec();
        self.registrar.sizes.set((request.len(), self.registrar.sizes.get().1));
        self.registrar.ids.borrow_mut().push(record.peer_id().to_bytes());
        self.ready.push((number, request));
        Ok(())
    }
}

/// Drives all connections to the end of their calls, and gives them back.
pub(super) async fn drive_all<C: Caller>(wires: &mut [Wire], callers: Vec<C>) -> Result<Vec<C>> {
    let drives = wires.iter_mut().zip(callers).map(|(wire, mut caller)| async move {
        drive(wire, &mut caller, IN_FLIGHT).await?;
        Ok(caller)
    });
    try_join_all(drives).await
}
