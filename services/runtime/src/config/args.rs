//! The flags every program has.

use std::path::PathBuf;

use clap::Args;

use super::{ConfigError, LogFormat, Spec};

/// Flags of every program; flatten them into a program's own.
#[derive(Debug, Clone, Default, Args)]
pub struct CommonArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "P2PSB_CONFIG", global = true, help_heading = "Configuration")]
    pub config: Option<PathBuf>,

    /// Set one configuration key; may be repeated, wins over file and environment.
    #[arg(long, value_name = "SECTION.KEY=VALUE", global = true, help_heading = "Configuration")]
    pub set: Vec<String>,

    /// Check the configuration and end: 0 if it is right, 64 if not.
    #[arg(long, global = true, help_heading = "Configuration")]
    pub check_config: bool,

    /// Print the effective configuration as TOML, secrets redacted, and end.
    #[arg(long, global = true, help_heading = "Configuration")]
    pub print_config: bool,

    /// What to log: a level, or levels by module (`info,h2=debug`); sets telemetry.log.filter.
    #[arg(long, value_name = "FILTER", global = true, help_heading = "Configuration")]
    pub log: Option<String>,

    /// How to log; sets telemetry.log.format.
    #[arg(long, value_name = "FORMAT", global = true, help_heading = "Configuration", value_enum)]
    pub log_format: Option<LogFormat>,
}

impl CommonArgs {
    /// Where to load from: these flags and the environment of this process.
    pub fn spec(&self) -> Result<Spec, ConfigError> {
        // An empty P2PSB_CONFIG, as compose files pass it, names no file.
        let file = self.config.clone().filter(|path| !path.as_os_str().is_empty());
        let mut flags = Vec::new();
        if let Some(filter) = &self.log {
            flags.push(("--log".to_owned(), "telemetry.log.filter".to_owned(), filter.clone()));
        }
        if let Some(format) = self.log_format {
            flags.push((
                "--log-format".to_owned(),
                "telemetry.log.format".to_owned(),
                format.as_str().to_owned(),
            ));
        }
        let spec = Spec { file, set: self.set.clone(), flags, ..Spec::default() };
        spec.with_process_env()
    }
}
