//! A process that opens many streams and holds them: `bench-net hold`, and how it is started.
//!
//! Each stream has a connection of its own, as a peer has. With `--proven` it is a session of a peer, with handshake and lease.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use p2psb_e2e::eventually::wait_for;
use p2psb_e2e::peer::{network, now};
use p2psb_e2e::process::Process;
use p2psb_e2e::trouble::{Context as _, Result, Trouble};
use p2psb_proto::model::PeerId;
use p2psb_proto::model::hello::Hello;
use p2psb_proto::model::proof::{ProofRole, Transcript, nonce};
use p2psb_proto::wire::rendezvous::v1 as rendezvous;
use p2psb_proto::wire::rendezvous::v1::connect_request::Message as Up;
use p2psb_proto::wire::rendezvous::v1::connect_response::Message as Down;
use prost::Message as _;
use serde_json::json;
use tempfile::TempDir;

use crate::crowd::Crowd;
use crate::floor::Flat;
use crate::wire::{Heard, Target, Wire};

const CONNECT: &str = "/p2psb.rendezvous.v1.RendezvousService/Connect";
/// Handshakes at a time.
const AT_A_TIME: usize = 32;
/// What a client of a bare server says first: about as much as a hello.
const FIRST_WORDS: usize = 200;

/// What is to be held.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Plan {
    /// The server.
    #[arg(long)]
    addr: SocketAddr,
    /// Its certificate.
    #[arg(long)]
    pem: PathBuf,
    /// How many streams.
    #[arg(long)]
    count: u64,
    /// Where to come from.
    #[arg(long)]
    source: IpAddr,
    /// Sessions of peers.
    #[arg(long)]
    proven: bool,
}

/// Streams that another process holds until this value is dropped.
pub(crate) struct Held {
    process: Process,
    // Last: the process ends before its folder goes.
    _dir: TempDir,
}

impl Held {
    /// Starts a process that opens `count` streams from an address of its own, the `host`-th of loopback.
    pub(crate) fn start(target: &Target, count: usize, host: usize, flags: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("p2psb-hold-").tempdir().context("a temporary folder")?;
        let exe = std::env::current_exe().context("finding the running executable")?;
        let pem = target.pem.as_ref().context("only servers with TLS are held")?.display().to_string();
        let source =
            Ipv4Addr::from(Ipv4Addr::LOCALHOST.to_bits() + u32::try_from(host).unwrap_or(0)).to_string();
        let (addr, count) = (target.addr.to_string(), count.to_string());
        let mut args = vec!["hold", "--addr", &addr, "--pem", &pem, "--count", &count, "--source", &source];
        args.extend(flags);
        let process = Process::start("hold", &exe, &args, &dir.path().join("log"), None)?;
        Ok(Self { process, _dir: dir })
    }

    /// Waits until all are open.
    pub(crate) async fn wait(&self, within: Duration) -> Result<()> {
        wait_for("all streams are open", within, async || {
            let lines = self.process.lines("holding");
            if lines.is_empty() { Err(self.process.logged()) } else { Ok(()) }
        })
        .await
    }
}

/// Opens the streams, says so, and holds them until the process is killed.
pub(crate) fn hold(plan: &Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("making a runtime")?.block_on(run(plan))
}

async fn run(plan: &Plan) -> Result<()> {
    let crowd = Crowd::new()?;
    let target = Target { addr: plan.addr, pem: Some(plan.pem.clone()) };
    let wires: Vec<Wire> = futures::stream::iter(0..plan.count)
        .map(|number| open(plan, &target, &crowd, number))
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await?;
    let kept: Vec<_> = wires.into_iter().map(|wire| tokio::spawn(keep(wire))).collect();
    {
        use std::io::Write as _;
        writeln!(std::io::stdout(), "{}", json!({ "message": "holding" })).context("saying it")?;
    }
    for one in kept {
        // None should end before this process does.
        one.await.context("holding a stream")??;
    }
    Ok(())
}

/// Answers what has to be answered.
async fn keep(mut wire: Wire) -> Result<()> {
    loop {
        wire.hear(|_| ()).await?;
        wire.flush().await?;
    }
}

async fn open(plan: &Plan, target: &Target, crowd: &Crowd, number: u64) -> Result<Wire> {
    let mut wire = Wire::connect(target, Some(plan.source)).await?;
    let stream = wire.open(CONNECT);
    if plan.proven {
        authenticate(&mut wire, stream, crowd, number).await?;
    } else {
        say_and_hear(&mut wire, stream, &Flat::sized(FIRST_WORDS).encode_to_vec()).await?;
    }
    Ok(wire)
}

/// Says a message, and waits for one.
async fn say_and_hear(wire: &mut Wire, stream: u32, message: &[u8]) -> Result<Vec<u8>> {
    wire.say(stream, message, false);
    let (mut answer, mut ended) = (None, false);
    while answer.is_none() {
        wire.flush().await?;
        wire.hear(|heard| match heard {
            Heard::Message(_, message) => answer = Some(message.to_vec()),
            Heard::End(_) => ended = true,
        })
        .await?;
        if ended {
            return Err(Trouble::new("the server ended the stream"));
        }
    }
    wire.flush().await?;
    answer.context("no answer")
}

async fn exchange(wire: &mut Wire, stream: u32, message: Up) -> Result<Down> {
    let message = rendezvous::ConnectRequest { message: Some(message) }.encode_to_vec();
    let answer = say_and_hear(wire, stream, &message).await?;
    let answer = rendezvous::ConnectResponse::decode(&*answer).context("an answer of the session")?;
    answer.message.context("an empty answer")
}

/// Leads a new peer to its lease.
async fn authenticate(wire: &mut Wire, stream: u32, crowd: &Crowd, number: u64) -> Result<()> {
    let key = crowd.key(number);
    let (peer, session_seq, client_nonce) = (PeerId::new(key.public()), now().0, [7; 32]);
    let hello = rendezvous::SessionHello {
        hello: Some(Hello::own(network()?, peer, "bench/1", now())),
        client_nonce: Bytes::copy_from_slice(&client_nonce),
        session_seq,
    };
    let Down::Hello(theirs) = exchange(wire, stream, Up::Hello(hello)).await? else {
        return Err(Trouble::new("the server did not say hello"));
    };
    let server = theirs.hello.context("an empty hello")?.peer_id;
    let transcript = Transcript {
        network: network()?,
        peer,
        server: PeerId::from_slice(&server).context("the server's id")?,
        client_nonce,
        server_nonce: nonce(&theirs.server_nonce).context("the server's nonce")?,
        session_seq,
    };
    let proof = transcript.prove(ProofRole::SessionPeer, &wire.binding(), &key);
    let record = crowd.record(number, &key)?.to_wire();
    let answer = rendezvous::Authenticate { proof: Some(proof), record: Some(record) };
    match exchange(wire, stream, Up::Authenticate(answer)).await? {
        Down::Lease(_) => Ok(()),
        _ => Err(Trouble::new("the server gave no lease")),
    }
}
