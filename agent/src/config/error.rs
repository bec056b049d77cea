//! What can be wrong with a configuration, and the one line that says so.

use std::{fmt, io, path::PathBuf};

use hierarchy::Level;

use super::{
    keys::{self, Kind, env_name},
    layers::Raw,
};

/// How many characters of a value a message shows.
const LONGEST_SHOWN: usize = 80;

/// Where a value came from, weakest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The key's documented default.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag on the command line.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("the default"),
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Environment(name) => write!(f, "environment variable {name}"),
            Source::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One mistake. Its text is one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read ({cause}); check the path given by --config or LUCENT_CONFIG", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The file is no TOML; keys that stand twice are found here too.
    #[error("{}: is not TOML: {cause}", .file.display())]
    NotToml {
        /// The file.
        file: PathBuf,
        /// What the parser said, with the line number.
        cause: String,
    },
    /// A value is needed and there is none.
    #[error("{key} is missing: {remedy}{}", in_environment(.key))]
    Missing {
        /// The key.
        key: String,
        /// What to do.
        remedy: String,
    },
    /// A value is there and wrong.
    #[error("{key} = {value} ({origin}): {problem}")]
    Setting {
        /// The key, such as `nats.listen` or `runner[0].slots`.
        key: String,
        /// The value as written; `***` for secrets.
        value: String,
        /// Where the value was written.
        origin: Source,
        /// What is wrong and what to do.
        problem: Problem,
    },
}

impl ConfigError {
    /// That `problem` is with this value; long values are cut, secrets are hidden.
    pub(super) fn new(key: String, value: &Raw, source: &Source, problem: Problem) -> ConfigError {
        let meant = match problem {
            Problem::Unknown { nearest: Some(nearest) } => nearest,
            _ => &key,
        };
        let whole = match keys::find(meant) {
            Some(known) if matches!(known.kind, Kind::Secret) => "***".to_owned(),
            _ => without_user(value.to_string()),
        };
        let shown: String = whole.chars().take(LONGEST_SHOWN).collect();
        let value = if shown.len() < whole.len() { format!("{shown}...") } else { shown };
        ConfigError::Setting { key, value, origin: source.clone(), problem }
    }
}

/// A URL without user and password, any other text unchanged.
fn without_user(text: String) -> String {
    match text.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?))) {
        Some((scheme, (_, host))) => format!("{scheme}://***@{host}"),
        None => text,
    }
}

/// The remedy for keys that can stand in the environment; those inside lists cannot.
fn in_environment(key: &str) -> String {
    if key.contains('[') { String::new() } else { format!(", or set {}", env_name(key)) }
}

/// What is wrong with a value, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No such key.
    #[error("is no known key; {}", match .nearest {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => "`agent config explain` lists them all".to_owned(),
    })]
    Unknown {
        /// The known key that looks most like it.
        nearest: Option<&'static str>,
    },
    /// The value has the wrong type or form.
    #[error("must be {expected}")]
    Malformed {
        /// What it must be.
        expected: String,
    },
    /// The path does not have as many segments as the level asks for.
    #[error("does not fit level {level}, whose paths look like {example}: change the path or the level")]
    PathDepth {
        /// The configured level.
        level: Level,
        /// A path that would fit.
        example: &'static str,
    },
    /// The section means nothing at this level.
    #[error("means nothing at level {level}: {remedy}")]
    Misplaced {
        /// The configured level.
        level: Level,
        /// What to do.
        remedy: &'static str,
    },
    /// It contradicts another setting.
    #[error("{0}")]
    Contradiction(String),
    /// Tables can be written in the file only.
    #[error("can be set in the configuration file only")]
    FileOnly,
}

/// Every mistake of a configuration, at least one; its text has one line for each.
#[derive(Debug)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// All of `errors`.
    pub(super) fn new(errors: Vec<ConfigError>) -> ConfigErrors {
        debug_assert!(!errors.is_empty(), "a configuration was refused for no stated reason");
        ConfigErrors(errors)
    }

    /// The mistakes, in the order of the file, environment and flags, then of the keys.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            // A newline inside a value must not make two lines of one mistake.
            f.write_str(&error.to_string().replace('\n', " "))?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
