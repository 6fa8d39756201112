//! Configurations: what is wrong is named before a port is bound, and what is shown as a default is one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use p2psb_e2e::{Binaries, Program};

fn run(program: Program, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(Binaries::build().unwrap().path(program));
    for (name, _) in std::env::vars() {
        if name.starts_with("P2PSB_") {
            command.env_remove(name);
        }
    }
    command.args(args).envs(variables.iter().copied()).output().unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn shipped(program: Program) -> PathBuf {
    let name = program.name().trim_end_matches("-svc");
    repository().join(format!("deploy/config/{name}.toml"))
}

/// What a configuration leaves to its user: peers need a rendezvous.
fn needed(program: Program) -> &'static [&'static str] {
    if program == Program::Rendezvous { &[] } else { &["--set", "rendezvous=https://127.0.0.1:7400"] }
}

/// What a service is started with: the agent has verbs.
fn verb(program: Program) -> &'static [&'static str] {
    if program == Program::Agent { &["run"] } else { &[] }
}

/// Arguments, variables, and what must be named.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

#[test]
fn a_wrong_key_or_value_ends_with_64_and_names_itself() {
    for program in Program::ALL {
        let config = shipped(program);
        let config = config.to_str().unwrap();
        let cases: [Case<'_>; 5] = [
            (&["--set", "lisen=127.0.0.1:0"], &[], "lisen"),
            (&["--set", "listen=nonsense"], &[], "listen"),
            (&["--set", "network.name=A B"], &[], "network.name"),
            (&[], &[("P2PSB_LISTEN", "nonsense")], "P2PSB_LISTEN"),
            (&[], &[("P2PSB_NO__SUCH", "1")], "P2PSB_NO__SUCH"),
        ];
        for (args, variables, named) in cases {
            let output = run(
                program,
                &[&["--config", config][..], needed(program), args, verb(program)].concat(),
                variables,
            );
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{} {args:?} {variables:?}: {said}", program.name());
            assert!(said.contains(named), "{} {args:?}: {said}", program.name());
        }
    }
}

#[test]
fn what_all_programs_share_is_refused_by_all_in_the_same_words() {
    let many = vec!["https://a.example:1"; 17].join(",");
    let cases = [
        (
            "network.name",
            "A B",
            "`network.name`, set by --set network.name: a network name has 1 to 63 characters",
        ),
        (
            "advertise",
            "https://a.example:1,x",
            "`advertise[1]`, set by --set advertise: \"x\" is no endpoint",
        ),
        (
            "advertise",
            "https://a..b:1",
            "`advertise`, set by --set advertise: the record is malformed: \"a..b\"",
        ),
        (
            "advertise",
            &many,
            "`advertise`, set by --set advertise: names 17 addresses, at most 16 are allowed",
        ),
    ];
    for program in Program::ALL {
        for (key, value, words) in cases {
            let set = format!("{key}={value}");
            let args = [needed(program), &["--set", &set, "--check-config"], verb(program)].concat();
            let output = run(program, &args, &[]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{}: {said}", program.name());
            assert!(said.contains(words), "{}: {said}", program.name());
        }
    }
}

#[test]
fn limits_of_a_listener_that_make_no_sense_are_refused_by_every_service() {
    let cases = [
        ("http2.connections_per_ip", "0", "at least 1"),
        ("http2.connections_per_prefix", "-1", "http2.connections_per_prefix"),
        ("http2.waiting_bytes", "0", "at least 1"),
        ("http2.write_timeout", "0s", "longer than nothing"),
        ("http2.shared_sources", "10.0.0.0/33", "\"10.0.0.0/33\" is no network such as 192.0.2.0/24"),
        ("http2.shared_sources", "proxy.example", "\"proxy.example\" is no network"),
    ];
    for program in [Program::Rendezvous, Program::Discovery, Program::Index] {
        for (key, value, words) in cases {
            let set = format!("{key}={value}");
            let args = [needed(program), &["--set", &set, "--check-config"]].concat();
            let output = run(program, &args, &[]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{} {set}: {said}", program.name());
            assert!(said.contains(key) && said.contains(words), "{}: {said}", program.name());
        }
    }
}

#[test]
fn a_file_that_is_missing_or_broken_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.toml");
    fs::write(&broken, "listen = \n").unwrap();
    for program in Program::ALL {
        for file in ["/nowhere/config.toml", broken.to_str().unwrap()] {
            let output = run(program, &[&["--config", file][..], verb(program)].concat(), &[]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{}: {said}", program.name());
            assert!(said.contains(file), "{said}");
        }
    }
}

fn printed(program: Program, config: &Path) -> String {
    let args = [&["--config", config.to_str().unwrap(), "--print-config"], needed(program)].concat();
    let output = run(program, &args, &[]);
    assert!(output.status.success(), "{}: {}", config.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_the_shipped_configurations_show_as_defaults_are_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    for program in Program::ALL {
        let shipped = shipped(program);
        let text = fs::read_to_string(&shipped).unwrap();
        // `#key = value` is a default, `# key = value` an example.
        let is_default = |line: &str| {
            let key = line.strip_prefix('#').and_then(|l| l.split(" = ").next().filter(|k| *k != l));
            key.is_some_and(|k| !k.is_empty() && k.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        };
        let lines = text.lines().map(|l| if is_default(l) { &l[1..] } else { l });
        let written: String = lines.map(|l| format!("{l}\n")).collect();
        assert_ne!(written, text, "{} shows no default", shipped.display());
        let all = dir.path().join(program.name());
        fs::write(&all, &written).unwrap();
        assert_eq!(printed(program, &all), printed(program, &shipped), "{}", shipped.display());
        let args = [&["--config", all.to_str().unwrap(), "--check-config"], needed(program)].concat();
        let output = run(program, &args, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_printed_configuration_reads_back_as_itself() {
    let dir = tempfile::tempdir().unwrap();
    for program in Program::ALL {
        let first = printed(program, &shipped(program));
        let file = dir.path().join(program.name());
        fs::write(&file, &first).unwrap();
        assert_eq!(printed(program, &file), first, "{}", program.name());
    }
}

#[test]
fn all_programs_agree_on_the_community_they_join_by_default() {
    let names: Vec<_> = Program::ALL
        .into_iter()
        .map(|program| {
            let table: toml::Table = printed(program, &shipped(program)).parse().unwrap();
            table["network"]["name"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(names.iter().all(|n| *n == names[0]), "{names:?}");
}
