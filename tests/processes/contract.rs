//! Every `buf curl` line in the contract's comments, run against real processes.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use p2psb_e2e::process::clean_environment;
use p2psb_e2e::tree::{put, walk_files};
use p2psb_e2e::{Cluster, Service};
use serde_json::Value;

use super::stage::{publish, with_agents};

/// Codes with which a query may answer that there is nothing.
const NOTHING: [&str; 1] = ["not_found"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `buf` on the PATH, or where CI puts it.
fn buf() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let ci = repository().join("target/ci/venv/bin");
    std::env::split_paths(&path).chain([ci]).map(|dir| dir.join("buf")).find(|file| file.is_file())
}

fn lines() -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for file in walk_files(&repository().join("proto/p2psb")).unwrap() {
        let text = std::fs::read_to_string(file).unwrap();
        let told = text.lines().filter_map(|l| l.trim().strip_prefix("// Try it: buf "));
        out.extend(told.map(str::to_owned));
    }
    out
}

/// The line with its default port replaced by where the service really is.
fn aimed(line: &str, services: &[(&str, String)], token: &str) -> String {
    let aimed = services
        .iter()
        .fold(line.to_owned(), |line, (port, addr)| line.replace(&format!("127.0.0.1:{port}"), addr));
    aimed.replace("$TOKEN", token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_that_the_contract_tells_people_to_try_works() {
    let Some(buf) = buf() else {
        // Past the capture of the test runner: who reads the log must see it.
        let _ = writeln!(std::io::stderr(), "SKIPPED: buf is not on the PATH (pip install buf-bin)");
        return;
    };
    let cluster = with_agents(Cluster::plan().plaintext(), &["alice"]).await;
    let input = cluster.dir().join("demo");
    put(&input, "file", b"x").unwrap();
    publish(&cluster.agent("alice").unwrap(), &input, &["--title", "proto"]).await;

    let control = std::fs::read_to_string(cluster.agents[0].data_dir().join("control.json")).unwrap();
    let control: Value = serde_json::from_str(&control).unwrap();
    let addr = |service: &Service| service.addr().unwrap().to_string();
    let services = [
        ("7400", addr(&cluster.rendezvous[0])),
        ("7410", addr(cluster.discovery.as_ref().unwrap())),
        ("7420", addr(cluster.index.as_ref().unwrap())),
        ("7440", control["addr"].as_str().unwrap().to_owned()),
    ];
    let lines = lines();
    assert!(lines.len() >= 10, "{lines:?}");
    for line in lines {
        let script =
            format!("{} {}", buf.display(), aimed(&line, &services, control["token"].as_str().unwrap()));
        let mut command = tokio::process::Command::new("sh");
        clean_environment(&mut command);
        let output = command.args(["-c", &script]).current_dir(repository()).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer = format!("{}{said}", String::from_utf8_lossy(&output.stdout));
        let nothing = NOTHING.iter().any(|code| answer.contains(code)) && answer.contains("ErrorInfo");
        assert!(output.status.success() || nothing, "{line}\n{answer}");
    }
}
