//! `Register` with a signed record and the challenge in hand, beside a bare server that verifies two signatures and answers.

use p2psb_e2e::Result;

use super::stage::{REGISTER, Stage, drive_all};
use crate::floor::{Flat, Floor};
use crate::load::{CONNECTIONS, Meter, Spent, connect, measured};
use crate::report::{Bar, Better, Report, Row};
use crate::sample::Sample;

use prost::Message as _;

const OF_FLOOR: f64 = 0.80;

pub(super) async fn measure(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    let (machine, span) = (stage.machine, stage.size.span);
    let (rounds, count) = (stage.size.rounds, stage.size.registrations);
    let populated = stage.populated(report).await?;
    let pid = populated.rendezvous.pid()?;
    let (request, answer) = populated.registrar.sizes();
    let floor = Floor::start(machine, answer, &["--verify"]).await?;
    let mut to_floor = connect(&floor.target, CONNECTIONS).await?;
    let same = Flat::sized(request).encode_to_vec();

    let (mut product, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // First the challenges; the meter runs only while what was signed is registered.
        let mut calls = populated.registrar.calls(count, CONNECTIONS);
        calls.iter_mut().for_each(|calls| calls.hold = true);
        let mut calls = drive_all(&mut populated.wires, calls).await?;
        calls.iter_mut().for_each(|calls| calls.hold = false);
        let meter = Meter::start(pid)?;
        drive_all(&mut populated.wires, calls).await?;
        product.push(meter.end(count)?);
        let ask = |request: &mut Vec<u8>| request.extend_from_slice(&same);
        floors.push(measured(floor.pid(), &mut to_floor, REGISTER, span, ask).await?);
    }

    let cpu = |spent: &[Spent]| Sample::of(spent.iter().map(Spent::cpu_per_call).collect());
    report.row(&Row {
        name: "register: server CPU per call",
        unit: "µs",
        better: Better::Less,
        value: cpu(&product),
        bar: Bar::OfFloor(OF_FLOOR, cpu(&floors)),
    });
    Ok(())
}
