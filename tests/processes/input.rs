//! Awkward input: it works, or is refused with a message that names the path and says what to do.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use p2psb_e2e::Cluster;
use p2psb_e2e::tree::{noise, put};

use super::stage::{agent_without_rights, assert_same, fetch, publish, text, with_agents};

/// A folder with everything a disk may hold and a package may, too.
fn awkward(dir: &Path) -> std::path::PathBuf {
    let input = dir.join("awkward");
    let longest = "x".repeat(255);
    let deepest = ["d"; 63].join("/");
    for name in [
        "plain",
        " begins and ends with blanks ",
        "-rf",
        "--help",
        ".hidden",
        "..almost",
        "trailing.",
        "back\\slash",
        "quote\"s and 'apostrophes'",
        "new\nline",
        "tab\tand\u{7f}delete",
        "star*question?pipe|",
        "CON",
        "aux.txt",
        "ümläut composed",
        "u\u{308}mla\u{308}ut decomposed",
        "日本語/ファイル",
        "🦀",
        "\u{202e}right-to-left",
        "CaSe",
        "case-sub/CASE",
        "case-sub/case",
        &longest,
        &format!("{deepest}/leaf"),
    ] {
        put(&input, name, name.as_bytes()).unwrap();
    }
    put(&input, "empty file", b"").unwrap();
    put(&input, "exactly one chunk's least", &noise(1, 16 << 10)).unwrap();
    put(&input, "several chunks", &noise(2, 900_000)).unwrap();
    let program = put(&input, "bin/program", b"#!/bin/sh\n").unwrap();
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(input.join("empty/folder")).unwrap();
    let sparse = fs::File::create(input.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    symlink("plain", input.join("link")).unwrap();
    symlink("../plain", input.join("bin/link up")).unwrap();
    symlink("nowhere", input.join("dangling")).unwrap();
    symlink("empty/folder", input.join("link to folder")).unwrap();
    input
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awkward_names_links_and_empty_things_arrive_as_they_were() {
    let cluster = with_agents(Cluster::plan(), &["alice", "bob"]).await;
    let input = awkward(cluster.dir());
    let published = publish(&cluster.agent("alice").unwrap(), &input, &[]).await;
    let target = cluster.dir().join("target");
    fetch(&cluster.agent("bob").unwrap(), &text(&published, "reference"), &target).await;
    assert_same(&input, &target);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_one_file_and_several_paths_are_packages_too() {
    let cluster = with_agents(Cluster::plan(), &["alice", "bob"]).await;
    let (alice, bob) = (cluster.agent("alice").unwrap(), cluster.agent("bob").unwrap());
    let dir = cluster.dir();

    let nothing = dir.join("nothing");
    fs::create_dir(&nothing).unwrap();
    let published = publish(&alice, &nothing, &[]).await;
    fetch(&bob, &text(&published, "reference"), &dir.join("fetched-nothing")).await;
    assert_same(&nothing, &dir.join("fetched-nothing"));

    let file = put(dir, "one.txt", b"just one").unwrap();
    let published = publish(&alice, &file, &["--name", "one"]).await;
    fetch(&bob, &text(&published, "reference"), &dir.join("fetched-one")).await;
    assert_same(&file, &dir.join("fetched-one"));

    let folder = dir.join("folder");
    put(&folder, "inside", b"in").unwrap();
    let published = publish(&alice, &file, &[folder.to_str().unwrap(), "--name", "several"]).await;
    let target = dir.join("fetched-several");
    fetch(&bob, &text(&published, "reference"), &target).await;
    assert_eq!(fs::read(target.join("one.txt")).unwrap(), b"just one");
    assert_eq!(fs::read(target.join("folder/inside")).unwrap(), b"in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_published_is_named() {
    let cluster = with_agents(Cluster::plan(), &["alice"]).await;
    let alice = cluster.agent("alice").unwrap();
    let dir = cluster.dir().join("bad");
    let refused = async |name: &str| {
        let path = dir.join(name);
        alice.refused(&["publish", path.to_str().unwrap(), "--name", "bad"]).await.unwrap()
    };
    let named = |(reason, message): (String, String), expected: &str, path: &str| {
        assert_eq!(reason, expected, "{message}");
        assert!(message.contains(path), "{message} does not name {path}");
    };

    put(&dir, "out/file", b"x").unwrap();
    symlink("../../secret", dir.join("out/escape")).unwrap();
    named(refused("out").await, "SYMLINK_ESCAPES", "escape");

    put(&dir, "abs/file", b"x").unwrap();
    symlink("/etc/passwd", dir.join("abs/absolute")).unwrap();
    named(refused("abs").await, "SYMLINK_ESCAPES", "absolute");

    // Inside, as things are; outside, were "folder" a symlink where it is fetched.
    put(&dir, "winding/folder/file", b"x").unwrap();
    symlink("folder/../folder/file", dir.join("winding/round")).unwrap();
    named(refused("winding").await, "SYMLINK_ESCAPES", "winding/round");

    fs::create_dir_all(dir.join("socket")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket/so")).unwrap();
    named(refused("socket").await, "FILE_KIND_UNSUPPORTED", "so");

    put(&dir, &format!("deep/{}/leaf", ["d"; 64].join("/")), b"x").unwrap();
    named(refused("deep").await, "PATH_INVALID", "leaf");

    use std::os::unix::ffi::OsStrExt as _;
    let odd = std::ffi::OsStr::from_bytes(b"no-utf8-\xff");
    fs::create_dir_all(dir.join("bytes")).unwrap();
    fs::write(dir.join("bytes").join(odd), b"x").unwrap();
    named(refused("bytes").await, "PATH_INVALID", "no-utf8-");

    named(refused("missing").await, "PATH_MISSING", "missing");
    assert!(alice.objects(&["search", "bad"]).await.unwrap().is_empty(), "nothing of it was published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_without_read_permission_is_named() {
    let mut cluster = with_agents(Cluster::plan(), &[]).await;
    let alice = agent_without_rights(&mut cluster, "alice").await;

    let input = cluster.dir().join("input");
    put(&input, "open", b"x").unwrap();
    let closed = put(&input, "closed", b"x").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let (reason, message) = alice.refused(&["publish", input.to_str().unwrap()]).await.unwrap();
    assert_eq!(reason, "FILE_UNREADABLE", "{message}");
    assert!(message.contains("closed"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_file_that_changed_is_not_served_as_what_it_was() {
    let cluster = with_agents(Cluster::plan(), &["alice", "bob"]).await;
    let (alice, bob) = (cluster.agent("alice").unwrap(), cluster.agent("bob").unwrap());
    let input = cluster.dir().join("input");
    let file = put(&input, "file", &noise(1, 200_000)).unwrap();
    let reference = text(&publish(&alice, &input, &[]).await, "reference");
    fs::write(&file, noise(2, 200_000)).unwrap();

    let target = cluster.dir().join("target");
    let to = target.to_str().unwrap().to_owned();
    let waiting = tokio::spawn({
        let bob = bob.clone();
        async move { bob.run(&["--json", "fetch", &reference, "-o", &to]).await }
    });
    p2psb_e2e::eventually!("alice says that the file changed", {
        let status = alice.json(&["status"]).await.unwrap();
        let shared = status["shared"].as_array().unwrap().clone();
        shared.iter().any(|s| text(s, "problem").contains("file"))
    });
    assert!(!target.exists());
    waiting.abort();
}
