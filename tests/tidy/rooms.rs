//! What each room of the code may hold.

use super::source::{Source, hits, sources};

/// A room, what may not be in it, and why.
struct Room {
    is_in: fn(&Source) -> bool,
    forbidden: &'static [&'static str],
    why: &'static str,
}

const ROOMS: [Room; 6] = [
    Room {
        is_in: |s| s.path.starts_with("proto/src/model/"),
        forbidden: &[
            "async",
            "tokio",
            "Instant::now",
            "SystemTime::now",
            "std::fs",
            "std::env",
            "std::net::TcpStream",
        ],
        why: "model types know neither clock, disk nor network",
    },
    Room {
        is_in: |s| is_core(&s.path),
        forbidden: &[
            "tonic",
            "tokio",
            "wire",
            "async",
            "await",
            "Instant::now",
            "SystemTime",
            "std::fs",
            "std::env",
            "std::net::TcpStream",
            "File::open",
            "fastrand::u64",
            "Rng::new",
            "getrandom",
        ],
        why: "core modules decide; time, chance and input are arguments",
    },
    Room {
        is_in: |s| in_service_room(&s.path, "store"),
        forbidden: &["tonic", "tokio::net", "TcpStream", "p2psb_client"],
        why: "a store knows disks and databases, no network",
    },
    Room {
        is_in: |s| s.path.starts_with("services/runtime/src/"),
        forbidden: &[
            "peer",
            "peers",
            "Peer",
            "PeerId",
            "chunk",
            "Chunk",
            "manifest",
            "rendezvous",
            "p2psb_proto",
        ],
        why: "the runtime knows no peers and packages",
    },
    Room {
        is_in: |s| s.path.starts_with("proto/src/"),
        forbidden: &["p2psb_runtime", "p2psb_client", "tracing"],
        why: "the contract stands below everything",
    },
    Room {
        is_in: |s| s.path.starts_with("services/client/src/"),
        forbidden: &["p2psb_runtime", "rusqlite", "std::env", "println", "eprintln"],
        why: "the SDK is for programs of any kind: it loads no configuration and prints nothing",
    },
];

fn service_parts(path: &str) -> Option<&str> {
    let (_, inside) = path.strip_prefix("services/")?.split_once("/src/")?;
    Some(inside)
}

fn in_service_room(path: &str, room: &str) -> bool {
    let Some(inside) = service_parts(path) else { return false };
    inside.starts_with(&format!("{room}/")) || inside == format!("{room}.rs")
}

fn is_core(path: &str) -> bool {
    in_service_room(path, "core")
}

#[test]
fn each_room_holds_only_what_belongs_there() {
    let sources = sources();
    let mut wrong = Vec::new();
    for room in &ROOMS {
        for source in sources.iter().filter(|s| (room.is_in)(s) && !s.is_test()) {
            let found = hits(&source.path, &source.product(), room.forbidden);
            wrong.extend(found.into_iter().map(|hit| format!("{hit}: {}", room.why)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_service_has_its_rooms() {
    let sources = sources();
    for service in ["rendezvous-svc", "discovery-svc", "package-index-svc", "peer-agent"] {
        for room in ["server.rs", "config.rs", "api", "main.rs", "lib.rs"] {
            let stem = room.trim_end_matches(".rs");
            let found = sources.iter().any(|s| {
                let inside = s.path.strip_prefix(&format!("services/{service}/src/")).unwrap_or_default();
                inside == room || inside.starts_with(&format!("{stem}/")) || inside == format!("{stem}.rs")
            });
            assert!(found, "services/{service}/src has no {room}");
        }
    }
}

#[test]
fn services_speak_grpc_to_each_other_even_in_tests() {
    const LIBRARIES: [&str; 4] =
        ["p2psb_rendezvous_svc", "p2psb_discovery_svc", "p2psb_package_index_svc", "p2psb_peer_agent"];
    for source in sources().iter().filter(|s| s.path.starts_with("services/")) {
        let own = source.path.split('/').nth(1).unwrap().replace('-', "_");
        let foreign: Vec<_> = LIBRARIES.iter().copied().filter(|l| *l != format!("p2psb_{own}")).collect();
        let found = hits(&source.path, &source.code(), &foreign);
        let embeds =
            source.path.starts_with("services/peer-agent/src/") && source.product().contains(LIBRARIES[0]);
        assert!(found.is_empty() || embeds, "{found:#?}");
    }
}

#[test]
fn only_status_modules_choose_grpc_codes() {
    // One file of each service maps errors to the wire, so that a reason has one spelling and one code.
    let services =
        |s: &&Source| s.path.starts_with("services/") && s.path.contains("-svc/src/") && !s.is_test();
    let mut wrong = Vec::new();
    for source in sources().iter().filter(services) {
        if source.path.ends_with("/status.rs") {
            continue;
        }
        let words = [
            "Status::new(",
            "Status::invalid_argument(",
            "Status::internal(",
            "Status::not_found(",
            "Status::unavailable(",
            "Status::failed_precondition(",
            "Status::permission_denied(",
        ];
        wrong.extend(hits(&source.path, &source.product(), &words));
    }
    assert!(
        wrong.is_empty(),
        "a status is made in api/status.rs, from a Failure with its reason: {wrong:#?}"
    );
}
