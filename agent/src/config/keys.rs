//! The table of keys: the one place that says which keys exist, what they hold, what holds without them
//! and what they mean. Parsing, the search for unknown keys and `agent config explain` all read it.

use std::time::Duration;

use super::units::{show_duration, show_size};

/// One key of the configuration.
#[derive(Debug)]
pub(super) struct Key {
    /// Dotted name; `runner[].slots` stands for `slots` in every `[[runner]]`.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) fallback: Fallback,
    /// What it is for, as one line.
    pub(super) doc: &'static str,
}

/// What a key holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One word or text of this description.
    Text(&'static str),
    /// A text that is never shown.
    Secret,
    /// A path; a relative one starts at the directory of the configuration file, or at the working
    /// directory if it comes from the environment or a flag.
    File,
    /// A list of texts of this description; in the environment and in flags, separated by commas.
    List(&'static str),
    /// A table of texts.
    Map,
    /// A whole number between these, both included.
    Count(u64, u64),
    /// A number of bytes between these, both included.
    Size(u64, u64),
    /// A duration between these, both included.
    Duration(Duration, Duration),
}

/// What holds where the key is not set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fallback {
    /// This value, written as in the environment.
    Default(&'static str),
    /// What the first text says; the second is an example.
    Absent(&'static str, &'static str),
    /// Nothing: the first text says what to do; the second is an example.
    Required(&'static str, &'static str),
}

impl Kind {
    /// What a value must be, as the end of "must be ...".
    pub(super) fn expected(self) -> String {
        match self {
            Kind::Text(what) | Kind::List(what) => what.to_owned(),
            Kind::Secret => "a text".to_owned(),
            Kind::File => "a path".to_owned(),
            Kind::Map => "a table of texts, such as { KEY = \"value\" }".to_owned(),
            Kind::Count(..) => format!("a whole number from {}", self.range().unwrap_or_default()),
            Kind::Size(..) => {
                format!(
                    "a size from {}, in bytes or with a unit such as MiB",
                    self.range().unwrap_or_default()
                )
            }
            Kind::Duration(..) => {
                let range = self.range().unwrap_or_default();
                format!("a duration from {range}, with its unit (us, ms, s, m, h, d)")
            }
        }
    }

    /// The bounds, where there are any: `1 to 256`.
    pub(super) fn range(self) -> Option<String> {
        match self {
            Kind::Count(least, most) => Some(format!("{least} to {most}")),
            Kind::Size(least, most) => Some(format!("{} to {}", show_size(least), show_size(most))),
            Kind::Duration(least, most) => {
                Some(format!("{} to {}", show_duration(least), show_duration(most)))
            }
            Kind::Text(_) | Kind::Secret | Kind::File | Kind::List(_) | Kind::Map => None,
        }
    }
}

/// The environment variable of a key: `nats.listen` is `LUCENT_NATS__LISTEN`.
pub(super) fn env_name(key: &str) -> String {
    format!("LUCENT_{}", key.replace('.', "__").to_uppercase())
}

/// The name under which the table knows a key: `runner[3].slots` is `runner[].slots`.
pub(super) fn table_name(key: &str) -> String {
    match (key.find('['), key.find(']')) {
        (Some(open), Some(close)) if open < close => format!("{}[]{}", &key[..open], &key[close + 1..]),
        _ => key.to_owned(),
    }
}

/// The key of this name, as it stands in the file or in the table.
pub(super) fn find(key: &str) -> Option<&'static Key> {
    let name = table_name(key);
    KEYS.iter().find(|key| key.name == name)
}

/// Whether keys stand below this name, as they do below `nats` and `nats.external`.
pub(super) fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// Whether this name is a list of tables, as `runner` is.
pub(super) fn is_list_of_tables(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with("[].")))
}

/// The known key or section that looks most like `name`, if any comes close.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let wanted = table_name(name);
    let sections = KEYS.iter().filter_map(|key| key.name.rsplit_once('.')).map(|(section, _)| section);
    let (distance, best) = KEYS
        .iter()
        .map(|key| key.name)
        .chain(sections)
        .map(|known| (edit_distance(&wanted, known), known))
        .min()?;
    // One slip in five characters is a typing mistake; more is another word.
    (distance <= 1 + wanted.len() / 5).then_some(best)
}

/// How many insertions, removals and replacements make `b` of `a` (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, in_a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, in_b) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(in_a != in_b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const HOUR: Duration = ms(3_600_000);
const LISTEN: Kind =
    Kind::Text("an IP address and a port, such as 127.0.0.1:4222 (port 0: choose a free one)");

const fn key(name: &'static str, kind: Kind, fallback: Fallback, doc: &'static str) -> Key {
    Key { name, kind, fallback, doc }
}

use Fallback::{Absent, Default, Required};

/// Every key there is, in the order in which `agent config explain` shows them.
pub(super) static KEYS: &[Key] = &[
    key(
        "level",
        Kind::Text("node, cluster, site or global"),
        Required("give --level node|cluster|site|global, or level in the file", "node"),
        "Level to run at: node, cluster, site or global",
    ),
    key(
        "path",
        Kind::Text(
            "global, or 1 to 3 ids joined by `/`, as in s1/c1/n1; an id has 1 to 63 of a-z, 0-9, `_` and `-`",
        ),
        Absent("not needed at global, required below", "s1/c1/n1"),
        "Where this agent stands: site, site/cluster or site/cluster/node, to fit the level",
    ),
    key(
        "trust_domain",
        Kind::Text("1 to 255 of a-z, 0-9, `.`, `-` and `_`"),
        Default("lucent.dev"),
        "SPIFFE trust domain whose identities are believed",
    ),
    key(
        "state_dir",
        Kind::File,
        Default("/var/lib/lucent-agent"),
        "Directory for everything that must survive a restart",
    ),
    key("identity.cert", Kind::File, Default("svid.pem"), "X.509 SVID: certificate chain (PEM)"),
    key("identity.key", Kind::File, Default("svid.key"), "Private key of the SVID (PEM)"),
    key("identity.bundle", Kind::File, Default("bundle.pem"), "CA certificates of the trust domain (PEM)"),
    key(
        "nats.mode",
        Kind::Text("embedded or external"),
        Default("embedded"),
        "embedded: the agent runs its own nats-server; external: it attaches to one that others run",
    ),
    key(
        "nats.server",
        Kind::File,
        Default("nats-server"),
        "The nats-server program: a name is looked up on PATH; LUCENT_NATS_SERVER sets it too",
    ),
    key("nats.listen", LISTEN, Default("127.0.0.1:4222"), "Where local applications connect"),
    key(
        "nats.local_password",
        Kind::Secret,
        Absent("none: every program on this machine may connect", "0123456789abcdef"),
        "Password of user `local`, 16 to 128 of A-Z a-z 0-9 _ -; needed where nats.listen is not loopback",
    ),
    key("nats.monitor", LISTEN, Default("127.0.0.1:8222"), "Where the nats-server's monitoring page listens"),
    key("nats.max_memory", Kind::Size(MIB, TIB), Default("256MiB"), "Memory for memory streams"),
    key("nats.max_file", Kind::Size(64 * MIB, 1024 * TIB), Default("10GiB"), "Disk for file streams"),
    key(
        "nats.heap_limit",
        Kind::Size(48 * MIB, TIB),
        Absent("256MiB at a node, 512MiB above", "128MiB"),
        "Heap size from which the server collects garbage with all its might (GOMEMLIMIT)",
    ),
    key(
        "nats.sync",
        Kind::Text("default, always or a duration from 1ms to 1h, such as 1s"),
        Absent("always above the node, default at the node", "always"),
        "When stored messages reach the disk: default (every 2 minutes), always (before each ack) or a duration",
    ),
    key(
        "nats.external.urls",
        Kind::List("a list of different nats://HOST:PORT or tls://HOST:PORT, without user and password"),
        Absent("required in mode external", "tls://nats.example:4222"),
        "The server that others run, or the servers of its cluster",
    ),
    key(
        "nats.external.copies",
        Kind::Count(1, 5),
        Absent("1: one server holds each stream", "3"),
        "How many servers of the cluster hold each stream; only at global",
    ),
    key(
        "nats.external.mesh_user",
        Kind::Text("a text"),
        Absent("required in mode external", "mesh"),
        "User of account MESH",
    ),
    key(
        "nats.external.mesh_password",
        Kind::Secret,
        Absent("required in mode external", "***"),
        "Its password",
    ),
    key(
        "nats.external.up_user",
        Kind::Text("a text"),
        Absent("required in mode external below global", "up"),
        "User of account UP",
    ),
    key(
        "nats.external.up_password",
        Kind::Secret,
        Absent("required in mode external below global", "***"),
        "Its password",
    ),
    key(
        "nats.external.down_user",
        Kind::Text("a text"),
        Absent("required in mode external above the node", "down"),
        "User of account DOWN",
    ),
    key(
        "nats.external.down_password",
        Kind::Secret,
        Absent("required in mode external above the node", "***"),
        "Its password",
    ),
    key(
        "replicas.take_over",
        Kind::Duration(ms(1_000), ms(60_000)),
        Absent("no other replica: this agent is the only one of its path", "2500ms"),
        "Agents of this path on one external server take turns: so long after the last sign of one another acts; only at global",
    ),
    key(
        "replicas.instance",
        Kind::Text("a text"),
        Absent("host name and process id", "core-0"),
        "What this replica is called in logs and status",
    ),
    key("leaf.listen", LISTEN, Default("0.0.0.0:7422"), "Where children connect; not at a node"),
    key(
        "leaf.children",
        Kind::List(
            "a list of different ids, as in [\"n1\", \"n2\"]; an id has 1 to 63 of a-z, 0-9, `_` and `-`",
        ),
        Default(""),
        "Ids of the direct children that may connect; not at a node",
    ),
    key(
        "leaf.credit",
        Kind::Size(16 * MIB, TIB),
        Default("64MiB"),
        "Bytes that all children together may have under way: promised to them, or here and not durable yet",
    ),
    key(
        "parent.addresses",
        Kind::List(
            "a list of different HOST:PORT, as in [\"cluster.example:7422\"], with a port from 1 to 65535",
        ),
        Absent("required below global, refused at global", "cluster.example:7422"),
        "Where the parent's children connect, tried in turn",
    ),
    key("link.batch_events", Kind::Count(1, 10_000), Default("1000"), "Most events in a batch"),
    // An envelope has 1 MiB; escaping may double what is inside.
    key("link.batch_bytes", Kind::Size(KIB, 512 * KIB), Default("256KiB"), "Most bytes of events in a batch"),
    key(
        "link.linger",
        Kind::Duration(Duration::from_micros(100), ms(10_000)),
        Default("2ms"),
        "How long a batch that is not full waits for more",
    ),
    key("link.in_flight", Kind::Count(1, 256), Default("8"), "Most batches sent and not yet acknowledged"),
    key(
        "link.retry",
        Kind::Duration(ms(10), ms(60_000)),
        Default("1s"),
        "After how long without an answer a batch or a greeting is sent again; later where answers take longer",
    ),
    key(
        "link.stuck_after",
        Kind::Duration(ms(1_000), HOUR),
        Default("30s"),
        "How long a parent may greet without a link coming up until the server dials anew, then is restarted",
    ),
    key(
        "telemetry.interval",
        Kind::Duration(ms(100), HOUR),
        Default("5s"),
        "How often the machine is sampled",
    ),
    key(
        "telemetry.window",
        Kind::Duration(ms(100), HOUR),
        Default("10s"),
        "Over how long the children's samples are rolled up; no less than the interval",
    ),
    key(
        "http.listen",
        LISTEN,
        Default("127.0.0.1:0"),
        "Where /livez, /readyz, /metrics and /status are served",
    ),
    key("log.format", Kind::Text("text or json"), Default("text"), "How log lines look: text or json"),
    key(
        "log.level",
        Kind::Text("error, warn, info, debug or trace"),
        Default("info"),
        "Least important level that is written",
    ),
    key(
        "policy[].subject",
        Kind::Text("a NATS subject; `*` stands for one token, `>` for all the rest"),
        Required("say which subjects the rule is for", "lucent.hierarchy.*.*.debug.>"),
        "Which events the rule is for; the first rule that fits an event decides",
    ),
    key(
        "policy[].action",
        Kind::Text("forward, aggregate, drop or sample"),
        Required("say what happens to these events: forward, aggregate, drop or sample", "drop"),
        "What happens to them on the way up: forward, aggregate, drop or sample",
    ),
    key(
        "policy[].one_in",
        Kind::Count(2, 1_000_000),
        Absent("required with action sample, refused with others", "10"),
        "Of how many events one is forwarded",
    ),
    key(
        "lanes.critical_bytes",
        Kind::Size(MIB, TIB),
        Absent("nine tenths of the lane's share of nats.max_file", "512MiB"),
        "Most bytes that wait in lane critical for the parent; beyond, new events are refused",
    ),
    key(
        "lanes.critical_age",
        Kind::Duration(Duration::from_secs(1), Duration::from_secs(365 * 24 * 3600)),
        Default("7d"),
        "Longest time that an event waits in lane critical; older ones are dropped, with a loss receipt",
    ),
    key(
        "lanes.normal_bytes",
        Kind::Size(MIB, TIB),
        Absent("nine tenths of the lane's share of nats.max_file", "512MiB"),
        "Most bytes that wait in lane normal for the parent; beyond, the oldest are dropped",
    ),
    key(
        "lanes.normal_age",
        Kind::Duration(Duration::from_secs(1), Duration::from_secs(365 * 24 * 3600)),
        Default("7d"),
        "Longest time that an event waits in lane normal; older ones are dropped, with a loss receipt",
    ),
    key(
        "lanes.bulk_bytes",
        Kind::Size(MIB, TIB),
        Absent("nine tenths of the lane's share of nats.max_file", "512MiB"),
        "Most bytes that wait in lane bulk for the parent; beyond, the oldest are dropped",
    ),
    key(
        "lanes.bulk_age",
        Kind::Duration(Duration::from_secs(1), Duration::from_secs(365 * 24 * 3600)),
        Default("7d"),
        "Longest time that an event waits in lane bulk; older ones are dropped, with a loss receipt",
    ),
    key(
        "priority[].subject",
        Kind::Text("a NATS subject; `*` stands for one token, `>` for all the rest"),
        Required("say which events the rule is for", "lucent.hierarchy.*.*.alerts.>"),
        "Which events of this agent the rule is for, where their publisher says nothing; the first that fits decides",
    ),
    key(
        "priority[].lane",
        Kind::Text("critical, normal or bulk"),
        Required("say which lane these events take: critical, normal or bulk", "critical"),
        "Which lane they take: critical, normal or bulk",
    ),
    key(
        "child_limit[].child",
        Kind::Text("the id of a direct child, or `*` for any"),
        Required("say which child is limited, `*` for any", "n1"),
        "Which child the limit is for; the first that fits a child holds, each child by itself; not at a node",
    ),
    key(
        "child_limit[].bytes_per_s",
        Kind::Size(1024, TIB),
        Absent("as much as there is room for", "1MiB"),
        "Most bytes of batches in a second, over time. What is too much waits at the child, bulk first",
    ),
    key(
        "child_limit[].events_per_s",
        Kind::Count(1, 1_000_000_000),
        Absent("as many as there is room for", "1000"),
        "Most events in a second, over time",
    ),
    key(
        "runner[].agent_type",
        Kind::Text("one token of a subject, or `*` for any"),
        Required("say which agent type the runner serves, `*` for any", "yield"),
        "First name in lucent.agents.{agent_type}.{task}, `*` for any",
    ),
    key(
        "runner[].task",
        Kind::Text("tokens of a subject, or `*` for any"),
        Required("say which task the runner serves, `*` for any", "analysis"),
        "Second name in lucent.agents.{agent_type}.{task}, `*` for any",
    ),
    key(
        "runner[].command",
        Kind::List(
            "a list that is not empty: the program and its arguments, as in [\"python3\", \"worker.py\"]",
        ),
        Required("give the program and its arguments", "python3,worker.py"),
        "Program, by name on PATH or by path, and its arguments",
    ),
    key("runner[].slots", Kind::Count(1, 1024), Default("1"), "Most tasks at once"),
    key(
        "runner[].timeout",
        Kind::Duration(ms(1), ms(30 * 86_400_000)),
        Default("10m"),
        "After how long an attempt is stopped",
    ),
    key(
        "runner[].grace",
        Kind::Duration(ms(1), HOUR),
        Default("5s"),
        "How long a process that was asked to stop may take before it is killed",
    ),
    key(
        "runner[].workdir",
        Kind::File,
        Absent("the configuration file's directory", "/opt/worker"),
        "Working directory of the process",
    ),
    key(
        "runner[].env",
        Kind::Map,
        Absent("nothing but PATH, HOME, LANG and the task's own", "{ KEY = \"value\" }"),
        "Environment of the process, besides PATH, HOME, LANG and the task's own LUCENT_ variables",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_find_their_keys() {
        for (i, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..i].iter().all(|other| other.name != key.name), "{} stands twice", key.name);
        }
        assert_eq!(find("runner[12].slots").unwrap().name, "runner[].slots");
        assert!(
            is_section("nats")
                && is_section("nats.external")
                && !is_section("nats.listen")
                && !is_section("nat")
        );
        assert!(is_list_of_tables("runner") && !is_list_of_tables("nats"));
    }

    #[test]
    fn a_slip_of_the_finger_finds_the_key_and_another_word_does_not() {
        assert_eq!(nearest("nats.listne"), Some("nats.listen"));
        assert_eq!(nearest("statedir"), Some("state_dir"));
        assert_eq!(nearest("runner[0].slot"), Some("runner[].slots"));
        assert_eq!(nearest("lnk"), Some("link"));
        assert_eq!(nearest("kafka.brokers"), None);
    }
}
