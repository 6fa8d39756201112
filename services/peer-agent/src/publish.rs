//! Publishing: content first, then the release that points at it, then the claim to host it.
//!
//! Promises: what can be known to be wrong before gigabytes are read is said before; nothing is released unless all of it was read;
//! a caller that leaves cancels what has not been released yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::release::parse_version;
use p2psb_proto::model::{PackageName, RecordError, Release, SecretKey, limits};
use p2psb_proto::wire::agent::v1 as wire;
use semver::Version;
use tokio::sync::{mpsc, watch};

use crate::announce::Changed;
use crate::content::publish::{PublishError, PublishProgress, Published, publish};
use crate::core::versions::fitting_name;
use crate::failure::{internal, may_pass, store_failed};
use crate::index::{Draft, Indexes};
use crate::store::Store;

/// Paths of one publish.
pub const MAX_PATHS: usize = 1000;
/// How long an index may be out of reach before publishing fails.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

/// What publishes.
#[derive(Clone)]
pub struct Publisher {
    /// Where content is recorded.
    pub store: Arc<Store>,
    /// Where releases go.
    pub indexes: Indexes,
    /// Signs them.
    pub key: Arc<SecretKey>,
    /// Told when there is something new to claim.
    pub changed: Changed,
}

/// A publish as it was asked for, checked.
#[derive(Clone, Debug)]
pub struct Order {
    paths: Vec<PathBuf>,
    name: PackageName,
    version: Option<Version>,
    title: String,
    description: String,
    tags: Vec<String>,
    license: String,
}

fn wrong(problem: impl Into<String>) -> Failure {
    Failure::new(Reason::InvalidArgument, problem)
}

fn bounded(text: String, limit: usize, what: &str) -> Result<String, Failure> {
    if text.len() > limit {
        return Err(wrong(format!("{what} has {} bytes, at most {limit} are allowed", text.len())));
    }
    Ok(text)
}

impl TryFrom<wire::PublishRequest> for Order {
    type Error = Failure;

    fn try_from(request: wire::PublishRequest) -> Result<Self, Failure> {
        if request.paths.is_empty() || request.paths.len() > MAX_PATHS {
            return Err(wrong(format!(
                "1 to {MAX_PATHS} paths are needed, {} were given",
                request.paths.len()
            )));
        }
        let paths: Vec<PathBuf> = request.paths.into_iter().map(PathBuf::from).collect();
        if let Some(path) = paths.iter().find(|path| !path.is_absolute()) {
            return Err(Failure::new(
                Reason::PathInvalid,
                format!("{} is not an absolute path", path.display()),
            ));
        }
        let name = match request.name.as_str() {
            "" => default_name(&paths)?,
            name => {
                name.parse().map_err(|error: p2psb_proto::model::name::NameError| wrong(error.to_string()))?
            }
        };
        let version = (!request.version.is_empty())
            .then(|| parse_version(&request.version))
            .transpose()
            .map_err(wrong_version)?;
        if request.title.contains(['\n', '\r']) {
            return Err(wrong("the title is one line; longer text goes into the description"));
        }
        if request.tags.len() > limits::TAGS {
            return Err(wrong(format!("{} tags, at most {} are allowed", request.tags.len(), limits::TAGS)));
        }
        Ok(Self {
            paths,
            name,
            version,
            title: bounded(request.title, limits::TITLE_BYTES, "the title")?,
            description: bounded(request.description, limits::DESCRIPTION_BYTES, "the description")?,
            tags: request
                .tags
                .into_iter()
                .map(|tag| bounded(tag, limits::TAG_BYTES, "a tag"))
                .collect::<Result<_, _>>()?,
            license: bounded(request.license, limits::LICENSE_BYTES, "the license")?,
        })
    }
}

fn wrong_version(error: RecordError) -> Failure {
    let problem = match error {
        RecordError::Malformed(problem) => problem,
        other => other.to_string(),
    };
    Failure::new(Reason::VersionInvalid, problem)
}

fn default_name(paths: &[PathBuf]) -> Result<PackageName, Failure> {
    let path = paths.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
    let own = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    fitting_name(&own).ok_or_else(|| {
        wrong(format!(
            "no package name can be made out of {:?}; give one with --name",
            path.display().to_string()
        ))
    })
}

/// Cancels a publish when its caller leaves.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Publisher {
    /// Publishes. Progress may be dropped on the way; dropping the future cancels.
    pub async fn publish(
        &self,
        order: Order,
        progress: &watch::Sender<PublishProgress>,
    ) -> Result<wire::PublishResult, Failure> {
        let content = self.read(order.paths, progress).await?;
        let release = Release {
            // Replaced when it is known.
            version: order.version.clone().unwrap_or(crate::core::versions::FIRST),
            manifest: content.manifest,
            total_size: content.total_size,
            file_count: content.file_count,
            title: order.title,
            description: order.description,
            tags: order.tags,
            license: order.license,
        };
        let draft = Draft { name: order.name, version: order.version, release };
        // From here on it is announced even if the caller leaves: an index may have taken the release already.
        let publisher = self.clone();
        let released = tokio::spawn(async move {
            let outcome = publisher.release(draft).await;
            if outcome.is_err() {
                publisher.forget_unreleased(content).await;
            }
            outcome
        });
        let released = released.await.map_err(internal)??;
        Ok(wire::PublishResult {
            reference: released.reference,
            manifest_digest: released.manifest.to_string(),
            total_size: content.total_size,
            file_count: content.file_count,
            indexes: released.indexes.iter().map(ToString::to_string).collect(),
        })
    }

    async fn read(
        &self,
        paths: Vec<PathBuf>,
        progress: &watch::Sender<PublishProgress>,
    ) -> Result<Published, Failure> {
        let cancel = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancel));
        let store = Arc::clone(&self.store);
        let (tell, mut news) = mpsc::channel(1);
        let reading = tokio::task::spawn_blocking(move || {
            let mut report = |now: PublishProgress| {
                // Progress that nobody has taken yet is replaced by the next.
                let _ = tell.try_send(now);
            };
            let published = publish(&store, &paths, &mut report, &cancel)?;
            if cancel.load(Ordering::Relaxed) {
                // The caller left in the last moment: nobody will release it.
                store.forget(published.tree).map_err(store_failed)?;
                return Err(PublishError::Cancelled.into());
            }
            Ok(published)
        });
        while let Some(now) = news.recv().await {
            progress.send_replace(now);
        }
        reading.await.map_err(internal)?
    }

    /// Content that no release points at is not shared.
    async fn forget_unreleased(&self, content: Published) {
        let store = Arc::clone(&self.store);
        let work = move || match store.release_of(&content.manifest)? {
            Some(_) => Ok(()),
            None => store.forget(content.tree),
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(work).await {
            tracing::warn!(%error, manifest = %content.manifest, "content without a release is left in the catalogue");
        }
    }

    async fn release(&self, draft: Draft) -> Result<crate::index::Published, Failure> {
        let give_up = tokio::time::Instant::now() + PATIENCE;
        let published = loop {
            match self.indexes.publish(&self.key, draft.clone()).await {
                Err(failure) if may_pass(failure.reason) && tokio::time::Instant::now() < give_up => {
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => break outcome?,
            }
        };
        tracing::info!(reference = published.reference, manifest = %published.manifest, "published");
        self.changed.tell();
        Ok(published)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str) -> wire::PublishRequest {
        wire::PublishRequest { paths: vec![path.to_owned()], ..wire::PublishRequest::default() }
    }

    #[test]
    fn the_name_defaults_to_that_of_the_first_path() {
        let order = Order::try_from(request("/home/a/My Stuff/")).unwrap();
        assert_eq!(order.name.as_str(), "my-stuff");
        let failure = Order::try_from(request("/日本")).unwrap_err();
        assert!(failure.message.contains("--name"), "{}", failure.message);
    }

    #[test]
    fn what_can_be_wrong_is_said_before_anything_is_read() {
        let reason = |change: fn(&mut wire::PublishRequest)| {
            let mut request = request("/a");
            change(&mut request);
            Order::try_from(request).unwrap_err().reason
        };
        assert_eq!(reason(|r| r.paths.clear()), Reason::InvalidArgument);
        assert_eq!(reason(|r| r.paths = vec!["a".into()]), Reason::PathInvalid);
        assert_eq!(reason(|r| r.name = "A".into()), Reason::InvalidArgument);
        assert_eq!(reason(|r| r.version = "1.0".into()), Reason::VersionInvalid);
        assert_eq!(reason(|r| r.title = "a\nb".into()), Reason::InvalidArgument);
        assert_eq!(reason(|r| r.tags = vec![String::new(); 33]), Reason::InvalidArgument);
        assert_eq!(reason(|r| r.license = "x".repeat(256)), Reason::InvalidArgument);
    }
}
