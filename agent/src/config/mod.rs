//! The configuration: defaults, then a TOML file, then `LUCENT_` environment variables, then flags.
//!
//! Two underscores separate sections in a variable's name: `LUCENT_NATS__LISTEN` is `nats.listen`. All
//! layers are read first; then every key is checked, so that [`load`] names every mistake of every layer at
//! once, each with the key, the value, where the value came from, and what to do. What comes out, a
//! [`Config`], needs no further checks.
//!
//! ```text
//! layers ──> Settings ──> Reader ──> build, tables ──> Config
//!                           └── keys: names, kinds, defaults, docs ──> explain
//! ```

mod build;
mod checked;
mod error;
mod explain;
mod keys;
mod layers;
mod reader;
mod tables;
#[cfg(test)]
mod tests;
mod units;

use std::path::{Path, PathBuf};

pub use checked::{
    Config, Credentials, Embedded, External, Http, IdentityFiles, Leaf, Link, Log, LogFormat, Names, Nats,
    Parent, PolicyAction, PolicyRule, Replicas, Runner, Secret, SyncMode, Telemetry,
};
pub use error::{ConfigError, ConfigErrors, Problem, Source};
pub use explain::explain;
pub use layers::Override;
pub use units::{HostPort, parse_duration};

use layers::Settings;
use reader::Reader;

/// Everything a configuration is made of, read from the process but not yet looked at.
#[derive(Debug, Clone, Default)]
pub struct Input {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// Environment variables; those that are not ours are passed over.
    pub environment: Vec<(String, String)>,
    /// Flags, the later ones win.
    pub flags: Vec<Override>,
    /// Absolute; where relative paths in the environment and in flags start.
    pub working_dir: PathBuf,
}

impl Input {
    /// The input of this process. Without `config_flag` the variable `LUCENT_CONFIG` names the file; without
    /// that there is none.
    pub fn from_process(config_flag: Option<PathBuf>, flags: Vec<Override>) -> Input {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let environment: Vec<_> =
            std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect();
        Input {
            file: layers::config_file(config_flag, &environment),
            environment,
            flags,
            // Only where the working directory was removed under the process is there none.
            working_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        }
    }
}

/// Reads and checks the configuration. Opens no file but the configuration file itself.
///
/// # Errors
/// Every mistake there is. Where the file cannot be read at all, what depends on it is not complained about.
pub fn load(input: Input) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let mut settings = Settings::default();
    let file = input.file.map(|file| input.working_dir.join(file));
    let file_read = file.as_deref().map_or(Ok(()), |file| settings.add_file(file, &mut errors));
    settings.add_environment(input.environment, &mut errors);
    settings.add_flags(input.flags, &mut errors);
    if let Err(error) = file_read {
        errors.insert(0, error);
        return Err(ConfigErrors::new(errors));
    }

    let file_dir = file.as_deref().and_then(Path::parent).unwrap_or(&input.working_dir).to_owned();
    let mut reader = Reader::new(settings, file_dir, input.working_dir, errors);
    let config = build::config(&mut reader);
    match (config, reader.into_errors()) {
        (Some(config), errors) if errors.is_empty() => Ok(config),
        (_, errors) => Err(ConfigErrors::new(errors)),
    }
}
