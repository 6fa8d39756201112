//! What happens between members, and when: the queue of things to come, links, cuts and rough water.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use p2psb_rendezvous_svc::core::bridge::Mark;
use p2psb_rendezvous_svc::core::lookup::Answer;
use p2psb_rendezvous_svc::core::placement::Operator;
use p2psb_rendezvous_svc::core::ring::Word;

use super::member::Found;

/// Milliseconds since the run began.
pub(crate) type Millis = u64;

/// How one home sees a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Said {
    /// Which session; a later one counts.
    pub(crate) session: u64,
    /// What was said later of the same session counts.
    pub(crate) revision: u64,
    pub(crate) online: bool,
}

/// A batch on its way.
#[derive(Clone)]
pub(crate) struct Batch<R> {
    pub(crate) words: Vec<(Word, Operator)>,
    pub(crate) records: Vec<R>,
    /// Peer, home, what it says; no home if nothing is known.
    pub(crate) presence: Vec<(u32, Option<(usize, Said)>)>,
    pub(crate) interest: Vec<(u32, bool)>,
    pub(crate) tells_all: bool,
    /// How far back the knowledge of who told all reaches.
    pub(crate) told_all: Option<std::time::Duration>,
}

/// What is said on a link.
#[derive(Clone)]
pub(crate) enum Message<R> {
    Batch(u64, Batch<R>),
    Mark(Mark),
    Ask(u64, Option<u32>),
    Answer(u64, Answer<Found>),
}

/// A message on its way.
#[derive(Clone)]
pub(crate) struct Packet<R> {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Of which link.
    pub(crate) link: u64,
    pub(crate) message: Message<R>,
}

/// Something that will happen.
pub(crate) enum Event<R> {
    /// A member looks at the time.
    Tick {
        member: usize,
        life: u64,
    },
    /// In a box: what most entries of the queue hold is far smaller.
    Arrive(Box<Packet<R>>),
    Dial {
        from: usize,
        to: usize,
    },
    /// The end of a link is noticed.
    Ended {
        at: usize,
        from: usize,
        link: u64,
    },
    /// A peer signs its record anew.
    Refresh {
        peer: u32,
        seq: u64,
    },
    /// A peer looks for a home in place of one it lost.
    Rehome {
        peer: u32,
        lost: usize,
    },
    /// Somebody asks for somebody.
    Ask,
    /// A question may have to be put to the next owner.
    Poll {
        member: usize,
        life: u64,
        question: u64,
    },
    /// A peer comes, goes or moves.
    Change,
}

struct Entry<R> {
    at: Millis,
    order: u64,
    event: Event<R>,
}

impl<R> PartialEq for Entry<R> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl<R> Eq for Entry<R> {}

impl<R> PartialOrd for Entry<R> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for Entry<R> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What is to come, in the order of time, and of how it was put in.
pub(crate) struct Queue<R> {
    events: BinaryHeap<Reverse<Entry<R>>>,
    order: u64,
}

impl<R> Queue<R> {
    pub(crate) fn new() -> Self {
        Self { events: BinaryHeap::new(), order: 0 }
    }

    pub(crate) fn put(&mut self, at: Millis, event: Event<R>) {
        self.order += 1;
        self.events.push(Reverse(Entry { at, order: self.order, event }));
    }

    pub(crate) fn next(&mut self, until: Millis) -> Option<(Millis, Event<R>)> {
        if self.events.peek()?.0.at > until {
            return None;
        }
        self.events.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }
}

/// What the network does to messages, in thousandths of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Water {
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    /// Delayed by up to half a second more, so that others overtake them.
    pub(crate) late: u64,
}

/// Who can reach whom.
#[derive(Default)]
pub(crate) struct Net {
    /// Members of different sides do not reach each other.
    pub(crate) side: HashMap<usize, u8>,
    pub(crate) cut: HashSet<(usize, usize)>,
    pub(crate) next_link: u64,
}

impl Net {
    pub(crate) fn reach(&self, a: usize, b: usize) -> bool {
        let side = |member| self.side.get(&member).copied().unwrap_or_default();
        side(a) == side(b) && !self.cut.contains(&(a.min(b), a.max(b)))
    }
}
