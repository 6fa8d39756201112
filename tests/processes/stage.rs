//! Small helpers of the process tests.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use p2psb_e2e::cluster::{Plan, Service};
use p2psb_e2e::eventually;
use p2psb_e2e::tree::{Tree, noise, put};
use p2psb_e2e::{Agent, Cluster};
use serde_json::Value;

/// One rendezvous, discovery, index, and these agents, all of which have found the index.
pub(crate) async fn with_agents(plan: Plan, names: &[&str]) -> Cluster {
    let plan = names.iter().fold(plan, |plan, name| plan.agent(name));
    let cluster = plan.start().await.unwrap();
    for name in names {
        joined(&cluster.agent(name).unwrap()).await;
    }
    cluster
}

/// Waits until an agent has found an index.
pub(crate) async fn joined(agent: &Agent) {
    eventually!("the agent has found an index", agent.ok(&["search", "anything"]).await);
}

/// A user that owns nothing.
pub(crate) const NOBODY: u32 = 65534;

/// An agent more, which may read and write only what its user may: root may everything, so then it is somebody else's.
pub(crate) async fn agent_without_rights(cluster: &mut Cluster, name: &str) -> Agent {
    let (agent, dir) = (cluster.new_agent(name), cluster.dir().to_owned());
    let change = |agent: &mut Service| {
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            return Ok(());
        }
        std::fs::set_permissions(dir, Permissions::from_mode(0o711)).unwrap();
        agent.run_as(NOBODY)
    };
    let cli = cluster.start_agent_changed(agent, change).await.unwrap();
    joined(&cli).await;
    cli
}

/// Publishes and gives the result.
pub(crate) async fn publish(agent: &Agent, path: &Path, more: &[&str]) -> Value {
    let path = path.to_str().unwrap();
    agent.json(&[&["publish", path], more].concat()).await.unwrap()
}

/// Fetches to a folder and gives the result.
pub(crate) async fn fetch(agent: &Agent, reference: &str, target: &Path) -> Value {
    agent.json(&["fetch", reference, "-o", target.to_str().unwrap()]).await.unwrap()
}

/// A text of an object.
pub(crate) fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_else(|| panic!("no {key} in {object}")).to_owned()
}

/// Fails unless two folders are the same.
pub(crate) fn assert_same(before: &Path, after: &Path) {
    let (before, after) = (Tree::read(before).unwrap(), Tree::read(after).unwrap());
    let differences: Vec<_> = before.differences(&after).iter().map(ToString::to_string).collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

/// A folder with some files and one large enough to be interrupted.
pub(crate) fn large(dir: &Path) -> PathBuf {
    let input = dir.join("large");
    put(&input, "first", b"small").unwrap();
    put(&input, "noise", &noise(1, 16 << 20)).unwrap();
    put(&input, "z/last", &noise(2, 300_000)).unwrap();
    input
}

/// Nothing half-written lies beside a target that was not made.
pub(crate) fn assert_nothing_at(target: &Path) {
    assert!(!target.exists(), "{} exists", target.display());
    let name = target.file_name().unwrap().to_str().unwrap();
    let beside: Vec<_> = std::fs::read_dir(target.parent().unwrap())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.contains(name))
        .collect();
    assert!(beside.is_empty(), "left beside the target: {beside:?}");
}

/// A command that must fail, typed both ways: for people with a text on standard error and nothing else, and for programs
/// with one last object. Both name `named` and the reason; neither is a panic.
pub(crate) async fn fails(cli: &Agent, args: &[&str], code: i32, reason: &str, named: &str) {
    let said = cli.run(args).await.unwrap();
    assert_eq!(said.code, code, "{args:?}: {}{}", said.out, said.err);
    assert_eq!(said.out, "", "{args:?}: there is no result");
    for needed in [named, reason] {
        assert!(said.err.contains(needed), "{args:?}: {needed} is not in {}", said.err);
    }
    assert!(!said.err.contains("panicked"), "{args:?}: {}", said.err);

    let said = cli.run(&[&["--json"], args].concat()).await.unwrap();
    assert_eq!(said.code, code, "{args:?}: {}{}", said.out, said.err);
    let last = said.last().unwrap();
    assert_eq!((text(&last, "event"), text(&last, "reason")), ("error".into(), reason.into()), "{last}");
    assert!(text(&last, "message").contains(named), "{args:?}: {named} is not in {last}");
    assert!(said.objects().unwrap().iter().all(|o| o["event"].is_string()), "{args:?}: {}", said.out);
}
