//! `Locate` of peers at random, beside a bare server, and beside one as tonic is by itself.

use p2psb_e2e::Result;
use p2psb_e2e::trouble::Context as _;
use p2psb_proto::wire::rendezvous::v1::{LocateRequest, LocateResponse};
use prost::Message as _;

use super::stage::Stage;
use crate::floor::Floor;
use crate::load::{CONNECTIONS, Spent, connect, measured};
use crate::report::{Bar, Better, Report, Row};
use crate::sample::Sample;

pub(super) const LOCATE: &str = "/p2psb.rendezvous.v1.RendezvousService/Locate";

const OF_FLOOR: f64 = 0.90;
const OF_STOCK: f64 = 1.4;

pub(super) async fn measure(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    let (machine, span, rounds) = (stage.machine, stage.size.span, stage.size.rounds);
    let populated = stage.populated(report).await?;
    let (pid, ids) = (populated.rendezvous.pid()?, populated.registrar.ids());
    let some = ids.first().context("nobody is registered")?;
    let wire = populated.wires.first_mut().context("no connection")?;
    let request = LocateRequest { peer_id: some.to_vec().into() };
    let answer: LocateResponse = wire.call(LOCATE, &request).await?;
    let answer = answer.encoded_len();
    let ask = |request: &mut Vec<u8>| {
        let id = ids.get(fastrand::usize(..ids.len())).unwrap_or(some);
        // Field 1, bytes, 33 of them.
        request.extend_from_slice(&[0x0a, 33]);
        request.extend_from_slice(id);
    };

    let floor = Floor::start(machine, answer, &[]).await?;
    let stock = Floor::start(machine, answer, &["--stock"]).await?;
    let mut to_floor = connect(&floor.target, CONNECTIONS).await?;
    let mut to_stock = connect(&stock.target, CONNECTIONS).await?;
    let (mut product, mut floors, mut stocks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        product.push(measured(pid, &mut populated.wires, LOCATE, span, ask).await?);
        floors.push(measured(floor.pid(), &mut to_floor, LOCATE, span, ask).await?);
        stocks.push(measured(stock.pid(), &mut to_stock, LOCATE, span, ask).await?);
    }

    let cpu = |spent: &[Spent]| Sample::of(spent.iter().map(Spent::cpu_per_call).collect());
    let rate = |spent: &[Spent]| Sample::of(spent.iter().map(Spent::rate).collect());
    for (name, bar) in [
        ("locate: server CPU per call", Bar::OfFloor(OF_FLOOR, cpu(&floors))),
        ("locate: the same, beside stock tonic", Bar::OfFloor(OF_STOCK, cpu(&stocks))),
    ] {
        report.row(&Row { name, unit: "µs", better: Better::Less, value: cpu(&product), bar });
    }
    for (name, bar) in [
        ("locate: calls a second", Bar::OfFloor(OF_FLOOR, rate(&floors))),
        ("locate: calls, beside stock tonic", Bar::OfFloor(OF_STOCK, rate(&stocks))),
    ] {
        report.row(&Row { name, unit: "calls/s", better: Better::More, value: rate(&product), bar });
    }
    Ok(())
}
