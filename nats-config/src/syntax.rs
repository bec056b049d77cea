//! The syntax of nats-server's configuration: blocks, lists and safely quoted strings.

use std::{fmt::Display, path::Path, time::Duration};

use crate::error::{RenderError, shown};

/// Writes a configuration. What cannot be written is remembered, and [`Writer::finish`] reports the
/// first of it, so that the callers read like the configuration they write.
pub(crate) struct Writer {
    out: String,
    depth: usize,
    explain: bool,
    error: Option<RenderError>,
}

impl Writer {
    /// A writer that leaves notes out unless it is to `explain`.
    pub(crate) fn new(explain: bool) -> Writer {
        Writer { out: String::new(), depth: 0, explain, error: None }
    }

    /// The configuration, or why there is none.
    pub(crate) fn finish(self) -> Result<String, RenderError> {
        self.error.map_or(Ok(self.out), Err)
    }

    /// A comment that stands in every configuration.
    pub(crate) fn comment(&mut self, text: &str) {
        for line in text.lines() {
            self.line(&format!("# {line}"));
        }
    }

    /// A comment for readers of a sample.
    pub(crate) fn note(&mut self, text: &str) {
        if self.explain {
            self.comment(text);
        }
    }

    /// An empty line between blocks.
    pub(crate) fn gap(&mut self) {
        self.out.push('\n');
    }

    /// `key { ... }`
    pub(crate) fn block(&mut self, key: &str, body: impl FnOnce(&mut Writer)) {
        self.enclosed(&format!("{key} {{"), "}", body);
    }

    /// `key: [ ... ]`, whose body writes [`Writer::item`]s.
    pub(crate) fn list(&mut self, key: &str, body: impl FnOnce(&mut Writer)) {
        self.enclosed(&format!("{key}: ["), "]", body);
    }

    /// One `{ ... }` of a list.
    pub(crate) fn item(&mut self, body: impl FnOnce(&mut Writer)) {
        self.enclosed("{", "}", body);
    }

    /// A string.
    pub(crate) fn text(&mut self, key: &'static str, value: &str) {
        let quoted = self.quoted(key, value);
        self.line(&format!("{key}: {quoted}"));
    }

    /// A file name.
    pub(crate) fn file(&mut self, key: &'static str, value: &Path) {
        match value.to_str() {
            Some(text) => self.text(key, text),
            None => self.refuse(key, &value.to_string_lossy()),
        }
    }

    /// A list of strings, one a line unless there is only one.
    pub(crate) fn texts<T: AsRef<str>>(&mut self, key: &'static str, values: &[T]) {
        let quoted: Vec<_> = values.iter().map(|value| self.quoted(key, value.as_ref())).collect();
        if let [only] = quoted.as_slice() {
            return self.line(&format!("{key}: [{only}]"));
        }
        self.list(key, |w| quoted.iter().for_each(|value| w.line(value)));
    }

    /// A number or a boolean.
    pub(crate) fn plain(&mut self, key: &str, value: impl Display) {
        self.line(&format!("{key}: {value}"));
    }

    /// A duration, in milliseconds where seconds would round it.
    pub(crate) fn duration(&mut self, key: &str, value: Duration) {
        let millis = value.as_millis();
        match millis % 1000 {
            0 => self.line(&format!("{key}: \"{}s\"", millis / 1000)),
            _ => self.line(&format!("{key}: \"{millis}ms\"")),
        }
    }

    fn enclosed(&mut self, open: &str, close: &str, body: impl FnOnce(&mut Writer)) {
        self.line(open);
        self.depth += 1;
        body(self);
        self.depth -= 1;
        self.line(close);
    }

    fn line(&mut self, text: &str) {
        for _ in 0..self.depth {
            self.out.push_str("  ");
        }
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// `value` in double quotes: there the server reads `\` as the start of an escape and nothing
    /// else as special, `$` (elsewhere a variable) and `#` (elsewhere a comment) included. Control
    /// characters are refused: none belongs in a name, and NUL ends the server's reading.
    fn quoted(&mut self, key: &'static str, value: &str) -> String {
        if value.chars().any(char::is_control) {
            self.refuse(key, value);
        }
        format!("\"{}\"", value.replace('\\', r"\\").replace('"', r#"\""#))
    }

    fn refuse(&mut self, key: &'static str, value: &str) {
        self.error.get_or_insert_with(|| RenderError::Unwritable { key, text: shown(value) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: &str) -> Result<String, RenderError> {
        let mut w = Writer::new(false);
        w.text("store_dir", value);
        w.finish()
    }

    #[test]
    fn a_hostile_string_stays_one_string() {
        for (value, line) in [
            ("/var/lib/a b", r#"store_dir: "/var/lib/a b""#),
            (r#"a" } debug: true #"#, r#"store_dir: "a\" } debug: true #""#),
            (r"C:\nats\x41", r#"store_dir: "C:\\nats\\x41""#),
            ("$HOME/'x'", r#"store_dir: "$HOME/'x'""#),
            (r#"\""#, r#"store_dir: "\\\"""#),
        ] {
            assert_eq!(written(value).unwrap().trim_end(), line);
        }
    }

    #[test]
    fn control_characters_are_refused_by_name_of_the_option() {
        for value in ["a\nb", "a\r", "a\0", "\u{1b}[31m", "a\u{85}b"] {
            let error = written(value).unwrap_err();
            assert!(error.to_string().starts_with("store_dir `"), "{error}");
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_name_that_is_not_utf8_is_refused() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let mut w = Writer::new(false);
        w.file("pid_file", Path::new(OsStr::from_bytes(b"/run/\xff")));
        assert!(matches!(w.finish(), Err(RenderError::Unwritable { key: "pid_file", .. })));
    }

    #[test]
    fn durations_are_never_rounded_away() {
        let mut w = Writer::new(false);
        w.duration("a", Duration::from_millis(200));
        w.duration("b", Duration::from_secs(90));
        assert_eq!(w.finish().unwrap(), "a: \"200ms\"\nb: \"90s\"\n");
    }
}
