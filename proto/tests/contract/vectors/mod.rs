//! The file of golden vectors, and the fixed values they are made of.

pub(crate) mod values;

use std::collections::BTreeMap;

use p2psb_proto::model::SecretKey;

const FILE: &str = include_str!("../golden.txt");

/// The key of a seed of 32 equal bytes.
pub(crate) fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// The vectors, and what of them did not hold.
pub(crate) struct Golden {
    known: BTreeMap<&'static str, Vec<u8>>,
    wrong: Vec<String>,
}

impl Golden {
    /// Reads the file.
    pub(crate) fn open() -> Self {
        let lines = FILE.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
        let known = lines.map(|line| {
            let (name, text) = line.split_once(' ').unwrap_or_else(|| panic!("no vector: {line}"));
            if name.starts_with("text/") {
                return (name, text.as_bytes().to_vec());
            }
            (name, hex::decode(text).unwrap_or_else(|e| panic!("{name}: {e}")))
        });
        Self { known: known.collect(), wrong: Vec::new() }
    }

    /// The vector of this name.
    pub(crate) fn get(&self, name: &str) -> Vec<u8> {
        self.known.get(name).cloned().unwrap_or_default()
    }

    /// Holds `bytes` against the vector of this name.
    pub(crate) fn check(&mut self, name: &str, bytes: &[u8]) {
        if self.known.get(name).is_none_or(|known| known != bytes) {
            let shown = match std::str::from_utf8(bytes) {
                Ok(text) if name.starts_with("text/") => text.to_owned(),
                _ => hex::encode(bytes),
            };
            self.wrong.push(format!("{name} {shown}"));
            // So that one run shows all that is wrong.
            self.known.insert(name.to_owned().leak(), bytes.to_vec());
        }
    }

    /// Fails if any vector did not hold.
    pub(crate) fn finish(self) {
        assert!(
            self.wrong.is_empty(),
            "these are not the vectors of golden.txt; a new name may be added there, a known one never changes:\n{}",
            self.wrong.join("\n")
        );
    }
}
