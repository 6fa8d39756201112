//! README, compose file, configurations: they say what is true.

use std::collections::BTreeSet;

use super::source::{read, root};

const PROGRAMS: [&str; 4] = ["rendezvous-svc", "discovery-svc", "package-index-svc", "peer-agent"];

/// What Compose 1.29 and 2 both understand at the top of a file, beside `x-` extensions.
const COMPOSE_TOP: [&str; 3] = ["services", "volumes", "networks"];

/// Keys that only one of the two understands, or that need BuildKit or a swarm.
const COMPOSE_UNCOMMON: [&str; 12] = [
    "name:",
    "include:",
    "configs:",
    "secrets:",
    "develop:",
    "dockerfile_inline:",
    "pull_policy:",
    "attach:",
    "additional_contexts:",
    "extends:",
    "deploy:",
    "required:",
];

/// The keys at one depth of a YAML text, as far as this repository writes YAML: block style, two spaces.
fn keys_at(text: &str, depth: usize) -> Vec<(usize, String)> {
    text.lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
        .filter(|(_, l)| l.len() - l.trim_start().len() == depth)
        .filter_map(|(i, l)| {
            let (key, _) = l.trim().split_once(':')?;
            (!key.starts_with('-')).then(|| (i, key.to_owned()))
        })
        .collect()
}

#[test]
fn the_compose_file_keeps_to_what_both_versions_understand() {
    let text = read("docker-compose.yml");
    for (line, key) in keys_at(&text, 0) {
        let known = COMPOSE_TOP.contains(&key.as_str()) || key.starts_with("x-");
        assert!(known, "docker-compose.yml:{}: `{key}` at the top", line + 1);
    }
    for (i, line) in text.lines().enumerate() {
        let code = line.trim_start();
        let odd = COMPOSE_UNCOMMON.iter().find(|k| code.starts_with(*k));
        assert!(odd.is_none(), "docker-compose.yml:{}: {odd:?} is not in the common subset", i + 1);
        assert!(!code.contains("!reset") && !code.contains("!override"), "docker-compose.yml:{}", i + 1);
    }
}

#[test]
fn the_compose_stack_is_three_rendezvous_discovery_index_and_what_prepares_them() {
    let text = read("docker-compose.yml");
    let begin = text.lines().position(|l| l == "services:").unwrap();
    let end = text.lines().position(|l| l == "volumes:").unwrap();
    let services: String = text.lines().take(end).skip(begin + 1).map(|l| format!("{l}\n")).collect();
    let names: BTreeSet<_> = keys_at(&services, 2).into_iter().map(|(_, key)| key).collect();
    for name in ["init", "r1", "r2", "r3", "discovery", "index"] {
        assert!(names.contains(name), "docker-compose.yml has no service {name}");
    }
    let count = |what: &str| services.lines().filter(|l| l.trim_start().starts_with(what)).count();
    assert!(
        count("P2PSB_ADVERTISE:") >= 5,
        "each service advertises an address that holds outside the network"
    );
    assert!(text.contains("healthcheck:") && text.contains("restart:"));
}

#[test]
fn the_dockerfile_needs_no_buildkit() {
    let text = read("deploy/Dockerfile");
    for (i, line) in text.lines().enumerate() {
        let odd = line.trim_start().starts_with("# syntax=")
            || line.contains("--mount=")
            || line.contains("--link")
            || line.contains("--chmod=")
            || line.contains("<<EOF");
        assert!(!odd, "deploy/Dockerfile:{}: needs BuildKit: {line}", i + 1);
    }
    assert!(text.lines().any(|l| l.starts_with("USER ") && !l.contains("root") && l != "USER 0"));
    for program in PROGRAMS {
        assert!(text.contains(&format!("/release/{program}")), "{program} is not in the image");
    }
}

#[test]
fn every_program_has_its_commented_configuration() {
    for program in PROGRAMS {
        let path = format!("deploy/config/{}.toml", program.trim_end_matches("-svc"));
        let text = read(&path);
        let _: toml::Table = text.parse().unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(text.contains(program), "{path} does not name {program}");
        for line in text.lines().filter(|l| l.starts_with('#') && l.contains(" = ")) {
            // Commented keys are keys, too: each must parse when it is switched on.
            let key = line.trim_start_matches('#').trim();
            let looks_like_key = key
                .split(" = ")
                .next()
                .is_some_and(|k| k.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            if looks_like_key {
                let parsed = key.parse::<toml::Table>();
                assert!(parsed.is_ok(), "{path}: `{key}` is no TOML");
            }
        }
    }
}

fn readme() -> String {
    read("README.md")
}

/// What stands between ``` lines.
fn code_blocks(text: &str) -> Vec<String> {
    text.split("\n```")
        .skip(1)
        .step_by(2)
        .map(|b| b.split_once('\n').map_or("", |(_, code)| code).to_owned())
        .collect()
}

#[test]
fn the_readme_has_the_two_commands_of_a_fresh_machine() {
    let text = readme();
    let blocks = code_blocks(&text);
    for command in ["cargo demo", "cargo test --workspace --locked"] {
        assert!(
            blocks.iter().any(|b| b.lines().any(|l| l.trim() == command)),
            "README.md: no block with `{command}`"
        );
    }
    assert!(read(".cargo/config.toml").contains("demo = "), "the alias");
}

#[test]
fn the_readme_names_every_program_and_every_folder() {
    let text = readme();
    for name in PROGRAMS.iter().chain(&["proto/", "services/runtime", "services/client", "deploy/", "tests/"])
    {
        assert!(text.contains(name), "README.md does not mention {name}");
    }
    assert!(
        text.matches("Invariant:").count() >= 5,
        "the code map says what holds, in sentences that begin so"
    );
}

#[test]
fn the_readme_shows_only_calls_that_exist() {
    let text = readme();
    let descriptors = String::from_utf8_lossy(p2psb_proto::wire::DESCRIPTORS).into_owned();
    for line in text.lines().filter(|l| l.contains("buf curl") || l.contains("p2psb.")) {
        for word in line.split(|c: char| c.is_whitespace() || c == '`' || c == '\'' || c == '"') {
            let Some((service, method)) = word.split_once(".v1.").and_then(|(_, tail)| tail.split_once('/'))
            else {
                continue;
            };
            assert!(
                descriptors.contains(service) && descriptors.contains(method),
                "README.md: no method {word}"
            );
        }
    }
}

#[test]
fn links_of_the_readme_lead_somewhere() {
    let text = readme();
    for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let path = target.split('#').next().unwrap();
        if !path.is_empty() && !path.contains("://") {
            assert!(root().join(path).exists(), "README.md links to {path}");
        }
    }
}

#[test]
fn ports_are_told_alike_everywhere() {
    let text = readme();
    for (program, port) in
        [("rendezvous", 7400), ("discovery", 7410), ("package-index", 7420), ("peer-agent", 7430)]
    {
        let config = read(&format!("deploy/config/{program}.toml"));
        assert!(config.contains(&format!("#listen = \"0.0.0.0:{port}\"")), "{program}: default port");
        assert!(text.contains(&port.to_string()), "README.md does not tell port {port}");
    }
}
