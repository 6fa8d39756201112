//! The commands that README and the demo tell people to type.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use p2psb_e2e::{Binaries, Cluster, Program};

use super::stage::with_agents;

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap()
}

/// Every `program verb` that stands in a code block; the program by its place in [`Program::ALL`].
fn told() -> BTreeSet<(usize, String)> {
    let text = readme();
    let blocks = text.split("\n```").skip(1).step_by(2);
    let mut out = BTreeSet::new();
    for line in blocks.flat_map(str::lines) {
        let words: Vec<_> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        for pair in words.windows(2) {
            let program = Program::ALL.iter().position(|p| p.name() == pair[0]);
            let is_verb =
                pair[1].chars().all(|c| c.is_ascii_lowercase() || c == '-') && !pair[1].starts_with('-');
            if let (Some(program), true) = (program, is_verb) {
                out.insert((program, pair[1].to_owned()));
            }
        }
    }
    out
}

#[test]
fn every_command_of_the_readme_exists() {
    let binaries = Binaries::build().unwrap();
    let told = told();
    assert!(told.len() >= 7, "{told:?}");
    for (program, verb) in told {
        let program = Program::ALL[program];
        let output = Command::new(binaries.path(program)).args([&verb, "--help"]).output().unwrap();
        assert!(
            output.status.success(),
            "{} {verb}: {}",
            program.name(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_says_whether_a_program_is_of_use() {
    let mut cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let mut services: Vec<_> = cluster.rendezvous.drain(..).collect();
    services.extend(cluster.discovery.take());
    services.extend(cluster.index.take());
    services.append(&mut cluster.agents);
    for service in &services {
        // A health check knows the port from the configuration.
        let metrics = format!("metrics.listen={}", service.metrics().unwrap());
        let said = service.cli().run(&["--set", &metrics, "health"]).await.unwrap();
        assert_eq!(said.code, 0, "{}: {}{}", service.name, said.out, said.err);
    }
    for service in services.iter_mut().rev() {
        let metrics = format!("metrics.listen={}", service.metrics().unwrap());
        service.kill().await.unwrap();
        let said = service.cli().run(&["--set", &metrics, "health"]).await.unwrap();
        assert_ne!(said.code, 0, "{} is gone: {}", service.name, said.out);
    }
}

#[test]
fn help_and_version_need_no_configuration() {
    let binaries = Binaries::build().unwrap();
    for program in Program::ALL {
        for flag in ["--help", "--version"] {
            let output = Command::new(binaries.path(program)).arg(flag).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && said.contains(program.name()),
                "{} {flag}: {said}",
                program.name()
            );
        }
    }
}
