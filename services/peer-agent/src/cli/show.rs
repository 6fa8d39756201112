//! `search`, `status`, `locate`, `health`: questions with one answer.

use std::fmt::Write as _;

use indicatif::HumanBytes;
use p2psb_proto::error::Failure;
use p2psb_proto::model::presence::LocatedPeer;
use p2psb_proto::model::time::duration_from_wire;
use p2psb_proto::model::{Digest, PublisherId, RecordError, UnixMillis};
use p2psb_proto::wire::agent::v1 as wire;
use p2psb_proto::wire::package_index::v1::PackageSummary;
use serde_json::{Value, json};

use super::daemon::{Daemon, failed};
use super::output::{Output, counted};
use super::{Problem, fetch};

/// Searches packages.
pub(super) async fn search(
    mut daemon: Daemon,
    query: &str,
    limit: u32,
    output: &Output,
) -> Result<(), Problem> {
    let request = wire::SearchPackagesRequest { query: query.to_owned(), page_size: limit };
    let found =
        daemon.search_packages(request).await.map_err(|status| failed(&status))?.into_inner().packages;
    for package in &found {
        let (object, text) = summary(package);
        output.result(&object, &text);
    }
    if found.is_empty() {
        output.note("no package holds all of these words");
    }
    Ok(())
}

fn summary(package: &PackageSummary) -> (Value, String) {
    let publisher =
        PublisherId::from_slice(&package.publisher_id).map(|id| id.to_string()).unwrap_or_default();
    let digest =
        Digest::from_slice(&package.manifest_digest).map(|digest| digest.to_string()).unwrap_or_default();
    let updated = package.update_time.as_ref().and_then(UnixMillis::from_wire).map(|time| time.to_string());
    let reference = format!("{publisher}/{}", package.name);
    let object = json!({
        "event": "package",
        "reference": reference,
        "publisher_id": publisher,
        "name": package.name,
        "version": package.version,
        "title": package.title,
        "description": package.description,
        "tags": package.tags,
        "license": package.license,
        "total_size": package.total_size,
        "file_count": package.file_count,
        "manifest_digest": digest,
        "update_time": updated,
        "host_count": package.host_count,
    });
    let mut text = format!("{} {}  {reference}\n", package.name, package.version);
    if !package.title.is_empty() {
        let _ = writeln!(text, "  {}", plain(&package.title));
    }
    let _ = write!(
        text,
        "  {} in {}, {}",
        HumanBytes(package.total_size),
        counted(package.file_count, "file"),
        counted(package.host_count.into(), "host"),
    );
    if !package.tags.is_empty() {
        let _ = write!(text, "  #{}", plain(&package.tags.join(" #")));
    }
    (object, text)
}

/// What others wrote must not steer a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Shows the status.
pub(super) async fn status(mut daemon: Daemon, output: &Output) -> Result<(), Problem> {
    let status =
        daemon.get_status(wire::GetStatusRequest {}).await.map_err(|status| failed(&status))?.into_inner();
    output.result(&status_object(&status), &status_text(&status));
    Ok(())
}

fn state_name(session: &wire::RendezvousSession) -> &'static str {
    session.state().as_str_name().trim_start_matches("SESSION_STATE_")
}

fn own_address(own: &wire::OwnAddress) -> Value {
    json!({
        "address": own.address,
        "confirmed_by": own.confirmed_by,
        "expire_time": own.expire_time.as_ref().and_then(UnixMillis::from_wire).map(|time| time.to_string()),
        "reason": own.reason,
        "detail": own.detail,
    })
}

/// Whether others reach this agent where it is seen.
fn own_address_text(own: &wire::OwnAddress) -> String {
    if !own.confirmed_by.is_empty() {
        format!("reached from elsewhere, by {}", own.confirmed_by)
    } else if own.reason.is_empty() {
        "nobody has looked yet whether it is reached".to_owned()
    } else {
        format!("not confirmed: {} ({})", plain(&own.detail), plain(&own.reason))
    }
}

fn status_object(status: &wire::GetStatusResponse) -> Value {
    let session = |session: &wire::RendezvousSession| {
        json!({
            "endpoint": session.endpoint,
            "server_id": session.server_id,
            "state": state_name(session),
            "error": session.error,
            "observed_address": session.observed_address,
            "own": session.own,
            "retry_in_seconds": session.retry_in.as_ref().map(|wait| duration_from_wire(Some(wait)).as_secs_f64()),
        })
    };
    let package = |package: &wire::SharedPackage| {
        json!({
            "reference": package.reference,
            "manifest_digest": package.manifest_digest,
            "path": package.path,
            "total_size": package.total_size,
            "file_count": package.file_count,
            "problem": package.problem,
        })
    };
    let edge = |edge: &wire::Edge| {
        json!({
            "server_id": edge.server_id,
            "listen_address": edge.listen_address,
            "sessions": edge.sessions,
            "members": edge.members,
        })
    };
    let started = status.start_time.as_ref().and_then(UnixMillis::from_wire).map(|time| time.to_string());
    json!({
        "event": "status",
        "peer_id": status.peer_id,
        "publisher_id": status.publisher_id,
        "network_id": status.network_id,
        "software": status.software,
        "listen_address": status.listen_address,
        "addresses": status.addresses,
        "own_addresses": status.own_addresses.iter().map(own_address).collect::<Vec<_>>(),
        "start_time": started,
        "sessions": status.sessions.iter().map(session).collect::<Vec<_>>(),
        "edge": status.edge.as_ref().map(edge),
        "indexes": status.indexes,
        "shared": status.shared.iter().map(package).collect::<Vec<_>>(),
        "fetches": status.fetches.iter().map(fetch::object).collect::<Vec<_>>(),
    })
}

fn status_text(status: &wire::GetStatusResponse) -> String {
    let mut text = format!(
        "{}\npeer       {}\npublisher  {}\nnetwork    {}\nlistens    {}\n",
        status.software, status.peer_id, status.publisher_id, status.network_id, status.listen_address
    );
    for address in &status.addresses {
        let _ = writeln!(text, "reached    {address}");
    }
    for own in &status.own_addresses {
        let _ = writeln!(text, "seen at    {}  {}", own.address, own_address_text(own));
    }
    let _ = writeln!(text, "\nrendezvous");
    for session in &status.sessions {
        let _ = write!(text, "  {:<10} {}", state_name(session), session.endpoint);
        if session.own {
            text.push_str("  (inside this agent)");
        }
        if !session.error.is_empty() {
            let _ = write!(text, "  {}", plain(&session.error));
        }
        text.push('\n');
    }
    if let Some(edge) = &status.edge {
        let (sessions, members) = (counted(edge.sessions, "session"), counted(edge.members, "member"));
        let _ = writeln!(text, "\nedge\n  {}\n    listens at {}", edge.server_id, edge.listen_address);
        let _ = writeln!(text, "    {sessions}, linked with {members} of the backbone");
    }
    let _ = writeln!(text, "\nindexes");
    for index in &status.indexes {
        let _ = writeln!(text, "  {index}");
    }
    let _ = writeln!(text, "\nshared");
    for package in &status.shared {
        let name = if package.reference.is_empty() { &package.manifest_digest } else { &package.reference };
        let size = HumanBytes(package.total_size);
        let _ = writeln!(
            text,
            "  {name}\n    {size} in {} at {}",
            counted(package.file_count, "file"),
            package.path
        );
        if !package.problem.is_empty() {
            let _ = writeln!(text, "    not wholly served: {}", plain(&package.problem));
        }
    }
    let _ = write!(text, "\nfetches");
    for now in &status.fetches {
        let (done, total) = (HumanBytes(now.bytes_done), HumanBytes(now.bytes_total));
        let _ = write!(
            text,
            "\n  {}\n    {} ({done} of {total}) into {}",
            now.reference,
            plain(&fetch::what(now)),
            now.target
        );
        if now.state() == wire::FetchState::Failed {
            let _ = write!(
                text,
                "\n    it goes on by itself once that is mended; `peer-agent cancel {}` gives it up",
                now.target
            );
        }
    }
    text
}

/// Shows where a peer is.
pub(super) async fn locate(mut daemon: Daemon, peer: String, output: &Output) -> Result<(), Problem> {
    let request = wire::LocateRequest { peer };
    let answer = daemon.locate(request).await.map_err(|status| failed(&status))?.into_inner();
    let located =
        answer.peer.ok_or(RecordError::Missing).and_then(LocatedPeer::try_from).map_err(Failure::from)?;
    let presence = &located.presence;
    let state = presence.state.as_str_name().trim_start_matches("PRESENCE_STATE_");
    let services: Vec<&str> =
        located.record.value().services.iter().map(|service| service.name.as_str()).collect();
    let object = json!({
        "event": "located",
        "peer_id": located.peer_id().to_string(),
        "state": state,
        "last_seen_time": presence.last_seen.to_string(),
        "as_of_time": presence.as_of.to_string(),
        "source": presence.source.as_str_name().trim_start_matches("PRESENCE_SOURCE_"),
        "home": presence.home.map(|home| home.to_string()),
        "addresses": answer.addresses,
        "services": services,
        "answered_by": answer.answered_by,
    });
    let mut text =
        format!("{}\n{state}, last seen {}, as of {}", located.peer_id(), presence.last_seen, presence.as_of);
    for address in &answer.addresses {
        let _ = write!(text, "\n  {address}");
    }
    let _ = write!(text, "\nanswered by {}", answer.answered_by);
    output.result(&object, &text);
    Ok(())
}

/// Whether the agent is of use: at least one rendezvous beside its own is its home.
pub(super) async fn health(mut daemon: Daemon, output: &Output) -> Result<bool, Problem> {
    let status =
        daemon.get_status(wire::GetStatusRequest {}).await.map_err(|status| failed(&status))?.into_inner();
    let others = || status.sessions.iter().filter(|session| !session.own);
    let online = others().filter(|s| s.state() == wire::SessionState::Online).count();
    let problem = match online {
        0 => {
            let why = others().find(|session| !session.error.is_empty());
            why.map_or_else(|| "still connecting".to_owned(), |session| plain(&session.error))
        }
        _ => String::new(),
    };
    let object = json!({"event": "health", "healthy": online > 0, "sessions": online, "problem": problem});
    let text = match online {
        0 => format!("not healthy: no session with a rendezvous: {problem}"),
        online => format!("healthy: {}", counted(online as u64, "session")),
    };
    output.result(&object, &text);
    Ok(online > 0)
}
