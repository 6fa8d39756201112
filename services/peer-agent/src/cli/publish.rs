//! `publish`.

use std::path::PathBuf;

use indicatif::HumanBytes;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::wire::agent::v1 as wire;
use p2psb_proto::wire::agent::v1::publish_response::Event;
use serde_json::json;

use super::daemon::{Daemon, failed};
use super::output::{Output, Progress, counted};
use super::{Problem, paths};

/// What to publish.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// A folder, which is published as its content, or several files and folders.
    #[arg(required = true, value_name = "PATH")]
    pub(super) paths: Vec<PathBuf>,
    /// Name of the package [default: that of the first path, made to fit].
    #[arg(long)]
    name: Option<String>,
    /// Version of the release [default: the next minor one, first 0.1.0].
    #[arg(long)]
    version: Option<String>,
    /// One line about it.
    #[arg(long)]
    title: Option<String>,
    /// Longer text about it.
    #[arg(long)]
    description: Option<String>,
    /// A word to find it by; may be repeated.
    #[arg(long, value_name = "TAG")]
    pub(super) tag: Vec<String>,
    /// Its license, as an SPDX expression: "MIT OR Apache-2.0".
    #[arg(long, value_name = "SPDX")]
    license: Option<String>,
}

impl Args {
    fn request(self) -> Result<wire::PublishRequest, Failure> {
        Ok(wire::PublishRequest {
            paths: self.paths.iter().map(|path| paths::existing(path)).collect::<Result<_, _>>()?,
            name: self.name.unwrap_or_default(),
            version: self.version.unwrap_or_default(),
            title: self.title.unwrap_or_default(),
            description: self.description.unwrap_or_default(),
            tags: self.tag,
            license: self.license.unwrap_or_default(),
        })
    }
}

/// Publishes, and tells how far it is.
pub(super) async fn run(mut daemon: Daemon, args: Args, output: &Output) -> Result<(), Problem> {
    let request = args.request()?;
    let mut progress = Progress::new(*output);
    let work = async {
        let mut events = daemon.publish(request).await.map_err(|status| failed(&status))?.into_inner();
        loop {
            match events.message().await.map_err(|status| failed(&status))?.and_then(|news| news.event) {
                Some(Event::Progress(now)) => tell(&mut progress, &now),
                Some(Event::Result(result)) => return Ok::<_, Problem>(result),
                None => {
                    return Err(
                        Failure::new(Reason::Internal, "the agent ended the call without a result").into()
                    );
                }
            }
        }
    };
    let result = tokio::select! {
        result = work => result?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Problem::Interrupted("interrupted: what was not released yet is not published".into()));
        }
    };
    drop(progress);
    show(&result, output);
    Ok(())
}

fn tell(progress: &mut Progress, now: &wire::PublishProgress) {
    let object = json!({
        "event": "progress",
        "files": now.files,
        "bytes_done": now.bytes_done,
        "bytes_total": now.bytes_total,
    });
    let what = match (now.files, now.bytes_total > 0 && now.bytes_done >= now.bytes_total) {
        (0, _) => "looking for files".to_owned(),
        (files, false) => format!("reading {}", counted(files, "file")),
        (_, true) => "releasing".to_owned(),
    };
    progress.tell(&object, &what, now.bytes_done, now.bytes_total);
}

fn show(result: &wire::PublishResult, output: &Output) {
    let object = json!({
        "event": "published",
        "reference": result.reference,
        "manifest_digest": result.manifest_digest,
        "total_size": result.total_size,
        "file_count": result.file_count,
        "indexes": result.indexes,
    });
    let text = format!(
        "published {}\n{} in {}, known to {} {}",
        result.reference,
        HumanBytes(result.total_size),
        counted(result.file_count, "file"),
        result.indexes.len(),
        if result.indexes.len() == 1 { "index" } else { "indexes" },
    );
    output.result(&object, &text);
}
