//! Fetching from one host: requests are pipelined up to a window of bytes, what arrives goes to the worker.
//!
//! Invariant: every chunk that was asked for is in `asked` until the worker has handled it or it was given up; what is in `asked` when
//! a host is left is told to the worker as lost, so nothing is waited for twice or never.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::{Digest, limits};

use super::worker::{Answer, Broken, Order, Worker};
use crate::content::fetch::{Next, Want};
use crate::core::outgoing::{Ended, Want as Asked};
use crate::exchange::{Event, Link, LinkError};
use crate::failure::internal;

/// Bytes that may be on their way.
const WINDOW: u64 = 8 << 20;
/// More is asked for as soon as this much of the window is free.
const REFILL: u64 = WINDOW / 4;
/// Bytes of one request: small enough that several are on their way.
const REQUEST_BYTES: u64 = 1 << 20;
/// A host that owes an answer and sends nothing for this long is left.
const STALL: Duration = Duration::from_secs(30);

/// How fetching from a host ended.
#[derive(Debug)]
pub enum Outcome {
    /// Everything is in place.
    Complete,
    /// The host can't go on, or has no more of it.
    Left(Failure),
    /// The host sent wrong bytes.
    Lied(Digest),
}

/// Fetches from the host at the other end of `link` until everything is there or the host is of no more use. An error is one of the
/// disk or of the manifest, not of the host.
pub async fn run(
    worker: &mut Worker,
    link: &mut Link,
    manifest: Digest,
    delivered: &mut u64,
) -> Result<Outcome, Broken> {
    let mut transfer = Transfer::new(manifest);
    let mut outcome = transfer.run(worker, link, delivered).await?;
    let mut rest = Vec::new();
    // What is on its way to the worker is answered first, and counts: more may be wanted, and the last chunks may have been lies.
    while worker.pending() > 0 {
        match worker.answer().await? {
            Answer::Next(Next::Want(list)) => rest.extend(list.into_iter().map(|want| want.digest)),
            Answer::Delivered { digests, corrupt } => {
                digests.iter().for_each(|digest| transfer.forget(digest));
                rest.extend(corrupt.iter().copied());
                if let Some(digest) = corrupt.first() {
                    outcome = Outcome::Lied(*digest);
                }
            }
            Answer::Next(_) | Answer::Noted | Answer::Finished(_) => {}
        }
    }
    rest.extend(transfer.asked.into_keys());
    if !rest.is_empty() {
        worker.ask(Order::Lost(rest)).await?;
    }
    Ok(outcome)
}

struct Transfer {
    manifest: Digest,
    /// What is on its way, with the room it takes.
    asked: HashMap<Digest, u64>,
    bytes: u64,
    /// Requests that wait until fewer are open.
    queue: VecDeque<Vec<Asked>>,
    /// Open requests.
    open: usize,
    /// The worker was asked what is wanted.
    wanting: bool,
    /// Nothing is wanted before something arrives.
    idle: bool,
    /// No more is asked of this host.
    leaving: Option<Failure>,
}

impl Transfer {
    fn new(manifest: Digest) -> Self {
        let (asked, queue) = (HashMap::new(), VecDeque::new());
        Self { manifest, asked, bytes: 0, queue, open: 0, wanting: false, idle: false, leaving: None }
    }

    async fn run(
        &mut self,
        worker: &mut Worker,
        link: &mut Link,
        delivered: &mut u64,
    ) -> Result<Outcome, Broken> {
        loop {
            if let Err(error) = self.flush(link).await {
                return Ok(left(error));
            }
            if self.may_want() && worker.has_room() {
                worker.order(Order::Next(WINDOW - self.bytes)).await?;
                self.wanting = true;
            }
            if worker.pending() == 0 && self.open == 0 {
                let nothing_moves = || internal("the fetch waits for what nobody was asked for");
                return Ok(Outcome::Left(self.leaving.take().unwrap_or_else(nothing_moves)));
            }
            tokio::select! {
                answer = worker.answer(), if worker.pending() > 0 => {
                    if let Some(outcome) = self.on_answer(answer?, delivered) {
                        return Ok(outcome);
                    }
                }
                event = tokio::time::timeout(STALL, link.next()), if worker.has_room() && self.open > 0 => match event {
                    Ok(Ok(Event::Chunks(arrived))) => worker.order(Order::Deliver(arrived)).await?,
                    Ok(Ok(Event::Ended(ended))) => {
                        let lost = self.on_ended(ended);
                        if !lost.is_empty() {
                            worker.order(Order::Lost(lost)).await?;
                        }
                    }
                    Ok(Err(error)) => return Ok(left(error)),
                    Err(_) => {
                        let problem = format!("the host sent nothing for {} s", STALL.as_secs());
                        return Ok(Outcome::Left(Failure::new(Reason::Unreachable, problem)));
                    }
                },
            }
        }
    }

    fn may_want(&self) -> bool {
        !self.wanting
            && !self.idle
            && self.leaving.is_none()
            && self.bytes <= WINDOW - REFILL
            && self.queue.is_empty()
    }

    fn on_answer(&mut self, answer: Answer, delivered: &mut u64) -> Option<Outcome> {
        match answer {
            Answer::Next(next) => {
                self.wanting = false;
                match next {
                    Next::Want(list) => self.ask(list),
                    Next::Busy => {}
                    Next::Wait => self.idle = true,
                    Next::Ready => return Some(Outcome::Complete),
                }
            }
            Answer::Delivered { digests, corrupt } => {
                self.idle = false;
                *delivered += (digests.len() - corrupt.len().min(digests.len())) as u64;
                digests.iter().for_each(|digest| self.forget(digest));
                if let Some(digest) = corrupt.first() {
                    return Some(Outcome::Lied(*digest));
                }
            }
            Answer::Noted | Answer::Finished(_) => self.idle = false,
        }
        None
    }

    /// Makes requests of what is wanted: several, so that answers of one arrive while the next is read.
    fn ask(&mut self, list: Vec<Want>) {
        let mut request = Vec::new();
        let mut bytes = 0;
        for want in list {
            // The root's size is not known before it is read.
            let max_bytes = want.size.unwrap_or(limits::MANIFEST_ROOT_BYTES as u32);
            let room = u64::from(max_bytes);
            if request.len() >= limits::REQUEST_DIGESTS
                || (bytes + room > REQUEST_BYTES && !request.is_empty())
            {
                self.queue.push_back(std::mem::take(&mut request));
                bytes = 0;
            }
            if self.asked.insert(want.digest, room).is_none() {
                self.bytes += room;
                request.push(Asked { digest: want.digest, max_bytes });
                bytes += room;
            }
        }
        if !request.is_empty() {
            self.queue.push_back(request);
        }
    }

    /// Sends requests, never more than the other end must take.
    async fn flush(&mut self, link: &mut Link) -> Result<(), LinkError> {
        while self.open < limits::OPEN_REQUESTS {
            let Some(request) = self.queue.pop_front() else { break };
            link.ask(self.manifest, request).await?;
            self.open += 1;
        }
        Ok(())
    }

    /// A request ended: what did not come is lost here. A host that lacks something is left once it has sent the rest.
    fn on_ended(&mut self, ended: Ended) -> Vec<Digest> {
        self.open = self.open.saturating_sub(1);
        let lost: Vec<Digest> = ended.missing.iter().map(|want| want.digest).collect();
        lost.iter().for_each(|digest| self.forget(digest));
        if let Some(refusal) = ended.refusal {
            let reason = refusal.reason.unwrap_or(Reason::Unreachable);
            self.leaving = Some(Failure::new(reason, format!("the host refused: {}", refusal.detail)));
            self.queue.clear();
        } else if !lost.is_empty() && self.leaving.is_none() {
            self.queue.clear();
            let problem = format!("the host lacks {} chunks", lost.len());
            self.leaving = Some(Failure::new(Reason::NoHosts, problem));
        }
        lost
    }

    fn forget(&mut self, digest: &Digest) {
        if let Some(room) = self.asked.remove(digest) {
            self.bytes = self.bytes.saturating_sub(room);
        }
    }
}

fn left(error: LinkError) -> Outcome {
    Outcome::Left(error.into())
}
