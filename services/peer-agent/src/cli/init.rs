//! `init` and `id`: keys and a configuration, made once.

use std::path::{Path, PathBuf};

use p2psb_client::files::{self, Existing};
use p2psb_client::identity::load_secret;
use p2psb_client::{Endpoint, Identity};
use p2psb_proto::error::{Failure, Reason};
use p2psb_proto::model::{PeerId, PublisherId};
use serde_json::json;

use super::Problem;
use super::output::Output;
use crate::control::lock::make_private;
use crate::server::{PUBLISHER_KEY, publisher_key};

/// The configuration that `init` writes.
const TEMPLATE: &str = include_str!("peer-agent.toml");
/// The line in it that names the rendezvous.
const PLACE: &str = "rendezvous = [\"https://127.0.0.1:7400\"]\n";

fn failed(error: impl ToString) -> Failure {
    Failure::new(Reason::StorageFailed, error.to_string())
}

/// Makes what is not there yet.
pub(super) fn run(
    data_dir: &Path,
    file: PathBuf,
    rendezvous: &[Endpoint],
    output: &Output,
) -> Result<(), Problem> {
    make_private(data_dir).map_err(|error| failed(format!("{}: {error}", data_dir.display())))?;
    let peer = Identity::load_or_create(data_dir).map_err(failed)?.peer_id();
    let publisher = PublisherId::new(publisher_key(data_dir).map_err(failed)?.public());
    let written = match files::write_atomically(&file, template(rendezvous).as_bytes(), 0o600, Existing::Keep)
    {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failed(format!("{}: {error}", file.display())).into()),
    };
    let state = if written { "written" } else { "was there and is kept" };
    let text = format!(
        "peer         {peer}\npublisher    {publisher}\ndata folder  {}\nconfig       {} ({state})",
        data_dir.display(),
        file.display()
    );
    let object = json!({
        "event": "initialized",
        "peer_id": peer.to_string(),
        "publisher_id": publisher.to_string(),
        "data_dir": data_dir.display().to_string(),
        "config": file.display().to_string(),
        "config_written": written,
    });
    output.result(&object, &text);
    if !written && !rendezvous.is_empty() {
        output.note(&format!("note: --rendezvous was not taken over; edit {}", file.display()));
    } else if written && rendezvous.is_empty() {
        output.note(&format!("next: name your rendezvous in {}, then `peer-agent run`", file.display()));
    }
    Ok(())
}

/// Shows the ids.
pub(super) fn show_ids(data_dir: &Path, output: &Output) -> Result<(), Problem> {
    let (peer, publisher) = ids(data_dir)?;
    let object = json!({"event": "id", "peer_id": peer.to_string(), "publisher_id": publisher.to_string()});
    output.result(&object, &format!("peer       {peer}\npublisher  {publisher}"));
    Ok(())
}

fn ids(data_dir: &Path) -> Result<(PeerId, PublisherId), Failure> {
    let missing = |error: p2psb_client::IdentityError| {
        Failure::new(Reason::StorageFailed, format!("{error}; `peer-agent init` makes what is missing"))
    };
    let peer = Identity::load(data_dir).map_err(missing)?.peer_id();
    let publisher = load_secret(&data_dir.join(PUBLISHER_KEY)).map_err(missing)?;
    Ok((peer, PublisherId::new(publisher.public())))
}

fn template(rendezvous: &[Endpoint]) -> String {
    if rendezvous.is_empty() {
        return TEMPLATE.to_owned();
    }
    let list: Vec<String> = rendezvous.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    TEMPLATE.replacen(PLACE, &format!("rendezvous = [{}]\n", list.join(", ")), 1)
}

#[cfg(test)]
mod tests {
    use p2psb_runtime::config::{Settings as _, Spec, load};

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_template_names_every_key_and_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peer-agent.toml");
        assert_eq!(TEMPLATE.matches(PLACE).count(), 1);
        let rendezvous = ["https://a:1".parse().unwrap(), "http://[::1]:2".parse().unwrap()];
        let written = template(&rendezvous);
        // Every default that is shown commented out is one.
        let shown: String = written
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        std::fs::write(&file, shown).unwrap();
        let spec = Spec { file: Some(file), ..Spec::default() };
        let config = load::<Config>(&spec).unwrap().value;
        assert_eq!(config.rendezvous, rendezvous);
        let default = Config { rendezvous: rendezvous.to_vec(), ..Config::default() };
        let text = |config: &Config| p2psb_runtime::config::to_toml(config).unwrap();
        assert_eq!(text(&config), text(&default));
        assert!(config.meant().is_ok());
    }

    #[test]
    fn init_makes_things_once_and_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let output = Output::new(true);
        assert!(ids(&data).is_err());
        run(&data, data.join("c.toml"), &[], &output).unwrap();
        let first = ids(&data).unwrap();
        std::fs::write(data.join("c.toml"), "# mine").unwrap();
        run(&data, data.join("c.toml"), &["https://a:1".parse().unwrap()], &output).unwrap();
        assert_eq!(ids(&data).unwrap(), first);
        assert_eq!(std::fs::read_to_string(data.join("c.toml")).unwrap(), "# mine");
    }
}
