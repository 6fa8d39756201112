//! `control.json`: where the daemon listens for its user, and the token. Only that user can read it.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use p2psb_client::files::{self, Existing};
use serde::{Deserialize, Serialize};

use super::token::Token;

/// The file in the data folder.
pub const CONTROL_FILE: &str = "control.json";
const MAX_BYTES: u64 = 4096;

/// What the file says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Control {
    /// Where the daemon listens: loopback.
    pub addr: SocketAddr,
    /// What proves the user.
    pub token: Token,
    /// The daemon.
    pub pid: u32,
}

/// Why the daemon can't be found.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No daemon.
    #[error("no agent is running with the data folder {}; start it with `peer-agent run`", .0.display())]
    NotRunning(PathBuf),
    /// The file is unusable.
    #[error("{}: {problem}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// The file of a running daemon; dropping it removes it.
#[derive(Debug)]
pub struct Published(PathBuf);

impl Drop for Published {
    fn drop(&mut self) {
        // A file that is left behind leads to nobody, which the command line says as well.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Control {
    /// Writes the file, in one step, for its user alone.
    pub fn publish(&self, data_dir: &Path) -> io::Result<Published> {
        let path = data_dir.join(CONTROL_FILE);
        let text = serde_json::to_vec(self)?;
        files::write_atomically(&path, &text, 0o600, Existing::Replace)?;
        Ok(Published(path))
    }

    /// Reads the file of the daemon that runs in a data folder.
    pub fn read(data_dir: &Path) -> Result<Self, ControlError> {
        let path = data_dir.join(CONTROL_FILE);
        let bytes = match files::read_bounded(&path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ControlError::NotRunning(data_dir.to_owned()));
            }
            Err(error) => return Err(ControlError::Unusable { path, problem: error.to_string() }),
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| ControlError::Unusable { path, problem: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_file_is_for_its_user_alone_and_goes_with_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Control::read(dir.path()), Err(ControlError::NotRunning(_))));
        let control =
            Control { addr: "127.0.0.1:7440".parse().unwrap(), token: Token::generate().unwrap(), pid: 7 };
        let published = control.publish(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(CONTROL_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read = Control::read(dir.path()).unwrap();
        assert_eq!((read.addr, read.pid), (control.addr, 7));
        assert!(read.token.matches(control.token.expose()));
        drop(published);
        assert!(Control::read(dir.path()).is_err());
    }
}
