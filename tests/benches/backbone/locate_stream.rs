//! `LocateStream` for peers at random, beside a bare bidirectional stream.

use p2psb_e2e::Result;
use p2psb_e2e::trouble::Context as _;
use p2psb_proto::wire::rendezvous::v1::locate_stream_response::Result as Item;
use p2psb_proto::wire::rendezvous::v1::{LocateRequest, LocateResponse, LocateStreamResponse};
use prost::Message as _;

use super::locate::LOCATE;
use super::stage::Stage;
use crate::floor::Floor;
use crate::load::{CONNECTIONS, Spent, connect, measured_streams};
use crate::report::{Bar, Better, Report, Row};
use crate::sample::Sample;

const LOCATE_STREAM: &str = "/p2psb.rendezvous.v1.RendezvousService/LocateStream";

const OF_FLOOR: f64 = 0.85;

pub(super) async fn measure(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    let (machine, span, rounds) = (stage.machine, stage.size.span, stage.size.rounds);
    let populated = stage.populated(report).await?;
    let (pid, ids) = (populated.rendezvous.pid()?, populated.registrar.ids());
    let some = ids.first().context("nobody is registered")?;
    let wire = populated.wires.first_mut().context("no connection")?;
    let located: LocateResponse = wire.call(LOCATE, &LocateRequest { peer_id: some.to_vec().into() }).await?;
    let item = Item::Peer(located.peer.context("an answer without a peer")?);
    let answer = LocateStreamResponse { number: 0, result: Some(item) }.encoded_len();
    let ask = |request: &mut Vec<u8>| {
        let id = ids.get(fastrand::usize(..ids.len())).unwrap_or(some);
        // Field 2, bytes, 33 of them. The number is 0: answers need not be told apart here.
        request.extend_from_slice(&[0x12, 33]);
        request.extend_from_slice(id);
    };

    let floor = Floor::start(machine, answer, &[]).await?;
    let mut to_floor = connect(&floor.target, CONNECTIONS).await?;
    let (mut product, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        product.push(measured_streams(pid, &mut populated.wires, LOCATE_STREAM, span, ask).await?);
        floors.push(measured_streams(floor.pid(), &mut to_floor, LOCATE_STREAM, span, ask).await?);
    }

    let cpu = |spent: &[Spent]| Sample::of(spent.iter().map(Spent::cpu_per_call).collect());
    let rate = |spent: &[Spent]| Sample::of(spent.iter().map(Spent::rate).collect());
    report.row(&Row {
        name: "locate stream: server CPU per answer",
        unit: "µs",
        better: Better::Less,
        value: cpu(&product),
        bar: Bar::OfFloor(OF_FLOOR, cpu(&floors)),
    });
    report.row(&Row {
        name: "locate stream: answers a second",
        unit: "1/s",
        better: Better::More,
        value: rate(&product),
        bar: Bar::OfFloor(OF_FLOOR, rate(&floors)),
    });
    Ok(())
}
