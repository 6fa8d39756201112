//! The index over a real ephemeral port, called by the SDK.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::{Chain, Index, NETWORK, claim, key, lease, network, release};
use p2psb_client::TlsConfig;
use p2psb_client::tls::TlsMode;
use p2psb_package_index_svc::{Config, Server, Settings};
use p2psb_proto::error::{Reason, fact_of, reason_of, record_of};
use p2psb_proto::model::host::{HostClaim, HostLease};
use p2psb_proto::model::record::Signed;
use p2psb_proto::model::release::{Action, PackageEntry};
use p2psb_proto::model::time::{UnixMillis, duration_from_wire};
use p2psb_proto::model::{Digest, Genesis, PublisherId};
use p2psb_proto::wire::package_index::v1 as wire;
use p2psb_runtime::clock::ManualClock;
use p2psb_runtime::{Clock, Service as _, Settings as _};
use tempfile::TempDir;
use tonic::{Code, Status};

const MINUTE: Duration = Duration::from_secs(60);

/// A running index with a clock of its own.
struct Bench {
    folder: TempDir,
    config: Config,
    server: Server,
    index: Index,
    hand: ManualClock,
    clock: Clock,
}

impl Bench {
    async fn start() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: folder.path().join("data"),
            ..Settings::default()
        };
        settings.network.name = NETWORK.into();
        change(&mut settings);
        let mut config = settings.meant().unwrap();
        let (clock, hand) = Clock::manual(SystemTime::now());
        config.clock = clock.clone();
        let server = Server::bind(config.clone()).await.unwrap();
        let endpoint = format!("https://{}#{}", server.addr(), server.peer_id());
        let index = Index::dial(&endpoint.parse().unwrap()).await;
        Self { folder, config, server, index, hand, clock }
    }

    fn now(&self) -> UnixMillis {
        UnixMillis(self.clock.unix_millis())
    }

    fn chain(&self, seed: u8, name: &str) -> Chain {
        Chain::new(seed, name, self.now())
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, Reason) {
    let status = result.expect_err("it must be refused");
    (status.code(), reason_of(&status).unwrap_or_else(|| panic!("no reason in {status:?}")))
}

#[tokio::test]
async fn two_versions_are_published_and_found_again() {
    let mut bench = Bench::start().await;
    let mut chain = bench.chain(1, "demo");
    let (first, second) = (chain.release("1.0.0"), chain.release("1.1.0"));
    let answer = bench.index.publish(&first).await.unwrap();
    assert_eq!((answer.seq, answer.digest), (1, first.digest().to_wire()));
    bench.index.publish(&second).await.unwrap();
    assert_eq!(bench.index.publish(&first).await.unwrap().seq, 1, "a lost answer is harmless");
    assert_eq!(bench.index.head(&chain).await.unwrap(), second.to_wire(), "verbatim");
    let publisher = Some(chain.publisher());
    let index = &mut bench.index;
    assert_eq!(index.resolve(None, "demo", "").await.unwrap(), ("1.1.0".into(), false));
    assert_eq!(index.resolve(publisher, "demo", "=1.0.0").await.unwrap(), ("1.0.0".into(), false));
    let found = index.search("package").await.unwrap();
    assert_eq!((found.len(), found[0].name.as_str(), found[0].version.as_str()), (1, "demo", "1.1.0"));
    assert_eq!(found[0].manifest_digest, Digest::of(b"1.1.0").to_wire());
}

#[tokio::test]
async fn a_publisher_that_lost_the_race_is_given_the_head_and_goes_on() {
    let mut bench = Bench::start().await;
    let mut chain = bench.chain(1, "demo");
    bench.index.publish(&chain.release("1.0.0")).await.unwrap();
    let late = chain.draft(Action::Release(release("2.0.0")));
    let winner = chain.release("1.1.0");
    bench.index.publish(&winner).await.unwrap();
    let status = bench.index.publish(&late).await.unwrap_err();
    assert_eq!((status.code(), reason_of(&status)), (Code::Aborted, Some(Reason::HeadMoved)));
    let head = Signed::<PackageEntry>::verify(record_of(&status).unwrap()).unwrap();
    assert_eq!(head, winner);
    chain.follow(&head);
    bench.index.publish(&chain.release("2.0.0")).await.unwrap();
}

#[tokio::test]
async fn a_head_too_large_for_an_error_is_still_reported() {
    let mut bench = Bench::start().await;
    let mut chain = bench.chain(1, "demo");
    let rival = chain.draft(Action::Release(release("1.0.0")));
    let mut large = release("1.0.0");
    large.description = "x".repeat(16 * 1024);
    bench.index.publish(&chain.next(Action::Release(large.clone()))).await.unwrap();
    let status = bench.index.publish(&rival).await.unwrap_err();
    assert_eq!((reason_of(&status), record_of(&status)), (Some(Reason::HeadMoved), None));
    assert_eq!(fact_of(&status, "head_seq").as_deref(), Some("1"));
    assert_eq!(fact_of(&status, "head_digest"), chain.prev.map(|digest| digest.to_string()));
    // The largest that is attached passes through as well.
    let mut chain = bench.chain(1, "other");
    let rival = chain.draft(Action::Release(release("1.0.0")));
    large.description = "x".repeat(7_800);
    let head = chain.next(Action::Release(large));
    bench.index.publish(&head).await.unwrap();
    let status = bench.index.publish(&rival).await.unwrap_err();
    assert_eq!(record_of(&status), Some(head.to_wire()));
}

#[tokio::test]
async fn what_is_wrong_with_an_entry_is_named() {
    let mut bench = Bench::start().await;
    let mut chain = bench.chain(1, "demo");
    let entry = chain.release("1.0.0");
    let index = &mut bench.index;

    let mut forged = entry.to_wire();
    forged.signature = Bytes::from(vec![0; 64]);
    let wrong = refused(index.publish_wire(forged).await);
    assert_eq!(wrong, (Code::Unauthenticated, Reason::SignatureInvalid));

    let foreign = Signed::sign(entry.value(), &key(2)).unwrap();
    let wrong = refused(index.publish(&foreign).await);
    assert_eq!(wrong, (Code::PermissionDenied, Reason::NotOwner));

    let ahead = PackageEntry { issued: chain.issued.plus(6 * MINUTE), ..entry.value().clone() };
    let status = index.publish(&Signed::sign(&ahead, &chain.key).unwrap()).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::ClockSkew));
    assert!(fact_of(&status, "server_time").is_some());

    let other = lease(1, chain.issued, MINUTE).to_wire();
    let wrong = refused(index.publish_wire(other).await);
    assert_eq!(wrong, (Code::InvalidArgument, Reason::RecordTypeUnexpected));

    let oversized = p2psb_proto::wire::common::v1::SignedRecord {
        payload: Bytes::from(vec![0; 65 * 1024]),
        ..entry.to_wire()
    };
    assert_eq!(refused(index.publish_wire(oversized).await).1, Reason::RecordTooLarge);

    let missing = index.0.publish(wire::PublishRequest { entry: None }).await;
    assert_eq!(refused(missing).1, Reason::RecordMalformed);

    let second = chain.release("1.1.0");
    assert_eq!(refused(index.publish(&second).await), (Code::NotFound, Reason::PackageUnknown));

    index.publish(&entry).await.unwrap();
    index.publish(&second).await.unwrap();
    let mut again = release("1.0.0");
    again.manifest = Digest::of(b"other bytes");
    let wrong = refused(index.publish(&chain.draft(Action::Release(again))).await);
    assert_eq!(wrong, (Code::AlreadyExists, Reason::VersionExists));
    let yank = Action::Yank { version: "9.0.0".parse().unwrap(), reason: String::new() };
    assert_eq!(refused(index.publish(&chain.draft(yank)).await).1, Reason::ReleaseUnknown);
    assert_eq!(index.head(&chain).await.unwrap(), second.to_wire(), "nothing of it left a trace");
}

#[tokio::test]
async fn requirements_choose_and_what_can_not_be_chosen_is_explained() {
    let mut bench = Bench::start().await;
    let mut chain = bench.chain(1, "demo");
    for version in ["0.9.0", "1.0.0", "1.2.0", "2.0.0-rc.1"] {
        bench.index.publish(&chain.release(version)).await.unwrap();
    }
    let yank = Action::Yank { version: "1.2.0".parse().unwrap(), reason: "broken".into() };
    bench.index.publish(&chain.next(yank)).await.unwrap();
    let index = &mut bench.index;
    for (requirement, version, yanked) in [
        ("", "1.0.0", false),
        ("^1", "1.0.0", false),
        ("<1", "0.9.0", false),
        ("=1.2.0", "1.2.0", true),
        (">=2.0.0-rc.1", "2.0.0-rc.1", false),
    ] {
        let found = index.resolve(None, "demo", requirement).await.unwrap();
        assert_eq!(found, (version.to_owned(), yanked), "{requirement}");
    }
    let status = index.resolve(None, "demo", "^7").await.unwrap_err();
    assert_eq!((status.code(), reason_of(&status)), (Code::NotFound, Some(Reason::ReleaseUnknown)));
    assert!(status.message().contains("the newest is 1.0.0"), "{}", status.message());
    let wrong = refused(index.resolve(None, "demo", "newest please").await);
    assert_eq!(wrong, (Code::InvalidArgument, Reason::RequirementInvalid));
    assert_eq!(refused(index.resolve(None, "nothing", "").await).1, Reason::PackageUnknown);
    assert_eq!(refused(index.resolve(None, "../x", "").await).1, Reason::InvalidArgument);
    let stranger = Some(PublisherId::new(key(9).public()));
    assert_eq!(refused(index.resolve(stranger, "demo", "").await).1, Reason::PackageUnknown);
}

#[tokio::test]
async fn a_name_that_several_publishers_have_is_ambiguous() {
    let mut bench = Bench::start().await;
    let (mut one, mut two) = (bench.chain(1, "demo"), bench.chain(2, "demo"));
    bench.index.publish(&one.release("1.0.0")).await.unwrap();
    bench.index.publish(&two.release("2.0.0")).await.unwrap();
    let status = bench.index.resolve(None, "demo", "").await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::NameAmbiguous));
    let listed = fact_of(&status, "publishers").unwrap();
    for publisher in [one.publisher(), two.publisher()] {
        assert!(listed.split(',').any(|text| text == publisher.to_string()), "{listed}");
    }
    let found = bench.index.resolve(Some(two.publisher()), "demo", "").await.unwrap();
    assert_eq!(found.0, "2.0.0");
}

#[tokio::test]
async fn search_takes_no_syntax() {
    let mut bench = Bench::start().await;
    bench.index.publish(&bench.chain(1, "demo").release("1.0.0")).await.unwrap();
    bench.index.publish(&bench.chain(1, "demo-tools").release("1.0.0")).await.unwrap();
    let index = &mut bench.index;
    let names: Vec<_> = index.search("DEMO").await.unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(names, ["demo", "demo-tools"]);
    for query in
        ["\" OR 1=1 --", "'; DROP TABLE entry; --", "foo*", "NEAR(", "name:demo", "\"", "*", "^\u{0}"]
    {
        assert!(index.search(query).await.unwrap().is_empty(), "{query}");
    }
    assert_eq!(refused(index.search("").await), (Code::InvalidArgument, Reason::InvalidArgument));
    assert_eq!(refused(index.search(&"x".repeat(256)).await).1, Reason::InvalidArgument);
}

#[tokio::test]
async fn lists_come_in_pages_whose_tokens_fit_only_their_query() {
    let mut bench = Bench::start().await;
    let mut chain = bench.chain(1, "a");
    for patch in 0..5 {
        bench.index.publish(&chain.release(&format!("1.0.{patch}"))).await.unwrap();
    }
    for name in ["b", "c"] {
        bench.index.publish(&bench.chain(2, name).release("1.0.0")).await.unwrap();
    }
    let client = &mut bench.index.0;
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = wire::ListPackagesRequest { page_size: 2, page_token, ..Default::default() };
        let page = client.list_packages(request).await.unwrap().into_inner();
        names.extend(page.packages.into_iter().map(|found| found.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c"]);

    let publisher_id = chain.publisher().to_wire();
    let list = |page_token| wire::ListReleasesRequest {
        publisher_id: publisher_id.clone(),
        name: "a".into(),
        page_size: 3,
        page_token,
    };
    let first = client.list_releases(list(String::new())).await.unwrap().into_inner();
    let second = client.list_releases(list(first.next_page_token.clone())).await.unwrap().into_inner();
    assert_eq!((first.entries.len(), second.entries.len(), second.next_page_token.as_str()), (3, 2, ""));
    let seq_of = |record| Signed::<PackageEntry>::verify(record).unwrap().value().seq;
    let seqs: Vec<_> = first.entries.into_iter().chain(second.entries).map(seq_of).collect();
    assert_eq!(seqs, [5, 4, 3, 2, 1]);

    let foreign = wire::ListPackagesRequest { page_token: first.next_page_token, ..Default::default() };
    let wrong = refused(client.list_packages(foreign).await);
    assert_eq!(wrong, (Code::InvalidArgument, Reason::PageTokenInvalid));
    let unknown = wire::ListReleasesRequest { name: "z".into(), ..list(String::new()) };
    assert_eq!(refused(client.list_releases(unknown).await).1, Reason::PackageUnknown);
}

#[tokio::test]
async fn hosts_are_listed_while_their_leases_follow_one_another() {
    let mut bench = Bench::start().await;
    let manifest = Digest::of(b"1.0.0");
    bench.index.publish(&bench.chain(9, "demo").release("1.0.0")).await.unwrap();
    let first = lease(1, bench.now(), 60 * MINUTE);
    let held = claim(1, manifest, 1, bench.now());
    let answer = bench.index.announce(&first, std::slice::from_ref(&held)).await.unwrap();
    assert_eq!((answer.errors.len(), answer.known_claims), (0, 1));
    let refresh = duration_from_wire(answer.refresh_after.as_ref());
    assert!((24 * MINUTE..=36 * MINUTE).contains(&refresh), "{refresh:?}");
    let hosts = bench.index.hosts(manifest).await.unwrap();
    assert_eq!(hosts[0].claim, Some(held.to_wire()));
    assert_eq!(hosts[0].lease, Some(first.to_wire()));
    assert_eq!(bench.index.search("demo").await.unwrap()[0].host_count, 1);

    bench.hand.advance(50 * MINUTE);
    let second = lease(1, bench.now(), 60 * MINUTE);
    let answer = bench.index.announce(&second, &[]).await.unwrap();
    assert_eq!(answer.known_claims, 1, "claims stay while leases follow without a gap");
    bench.hand.advance(20 * MINUTE);
    assert_eq!(bench.index.hosts(manifest).await.unwrap()[0].lease, Some(second.to_wire()));

    bench.hand.advance(60 * MINUTE);
    assert!(bench.index.hosts(manifest).await.unwrap().is_empty(), "the lease is over");
    assert_eq!(bench.index.search("demo").await.unwrap()[0].host_count, 0);
    assert_eq!(refused(bench.index.announce(&second, &[]).await).1, Reason::RecordExpired);
    let third = lease(1, bench.now(), 60 * MINUTE);
    assert_eq!(bench.index.announce(&third, &[]).await.unwrap().known_claims, 0, "announce them anew");
    let answer = bench.index.announce(&third, &[held]).await.unwrap();
    assert_eq!((answer.known_claims, bench.index.hosts(manifest).await.unwrap().len()), (1, 1));
}

#[tokio::test]
async fn stale_and_doubled_leases_are_refused_with_the_stored_one() {
    let mut bench = Bench::start().await;
    let now = bench.now();
    let newer = lease(1, now, 60 * MINUTE);
    bench.index.announce(&newer, &[]).await.unwrap();
    let older = lease(1, now.minus(MINUTE), 60 * MINUTE);
    let status = bench.index.announce(&older, &[]).await.unwrap_err();
    assert_eq!((status.code(), reason_of(&status)), (Code::FailedPrecondition, Some(Reason::RecordStale)));
    assert_eq!(record_of(&status), Some(newer.to_wire()));
    let twin = HostLease { expires: now.plus(30 * MINUTE), ..newer.value().clone() };
    let status = bench.index.announce(&Signed::sign(&twin, &key(1)).unwrap(), &[]).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::RecordEquivocation));
    assert_eq!(record_of(&status), Some(newer.to_wire()));

    let abroad = HostLease { network: Genesis::open("elsewhere").unwrap().network_id(), ..twin.clone() };
    let abroad = Signed::sign(&abroad, &key(1)).unwrap();
    assert_eq!(refused(bench.index.announce(&abroad, &[]).await).1, Reason::NetworkMismatch);
    let ahead = lease(1, now.plus(6 * MINUTE), MINUTE);
    assert_eq!(refused(bench.index.announce(&ahead, &[]).await).1, Reason::ClockSkew);
}

#[tokio::test]
async fn a_claim_that_is_refused_does_not_hurt_the_others() {
    let mut bench = Bench::start().await;
    let now = bench.now();
    let manifest = Digest::of(b"content");
    let run = lease(1, now, 60 * MINUTE);
    let good = claim(1, Digest::of(b"good"), 5, now);
    bench.index.announce(&run, &[claim(1, manifest, 5, now)]).await.unwrap();
    let foreign = claim(2, manifest, 1, now);
    let stale = claim(1, manifest, 4, now);
    let abroad =
        HostClaim { network: Genesis::open("elsewhere").unwrap().network_id(), ..good.value().clone() };
    let abroad = Signed::sign(&abroad, &key(1)).unwrap();
    let mut claims: Vec<_> = [&foreign, &good, &stale, &abroad].map(Signed::to_wire).to_vec();
    let mut forged = good.to_wire();
    forged.signature = Bytes::from(vec![7; 64]);
    claims.push(forged);
    let request = wire::AnnounceHostRequest { lease: Some(run.to_wire()), claims };
    let answer = bench.index.0.announce_host(request).await.unwrap().into_inner();
    let errors: Vec<_> = answer.errors.iter().map(|error| (error.index, error.reason.as_str())).collect();
    assert_eq!(
        errors,
        [(0, "INVALID_ARGUMENT"), (2, "RECORD_STALE"), (3, "NETWORK_MISMATCH"), (4, "SIGNATURE_INVALID")]
    );
    assert_eq!(answer.known_claims, 2);
    assert_eq!(bench.index.hosts(manifest).await.unwrap().len(), 1, "nobody claims for another");

    let claims = vec![good.to_wire(); 1001];
    let request = wire::AnnounceHostRequest { lease: Some(run.to_wire()), claims };
    assert_eq!(refused(bench.index.0.announce_host(request).await).1, Reason::InvalidArgument);
    assert_eq!(network(), bench.config.network);
}

#[tokio::test]
async fn a_thousand_claims_are_announced_at_once_and_found_page_by_page() {
    let mut bench = Bench::start().await;
    let now = bench.now();
    let run = lease(1, now, 60 * MINUTE);
    let many: Vec<_> = (0..1000_u32).map(|n| claim(1, Digest::of(&n.to_le_bytes()), 1, now)).collect();
    assert_eq!(bench.index.announce(&run, &many).await.unwrap().known_claims, 1000);
    assert_eq!(bench.index.announce(&run, &many).await.unwrap().known_claims, 1000, "the same again");

    let manifest = Digest::of(b"popular");
    for seed in 2..9 {
        bench.hand.advance(Duration::from_secs(1));
        let (run, held) = (lease(seed, bench.now(), 60 * MINUTE), claim(seed, manifest, 1, bench.now()));
        bench.index.announce(&run, &[held]).await.unwrap();
    }
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            wire::FindHostsRequest { manifest_digest: manifest.to_wire(), page_size: 3, page_token };
        let page = bench.index.0.find_hosts(request).await.unwrap().into_inner();
        seen.extend(page.hosts.into_iter().map(|host| host.claim.unwrap().key));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<_> =
        (2..9).rev().map(|seed| Bytes::copy_from_slice(key(seed).public().as_bytes())).collect();
    assert_eq!(seen, expected, "heard of last first");
    let short = wire::FindHostsRequest { manifest_digest: Bytes::from_static(b"x"), ..Default::default() };
    assert_eq!(refused(bench.index.0.find_hosts(short).await).1, Reason::InvalidArgument);
}

#[tokio::test]
async fn publishers_at_once_never_fork_a_chain() {
    let bench = Bench::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..8_u32 {
        let (mut index, mut chain) = (bench.index.clone(), bench.chain(1, "demo"));
        tasks.spawn(async move {
            let mut released = 0;
            while released < 5 {
                let entry = chain.draft(Action::Release(release(&format!("{writer}.0.{released}"))));
                match index.publish(&entry).await {
                    Ok(_) => {
                        chain.follow(&entry);
                        released += 1;
                    }
                    Err(status) => {
                        assert_eq!(reason_of(&status), Some(Reason::HeadMoved), "{status:?}");
                        chain.follow(&Signed::verify(record_of(&status).unwrap()).unwrap());
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let mut client = bench.index.0.clone();
    let request = wire::ListReleasesRequest {
        publisher_id: bench.chain(1, "demo").publisher().to_wire(),
        name: "demo".into(),
        ..Default::default()
    };
    let entries = client.list_releases(request).await.unwrap().into_inner().entries;
    let entries: Vec<_> = entries.into_iter().map(|r| Signed::<PackageEntry>::verify(r).unwrap()).collect();
    assert_eq!(entries.len(), 40);
    for pair in entries.windows(2) {
        assert_eq!(pair[0].value().prev, Some(pair[1].digest()));
    }
}

#[tokio::test]
async fn a_restart_keeps_identity_and_catalogue() {
    let mut bench = Bench::start().await;
    let mut chain = bench.chain(1, "demo");
    let entry = chain.release("1.0.0");
    bench.index.publish(&entry).await.unwrap();
    let id = bench.server.peer_id();
    drop(bench.index);
    bench.server.shutdown(Duration::from_secs(5)).await;
    let server = Server::bind(bench.config).await.unwrap();
    assert_eq!(server.peer_id(), id);
    let mut index = Index::dial(&format!("https://{}#{id}", server.addr()).parse().unwrap()).await;
    assert_eq!(index.head(&chain).await.unwrap(), entry.to_wire());
    drop(bench.folder);
}

#[tokio::test]
async fn over_a_quota_the_limit_is_named() {
    let mut bench = Bench::with(|settings| settings.limits.packages_per_publisher = 1).await;
    bench.index.publish(&bench.chain(1, "one").release("1.0.0")).await.unwrap();
    let status = bench.index.publish(&bench.chain(1, "two").release("1.0.0")).await.unwrap_err();
    assert_eq!((status.code(), reason_of(&status)), (Code::ResourceExhausted, Some(Reason::LimitExceeded)));
    assert_eq!(fact_of(&status, "limit").as_deref(), Some("limits.packages_per_publisher"));
}

#[tokio::test]
async fn a_full_database_says_so_to_callers_and_operators() {
    let mut bench = Bench::with(|settings| settings.limits.database_bytes = 1 << 20).await;
    let mut chain = bench.chain(1, "demo");
    let mut patch = 0;
    let status = loop {
        let mut large = release(&format!("1.0.{patch}"));
        large.description = format!("{patch} ").repeat(4000);
        let entry = chain.draft(Action::Release(large));
        match bench.index.publish(&entry).await {
            Ok(_) => chain.follow(&entry),
            Err(status) => break status,
        }
        patch += 1;
    };
    assert_eq!((status.code(), reason_of(&status)), (Code::ResourceExhausted, Some(Reason::DiskFull)));
    let head = Signed::<PackageEntry>::verify(bench.index.head(&chain).await.unwrap()).unwrap();
    assert_eq!(head.value().seq, chain.seq, "exactly the acknowledged entries");
    let told = bench.server.status().report().components["store"].clone();
    assert!(format!("{told:?}").contains("full"), "{told:?}");
}

#[tokio::test]
async fn plaintext_is_served_where_configured() {
    let plaintext = TlsConfig { mode: TlsMode::Plaintext, ..TlsConfig::default() };
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: folder.path().join("data"),
        tls: plaintext,
        ..Settings::default()
    };
    let server = Server::bind(settings.meant().unwrap()).await.unwrap();
    let mut index = Index::dial(&format!("http://{}", server.addr()).parse().unwrap()).await;
    assert!(index.search("anything").await.unwrap().is_empty());
}
