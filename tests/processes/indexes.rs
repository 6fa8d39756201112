//! Two indexes that know nothing of each other: agents tell both and ask both, so that either may be lost.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use p2psb_client::identity::IDENTITY_FILE;
use p2psb_client::{Connection, Dialer, Endpoint};
use p2psb_e2e::tree::put;
use p2psb_e2e::{Agent, Cluster, Service, eventually};
use p2psb_proto::wire::package_index::v1::package_index_service_client::PackageIndexServiceClient;
use p2psb_proto::wire::package_index::v1::{FindHostsRequest, ListPackagesRequest};
use tonic::Status;

use super::stage::{assert_same, fetch, publish, with_agents};

/// What an index knows: versions by name, and how many hosts the newest has.
type Known = BTreeMap<String, (String, usize)>;

async fn known(at: &Endpoint) -> Result<Known, Status> {
    let connection: Connection = Dialer::new(None, None).unwrap().dial(at).await?;
    let origin = connection.origin();
    let mut client = PackageIndexServiceClient::with_origin(connection, origin);
    let packages = client.list_packages(ListPackagesRequest::default()).await?.into_inner().packages;
    let mut known = Known::new();
    for package in packages {
        let request =
            FindHostsRequest { manifest_digest: package.manifest_digest, ..FindHostsRequest::default() };
        let hosts = client.find_hosts(request).await?.into_inner().hosts;
        known.insert(package.name, (package.version, hosts.len()));
    }
    Ok(known)
}

fn expected(packages: &[(&str, &str, usize)]) -> Known {
    packages.iter().map(|(name, version, hosts)| ((*name).into(), ((*version).into(), *hosts))).collect()
}

async fn both(cluster: &Cluster, expected: &Known) {
    for index in cluster.index.iter().chain(&cluster.more_indexes) {
        let at = index.dialed().unwrap();
        eventually!(format!("{} knows {expected:?}", index.name), {
            match known(&at).await {
                Ok(known) if known == *expected => Ok(()),
                Ok(known) => Err(format!("it knows {known:?}")),
                Err(status) => Err(status.to_string()),
            }
        });
    }
}

async fn finds(agent: &Agent, word: &str) {
    let found = agent.objects(&["search", word]).await.unwrap();
    assert_eq!(found.len(), 1, "{word}: {found:?}");
}

/// Stops an index as an accident does, and takes all it knew; its key is kept elsewhere, as keys are.
async fn lose(index: &mut Service) {
    index.kill().await.unwrap();
    let key = fs::read(index.data_dir().join(IDENTITY_FILE)).unwrap();
    fs::remove_dir_all(index.data_dir()).unwrap();
    restore(&index.data_dir(), &key);
}

fn restore(data: &Path, key: &[u8]) {
    use std::os::unix::fs::PermissionsExt as _;
    let file = put(data, IDENTITY_FILE, key).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_indexes_either_may_be_lost_and_is_filled_up_again() {
    let mut cluster = with_agents(Cluster::plan().indexes(2), &["alice", "bob"]).await;
    let (alice, bob) = (cluster.agent("alice").unwrap(), cluster.agent("bob").unwrap());
    eventually!("both indexes are in use by both agents", {
        let mut counts = Vec::new();
        for agent in [&alice, &bob] {
            counts.push(agent.json(&["status"]).await.unwrap()["indexes"].as_array().unwrap().len());
        }
        if counts == [2, 2] { Ok(()) } else { Err(format!("{counts:?}")) }
    });
    let (one, two) = (cluster.dir().join("one"), cluster.dir().join("two"));
    put(&one, "file", b"first").unwrap();
    put(&two, "file", b"second").unwrap();
    publish(&alice, &one, &["--name", "notes"]).await;
    let published = publish(&alice, &two, &["--name", "notes"]).await;
    assert_eq!(published["indexes"].as_array().unwrap().len(), 2, "{published}");
    both(&cluster, &expected(&[("notes", "0.2.0", 1)])).await;

    lose(cluster.index.as_mut().unwrap()).await;
    finds(&bob, "notes").await;
    let target = cluster.dir().join("by-the-other");
    fetch(&bob, "notes", &target).await;
    assert_same(&two, &target);
    let third = cluster.dir().join("third");
    put(&third, "file", b"third").unwrap();
    publish(&alice, &third, &["--name", "meanwhile"]).await;

    cluster.index.as_mut().unwrap().start().await.unwrap();
    both(&cluster, &expected(&[("notes", "0.2.0", 2), ("meanwhile", "0.1.0", 1)])).await;

    // What was lost first is enough now.
    cluster.more_indexes[0].kill().await.unwrap();
    finds(&bob, "notes").await;
    let target = cluster.dir().join("by-the-first");
    fetch(&bob, "notes@=0.1.0", &target).await;
    assert_same(&one, &target);
}
