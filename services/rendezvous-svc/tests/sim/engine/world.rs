//! The world: members, peers, the network, and time.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use p2psb_proto::model::{PeerId, UnixMillis};
use p2psb_rendezvous_svc::core::delivery::Arrived;
use p2psb_rendezvous_svc::core::placement::{OWNERS, Operator};
use p2psb_rendezvous_svc::core::ring::{Claim, Timing};
use p2psb_rendezvous_svc::core::telling::Origin;

use super::ids::{ById, Ids, cheap};
use super::member::{End, Member, SILENCE};
use super::net::{Batch, Event, Message, Millis, Net, Packet, Queue, Water};
use super::peers::Peer;
use super::report::Report;
use super::store::Store;

/// The wall at the start.
pub(crate) const T0: UnixMillis = UnixMillis(1_800_000_000_000);
/// Entries of a batch.
const BATCH: usize = 256;
/// How often members make their marks.
const MARK: Millis = 5_000;

/// What a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) members: usize,
    /// How many operators run them, in turn.
    pub(crate) operators: usize,
    pub(crate) peers: u32,
    /// Sessions that each peer keeps.
    pub(crate) homes: usize,
    /// Between two members, in milliseconds, there.
    pub(crate) latency: (u64, u64),
    pub(crate) water: Water,
    /// How far clocks are off, either way.
    pub(crate) skew: Duration,
    /// Questions in a second.
    pub(crate) asks: u64,
    /// Peers that change in a second.
    pub(crate) changes: u64,
    /// Whether homes tell who is online.
    pub(crate) presence: bool,
    /// How often a member looks at the time.
    pub(crate) tick: Millis,
    /// Entries of a table that are walked over at a tick.
    pub(crate) walk: usize,
    pub(crate) timing: Timing,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 1,
            members: 12,
            operators: 4,
            peers: 400,
            homes: 1,
            latency: (5, 40),
            water: Water::default(),
            skew: Duration::from_secs(120),
            asks: 20,
            changes: 2,
            presence: true,
            tick: 100,
            walk: 2000,
            timing: Timing::default(),
        }
    }
}

/// The numbers of a peer's owners.
pub(crate) type Few = [Option<u16>; OWNERS];
/// The owners of every peer, by the digest of the ring.
pub(crate) type Rings = HashMap<u64, Rc<[Few]>>;

/// See the module.
pub(crate) struct World<S: Store> {
    pub(crate) config: Config,
    pub(crate) rng: Rng,
    pub(crate) now: Millis,
    pub(crate) queue: Queue<S::Record>,
    pub(crate) members: Vec<Member<S>>,
    /// Their ids.
    pub(crate) names: Vec<PeerId>,
    pub(crate) numbers: ById<usize>,
    pub(crate) ids: Ids,
    pub(crate) peers: Vec<Peer>,
    /// Peers that live, for choosing one.
    pub(crate) living: Vec<u32>,
    pub(crate) net: Net,
    /// What came to a member that is paused.
    pub(crate) stalled: BTreeMap<usize, Vec<Packet<S::Record>>>,
    pub(crate) report: Report,
    pub(crate) next_question: u64,
    /// Since when each peer has been with no owner.
    pub(crate) absent: BTreeMap<u32, Millis>,
    /// Whom members watch, and what they saw last.
    pub(crate) watches: BTreeMap<(usize, u32), bool>,
    /// The owners of every peer in the rings that were looked at last.
    pub(crate) rings: Rings,
    start: Instant,
}

impl<S: Store> World<S> {
    /// Members that have just started, each knowing one other.
    pub(crate) fn new(config: Config) -> Self {
        let start = Instant::now();
        let mut rng = Rng::with_seed(config.seed);
        let names: Vec<PeerId> =
            (0..config.members).map(|n| cheap(2, n as u64 + config.seed * 1000)).collect();
        let operator =
            |n: usize| Operator::of(&names[n], Some(&format!("operator {}", n % config.operators)));
        let skew = i64::try_from(config.skew.as_millis()).unwrap();
        let members: Vec<Member<S>> = (0..config.members)
            .map(|n| {
                let mut member = Member::new(n, names[n], operator(n), config.timing, start);
                member.skew = rng.i64(-skew..=skew);
                member
            })
            .collect();
        let mut world = Self {
            numbers: names.iter().copied().zip(0..).collect(),
            ids: Ids::new(config.peers, S::SIGNED),
            rng,
            now: 0,
            queue: Queue::new(),
            members,
            names,
            peers: Vec::new(),
            living: Vec::new(),
            net: Net::default(),
            stalled: BTreeMap::new(),
            report: Report::default(),
            next_question: 0,
            absent: BTreeMap::new(),
            watches: BTreeMap::new(),
            rings: HashMap::new(),
            start,
            config,
        };
        for member in 0..world.members.len() {
            world.start(member);
        }
        world
    }

    /// The moment on the clock of deadlines.
    pub(crate) fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    /// The moment on a wall that is right.
    pub(crate) fn truth(&self) -> UnixMillis {
        UnixMillis(T0.0 + self.now)
    }

    /// Ends the run: something is wrong.
    #[track_caller]
    pub(crate) fn fail(&self, what: &str) -> ! {
        panic!("at {} ms, with {:?}: {what}", self.now, self.config);
    }

    fn start(&mut self, member: usize) {
        let at = self.now + self.rng.u64(0..self.config.tick);
        let life = self.members[member].life;
        self.queue.put(at, Event::Tick { member, life });
        // It is configured with one or two others, the first member with none.
        for _ in 0..2 {
            let to = self.rng.usize(0..member.max(1));
            if to != member {
                self.dial_soon(member, to, 300);
            }
        }
        if member == 0 && self.now > 0 && self.members.len() > 1 {
            self.dial_soon(0, 1, 300);
        }
    }

    pub(crate) fn up(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|n| self.members[*n].is_up).collect()
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, for_millis: Millis) {
        let until = self.now + for_millis;
        while let Some((at, event)) = self.queue.next(until) {
            self.now = at;
            self.happen(event);
        }
        self.now = until;
    }

    fn happen(&mut self, event: Event<S::Record>) {
        match event {
            Event::Tick { member, life } => self.tick(member, life),
            Event::Arrive(packet) => self.arrive(*packet),
            Event::Dial { from, to } => self.dial(from, to),
            Event::Ended { at, from, link } => self.ended(at, from, link),
            Event::Refresh { peer, seq } => self.refresh(peer, seq),
            Event::Rehome { peer, lost } => self.rehome(peer, lost),
            Event::Ask => self.ask_somewhere(),
            Event::Poll { member, life, question } => {
                if self.members[member].life == life && self.members[member].is_up {
                    self.step(member, question);
                }
            }
            Event::Change => self.change_something(),
        }
    }

    fn tick(&mut self, member: usize, life: u64) {
        let now = self.instant();
        let one = &mut self.members[member];
        if !one.is_up || one.life != life || one.is_paused {
            return;
        }
        let digest = one.bridge.view().current().digest();
        one.tick(&self.ids, self.config.walk, now);
        self.report.changes += u64::from(digest != one.bridge.view().current().digest());
        self.look_at_links(member);
        self.send_all(member);
        self.queue.put(self.now + self.config.tick, Event::Tick { member, life });
    }

    fn look_at_links(&mut self, member: usize) {
        let (now, tick) = (self.now, self.config.tick);
        let due = |every: Millis| now / every != (now - tick.min(now)) / every;
        if due(1000) {
            let (silence, instant) = (SILENCE.as_millis() as u64, self.instant());
            let links = &self.members[member].links;
            let is_dead = |end: &&usize| {
                let end = &links[end];
                now - end.heard >= silence || end.arrived.has_lost(instant)
            };
            for other in links.keys().filter(is_dead).copied().collect::<Vec<_>>() {
                self.cut_link(member, other);
            }
        }
        let owed = if due(MARK) {
            self.members[member].links.keys().copied().collect()
        } else {
            std::mem::take(&mut self.members[member].owes)
        };
        for other in owed {
            self.mark(member, other);
        }
    }

    /// One end gives up a link; the other hears of it if it can be reached.
    fn cut_link(&mut self, member: usize, other: usize) {
        let Some(end) = self.members[member].links.get(&other) else { return };
        let link = end.link;
        let at = self.now + self.latency();
        self.queue.put(at, Event::Ended { at: other, from: member, link });
        self.ended(member, other, link);
    }

    fn mark(&mut self, member: usize, other: usize) {
        let one = &mut self.members[member];
        one.owes.remove(&other);
        let Some(end) = one.links.get_mut(&other) else { return };
        let received = end.arrived.acknowledge();
        let sessions = one.sessions.len() as u64;
        let mark = one.bridge.mark(&self.names[other], received, sessions);
        self.send(member, other, Message::Mark(mark));
    }

    /// Sends all that waits.
    pub(crate) fn send_all(&mut self, member: usize) {
        let now = self.instant();
        let ready: Vec<PeerId> = self.members[member].bridge.ready().collect();
        for id in ready {
            let to = self.numbers[&id];
            while let Some((number, next)) = self.members[member].bridge.next(&id, BATCH) {
                let operators = |about: &PeerId| self.members[self.numbers[about]].operator;
                let batch = self.members[member].batch(&id, &next, &self.ids, operators, now);
                self.send(member, to, Message::Batch(number, batch));
            }
        }
    }

    pub(crate) fn latency(&mut self) -> u64 {
        let (least, most) = self.config.latency;
        self.rng.u64(least..=most)
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, message: Message<S::Record>) {
        let Some(end) = self.members[from].links.get(&to) else { return };
        let packet = Packet { from, to, link: end.link, message };
        self.report.messages += 1;
        let water = self.config.water;
        if !self.net.reach(from, to) || self.rng.u64(0..1000) < water.lost {
            return;
        }
        let mut at = self.now + self.latency();
        if self.rng.u64(0..1000) < water.late {
            at += self.rng.u64(0..500);
        }
        if self.rng.u64(0..1000) < water.repeated {
            let again = at + self.rng.u64(0..200);
            self.queue.put(again, Event::Arrive(Box::new(packet.clone())));
        }
        self.queue.put(at, Event::Arrive(Box::new(packet)));
    }

    fn arrive(&mut self, packet: Packet<S::Record>) {
        let Packet { from, to, link, .. } = packet;
        let (now, instant) = (self.now, self.instant());
        if self.members[to].is_paused {
            self.stalled.entry(to).or_default().push(packet);
            return;
        }
        let receiver = &mut self.members[to];
        let Some(end) = receiver.links.get_mut(&from).filter(|end| end.link == link) else { return };
        end.heard = now;
        match packet.message {
            Message::Batch(number, batch) => {
                let Ok(batches) = end.arrived.take(number, batch, instant) else {
                    self.cut_link(to, from);
                    return;
                };
                receiver.owes.insert(from);
                for batch in batches {
                    self.apply(from, to, batch);
                }
                if self.members[to].owes_much(from) {
                    self.mark(to, from);
                }
                // The server tells at once; only the walk waits for its time.
                self.send_all(to);
            }
            Message::Mark(mark) => {
                end.arrived.was_sent(mark.sent, instant);
                receiver.bridge.marked(self.names[from], &mark);
                self.send_all(to);
            }
            Message::Ask(question, about) => self.answer(to, from, question, about),
            Message::Answer(question, answer) => {
                if let Some(one) = receiver.questions.get_mut(&question) {
                    one.lookup.answered(&self.names[from], answer);
                    self.step(to, question);
                }
            }
        }
    }

    fn apply(&mut self, from: usize, to: usize, batch: Batch<S::Record>) {
        let (instant, truth) = (self.instant(), self.truth());
        let sender = self.names[from];
        if batch.tells_all {
            *self.members[to].tellings.entry(from).or_default() += 1;
        }
        for (word, operator) in &batch.words {
            let claim = Claim { operator: *operator, is_listed: false };
            self.members[to].bridge.word(&sender, word, Some(claim), instant);
            let about = self.numbers[&word.about];
            if about != to && !self.members[to].links.contains_key(&about) {
                self.dial_soon(to, about, 500);
            }
        }
        for record in &batch.records {
            let statement = S::statement(record);
            let wall = self.members[to].wall(truth);
            let before = self.members[to].store.newest(statement.peer).map(|known| S::statement(&known).seq);
            let is_news = self.members[to].store.put(record, wall);
            let after = self.members[to].store.newest(statement.peer).map(|known| S::statement(&known).seq);
            if after < before || after < Some(statement.seq) || is_news != (after != before) {
                self.fail("a stale record replaced a newer one");
            }
            self.report.records.0 += 1;
            if is_news {
                self.report.records.1 += 1;
                self.members[to].bridge.record(self.ids.id(statement.peer), &[], Origin::Member(sender));
            }
        }
        for (peer, said) in batch.presence {
            if let Some((home, said)) = said.filter(|(home, _)| *home != to)
                && self.members[to].hear(peer, home, said, Origin::Member(sender), &self.ids)
            {
                self.watched(to, peer);
            }
            self.members[to].bridge.answered(&sender, &self.ids.id(peer));
        }
        for (peer, wanted) in batch.interest {
            let taken = self.members[to].bridge.subscribed(sender, self.ids.id(peer), wanted);
            taken.expect("few watch few");
        }
        if let Some(knowledge) = batch.told_all {
            self.members[to].bridge.told_all(sender, knowledge, instant);
            self.members[to].told_all(from, sender, &self.ids);
        }
    }

    /// Dials within so many milliseconds, unless it does already.
    pub(crate) fn dial_soon(&mut self, from: usize, to: usize, within: Millis) {
        if self.members[from].dialing.insert(to) {
            let at = self.now + self.rng.u64(0..within) + 1;
            self.queue.put(at, Event::Dial { from, to });
        }
    }

    fn dial(&mut self, from: usize, to: usize) {
        if !self.members[from].dialing.remove(&to) || !self.members[from].is_up {
            return;
        }
        if self.members[from].links.contains_key(&to) {
            return;
        }
        let there = self.members[to].is_up && !self.members[to].is_paused && !self.members[from].is_paused;
        if !there || !self.net.reach(from, to) {
            self.dial_soon(from, to, 5000);
            return;
        }
        // The other end may not have noticed yet that the last link is dead.
        if let Some(old) = self.members[to].links.get(&from).map(|end| end.link) {
            self.ended(to, from, old);
        }
        self.net.next_link += 1;
        self.report.links += 1;
        let (link, now, instant) = (self.net.next_link, self.now, self.instant());
        let said = |one: &Member<S>| one.bridge.introduction(instant);
        let both = [(from, to, said(&self.members[to])), (to, from, said(&self.members[from]))];
        for (one, other, said) in both {
            let one = &mut self.members[one];
            one.links.insert(other, End { link, arrived: Arrived::default(), heard: now });
            one.bridge.linked(self.names[other], &said, instant);
        }
        for (one, other, _) in both {
            self.mark(one, other);
            self.send_all(one);
        }
    }

    pub(crate) fn ended(&mut self, at: usize, from: usize, link: u64) {
        let (now, instant) = (self.now, self.instant());
        let name = self.names[from];
        let one = &mut self.members[at];
        if !one.is_up || one.links.get(&from).is_none_or(|end| end.link != link) {
            return;
        }
        if one.is_paused {
            // It will notice when it goes on.
            self.queue.put(now + 1000, Event::Ended { at, from, link });
            return;
        }
        let end = one.links.remove(&from).expect("looked at above");
        let silent = Duration::from_millis(now - end.heard);
        one.bridge.unlinked(&name, silent, instant);
        one.owes.remove(&from);
        let asked: Vec<u64> = one.questions.keys().copied().collect();
        for question in asked {
            if let Some(open) = self.members[at].questions.get_mut(&question) {
                open.lookup.failed(&name);
                self.step(at, question);
            }
        }
        self.dial_soon(at, from, 2000);
    }

    /// A member dies. `quietly`: its machine does, and nobody hears the end of its links.
    pub(crate) fn kill(&mut self, member: usize, quietly: bool) {
        let (now, instant) = (self.now, self.instant());
        let links: Vec<(usize, u64)> =
            self.members[member].links.iter().map(|(other, end)| (*other, end.link)).collect();
        for (other, link) in links {
            if !quietly {
                let at = now + self.latency();
                self.queue.put(at, Event::Ended { at: other, from: member, link });
            }
        }
        let sessions = std::mem::take(&mut self.members[member].sessions);
        let timing = self.config.timing;
        let one = &mut self.members[member];
        one.restart(timing, instant);
        (one.is_up, one.down_since) = (false, now);
        self.stalled.remove(&member);
        self.watches.retain(|(watcher, _), _| *watcher != member);
        self.go_elsewhere(member, sessions);
    }

    /// A dead member starts again.
    pub(crate) fn revive(&mut self, member: usize) {
        let (timing, instant) = (self.config.timing, self.instant());
        self.members[member].restart(timing, instant);
        self.start(member);
    }

    /// As by SIGSTOP.
    pub(crate) fn pause(&mut self, member: usize) {
        self.members[member].is_paused = true;
    }

    /// As by SIGCONT: what came meanwhile is read now.
    pub(crate) fn resume(&mut self, member: usize) {
        self.members[member].is_paused = false;
        let life = self.members[member].life;
        self.queue.put(self.now + 1, Event::Tick { member, life });
        for packet in self.stalled.remove(&member).unwrap_or_default() {
            self.queue.put(self.now, Event::Arrive(Box::new(packet)));
        }
    }
}

impl<S: Store> Drop for World<S> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed was {}, at {} ms of {:?}", self.config.seed, self.now, self.config);
        }
    }
}
