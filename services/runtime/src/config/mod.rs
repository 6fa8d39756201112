//! Typed configuration, in two stages: as written → as meant.
//!
//! Precedence, lowest first: the defaults of the service's struct, the TOML file, the variables
//! `P2PSB_SECTION__KEY`, the flags (`--set section.key=value` and typed ones). Tables merge key by
//! key, lists and values replace. Promises: a key nobody knows is an error, every error names the
//! key with its full path and the place where it was written, and nothing is read but the file that
//! was named and the environment that was given.
//!
//! Text from the environment and from `--set` takes the type the key has: a number, a boolean, a
//! duration (`30s`), a list as `a,b` or as TOML (`["a", "b"]`), a table as TOML (`{ k = "v" }`).

mod args;
mod de;
mod error;
mod sections;
mod source;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use args::CommonArgs;
pub use error::ConfigError;
pub use sections::{DrainConfig, LogConfig, LogFormat, MetricsConfig, RetryConfig, Secret, TelemetryConfig};

/// What every variable of p2pSB begins with.
pub const ENV_PREFIX: &str = "P2PSB_";

/// The variable that names the configuration file; it is never a key.
pub const ENV_CONFIG: &str = "P2PSB_CONFIG";

/// The largest configuration file that is read.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A service's configuration as written.
///
/// Implementors derive `Deserialize` with `#[serde(deny_unknown_fields)]` (sections too) and
/// `Serialize`; `Default` gives every key its default. The sections of [`Common`] bear the names of
/// its fields, since common flags set keys in them.
pub trait Settings: DeserializeOwned + Serialize + Default + Send + 'static {
    /// The configuration as meant: parsed, checked, files that must exist found.
    type Meant: Send + 'static;

    /// The sections that every service has.
    fn common(&self) -> Common<'_>;

    /// The second stage. Errors are made with [`ConfigError::value`]; the loader adds where the
    /// value was written.
    fn meant(self) -> Result<Self::Meant, ConfigError>;
}

/// The sections that every service's configuration has.
#[derive(Debug, Clone, Copy)]
pub struct Common<'a> {
    /// Section `telemetry`.
    pub telemetry: &'a TelemetryConfig,
    /// Section `metrics`.
    pub metrics: &'a MetricsConfig,
    /// Section `drain`.
    pub drain: &'a DrainConfig,
}

/// Where to load a configuration from.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// The TOML file; one that is named must exist.
    pub file: Option<PathBuf>,
    /// The environment; only variables with [`ENV_PREFIX`] are looked at.
    pub env: Vec<(String, String)>,
    /// Variables with the prefix that are not keys (read elsewhere), besides [`ENV_CONFIG`].
    pub reserved_env: Vec<String>,
    /// `key.path=value`, in order; the last one wins.
    pub set: Vec<String>,
    /// What typed flags set: (flag as the user knows it, key path, value); wins over `set`.
    pub flags: Vec<(String, String, String)>,
}

impl Spec {
    /// Takes the variables of this process. A value that is not UTF-8 is an error which names it.
    pub fn with_process_env(mut self) -> Result<Self, ConfigError> {
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            if !name.starts_with(ENV_PREFIX) {
                continue;
            }
            let value = value.into_string().map_err(|_| ConfigError::Variable {
                name: name.clone(),
                problem: "its value is not UTF-8".into(),
            })?;
            self.env.push((name, value));
        }
        Ok(self)
    }
}

/// A configuration as written, with the memory of where each value came from.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The values.
    pub value: T,
    merged: ::config::Value,
}

impl<T> Loaded<T> {
    /// Where the value of `key` (a dotted path) was written; `None` for a default.
    pub fn origin(&self, key: &str) -> Option<String> {
        source::origin_of(&self.merged, key)
    }
}

impl<T: Settings> Loaded<T> {
    /// Runs the second stage; an error says where the value in question was written.
    pub fn meant(self) -> Result<T::Meant, ConfigError> {
        let merged = self.merged;
        self.value.meant().map_err(|error| error.written_at(|key| source::origin_of(&merged, key)))
    }
}

/// Loads the first stage.
pub fn load<T>(spec: &Spec) -> Result<Loaded<T>, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let merged = source::merge(&T::default(), spec)?;
    let value = de::from_value(merged.clone())?;
    Ok(Loaded { value, merged })
}

/// The effective configuration as TOML, secrets redacted.
pub fn to_toml<T: Serialize>(value: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(value).map_err(|error| ConfigError::Print { problem: error.to_string() })
}
