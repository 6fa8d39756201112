//! `fetch`.

use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::wire::agent::v1 as wire;
use p2psb_proto::wire::agent::v1::fetch_response::Event;
use serde_json::json;

use super::daemon::{Daemon, failed};
use super::output::{Output, Progress, counted};
use super::{Problem, paths};
use crate::core::reference::Reference;

/// What to fetch.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// publisher/name[@requirement], or name[@requirement]; a requirement is written as in Cargo: ^1.2, =1.0.0
    #[arg(value_name = "REF")]
    reference: String,
    /// The folder to make, or to repair if it was fetched before [default: ./name-version].
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Fetches, and tells how far it is.
pub(super) async fn run(mut daemon: Daemon, args: Args, output: &Output) -> Result<(), Problem> {
    // A typo is said here, without asking anybody.
    let reference: Reference = args.reference.parse().map_err(Failure::from)?;
    let request = wire::FetchRequest {
        reference: reference.to_string(),
        target: args.output.as_deref().map(paths::target).transpose()?.unwrap_or_default(),
        working_directory: paths::working_directory()?,
    };
    let mut progress = Progress::new(*output);
    let mut last = wire::FetchState::Resolving;
    let work = async {
        let mut events = daemon.fetch(request).await.map_err(|status| failed(&status))?.into_inner();
        loop {
            match events.message().await.map_err(|status| failed(&status))?.and_then(|news| news.event) {
                Some(Event::Progress(now)) => {
                    last = now.state();
                    tell(&mut progress, &now);
                }
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
        result = work => Some(result?),
        _ = tokio::signal::ctrl_c() => None,
    };
    drop(progress);
    let Some(result) = result else {
        let what = match last {
            wire::FetchState::Resolving => "interrupted before anything was fetched",
            _ => {
                "the fetch goes on in the agent: `peer-agent status` shows it, the same command joins it again"
            }
        };
        return Err(Problem::Interrupted(what.into()));
    };
    show(&result, output);
    Ok(())
}

/// Gives up a fetch.
pub(super) async fn cancel(mut daemon: Daemon, folder: &Path, output: &Output) -> Result<(), Problem> {
    let target = paths::target(folder)?;
    let request = wire::CancelFetchRequest { target: target.clone() };
    daemon.cancel_fetch(request).await.map_err(|status| failed(&status))?;
    output
        .result(&json!({"event": "cancelled", "target": target}), &format!("gave up the fetch to {target}"));
    Ok(())
}

fn tell(progress: &mut Progress, now: &wire::FetchProgress) {
    progress.tell(&object(now), &what(now), now.bytes_done, now.bytes_total);
}

/// A fetch as an object.
pub(super) fn object(now: &wire::FetchProgress) -> serde_json::Value {
    json!({
        "event": "progress",
        "reference": now.reference,
        "target": now.target,
        "state": now.state().as_str_name().trim_start_matches("FETCH_STATE_"),
        "bytes_done": now.bytes_done,
        "bytes_total": now.bytes_total,
        "bytes_local": now.bytes_local,
        "files_total": now.files_total,
        "host": now.host,
        "waiting_for": now.waiting_for,
        "reason": now.reason,
        "error": now.error,
    })
}

/// What a fetch is doing, for people.
pub(super) fn what(now: &wire::FetchProgress) -> String {
    let host = || now.host.get(..16).unwrap_or(&now.host).to_owned();
    match now.state() {
        wire::FetchState::Resolving | wire::FetchState::Unspecified => {
            format!("looking for {}", now.reference)
        }
        wire::FetchState::Manifest if now.host.is_empty() => {
            format!("looking for hosts of {}", now.reference)
        }
        wire::FetchState::Manifest => format!("reading the file list from {}…", host()),
        wire::FetchState::Checking => "comparing what is there with the release".to_owned(),
        wire::FetchState::Chunks if now.host.is_empty() => "using what is on this disk".to_owned(),
        wire::FetchState::Chunks => format!("fetching from {}…", host()),
        wire::FetchState::Finishing => "moving into place".to_owned(),
        wire::FetchState::Done => "done".to_owned(),
        wire::FetchState::Waiting => format!("waiting for {}", now.waiting_for),
        wire::FetchState::Failed => format!("could not go on: {}", now.error),
    }
}

fn show(result: &wire::FetchResult, output: &Output) {
    let object = json!({
        "event": "fetched",
        "reference": result.reference,
        "manifest_digest": result.manifest_digest,
        "target": result.target,
        "total_size": result.total_size,
        "file_count": result.file_count,
        "bytes_fetched": result.bytes_fetched,
        "files_repaired": result.files_repaired,
    });
    let mut text = format!(
        "fetched {}\n{} in {} into {}; {} came from other peers",
        result.reference,
        HumanBytes(result.total_size),
        counted(result.file_count, "file"),
        result.target,
        HumanBytes(result.bytes_fetched),
    );
    if result.files_repaired > 0 {
        let repaired = counted(result.files_repaired, "file");
        text.push_str(&format!("\nrepaired {repaired} that had been changed or removed there"));
    }
    output.result(&object, &text);
}
