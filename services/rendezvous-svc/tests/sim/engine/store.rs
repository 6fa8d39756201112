//! What a member keeps: the server's own table with signed records, or, for millions of them, a shelf of numbers.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use p2psb_proto::model::{
    Genesis, NetworkId, PeerId, PeerRecord, PeerStatement, PeerWithdrawal, Signed, UnixMillis,
};
use p2psb_rendezvous_svc::core::admission::Limits;
use p2psb_rendezvous_svc::core::ledger::{Bringer, Shares};
use p2psb_rendezvous_svc::core::table::{Item, Merged, Table};

use super::ids::secret;

/// Who may keep how much is not what is simulated here.
const AMPLE: Shares = Shares {
    peers: Limits {
        total: (1_000_000, "total"),
        per_ip: (1_000_000, "per_ip"),
        per_prefix: (1_000_000, "per_prefix"),
    },
    per_member: (1_000_000, "per_member"),
};

/// How long records live.
pub(crate) const LIFE: Duration = Duration::from_secs(3600);

/// What a peer states of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) peer: u32,
    pub(crate) seq: u64,
    pub(crate) withdrawn: bool,
    /// By the clock of the peer.
    pub(crate) issued: UnixMillis,
}

/// Holds the newest statement of each peer.
pub(crate) trait Store {
    /// Whether peers sign.
    const SIGNED: bool;
    type Record: Clone;

    fn new() -> Self;
    fn record(statement: Statement) -> Self::Record;
    fn statement(record: &Self::Record) -> Statement;
    /// Whether it is the newest now.
    fn put(&mut self, record: &Self::Record, wall: UnixMillis) -> bool;
    fn newest(&self, peer: u32) -> Option<Self::Record>;
    /// The `seq` of its record, if that counts.
    fn valid(&self, peer: u32, wall: UnixMillis) -> Option<u64>;
    fn after(&self, at: Option<u32>, most: usize) -> Vec<u32>;
}

fn behind<T>(map: &BTreeMap<u32, T>, at: Option<u32>, most: usize) -> Vec<u32> {
    let from = at.map_or(Bound::Unbounded, Bound::Excluded);
    map.range((from, Bound::Unbounded)).take(most).map(|(peer, _)| *peer).collect()
}

/// Numbers only.
pub(crate) struct Shelf(BTreeMap<u32, Statement>);

impl Store for Shelf {
    const SIGNED: bool = false;
    type Record = Statement;

    fn new() -> Self {
        Self(BTreeMap::new())
    }

    fn record(statement: Statement) -> Statement {
        statement
    }

    fn statement(record: &Statement) -> Statement {
        *record
    }

    fn put(&mut self, record: &Statement, _: UnixMillis) -> bool {
        let is_newer = self.0.get(&record.peer).is_none_or(|known| known.seq < record.seq);
        if is_newer {
            self.0.insert(record.peer, *record);
        }
        is_newer
    }

    fn newest(&self, peer: u32) -> Option<Statement> {
        self.0.get(&peer).copied()
    }

    fn valid(&self, peer: u32, wall: UnixMillis) -> Option<u64> {
        let known = self.0.get(&peer)?;
        (!known.withdrawn && known.issued.plus(LIFE) > wall).then_some(known.seq)
    }

    fn after(&self, at: Option<u32>, most: usize) -> Vec<u32> {
        behind(&self.0, at, most)
    }
}

fn network() -> NetworkId {
    static NETWORK: OnceLock<NetworkId> = OnceLock::new();
    *NETWORK.get_or_init(|| Genesis::open("sim").unwrap().network_id())
}

/// A signed statement, as it arrives.
#[derive(Clone)]
pub(crate) struct Letter(Rc<(Statement, PeerStatement, PeerId, Item)>);

/// The server's table.
pub(crate) struct Real {
    table: Table,
    letters: BTreeMap<u32, Letter>,
}

impl Store for Real {
    const SIGNED: bool = true;
    type Record = Letter;

    fn new() -> Self {
        Self { table: Table::new(AMPLE, AMPLE), letters: BTreeMap::new() }
    }

    fn record(statement: Statement) -> Letter {
        let network = network();
        let Statement { peer, seq, withdrawn, issued } = statement;
        let key = secret(peer);
        let signed = if withdrawn {
            PeerStatement::Withdrawal(Signed::sign(&PeerWithdrawal { network, seq, issued }, &key).unwrap())
        } else {
            let record = PeerRecord {
                network,
                seq,
                issued,
                expires: issued.plus(LIFE),
                addresses: Vec::new(),
                services: Vec::new(),
                homes: Vec::new(),
                endorsements: Vec::new(),
            };
            PeerStatement::Record(Signed::sign(&record, &key).unwrap())
        };
        let item = Item::new(&signed);
        let peer = signed.peer_id();
        Letter(Rc::new((statement, signed, peer, item)))
    }

    fn statement(record: &Letter) -> Statement {
        record.0.0
    }

    fn put(&mut self, record: &Letter, wall: UnixMillis) -> bool {
        let (statement, signed, peer, item) = &*record.0;
        signed.check(&network(), wall).expect("clocks differ by less than is tolerated");
        let before = self.table.seq(peer);
        let merged = self.table.merge(item.clone(), Bringer::Own, wall) == Ok(Merged::Changed);
        assert_eq!(merged, before.is_none_or(|before| before < statement.seq));
        assert_eq!(
            self.table.seq(peer),
            before.max(Some(statement.seq)),
            "a stale record replaced a newer one"
        );
        if merged {
            self.letters.insert(statement.peer, record.clone());
        }
        merged
    }

    fn newest(&self, peer: u32) -> Option<Letter> {
        self.letters.get(&peer).cloned()
    }

    fn valid(&self, peer: u32, wall: UnixMillis) -> Option<u64> {
        let letter = self.letters.get(&peer)?;
        let found = self.table.valid(&letter.0.2, wall)?;
        assert!(found.is_valid(wall));
        self.table.seq(&letter.0.2)
    }

    fn after(&self, at: Option<u32>, most: usize) -> Vec<u32> {
        behind(&self.letters, at, most)
    }
}
