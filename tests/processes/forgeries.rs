//! Publishers that lie over the wire: a release whose signature is right points at a manifest that leads out of its
//! folder, or can not be. It is refused by its reason, which names the path, and nothing of it is ever on the disk.

use std::path::{Path, PathBuf};

use p2psb_e2e::forger::{Forger, Forgery, directory, file, symlink};
use p2psb_e2e::tree::{Tree, put};
use p2psb_e2e::{Cluster, eventually};
use p2psb_proto::wire::peer::v1::Entry;

use super::stage::with_agents;

/// Entries, the reason by which they are refused, and what the message must name.
struct Case {
    what: &'static str,
    entries: Vec<Entry>,
    reason: &'static str,
    named: String,
}

fn case(
    what: &'static str,
    entries: impl Into<Vec<Entry>>,
    reason: &'static str,
    named: impl Into<String>,
) -> Case {
    Case { what, entries: entries.into(), reason, named: named.into() }
}

fn cases(outside: &Path) -> Vec<Case> {
    let absolute = outside.join("absolute").display().to_string();
    let secret = outside.join("secret").display().to_string();
    let deep = vec!["d"; 65].join("/");
    let folders: Vec<_> = (1..65).map(|depth| directory(&vec!["d"; depth].join("/"))).collect();
    vec![
        case("up-one", [file("../x")], "PATH_INVALID", "../x"),
        case("up-to-a-file", [file("../precious")], "PATH_INVALID", "../precious"),
        case("up-behind-a-folder", [directory("a"), file("a/../../x")], "PATH_INVALID", "a/../../x"),
        case("absolute", [file(&absolute)], "PATH_INVALID", &absolute),
        case("a-nul", [file("x\0.txt")], "PATH_INVALID", "x\\u{0}.txt"),
        case("an-empty-part", [directory("a"), file("a//x")], "PATH_INVALID", "a//x"),
        case("the-folder-itself", [directory(".")], "PATH_INVALID", "."),
        case("too-deep", [folders, vec![file(&deep)]].concat(), "PATH_INVALID", &deep),
        case("too-long", [file(&"x".repeat(1025))], "PATH_INVALID", "xxx"),
        case("a-link-up", [symlink("l", "../precious")], "SYMLINK_ESCAPES", "l leads out"),
        case("an-absolute-link", [symlink("l", &secret)], "SYMLINK_ESCAPES", &secret),
        case("a-link-far-up", [directory("a"), symlink("a/l", "../../x")], "SYMLINK_ESCAPES", "a/l"),
        // Each of the two stays inside by itself; what the second names is found by following the first.
        case(
            "a-link-through-a-link",
            [directory("a"), symlink("a/up", ".."), symlink("l", "a/up/../precious")],
            "SYMLINK_ESCAPES",
            "a/up/../precious",
        ),
        case("through-a-link", [symlink("l", "."), file("l/x")], "MANIFEST_INVALID", "l/x"),
        case("a-file-as-folder", [file("f"), file("f/x")], "MANIFEST_INVALID", "f/x"),
        case("one-name-twice", [file("twice"), directory("twice")], "MANIFEST_INVALID", "twice"),
        case("a-name-too-long-here", [file(&"n".repeat(256))], "PATH_UNREPRESENTABLE", "nnn"),
    ]
}

/// Where bob fetches to, with things that must stay as they are.
fn surroundings(dir: &Path) -> (PathBuf, PathBuf) {
    let (inside, outside) = (dir.join("inside"), dir.join("outside"));
    put(&inside, "precious", b"bob's own").unwrap();
    put(&outside, "secret", b"somebody's").unwrap();
    (inside, outside)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_release_whose_manifest_leads_out_of_its_folder_leaves_nothing() {
    let cluster = with_agents(Cluster::plan(), &["bob"]).await;
    let bob = cluster.agent("bob").unwrap();
    let (rendezvous, index) =
        (cluster.endpoints().unwrap(), cluster.index.as_ref().unwrap().dialed().unwrap());
    let (inside, outside) = surroundings(cluster.dir());
    let before = [Tree::read(&inside).unwrap(), Tree::read(&outside).unwrap()];
    for Case { what, entries, reason, named } in cases(&outside) {
        let forger = Forger::start(Forgery::new(&entries), &rendezvous).await.unwrap();
        eventually!("the forger is online", forger.peer().online() == 1);
        let reference = forger.release(&index, what).await.unwrap();
        for target in [inside.join("new"), inside.join("deeper/new")] {
            let (refused, message) =
                bob.refused(&["fetch", &reference, "-o", target.to_str().unwrap()]).await.unwrap();
            assert_eq!(refused, reason, "{what}: {message}");
            assert!(message.contains(&named), "{what}: {message} does not name {named}");
        }
        assert!(forger.asked() >= 2, "{what}: the manifest was not even read");
        for (dir, before) in [&inside, &outside].into_iter().zip(&before) {
            let differences = before.differences(&Tree::read(dir).unwrap());
            assert!(differences.is_empty(), "{what}: {differences:?}");
        }
        let status = bob.json(&["status"]).await.unwrap();
        for list in ["fetches", "shared"] {
            assert!(status[list].as_array().unwrap().is_empty(), "{what} is left in {status}");
        }
    }
    // None of them was beyond what an honest publisher of the harness could have had fetched.
    let honest = Forgery::new(&[directory("a"), symlink("a/up", "../f"), file("f")]);
    let honest = Forger::start(honest, &rendezvous).await.unwrap();
    eventually!("the honest one is online", honest.peer().online() == 1);
    let reference = honest.release(&index, "honest").await.unwrap();
    let target = inside.join("new");
    super::stage::fetch(&bob, &reference, &target).await;
    assert_eq!(std::fs::read(target.join("a/up")).unwrap(), p2psb_e2e::forger::CONTENT);
}
