//! Takes typed values out of the settings and gathers every mistake on the way.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr, time::Duration};

use super::{
    error::{ConfigError, Problem, Source},
    keys::{self, Fallback, Key, Kind},
    layers::{Raw, Setting, Settings},
    units::{parse_duration, parse_size},
};

/// Reads keys by name. A method that answers `None` has recorded a mistake, unless the key is one that may
/// be absent and is: then [`Reader::is_set`] tells the two apart.
pub(super) struct Reader {
    settings: Settings,
    /// Where relative paths from the file start.
    file_dir: PathBuf,
    /// Where relative paths from the environment and from flags start.
    working_dir: PathBuf,
    errors: Vec<ConfigError>,
    #[cfg(test)]
    pub(super) looked_up: std::collections::BTreeSet<&'static str>,
}

impl Reader {
    /// Reads `settings`, and adds its complaints to `errors`.
    pub(super) fn new(
        settings: Settings,
        file_dir: PathBuf,
        working_dir: PathBuf,
        errors: Vec<ConfigError>,
    ) -> Reader {
        Reader {
            settings,
            file_dir,
            working_dir,
            errors,
            #[cfg(test)]
            looked_up: Default::default(),
        }
    }

    /// All complaints.
    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        self.errors
    }

    /// Whether somebody set the key.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.settings.values.contains_key(name)
    }

    /// How many tables `[[name]]` there are.
    pub(super) fn tables(&self, name: &str) -> usize {
        self.settings.tables.get(name).copied().unwrap_or(0)
    }

    /// The directory where relative paths from the file start.
    pub(super) fn file_dir(&self) -> &std::path::Path {
        &self.file_dir
    }

    /// A value of a type that parses itself.
    pub(super) fn parsed<T: FromStr>(&mut self, name: &str) -> Option<T> {
        self.convert(name, |text, key| text.parse().map_err(|_| malformed(key)))
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.convert(
            name,
            |text, key| if text.is_empty() { Err(malformed(key)) } else { Ok(text.to_owned()) },
        )
    }

    /// A whole number within the key's bounds.
    pub(super) fn count<T: TryFrom<u64>>(&mut self, name: &str) -> Option<T> {
        self.convert(name, |text, key| {
            let number = text
                .parse()
                .ok()
                .filter(|n| matches!(key.kind, Kind::Count(least, most) if (least..=most).contains(n)));
            number.and_then(|n| T::try_from(n).ok()).ok_or_else(|| malformed(key))
        })
    }

    /// A number of bytes within the key's bounds.
    pub(super) fn size(&mut self, name: &str) -> Option<u64> {
        self.convert(name, |text, key| {
            let size = parse_size(text)
                .filter(|n| matches!(key.kind, Kind::Size(least, most) if (least..=most).contains(n)));
            size.ok_or_else(|| malformed(key))
        })
    }

    /// A duration within the key's bounds.
    pub(super) fn duration(&mut self, name: &str) -> Option<Duration> {
        self.convert(name, |text, key| {
            let within =
                |d: &Duration| matches!(key.kind, Kind::Duration(least, most) if (least..=most).contains(d));
            parse_duration(text).ok().filter(within).ok_or_else(|| malformed(key))
        })
    }

    /// An absolute path.
    pub(super) fn path(&mut self, name: &str) -> Option<PathBuf> {
        let base = self.base_of(name);
        self.text(name).map(|text| base.join(text))
    }

    /// A program: a bare name, to be looked up on PATH, or an absolute path.
    pub(super) fn program(&mut self, name: &str) -> Option<PathBuf> {
        let base = self.base_of(name);
        self.text(name).map(|text| program(&base, &text))
    }

    /// Different values of a type that parses itself.
    pub(super) fn list<T: FromStr + PartialEq>(&mut self, name: &str) -> Option<Vec<T>> {
        let items = self.texts(name)?;
        let mut parsed = Vec::with_capacity(items.len());
        for item in &items {
            match item.parse::<T>() {
                Ok(value) if !parsed.contains(&value) => parsed.push(value),
                // Both the malformed and the repeated break what the key's description asks for.
                _ => {
                    let expected = keys::find(name).map(|key| key.kind.expected()).unwrap_or_default();
                    let expected = format!("{expected}; `{item}` breaks this");
                    self.refuse(name, Problem::Malformed { expected });
                    return None;
                }
            }
        }
        Some(parsed)
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        self.lookup(name).and_then(|(key, setting)| {
            let texts = match setting.value {
                Raw::Text(text) if matches!(setting.source, Source::File(_)) => Err(text),
                Raw::Text(text) if text.is_empty() => Ok(Vec::new()),
                Raw::Text(text) => Ok(text.split(',').map(|item| item.trim().to_owned()).collect()),
                Raw::List(items) => items.into_iter().map(Raw::into_text).collect::<Result<_, _>>(),
                Raw::Table(_) => Err(String::new()),
            };
            texts.map_err(|_| self.refuse(name, malformed(key))).ok()
        })
    }

    /// A table of texts; empty where the key is absent.
    pub(super) fn map(&mut self, name: &str) -> Option<BTreeMap<String, String>> {
        let Some((key, setting)) = self.lookup(name) else { return Some(BTreeMap::new()) };
        let texts = match setting.value {
            Raw::Table(table) => table
                .into_iter()
                .map(|(name, value)| Ok((name, value.into_text()?)))
                .collect::<Result<_, String>>(),
            _ => Err(String::new()),
        };
        texts.map_err(|_| self.refuse(name, malformed(key))).ok()
    }

    /// Records a mistake in the value of a key.
    pub(super) fn refuse(&mut self, name: &str, problem: Problem) {
        let error = match self.setting(name) {
            Some(setting) => ConfigError::new(name.to_owned(), &setting.value, &setting.source, problem),
            None => ConfigError::Missing { key: name.to_owned(), remedy: problem.to_string() },
        };
        self.errors.push(error);
    }

    /// Records that a key must be set.
    pub(super) fn missing(&mut self, name: &str, remedy: impl Into<String>) {
        self.errors.push(ConfigError::Missing { key: name.to_owned(), remedy: remedy.into() });
    }

    /// Records that the value of a key is not of its form.
    pub(super) fn refuse_form(&mut self, name: &str) {
        if let Some(key) = keys::find(name) {
            self.refuse(name, malformed(key));
        }
    }

    /// Records a mistake for every key that was set and begins like this.
    pub(super) fn refuse_all(&mut self, prefix: &str, problem: &Problem) {
        let set = self.settings.values.keys().filter(|key| key.starts_with(prefix));
        for name in set.cloned().collect::<Vec<_>>() {
            self.refuse(&name, problem.clone());
        }
    }

    fn convert<T>(&mut self, name: &str, parse: impl FnOnce(&str, &Key) -> Result<T, Problem>) -> Option<T> {
        let (key, setting) = self.lookup(name)?;
        let parsed = match setting.value {
            Raw::Text(text) => parse(&text, key),
            _ => Err(malformed(key)),
        };
        parsed.map_err(|problem| self.refuse(name, problem)).ok()
    }

    /// The key and its value, set or by default. Records a mistake where it is required and absent.
    fn lookup(&mut self, name: &str) -> Option<(&'static Key, Setting)> {
        let key = keys::find(name)?;
        #[cfg(test)]
        self.looked_up.insert(key.name);
        let found = self.setting(name);
        if let (None, Fallback::Required(remedy, _)) = (&found, key.fallback) {
            self.missing(name, remedy);
        }
        Some((key, found?))
    }

    fn setting(&self, name: &str) -> Option<Setting> {
        let default = || match keys::find(name)?.fallback {
            Fallback::Default(text) => {
                Some(Setting { value: Raw::Text(text.to_owned()), source: Source::Default })
            }
            Fallback::Absent(..) | Fallback::Required(..) => None,
        };
        self.settings.values.get(name).cloned().or_else(default)
    }

    fn base_of(&self, name: &str) -> PathBuf {
        match self.settings.values.get(name).map(|setting| &setting.source) {
            Some(Source::Environment(_) | Source::Flag(_)) => self.working_dir.clone(),
            Some(Source::File(_) | Source::Default) | None => self.file_dir.clone(),
        }
    }
}

/// A program's name or path, as a bare name or an absolute path.
pub(super) fn program(base: &std::path::Path, text: &str) -> PathBuf {
    if text.contains('/') { base.join(text) } else { PathBuf::from(text) }
}

fn malformed(key: &Key) -> Problem {
    Problem::Malformed { expected: key.kind.expected() }
}

impl Raw {
    fn into_text(self) -> Result<String, String> {
        match self {
            Raw::Text(text) => Ok(text),
            other => Err(other.to_string()),
        }
    }
}
