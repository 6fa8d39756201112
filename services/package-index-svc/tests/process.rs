//! The index as a real process: its verbs, and a `kill -9` in the middle of publishing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::SystemTime;

use common::{Chain, Index};
use p2psb_proto::model::record::Signed;
use p2psb_proto::model::release::PackageEntry;
use tokio::sync::mpsc;

fn program(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_package-index-svc"));
    command
        .env("P2PSB_DATA_DIR", data)
        .env("P2PSB_LISTEN", "127.0.0.1:0")
        .env("P2PSB_METRICS__LISTEN", "off");
    command
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A process that is killed when the test ends, however it ends.
struct Running {
    child: Child,
    addr: SocketAddr,
}

impl Running {
    fn start(data: &Path) -> Self {
        let mut child = program(data).args(["--log-format", "json"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let addr = loop {
            let line = lines.next().expect("the program ended without listening");
            let event: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
            if event["message"] == "listening" {
                break event["addr"].as_str().unwrap().parse().unwrap();
            }
        };
        // Somebody must read on, or the program would wait for room in the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, addr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn init_makes_the_identity_once_and_id_prints_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    assert_eq!(output(program(&data).arg("id")).status.code(), Some(69), "none yet");
    let made = output(program(Path::new("/nowhere")).args(["init", "--data-dir"]).arg(&data));
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).starts_with("peer1"));
    for verb in ["id", "init"] {
        assert_eq!(output(program(&data).arg(verb)).stdout, made.stdout, "{verb}");
    }
}

#[test]
fn a_wrong_key_ends_with_64_before_a_port_is_bound() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = output(program(folder.path()).args(["--set", "limits.claims=5"]));
    assert_eq!(wrong.status.code(), Some(64));
    assert!(text(&wrong.stderr).contains("limits.claims"), "{}", text(&wrong.stderr));
    let checked = output(program(folder.path()).arg("--check-config"));
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
}

#[test]
fn a_database_that_is_none_ends_with_69_and_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("index.sqlite");
    std::fs::write(&database, vec![7; 8192]).unwrap();
    let ended = output(&mut program(folder.path()));
    assert_eq!(ended.status.code(), Some(69));
    assert_eq!(std::fs::read(&database).unwrap(), vec![7; 8192]);
}

/// Publishes to one chain until the index is gone, and tells of every acknowledgement while somebody listens.
async fn publish_until_killed(mut index: Index, name: String, told: mpsc::Sender<()>) -> (String, u64) {
    let mut chain = Chain::new(1, &name, SystemTime::now().into());
    let mut count = 0;
    while index.publish(&chain.release(&format!("1.0.{count}"))).await.is_ok() {
        count += 1;
        let _ = told.try_send(());
    }
    (name, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kill_9_every_acknowledged_entry_is_there_and_chains_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut acknowledged = BTreeMap::new();
    for round in 0..4_u8 {
        let mut running = Running::start(&data);
        let index = Index::at(running.addr).await;
        let (told, mut acknowledgements) = mpsc::channel(1024);
        let publishing: Vec<_> = (0..8)
            .map(|number| format!("r{round}-{number}"))
            .map(|name| tokio::spawn(publish_until_killed(index.clone(), name, told.clone())))
            .collect();
        for _ in 0..40 + 17 * u32::from(round) {
            acknowledgements.recv().await.unwrap();
        }
        running.child.kill().unwrap();
        for task in publishing {
            let (name, count) = task.await.unwrap();
            acknowledged.insert(name, count);
        }
    }
    let running = Running::start(&data);
    let mut index = Index::at(running.addr).await;
    assert_eq!(acknowledged.len(), 32);
    for (name, count) in acknowledged {
        let chain = Chain::new(1, &name, SystemTime::now().into());
        let seq = match index.head(&chain).await {
            Ok(head) => Signed::<PackageEntry>::verify(head).unwrap().value().seq,
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::NotFound);
                0
            }
        };
        // One more may have been committed whose answer was lost.
        assert!(seq == count || seq == count + 1, "{name}: {count} acknowledged, {seq} there");
    }
}
