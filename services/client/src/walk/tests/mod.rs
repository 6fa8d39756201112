//! The walk without a network: step by step, and simulated in whole communities, in virtual time.

mod simulation;
mod steps;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::answer::Word;
use super::budget::Budget;
use super::outcome::Outcome;
use super::{Action, Ask, Walk};

/// What one who is asked does: it says something after some time, once or more often, or nothing.
type Reply = Vec<(Duration, Word)>;

/// Drives a walk to its end. Returns what came out, and when.
fn drive(
    mut walk: Walk,
    start: Instant,
    budget: &mut Budget,
    mut reply: impl FnMut(&Ask, Instant) -> Reply,
) -> (Outcome, Instant) {
    let mut now = start;
    let (mut words, mut due) = (Vec::new(), BinaryHeap::new());
    loop {
        match walk.next(now, budget) {
            Action::Ask(ask) => {
                assert!(ask.deadline > now && now < walk.deadline && ask.deadline <= walk.deadline);
                for (after, word) in reply(&ask, now) {
                    due.push(Reverse((now + after, words.len())));
                    words.push((ask.id, word));
                }
            }
            Action::Wait(until) => {
                assert!(until > now, "it waits for nothing");
                match due.peek() {
                    Some(Reverse((at, nth))) if *at <= until => {
                        now = now.max(*at);
                        let (id, word) = words[*nth].clone();
                        due.pop();
                        walk.heard(id, word, now);
                    }
                    _ => now = until,
                }
            }
            Action::Done => return (walk.finish(now), now),
        }
    }
}
