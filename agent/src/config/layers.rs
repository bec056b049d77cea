//! The layers of the configuration, collected one by one so that each value knows where it came from.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use config::{Environment, FileFormat, Source as _, ValueKind};

use super::{
    error::{ConfigError, Problem, Source},
    keys::{self, env_name},
};

/// Variables that begin with `LUCENT_` and are no configuration: the name of the file, what runners give to
/// their tasks (an agent may be started by a task), and what `scripts/setup env` and the tests put into the
/// environment of everything they start.
const NOT_SETTINGS: [&str; 12] = [
    "LUCENT_CONFIG",
    "LUCENT_TASK_ID",
    "LUCENT_EPOCH",
    "LUCENT_IDEMPOTENCY_KEY",
    "LUCENT_CACHE",
    "LUCENT_NATS_SERVER_OLD",
    "LUCENT_CHAOS_FOR",
    "LUCENT_CHAOS_SEED",
    "LUCENT_TEST_FAKETIME",
    "LUCENT_TEST_PYTHON",
    "LUCENT_TEST_SEED",
    "LUCENT_AGENT",
];
/// The shorter name of `LUCENT_NATS__SERVER`, which wins if both are set.
const SERVER_ALIAS: &str = "LUCENT_NATS_SERVER";

/// A flag that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The flag as the user typed it, such as `--level`.
    pub flag: &'static str,
    /// The key it sets.
    pub key: String,
    /// The text it sets it to.
    pub value: String,
}

/// A value before it is checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    Text(String),
    List(Vec<Raw>),
    Table(BTreeMap<String, Raw>),
}

/// A value that somebody set, and where.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) value: Raw,
    pub(super) source: Source,
}

/// What was set explicitly, strongest layer only. Defaults are not in here.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) values: BTreeMap<String, Setting>,
    /// How many tables each list of tables has.
    pub(super) tables: BTreeMap<String, usize>,
}

impl Settings {
    /// Adds the configuration file. The error is one for which nothing in the file can be known.
    pub(super) fn add_file(&mut self, file: &Path, errors: &mut Vec<ConfigError>) -> Result<(), ConfigError> {
        let unreadable = |cause| ConfigError::Unreadable { file: file.to_owned(), cause };
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        let table = config::File::from_str(&text, FileFormat::Toml).collect().map_err(|cause| {
            ConfigError::NotToml { file: file.to_owned(), cause: one_line(&cause.to_string()) }
        })?;
        self.add_table("", Raw::table(table), &Source::File(file.to_owned()), errors);
        Ok(())
    }

    fn add_table(
        &mut self,
        section: &str,
        table: BTreeMap<String, Raw>,
        source: &Source,
        errors: &mut Vec<ConfigError>,
    ) {
        for (name, value) in table {
            let key = if section.is_empty() { name } else { format!("{section}.{name}") };
            match value {
                value if keys::find(&key).is_some() => {
                    self.values.insert(key, Setting { value, source: source.clone() });
                }
                Raw::Table(inner) if keys::is_section(&key) => self.add_table(&key, inner, source, errors),
                Raw::List(items) if keys::is_list_of_tables(&key) && items.iter().all(Raw::is_table) => {
                    self.tables.insert(key.clone(), items.len());
                    for (i, item) in items.into_iter().enumerate() {
                        if let Raw::Table(inner) = item {
                            self.add_table(&format!("{key}[{i}]"), inner, source, errors);
                        }
                    }
                }
                other => errors.push(misfit(key, &other, source)),
            }
        }
    }

    /// Adds those of the process's variables that are ours.
    pub(super) fn add_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
        errors: &mut Vec<ConfigError>,
    ) {
        let mut ours: BTreeMap<String, String> =
            variables.into_iter().filter(|(name, _)| is_setting(name)).collect();
        if let Some(server) = ours.remove(SERVER_ALIAS).filter(|server| !server.is_empty()) {
            self.add_text(
                "nats.server".to_owned(),
                server,
                Source::Environment(SERVER_ALIAS.to_owned()),
                errors,
            );
        }
        let environment = Environment::with_prefix("LUCENT")
            .prefix_separator("_")
            .separator("__")
            .ignore_empty(true)
            .source(Some(ours.into_iter().collect()));
        // Collecting from a map of valid texts has no way to fail.
        let collected = environment.collect().map(Raw::table).unwrap_or_default();
        for (key, value) in collected {
            let source = Source::Environment(env_name(&key));
            if let Raw::Text(text) = value {
                self.add_text(key, text, source, errors);
            }
        }
    }

    /// Adds the flags.
    pub(super) fn add_flags(&mut self, flags: Vec<Override>, errors: &mut Vec<ConfigError>) {
        for Override { flag, key, value } in flags {
            self.add_text(key, value, Source::Flag(flag), errors);
        }
    }

    fn add_text(&mut self, key: String, text: String, source: Source, errors: &mut Vec<ConfigError>) {
        let value = Raw::Text(text);
        let first = key.split(['.', '[']).next().unwrap_or(&key);
        if keys::is_list_of_tables(first) {
            errors.push(ConfigError::new(key, &value, &source, Problem::FileOnly));
        } else if keys::find(&key).is_some() {
            self.values.insert(key, Setting { value, source });
        } else {
            errors.push(misfit(key, &value, &source));
        }
    }
}

/// What to say of a value where no value of its kind belongs.
fn misfit(key: String, value: &Raw, source: &Source) -> ConfigError {
    let problem = if keys::is_list_of_tables(&key) {
        Problem::Malformed { expected: format!("a list of tables, written [[{key}]]") }
    } else if keys::is_section(&key) {
        Problem::Malformed { expected: format!("a section, written [{key}]") }
    } else {
        Problem::Unknown { nearest: keys::nearest(&key) }
    };
    ConfigError::new(key, value, source, problem)
}

impl Raw {
    fn is_table(&self) -> bool {
        matches!(self, Raw::Table(_))
    }

    fn table(table: config::Map<String, config::Value>) -> BTreeMap<String, Raw> {
        table.into_iter().map(|(name, value)| (name, Raw::from(value))).collect()
    }
}

/// On one line, as it would stand in the file.
impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Text(text) => write!(f, "{text:?}"),
            Raw::List(items) => {
                let shown: Vec<_> = items.iter().map(Raw::to_string).collect();
                write!(f, "[{}]", shown.join(", "))
            }
            // Tables hold the environment of runners, where secrets may stand: their names are enough.
            Raw::Table(table) => {
                let names: Vec<_> = table.keys().map(|name| format!("{name} = ...")).collect();
                write!(f, "{{ {} }}", names.join(", "))
            }
        }
    }
}

impl From<config::Value> for Raw {
    fn from(value: config::Value) -> Self {
        match value.kind {
            ValueKind::Table(table) => Raw::Table(Raw::table(table)),
            ValueKind::Array(items) => Raw::List(items.into_iter().map(Raw::from).collect()),
            scalar => Raw::Text(scalar.to_string()),
        }
    }
}

/// Whether a variable is part of the configuration.
fn is_setting(name: &str) -> bool {
    // Kubernetes gives every pod variables of the services around it, such as LUCENT_GLOBAL_SERVICE_HOST,
    // LUCENT_GLOBAL_PORT and LUCENT_GLOBAL_PORT_4222_TCP for a service `lucent-global`.
    let of_a_service = name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_")
        || name.ends_with("_PORT");
    name.starts_with("LUCENT_") && !NOT_SETTINGS.contains(&name) && !of_a_service
}

/// The parser draws a picture of several lines; this keeps its first line (where) and its last (what).
fn one_line(message: &str) -> String {
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    match (lines.next(), lines.next_back()) {
        (Some(first), Some(last)) => format!("{first}: {last}"),
        (first, _) => first.unwrap_or("unknown mistake").to_owned(),
    }
}

/// The file that the flag or, without it, the variable `LUCENT_CONFIG` names.
pub(super) fn config_file(flag: Option<PathBuf>, variables: &[(String, String)]) -> Option<PathBuf> {
    let variable = || variables.iter().find(|(name, value)| name == "LUCENT_CONFIG" && !value.is_empty());
    flag.or_else(|| variable().map(|(_, value)| value.into()))
}
