//! How files look: where they lie, how they begin, how long they are, what is never in them.

use std::collections::BTreeSet;

use super::source::{Source, hits, root, sources};

/// The top of the repository, beside dotfiles and what cargo makes.
const TOP: [&str; 8] =
    ["Cargo.toml", "Cargo.lock", "README.md", "proto", "services", "docker-compose.yml", "deploy", "tests"];

const MAIN_LINES: usize = 40;
const FILE_LINES: usize = 700;
/// A file of tests is a list: it is read entry by entry.
const TEST_FILE_LINES: usize = 1000;

/// Sources that may wait for time to pass, and why.
const MAY_SLEEP: [(&str, &str); 1] =
    [("tests/src/eventually.rs", "waits between two looks at a condition, so that nobody else has to")];

/// Sources that may hold `unsafe`, and why.
const MAY_BE_UNSAFE: [(&str, &str); 1] = [(
    "services/peer-agent/src/content/testing.rs",
    "tests give one thread its own view of mounts, so that its disk can be full",
)];

#[test]
fn the_top_of_the_repository_is_fixed() {
    let found: BTreeSet<_> = std::fs::read_dir(root())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    assert_eq!(found, TOP.iter().map(ToString::to_string).collect());
}

#[test]
fn every_source_says_what_it_is_for() {
    let silent: Vec<_> =
        sources().into_iter().filter(|s| !s.text.starts_with("//! ")).map(|s| s.path).collect();
    assert!(silent.is_empty(), "these do not begin with `//! `: {silent:#?}");
}

#[test]
fn main_files_only_start_things() {
    for source in
        sources().iter().filter(|s| s.path.starts_with("services/") && s.path.ends_with("src/main.rs"))
    {
        let lines = source.text.lines().count();
        assert!(lines <= MAIN_LINES, "{} has {lines} lines, at most {MAIN_LINES}", source.path);
    }
}

#[test]
fn no_file_is_longer_than_one_can_keep_in_mind() {
    let long: Vec<_> = sources()
        .iter()
        .map(|s| (s, s.product().lines().count()))
        .filter(|(s, lines)| *lines > if s.is_test() { TEST_FILE_LINES } else { FILE_LINES })
        .map(|(s, lines)| format!("{}: {lines} lines", s.path))
        .collect();
    assert!(long.is_empty(), "split these: {long:#?}");
}

#[test]
fn tests_wait_for_conditions_and_never_sleep() {
    let mut wrong = Vec::new();
    for source in sources() {
        if MAY_SLEEP.iter().any(|(path, _)| *path == source.path) {
            continue;
        }
        let code = if source.is_test() { source.code() } else { source.unit_tests() };
        wrong.extend(hits(&source.path, &code, &["sleep(", "thread::park_timeout("]));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_left_for_later() {
    let mut wrong = Vec::new();
    for source in sources() {
        wrong.extend(hits(&source.path, &source.code(), &["todo!", "unimplemented!", "dbg!"]));
        // Put together here, so that this file does not find itself.
        let marks =
            [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X:"].concat(), ["HA", "CK"].concat()];
        let marks: Vec<_> = marks.iter().map(String::as_str).collect();
        wrong.extend(hits(&source.path, &source.text, &marks));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_stands_where_it_is_argued() {
    let is_allowed = |s: &&Source| !MAY_BE_UNSAFE.iter().any(|(path, _)| *path == s.path);
    let wrong: Vec<_> =
        sources().iter().filter(is_allowed).flat_map(|s| hits(&s.path, &s.code(), &["unsafe"])).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn lints_are_only_set_aside_with_a_reason() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test()) {
        let product_lines = source.product().lines().count();
        let lines: Vec<_> = source.text.lines().take(product_lines).collect();
        for (i, line) in lines.iter().enumerate() {
            let sets_aside = line.trim_start().starts_with("#[allow(")
                || line.trim_start().starts_with("#![allow(")
                || line.trim_start().starts_with("#[expect(");
            let said = line.contains("reason =")
                || line.contains("//")
                || (i > 0 && lines[i - 1].trim_start().starts_with("//"))
                || lines[i..].iter().take(4).any(|l| l.contains("reason ="));
            if sets_aside && !said {
                wrong.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
            }
        }
    }
    // Generated code has its own manners; the file says so in its first line.
    wrong.retain(|w| !w.starts_with("proto/src/wire.rs"));
    assert!(wrong.is_empty(), "say why, above the line or in `reason = `: {wrong:#?}");
}

#[test]
fn no_port_of_a_test_is_fixed() {
    // Ephemeral ports only: tests run beside each other, and beside a developer's own backbone.
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| s.is_test() && !s.path.starts_with("tests/tidy/")) {
        for (i, line) in source.text.lines().enumerate() {
            for port in ["7400", "7410", "7420", "7430", "7440"] {
                let listens = line.contains("listen = ") || line.contains("bind(");
                if listens && line.contains(&format!(":{port}")) {
                    wrong.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
