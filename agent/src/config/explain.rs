//! `agent config explain`: the table of keys, as a configuration file to start from.

use std::fmt::Write;

use super::keys::{Fallback, KEYS, Kind, env_name};

const HEAD: &str = "\
# Configuration of the mesh agent, with every key there is. The defaults are commented out: they hold unset.
# The agent reads the file that --config or LUCENT_CONFIG names.
#
# A flag wins over an environment variable, which wins over this file, which wins over the default. The
# variable of a key is LUCENT_ and the key in capitals, with two underscores between sections:
# nats.listen is LUCENT_NATS__LISTEN. An empty variable counts as unset; lists are separated by commas.
# Any key can be given as a flag too: --set nats.listen=127.0.0.1:0. [[policy]], [[priority]] and
# [[runner]] stand in the file only. Relative paths start at this file's directory; those in variables and flags, at the
# working directory. Sizes: B, KiB, MiB, GiB, TiB, KB, MB, GB, TB. Durations: us, ms, s, m, h, d.
";

/// The whole reference, as TOML with every key commented out.
pub fn explain() -> String {
    let mut out = HEAD.to_owned();
    let mut section = "";
    for key in KEYS {
        let (in_section, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if in_section != section {
            section = in_section;
            let heading = match section.strip_suffix("[]") {
                // An empty table would be a rule without a subject, so its heading is commented out as well.
                Some(list) => format!("\n#[[{list}]]"),
                None => format!("\n[{section}]"),
            };
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{heading}");
        }
        let (value, otherwise) = match key.fallback {
            Fallback::Default(value) => (value, None),
            Fallback::Absent(otherwise, example) => {
                (example, Some(format!("an example; unset: {otherwise}")))
            }
            Fallback::Required(_, example) => (example, Some("an example; required".to_owned())),
        };
        let variable = (!section.ends_with("[]")).then(|| env_name(key.name));
        let facts: Vec<_> = [key.kind.range(), variable, otherwise].into_iter().flatten().collect();
        let facts = if facts.is_empty() { String::new() } else { format!("# ({})\n", facts.join("; ")) };
        let _ = writeln!(out, "\n# {}\n{facts}#{name} = {}", key.doc, as_toml(key.kind, value));
    }
    out
}

pub(super) fn as_toml(kind: Kind, value: &str) -> String {
    match kind {
        Kind::Count(..) | Kind::Map => value.to_owned(),
        Kind::List(_) => {
            let items: Vec<_> =
                value.split(',').filter(|item| !item.is_empty()).map(|item| format!("{item:?}")).collect();
            format!("[{}]", items.join(", "))
        }
        _ => format!("{value:?}"),
    }
}
