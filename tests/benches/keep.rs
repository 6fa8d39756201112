//! A process of many peers made of the SDK, each with its session keeper: `bench-net keep`, and how it is started. They have one
//! home, which dies; the process says when each dialed another rendezvous, and when it was at home again.

use std::time::{Duration, SystemTime};

use futures::future::join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use p2psb_client::session::{Reachability, SessionState};
use p2psb_client::{Dialer, Endpoint, Identity, SessionConfig, SessionKeeper};
use p2psb_e2e::eventually::wait_for;
use p2psb_e2e::peer::network;
use p2psb_e2e::process::Process;
use p2psb_e2e::trouble::{Context as _, Result};
use p2psb_proto::model::Transport;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::crowd::Crowd;

/// Peers that come at a time.
const AT_A_TIME: usize = 32;
const RECORD_TTL: Duration = Duration::from_secs(2 * 60 * 60);
/// Who has no home by then is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who is to be kept.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Plan {
    /// Their home, with the id that must answer there.
    #[arg(long)]
    home: Endpoint,
    /// What their keys follow from.
    #[arg(long)]
    seed: String,
    /// The number of the first.
    #[arg(long)]
    first: u64,
    /// How many.
    #[arg(long)]
    count: u64,
}

/// What became of the peers of one process. Times are milliseconds since 1970, so that processes can be compared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Story {
    /// When other rendezvous were dialed.
    pub(crate) dials: Vec<u64>,
    /// When peers were at home again; of one that was not in the end, when it was given up.
    pub(crate) homes: Vec<u64>,
    /// How many were given up.
    pub(crate) homeless: u64,
}

impl Story {
    /// With another one.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.dials.extend(other.dials);
        self.homes.extend(other.homes);
        self.homeless += other.homeless;
        self
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    message: String,
    #[serde(flatten)]
    story: Story,
}

const KEEPING: &str = "keeping";
const ENDED: &str = "at home again";

/// Peers that another process keeps until this value is dropped.
pub(crate) struct Kept {
    process: Process,
    // Last: the process ends before its folder goes.
    _dir: TempDir,
}

impl Kept {
    /// Starts a process that keeps `count` peers of the crowd, from number `first` on.
    pub(crate) fn start(home: &Endpoint, crowd: &Crowd, first: u64, count: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("p2psb-keep-").tempdir().context("a temporary folder")?;
        let exe = std::env::current_exe().context("finding the running executable")?;
        let (home, seed) = (home.to_string(), crowd.seed());
        let (first, count) = (first.to_string(), count.to_string());
        let args = ["keep", "--home", &home, "--seed", &seed, "--first", &first, "--count", &count];
        let process = Process::start("keep", &exe, &args, &dir.path().join("log"), None)?;
        Ok(Self { process, _dir: dir })
    }

    /// Waits until all are at home.
    pub(crate) async fn wait(&self, within: Duration) -> Result<()> {
        self.line(KEEPING, within).await.map(drop)
    }

    /// Waits until all are at home again, and returns how that went.
    pub(crate) async fn story(&self) -> Result<Story> {
        self.line(ENDED, 2 * PATIENCE).await
    }

    async fn line(&self, message: &str, within: Duration) -> Result<Story> {
        wait_for(message, within, async || {
            let line = self.process.lines(message).into_iter().next().ok_or_else(|| self.process.logged())?;
            let line: Line = serde_json::from_value(line).map_err(|error| error.to_string())?;
            Ok(line.story)
        })
        .await
    }
}

/// Keeps the peers, and tells their story.
pub(crate) fn keep(plan: &Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("making a runtime")?.block_on(run(plan))
}

async fn run(plan: &Plan) -> Result<()> {
    let crowd = Crowd::of(&plan.seed)?;
    let peers: Vec<SessionKeeper> = futures::stream::iter(plan.first..plan.first + plan.count)
        .map(|number| come(plan, &crowd, number))
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await?;
    say(KEEPING, Story::default())?;
    let stories = join_all(peers.iter().map(|peer| follow(peer, &plan.home))).await;
    say(ENDED, stories.into_iter().fold(Story::default(), Story::and))?;
    // They stay at home until this process is killed.
    std::future::pending().await
}

fn say(message: &str, story: Story) -> Result<()> {
    use std::io::Write as _;
    let line = serde_json::to_string(&Line { message: message.to_owned(), story }).context("a line")?;
    writeln!(std::io::stdout(), "{line}").context("saying it")
}

async fn come(plan: &Plan, crowd: &Crowd, number: u64) -> Result<SessionKeeper> {
    let identity = Identity::new(crowd.key(number));
    let dialer = Dialer::new(Some(&identity), None).context("preparing TLS")?;
    let keeper = SessionKeeper::start(SessionConfig {
        network: network()?,
        identity,
        software: "bench/1".into(),
        rendezvous: vec![plan.home.clone()],
        memory: None,
        own_rendezvous: None,
        services: Vec::new(),
        reachability: Reachability {
            listen: None,
            transport: Transport::Tls,
            advertise: Vec::new(),
            confirm: false,
        },
        dialer,
        max_homes: 1,
        record_ttl: RECORD_TTL,
    });
    let mut changes = keeper.changes();
    while !is_at_home(&keeper, |_| true) {
        changes.changed().await.context("a peer gave up")?;
    }
    Ok(keeper)
}

fn is_at_home(keeper: &SessionKeeper, counts: impl Fn(&Endpoint) -> bool) -> bool {
    keeper.status().iter().any(|one| one.state == SessionState::Online && counts(&one.endpoint))
}

/// Follows a peer from the loss of its home to another one.
async fn follow(keeper: &SessionKeeper, lost: &Endpoint) -> Story {
    let mut story = Story::default();
    let mut changes = keeper.changes();
    while is_at_home(keeper, |endpoint| endpoint == lost) {
        if changes.changed().await.is_err() {
            break;
        }
    }
    if tokio::time::timeout(PATIENCE, come_back(keeper, lost, &mut story)).await.is_err() {
        story.homes.push(now());
        story.homeless = 1;
    }
    story
}

async fn come_back(keeper: &SessionKeeper, lost: &Endpoint, story: &mut Story) {
    let mut changes = keeper.changes();
    let mut dialing = Vec::new();
    loop {
        let others = keeper.status().into_iter().filter(|one| one.endpoint != *lost);
        let connecting: Vec<Endpoint> =
            others.filter(|one| one.state == SessionState::Connecting).map(|one| one.endpoint).collect();
        let begun = connecting.iter().filter(|one| !dialing.contains(*one)).count();
        story.dials.extend(std::iter::repeat_n(now(), begun));
        dialing = connecting;
        if is_at_home(keeper, |endpoint| endpoint != lost) {
            story.homes.push(now());
            // Whoever was found at home before it was seen dialing dialed at about this time.
            if story.dials.is_empty() {
                story.dials.push(now());
            }
            return;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    p2psb_proto::model::UnixMillis::from(SystemTime::now()).0
}
