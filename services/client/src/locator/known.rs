//! The rendezvous that a locator knows: who belongs together, who answers quickly, and who did not lately, or lied. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use p2psb_proto::model::{PeerId, PeerRecord, Signed};

use super::RendezvousStatus;
use super::latency::Latency;
use crate::endpoint::Endpoint;
use crate::walk::answer::Word;
use crate::walk::lane::Choice;

/// How long what a rendezvous lists is used before it is asked again.
const LIST_AGE: Duration = Duration::from_secs(30);
/// How long a rendezvous that failed, or was overtaken, is asked only after the others.
const DOUBT: Duration = Duration::from_secs(10);
/// The same for one that lied.
const MISTRUST: Duration = Duration::from_secs(600);
/// How many rendezvous are kept.
const MAX_RENDEZVOUS: usize = 512;
/// How many of those that no configuration names are asked what they list, and so are measured; all list the same in the end.
const MAX_ASKED: usize = 8;

#[derive(Clone, Debug)]
struct Known {
    status: RendezvousStatus,
    /// Everyone in its backbone, as it lists them.
    backbone: BTreeSet<PeerId>,
    latency: Latency,
    /// How many sessions it has, as it or another one said last.
    sessions: u64,
    listed_at: Option<Instant>,
    failed_at: Option<Instant>,
    /// Another one answered first, and this one not in its time.
    overtaken_at: Option<Instant>,
    lied_at: Option<Instant>,
    /// Its list is being asked for.
    asking: bool,
    /// Whether it is ever asked for its list.
    asked: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    known: BTreeMap<Endpoint, Known>,
    /// By backbone, made anew when somebody is learnt or lists others than before.
    groups: Vec<Vec<Endpoint>>,
}

impl Table {
    /// Those of the configuration.
    pub(crate) fn new(configured: &[Endpoint]) -> Self {
        let known = configured.iter().map(|e| (e.clone(), Known::new(e.clone(), true, true))).collect();
        let mut table = Self { known, groups: Vec::new() };
        table.group();
        table
    }

    /// One more that no configuration names, if it is not known yet. What it lists is asked for.
    pub(crate) fn ask_also(&mut self, endpoint: &Endpoint) {
        let asked = self.may_ask_more();
        if let Some(known) = self.known.get_mut(endpoint) {
            known.asked |= asked;
        } else if self.known.len() < MAX_RENDEZVOUS && !endpoint.pin().is_some_and(|id| self.knows(&id)) {
            self.known.insert(endpoint.clone(), Known::new(endpoint.clone(), false, asked));
            self.group();
        }
    }

    /// Whether one more that no configuration names may be asked what it lists.
    fn may_ask_more(&self) -> bool {
        self.known.values().filter(|k| k.asked && !k.status.configured).count() < MAX_ASKED
    }

    /// Whether it is known who is there.
    fn knows(&self, id: &PeerId) -> bool {
        let is_it = |k: &Known| {
            k.status.endpoint.pin() == Some(*id)
                || k.status.record.as_ref().is_some_and(|r| r.peer_id() == *id)
        };
        self.known.values().any(is_it)
    }

    /// All, configured ones first.
    pub(crate) fn statuses(&self) -> Vec<RendezvousStatus> {
        let mut all: Vec<_> = self.known.values().map(|k| k.status.clone()).collect();
        all.sort_by_key(|s| !s.configured);
        all
    }

    /// Those whose list is to be asked for, which are taken to be asked now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Endpoint> {
        let due = self.known.iter_mut().filter(|(_, k)| k.is_due(now));
        due.map(|(endpoint, known)| {
            known.asking = true;
            endpoint.clone()
        })
        .collect()
    }

    /// The question for a list has ended.
    pub(crate) fn asked(&mut self, endpoint: &Endpoint) {
        if let Some(known) = self.known.get_mut(endpoint) {
            known.asking = false;
        }
    }

    /// Whether somebody who listed others answers still.
    pub(crate) fn is_fresh(&self) -> bool {
        self.known.values().any(|k| k.listed_at.is_some() && k.failed_at.is_none())
    }

    /// A rendezvous lists itself, first, and all others that it knows.
    pub(crate) fn list(&mut self, endpoint: &Endpoint, records: &[Signed<PeerRecord>], now: Instant) {
        let Some(own) = records.first() else { return };
        let backbone: BTreeSet<PeerId> = records.iter().map(Signed::peer_id).collect();
        let before = self.known.len();
        let mut changed = false;
        if let Some(entry) = self.known.get_mut(endpoint) {
            entry.status.record = Some(own.clone());
            entry.listed_at = Some(now);
            if entry.backbone != backbone {
                (entry.backbone, changed) = (backbone.clone(), true);
            }
            if entry.status.configured {
                // It may have been learnt from another one before it said itself who it is.
                let is_it = |k: &Known| k.status.endpoint.pin() == Some(own.peer_id());
                self.known.retain(|_, k| k.status.configured || !is_it(k));
            }
        }
        changed |= self.known.len() != before;
        for record in records.iter().skip(1) {
            changed |= self.learn(record, &backbone);
        }
        if changed {
            self.group();
        }
    }

    /// Adds a rendezvous that another one lists, unless it is known already.
    fn learn(&mut self, record: &Signed<PeerRecord>, backbone: &BTreeSet<PeerId>) -> bool {
        let id = record.peer_id();
        if self.known.len() >= MAX_RENDEZVOUS || self.knows(&id) {
            return false;
        }
        let asked = self.may_ask_more();
        // All its addresses: which of them can be reached from here is found out by trying.
        for endpoint in record.value().addresses.iter().filter_map(|a| Endpoint::of(a, id)) {
            let mut entry = Known::new(endpoint.clone(), false, asked);
            entry.backbone.clone_from(backbone);
            entry.status.record = Some(record.clone());
            self.known.entry(endpoint).or_insert(entry);
        }
        true
    }

    /// So many sessions they have, as one of them says.
    pub(crate) fn loaded(&mut self, sessions: &BTreeMap<PeerId, u64>) {
        for known in self.known.values_mut() {
            let id = known.status.record.as_ref().map(Signed::peer_id).or(known.status.endpoint.pin());
            if let Some(told) = id.and_then(|id| sessions.get(&id)) {
                known.sessions = *told;
            }
        }
    }

    /// How many sessions it has; 0 if nobody said.
    pub(crate) fn sessions(&self, endpoint: &Endpoint) -> u64 {
        self.known.get(endpoint).map_or(0, |known| known.sessions)
    }

    /// One who was asked said this, after so long.
    pub(crate) fn heard(&mut self, endpoint: &Endpoint, word: &Word, took: Duration, now: Instant) {
        match word {
            Word::Found(_) | Word::Unknown { .. } | Word::Offline { .. } | Word::Early(_) => {
                self.answered(endpoint, took);
            }
            Word::Lied(lie) => self.lied(endpoint, &lie.to_string(), now),
            Word::Refused { detail, .. } | Word::Failed(detail) => self.failed(endpoint, detail, now),
            Word::TimedOut => self.failed(endpoint, "no answer in time", now),
        }
    }

    /// It answered, after so long.
    pub(crate) fn answered(&mut self, endpoint: &Endpoint, took: Duration) {
        if let Some(known) = self.known.get_mut(endpoint) {
            known.latency.add(took);
            known.status.latency = known.latency.smooth();
            (known.status.error, known.failed_at, known.overtaken_at) = (None, None, None);
        }
    }

    /// It failed: others come first for a while.
    pub(crate) fn failed(&mut self, endpoint: &Endpoint, why: &str, now: Instant) {
        if let Some(known) = self.known.get_mut(endpoint) {
            known.status.error = Some(why.to_owned());
            known.failed_at = Some(now);
        }
    }

    /// It said what no honest one says: others come first for a long while.
    fn lied(&mut self, endpoint: &Endpoint, what: &str, now: Instant) {
        if let Some(known) = self.known.get_mut(endpoint) {
            known.status.error = Some(what.to_owned());
            known.status.lies = known.status.lies.saturating_add(1);
            known.lied_at = Some(now);
        }
    }

    /// It had not answered when its time was over and the call was given up: others come first for a while.
    pub(crate) fn overtaken(&mut self, endpoint: &Endpoint, waited: Duration, now: Instant) {
        if let Some(known) = self.known.get_mut(endpoint)
            && waited >= known.latency.patience()
        {
            known.overtaken_at = Some(now);
        }
    }

    /// Whether it failed, lied or was overtaken lately.
    pub(crate) fn is_doubtful(&self, endpoint: &Endpoint, now: Instant) -> bool {
        self.known.get(endpoint).is_some_and(|known| known.is_doubtful(now))
    }

    /// Whether anybody lists it as a rendezvous of its backbone.
    pub(crate) fn is_member(&self, id: &PeerId) -> bool {
        self.known.values().any(|known| known.backbone.contains(id))
    }

    /// By backbone, in each the quickest first, then those in doubt, and last those that lied.
    pub(crate) fn choices(&self, now: Instant) -> Vec<Vec<Choice>> {
        let choices = |group: &Vec<Endpoint>| {
            let mut members: Vec<&Known> = group.iter().filter_map(|e| self.known.get(e)).collect();
            members.sort_by_key(|k| {
                (k.lied_lately(now), k.is_doubtful(now), k.latency.smooth().unwrap_or(Duration::MAX))
            });
            members.into_iter().map(|k| k.choice(now)).collect()
        };
        self.groups.iter().map(choices).collect()
    }

    fn group(&mut self) {
        let mut groups: Vec<(BTreeSet<PeerId>, Vec<Endpoint>)> = Vec::new();
        for (endpoint, known) in &self.known {
            let ids = || known.backbone.iter().copied().chain(endpoint.pin());
            match groups.iter_mut().find(|(theirs, _)| ids().any(|id| theirs.contains(&id))) {
                Some((theirs, members)) => {
                    theirs.extend(ids());
                    members.push(endpoint.clone());
                }
                None => groups.push((ids().collect(), vec![endpoint.clone()])),
            }
        }
        self.groups = groups.into_iter().map(|(_, members)| members).collect();
    }
}

impl Known {
    fn new(endpoint: Endpoint, configured: bool, asked: bool) -> Self {
        Self {
            status: RendezvousStatus {
                endpoint,
                record: None,
                configured,
                latency: None,
                error: None,
                lies: 0,
            },
            backbone: BTreeSet::new(),
            latency: Latency::default(),
            sessions: 0,
            listed_at: None,
            failed_at: None,
            overtaken_at: None,
            lied_at: None,
            asking: false,
            asked,
        }
    }

    fn failed_lately(&self, now: Instant) -> bool {
        is_within(self.failed_at, DOUBT, now)
    }

    fn lied_lately(&self, now: Instant) -> bool {
        is_within(self.lied_at, MISTRUST, now)
    }

    fn is_doubtful(&self, now: Instant) -> bool {
        self.failed_lately(now) || self.lied_lately(now) || is_within(self.overtaken_at, DOUBT, now)
    }

    fn is_due(&self, now: Instant) -> bool {
        let is_young = is_within(self.listed_at, LIST_AGE, now);
        self.asked && !self.asking && !self.failed_lately(now) && !is_young
    }

    fn choice(&self, now: Instant) -> Choice {
        let endpoint = self.status.endpoint.clone();
        Choice { endpoint, patience: self.latency.patience(), doubtful: self.is_doubtful(now) }
    }
}

/// Whether something happened, and not longer ago than that.
fn is_within(at: Option<Instant>, most: Duration, now: Instant) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) < most)
}

#[cfg(test)]
mod tests {
    use p2psb_proto::model::{Address, AddressKind, Genesis, SecretKey, Transport, UnixMillis};

    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        format!("http://127.0.0.1:{port}").parse().unwrap()
    }

    fn record(n: u8) -> Signed<PeerRecord> {
        let addr = ([127, 0, 0, 1], u16::from(n)).into();
        let record = PeerRecord {
            network: Genesis::open("test").unwrap().network_id(),
            seq: 1,
            issued: UnixMillis(1),
            expires: UnixMillis(2),
            addresses: vec![Address::ip(addr, Transport::Plaintext, AddressKind::Listen)],
            services: Vec::new(),
            homes: Vec::new(),
            endorsements: Vec::new(),
        };
        Signed::sign(&record, &SecretKey::from_seed(&[n; 32])).unwrap()
    }

    fn order(table: &Table, now: Instant) -> Vec<Vec<u16>> {
        let ports = |group: Vec<Choice>| group.iter().map(|choice| choice.endpoint.port()).collect();
        table.choices(now).into_iter().map(ports).collect()
    }

    #[test]
    fn those_that_list_one_another_are_one_backbone() {
        let (mut table, t) = (Table::new(&[endpoint(1), endpoint(2), endpoint(9)]), Instant::now());
        assert_eq!(order(&table, t).len(), 3, "nothing is known yet");
        table.list(&endpoint(1), &[record(1), record(2), record(3)], t);
        table.list(&endpoint(2), &[record(2), record(1)], t);
        table.list(&endpoint(9), &[record(9)], t);
        let mut groups = order(&table, t);
        groups.iter_mut().for_each(|group| group.sort_unstable());
        groups.sort();
        assert_eq!(groups, [vec![1, 2, 3], vec![9]], "the learnt one that is configured is there once");
    }

    #[test]
    fn one_that_no_configuration_names_is_asked_once_and_belongs_where_it_is_listed() {
        let (mut table, t) = (Table::new(&[endpoint(1)]), Instant::now());
        let own = endpoint(7).pinned(record(7).peer_id());
        table.ask_also(&own);
        table.ask_also(&endpoint(8).pinned(record(7).peer_id()));
        assert_eq!(order(&table, t).len(), 2);
        assert_eq!(table.due(t).len(), 2);
        assert_eq!(table.statuses().iter().filter(|status| status.configured).count(), 1);
        table.list(&own, &[record(7), record(1)], t);
        table.list(&endpoint(1), &[record(1)], t);
        assert_eq!(order(&table, t).len(), 1);
    }

    #[test]
    fn the_quickest_is_asked_first_and_who_failed_or_was_overtaken_last() {
        let (mut table, t) = (Table::new(&[endpoint(1)]), Instant::now());
        table.list(&endpoint(1), &[record(1), record(2), record(3)], t);
        let at = |n: u8| if n == 1 { endpoint(1) } else { endpoint(n.into()).pinned(record(n).peer_id()) };
        for (n, ms) in [(1, 5), (2, 3), (3, 9)] {
            table.answered(&at(n), Duration::from_millis(ms));
        }
        assert_eq!(order(&table, t), [[2, 1, 3]]);
        table.overtaken(&at(2), Duration::from_millis(1), t);
        assert_eq!(order(&table, t), [[2, 1, 3]], "its time was not over");
        table.overtaken(&at(2), Duration::from_secs(1), t);
        assert_eq!(order(&table, t), [[1, 3, 2]]);
        table.failed(&at(1), "it is gone", t);
        assert_eq!(order(&table, t), [[3, 2, 1]]);
        table.answered(&at(1), Duration::from_millis(5));
        assert_eq!(order(&table, t), [[1, 3, 2]]);
        assert_eq!(order(&table, t + DOUBT), [[2, 1, 3]], "it has another chance");
    }

    #[test]
    fn who_lied_is_asked_last_for_long_whatever_it_says_since() {
        let (mut table, t) = (Table::new(&[endpoint(1)]), Instant::now());
        table.list(&endpoint(1), &[record(1), record(2)], t);
        let liar = endpoint(2).pinned(record(2).peer_id());
        table.answered(&endpoint(1), Duration::from_millis(9));
        table.answered(&liar, Duration::from_millis(1));
        table.lied(&liar, "a forged record", t);
        table.lied(&liar, "another one", t);
        table.answered(&liar, Duration::from_millis(1));
        table.failed(&endpoint(1), "it is gone", t);
        assert_eq!(order(&table, t), [[1, 2]]);
        assert_eq!(order(&table, t + MISTRUST), [[2, 1]]);
        assert_eq!(table.statuses().iter().map(|status| status.lies).max(), Some(2));
    }

    #[test]
    fn of_many_that_were_learnt_only_some_are_asked_what_they_list() {
        let (mut table, t) = (Table::new(&[endpoint(1)]), Instant::now());
        assert_eq!(table.due(t).len(), 1);
        assert!(table.due(t).is_empty(), "it is being asked");
        let all: Vec<_> = (1..=40).map(record).collect();
        table.list(&endpoint(1), &all, t);
        assert_eq!((table.due(t).len(), order(&table, t)[0].len()), (MAX_ASKED, 40));
    }
}
