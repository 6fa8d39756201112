//! Which crate may use which, and of what the tree of dependencies is made.

use std::collections::BTreeSet;
use std::process::Command;

use super::source::{read, root};

/// Each crate, and the crates of ours that it may use.
const MAY_USE: [(&str, &[&str]); 8] = [
    ("proto", &[]),
    ("services/runtime", &[]),
    ("services/client", &["p2psb-proto"]),
    ("services/rendezvous-svc", SERVICE),
    ("services/discovery-svc", SERVICE),
    ("services/package-index-svc", SERVICE),
    // The one exception: an agent can run a rendezvous inside itself.
    ("services/peer-agent", &["p2psb-proto", "p2psb-runtime", "p2psb-client", "p2psb-rendezvous-svc"]),
    (
        "tests",
        &[
            "p2psb-proto",
            "p2psb-runtime",
            "p2psb-client",
            "p2psb-rendezvous-svc",
            "p2psb-discovery-svc",
            "p2psb-package-index-svc",
            "p2psb-peer-agent",
        ],
    ),
];

const SERVICE: &[&str] = &["p2psb-proto", "p2psb-runtime", "p2psb-client"];

/// Libraries of which the tree may hold one version only.
const ONCE: [&str; 9] =
    ["tonic", "prost", "prost-types", "rustls", "h2", "hyper", "tokio", "rusqlite", "axum"];

/// Where Cargo.toml names dependencies.
const TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

fn manifest(crate_dir: &str) -> toml::Table {
    read(&format!("{crate_dir}/Cargo.toml")).parse().unwrap_or_else(|e| panic!("{crate_dir}: {e}"))
}

fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let tables = TABLES.iter().filter_map(|t| manifest.get(*t)?.as_table());
    tables.flat_map(|t| t.keys().cloned()).collect()
}

#[test]
fn a_crate_uses_only_the_crates_below_it() {
    for (dir, allowed) in MAY_USE {
        let ours = dependencies(&manifest(dir)).into_iter().filter(|d| d.starts_with("p2psb-"));
        let wrong: Vec<_> = ours.filter(|d| !allowed.contains(&d.as_str())).collect();
        assert!(wrong.is_empty(), "{dir} may not use {wrong:?}");
    }
}

#[test]
fn the_workspace_is_the_crates_that_are_listed_here() {
    let workspace: toml::Table = read("Cargo.toml").parse().unwrap();
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let members: BTreeSet<_> = members.iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(members, MAY_USE.iter().map(|(dir, _)| *dir).collect::<BTreeSet<_>>());
}

#[test]
fn versions_and_lints_are_set_once_for_the_workspace() {
    for (dir, _) in MAY_USE {
        let manifest = manifest(dir);
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{dir}: lints");
        for table in TABLES.iter().filter_map(|t| manifest.get(*t)?.as_table()) {
            for (name, value) in table {
                let inherited = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
                assert!(inherited, "{dir}: the version of {name} belongs into the workspace's Cargo.toml");
            }
        }
    }
}

#[test]
fn the_contract_and_the_runtime_stay_light() {
    // proto is what every client links; it knows no runtime. runtime knows no contract.
    let proto = dependencies(&manifest("proto"));
    for heavy in ["tokio", "rustls", "tokio-rustls", "rusqlite", "axum", "tracing", "clap", "config"] {
        assert!(!proto.contains(heavy), "proto may not use {heavy}");
    }
    let client = dependencies(&manifest("services/client"));
    for heavy in ["rusqlite", "axum", "clap", "config", "tracing-subscriber"] {
        assert!(!client.contains(heavy), "the SDK may not use {heavy}");
    }
}

#[test]
fn the_tree_holds_one_of_each_large_library() {
    let lock: toml::Table = read("Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    for name in ONCE {
        let versions: Vec<_> = packages
            .iter()
            .filter(|p| p["name"].as_str() == Some(name))
            .filter_map(|p| p["version"].as_str())
            .collect();
        assert_eq!(versions.len(), 1, "{name}: {versions:?}");
    }
}

#[test]
fn no_second_cryptography_library_is_linked() {
    // Cargo.lock lists optional ones, too: only the resolved tree says what is linked.
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--workspace", "--prefix", "none", "--edges", "normal,build"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let foreign: BTreeSet<_> = tree
        .lines()
        .filter(|l| ["ring v", "openssl v", "openssl-sys v", "native-tls v"].iter().any(|f| l.starts_with(f)))
        .collect();
    assert!(foreign.is_empty(), "aws-lc-rs is the one for TLS, but the tree holds {foreign:?}");
}
