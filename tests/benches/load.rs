//! Load in a closed loop: so many connections, so many calls in flight on each, the next call when one is answered.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures::future::{pending, try_join_all};
use p2psb_e2e::trouble::{Result, Trouble};

use crate::machine::cpu_time;
use crate::wire::{Heard, Target, Wire};

/// Connections, and calls in flight on each, wherever a bar does not say otherwise.
pub(crate) const CONNECTIONS: usize = 8;
pub(crate) const IN_FLIGHT: usize = 8;

/// Who makes calls on one connection.
pub(crate) trait Caller {
    /// The next call: writes the encoded request, gives the path and a number to know the answer by. `None` if there is
    /// nothing to call; asked again when an answer came.
    fn next(&mut self, request: &mut Vec<u8>) -> Option<(&'static str, u64)>;

    /// A call was answered, or refused.
    fn answered(&mut self, number: u64, answer: Option<&[u8]>) -> Result<()>;
}

/// Connects several times.
pub(crate) async fn connect(target: &Target, count: usize) -> Result<Vec<Wire>> {
    try_join_all((0..count).map(|_| Wire::connect(target, None))).await
}

struct Waiting {
    stream: u32,
    number: u64,
    is_answered: bool,
}

/// Calls on one connection until there is nothing more to call and everything is answered.
pub(crate) async fn drive(wire: &mut Wire, caller: &mut impl Caller, in_flight: usize) -> Result<()> {
    let (mut waiting, mut request) = (Vec::<Waiting>::with_capacity(in_flight), Vec::new());
    loop {
        while waiting.len() < in_flight {
            request.clear();
            let Some((path, number)) = caller.next(&mut request) else { break };
            let stream = wire.open(path);
            wire.say(stream, &request, true);
            waiting.push(Waiting { stream, number, is_answered: false });
        }
        wire.flush().await?;
        if waiting.is_empty() {
            return Ok(());
        }
        let mut answered = Ok(());
        wire.hear(|heard| {
            let told = match heard {
                Heard::Message(stream, message) => {
                    let call = waiting.iter_mut().find(|call| call.stream == stream);
                    call.map_or(Ok(()), |call| {
                        call.is_answered = true;
                        caller.answered(call.number, Some(message))
                    })
                }
                Heard::End(stream) => {
                    let place = waiting.iter().position(|call| call.stream == stream);
                    let call = place.map(|place| waiting.swap_remove(place));
                    let refused = call.filter(|call| !call.is_answered);
                    refused.map_or(Ok(()), |call| caller.answered(call.number, None))
                }
            };
            if answered.is_ok() {
                answered = told;
            }
        })
        .await?;
        answered?;
    }
}

/// What a span of load has cost the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) calls: u64,
    wall: Duration,
    cpu: Duration,
}

impl Spent {
    /// Microseconds of the server's core for each call.
    pub(crate) fn cpu_per_call(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.calls.max(1) as f64
    }

    /// Calls a second.
    pub(crate) fn rate(&self) -> f64 {
        self.calls as f64 / self.wall.as_secs_f64()
    }
}

/// A measurement of the time until it is ended.
pub(crate) struct Meter {
    pid: u32,
    begin: Instant,
    cpu: Duration,
}

impl Meter {
    pub(crate) fn start(pid: u32) -> Result<Self> {
        Ok(Self { pid, cpu: cpu_time(pid)?, begin: Instant::now() })
    }

    pub(crate) fn end(self, calls: u64) -> Result<Spent> {
        let (wall, cpu) = (self.begin.elapsed(), cpu_time(self.pid)?.saturating_sub(self.cpu));
        Ok(Spent { calls, wall, cpu })
    }
}

/// How long a load runs before it is measured, and while it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) warm: Duration,
    pub(crate) measured: Duration,
}

/// The same call again and again, with the requests that `make` gives it.
struct Repeated<'a, M> {
    path: &'static str,
    make: M,
    done: &'a Cell<u64>,
    stop: &'a Cell<bool>,
}

impl<M: FnMut(&mut Vec<u8>)> Caller for Repeated<'_, M> {
    fn next(&mut self, request: &mut Vec<u8>) -> Option<(&'static str, u64)> {
        if self.stop.get() {
            return None;
        }
        (self.make)(request);
        Some((self.path, 0))
    }

    fn answered(&mut self, _: u64, answer: Option<&[u8]>) -> Result<()> {
        // What is refused costs another time than what is answered: the measurement would be worthless.
        answer.ok_or_else(|| Trouble::new(format!("a call of {} was refused", self.path)))?;
        self.done.set(self.done.get() + 1);
        Ok(())
    }
}

/// Calls `path` on all connections for a span of time; `make` writes a request.
pub(crate) async fn measured(
    pid: u32,
    wires: &mut [Wire],
    path: &'static str,
    span: Span,
    make: impl FnMut(&mut Vec<u8>) + Clone,
) -> Result<Spent> {
    let (done, stop) = (Cell::new(0), Cell::new(false));
    let calls = try_join_all(wires.iter_mut().map(|wire| {
        let mut caller = Repeated { path, make: make.clone(), done: &done, stop: &stop };
        async move { drive(wire, &mut caller, IN_FLIGHT).await }
    }));
    let (spent, _) = futures::try_join!(watch(pid, span, (&done, &stop)), calls)?;
    Ok(spent)
}

/// A stream of many questions and answers, one on each connection, with as many questions in flight as of calls.
pub(crate) async fn measured_streams(
    pid: u32,
    wires: &mut [Wire],
    path: &'static str,
    span: Span,
    make: impl FnMut(&mut Vec<u8>) + Clone,
) -> Result<Spent> {
    let (done, stop) = (Cell::new(0), Cell::new(false));
    let streams =
        try_join_all(wires.iter_mut().map(|wire| converse(wire, path, make.clone(), (&done, &stop))));
    let (spent, _) = futures::try_join!(watch(pid, span, (&done, &stop)), streams)?;
    Ok(spent)
}

/// How an answer begins that is an error of its item, if its number is 0 and so left out: field 3, bytes.
const ITEM_ERROR: u8 = 0x1a;

async fn converse(
    wire: &mut Wire,
    path: &str,
    mut make: impl FnMut(&mut Vec<u8>),
    (done, stop): (&Cell<u64>, &Cell<bool>),
) -> Result<()> {
    let stream = wire.open(path);
    let (mut in_flight, mut request, mut is_over, mut refused) = (0, Vec::new(), false, false);
    while !is_over {
        while in_flight < IN_FLIGHT && !stop.get() {
            request.clear();
            make(&mut request);
            wire.say(stream, &request, false);
            in_flight += 1;
        }
        if in_flight == 0 {
            wire.finish(stream);
        }
        wire.flush().await?;
        wire.hear(|heard| match heard {
            Heard::Message(_, answer) => {
                in_flight = in_flight.saturating_sub(1);
                refused |= answer.first() == Some(&ITEM_ERROR);
                done.set(done.get() + 1);
            }
            Heard::End(_) => is_over = true,
        })
        .await?;
        if refused || is_over && in_flight > 0 {
            return Err(Trouble::new(format!("a question of {path} was refused")));
        }
    }
    wire.flush().await
}

/// Measures a span of a load that counts what is `done`, then has it `stop`.
async fn watch(pid: u32, span: Span, (done, stop): (&Cell<u64>, &Cell<bool>)) -> Result<Spent> {
    pass(span.warm).await;
    let (meter, before) = (Meter::start(pid)?, done.get());
    pass(span.measured).await;
    let spent = meter.end(done.get() - before);
    stop.set(true);
    spent
}

/// Lets a span of a measurement pass.
async fn pass(span: Duration) {
    // It never comes, so the time runs out.
    let _ = tokio::time::timeout(span, pending::<()>()).await;
}
