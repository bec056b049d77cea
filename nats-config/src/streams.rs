//! The streams and key-value buckets of each level, as plain data.

use std::time::Duration;

use hierarchy::{Lane, Level, order, subject};
use serde::{Deserialize, Serialize};

/// A stream. All of them are stored in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSpec {
    /// Its name, as in `HIERARCHY`.
    pub name: String,
    /// The subject patterns that it stores.
    pub subjects: Vec<String>,
    /// What makes a message leave.
    pub retention: Retention,
    /// How long a message stays at most; zero for ever.
    pub max_age: Duration,
    /// How many messages stay at most; `None` for any number.
    pub max_msgs: Option<u64>,
    /// How many bytes stay at most. Always set, and reserved by the server when the stream is made.
    pub max_bytes: u64,
    /// How many servers of a cluster hold it.
    pub replicas: u8,
    /// What gives way when it is full.
    pub discard: Discard,
    /// For how long a second message with the same `Nats-Msg-Id` is dropped. A convenience for
    /// applications: nothing in the mesh rests on it, and a foreign id can be claimed in it.
    pub duplicate_window: Duration,
    /// Bytes of the largest message.
    pub max_msg_size: u32,
    /// Whether the server stays silent on storing. It must where requests are stored, or its
    /// acknowledgement reaches the requester before the service's answer does.
    pub no_ack: bool,
    /// Whether several messages can be stored together, all or none.
    pub atomic: bool,
    /// What is heard again, and on which subject, once it is stored: source and destination pattern.
    pub republish: Option<[String; 2]>,
}

/// What makes a message leave a stream, beside its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retention {
    /// Nothing.
    Limits,
    /// Every consumer has acknowledged it. Without any consumer it leaves at once.
    Interest,
    /// One consumer has acknowledged it.
    WorkQueue,
}

/// What gives way when a stream is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// The oldest message, silently.
    Old,
    /// The new message, whose publisher gets an error.
    New,
}

/// A key-value bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvSpec {
    /// Its name, as in `LUCENT_LINK`.
    pub bucket: String,
    /// How many values of a key are kept.
    pub history: u8,
    /// How many bytes it holds at most; beyond, a put is refused.
    pub max_bytes: u64,
    /// How long a value stays; `None` for ever.
    pub ttl: Option<Duration>,
    /// How many servers of a cluster hold it.
    pub replicas: u8,
}

/// What the streams of one server share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamLimits {
    /// Bytes for all streams and buckets together: the server's `max_file_store`.
    pub max_file_store: u64,
    /// How far back HIERARCHY reaches at global. Below it no stream forgets an event by age: the agent does,
    /// and says so.
    pub hierarchy_max_age: Duration,
    /// How many servers of the core hold a message. Below the core it is always one.
    pub core_replicas: u8,
    /// Bytes of the largest message: the server's `max_payload`.
    pub max_msg_size: u32,
}

/// What is published at a level; at global also the batches from below.
pub const HIERARCHY: &str = "HIERARCHY";
/// What this agent and those above say to agents below, on its way down and where it arrived.
pub const ORDERS: &str = "ORDERS";
const COMMANDS: &str = "COMMANDS";
/// The cursors of the links.
pub const LINK_BUCKET: &str = "LUCENT_LINK";
/// The key bindings under which messages were signed.
pub const BINDINGS_BUCKET: &str = "LUCENT_BINDINGS";
/// The state of tasks.
pub const TASKS_BUCKET: &str = "LUCENT_TASKS";

/// How the server writes that age removes nothing.
const FOR_EVER: Duration = Duration::ZERO;
const WINDOW: Duration = Duration::from_secs(120);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Longer than any order is good for, so that the agent is always the one that removes it, and says so.
const ORDERS_AGE: Duration = Duration::from_secs(8 * 24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// The server allows no more.
const MOST_REPLICAS: u8 = 5;

impl StreamLimits {
    /// The limits of a server with `max_file_store` bytes.
    pub const fn new(max_file_store: u64) -> StreamLimits {
        let hierarchy_max_age = Duration::from_secs(7 * 24 * 3600);
        StreamLimits { max_file_store, hierarchy_max_age, core_replicas: 3, max_msg_size: 8 << 20 }
    }

    /// The server reserves `max_bytes` of each stream and refuses what exceeds its store, so the
    /// store is divided in per cent.
    const fn share(&self, percent: u64) -> u64 {
        self.max_file_store / 100 * percent
    }

    fn replicas(&self, level: Level, at_most: u8) -> u8 {
        if level == Level::Global { self.core_replicas.clamp(1, at_most) } else { 1 }
    }
}

/// The streams of a server at `level`. They are the same at every level: an application finds what it
/// expects wherever it runs, and goes on when the link above is cut. AGENT_COORDINATION is needed at
/// nodes too, which store the tasks that were handed down to them.
///
/// - **HIERARCHY** takes events as they are published. Below global the agent packs them into signed
///   batches at once, whether the link is up or not, and puts those into the lanes' streams; an event
///   leaves once its batch is there. It takes only what applications of this level may publish. At
///   global nothing is handed on: the stream is the log of all batches, whose oldest go.
/// - **LANE_CRITICAL**, **LANE_NORMAL** and **LANE_BULK** are the custody of batches on their way up, from
///   here and from below. A full one refuses; before that the agent decides what gives way and writes
///   the loss receipt. A batch leaves when the agent purges up to the cursor that the parent holds
///   durably. A work queue would say the same, but asks for an acknowledgement of every message;
///   limits and a purge are about four times cheaper. What comes from below is heard again on its own
///   subject, for whoever listens at this level.
/// - **DOMAIN_EVENTS** and **SIGNALS** keep a message for the consumers that exist when it arrives. Without
///   any it is acknowledged and gone: make the durable consumer before the publisher.
/// - **DOMAIN_EVENTS** and **AGENT_COORDINATION** refuse when full: an error is better than a trade or a task
///   that nobody hears of. JOBS and SIGNALS drop their oldest.
/// - **COMMANDS** is an audit copy of requests. It must neither refuse nor answer.
/// - **ORDERS** holds orders until the child has them or they expire, and those for this agent, which are said
///   again on their own subject, as long as they are good for. It refuses when full.
/// - **DEAD_LETTERS** is kept by limits, since a work queue cannot be browsed.
pub fn streams(level: Level, limits: &StreamLimits) -> Vec<StreamSpec> {
    use {Discard::*, Retention::*};
    let custody = match level {
        Level::Global => {
            vec![Row(
                HIERARCHY,
                vec![subject::HIERARCHY_ALL.into()],
                50,
                Limits,
                limits.hierarchy_max_age,
                Old,
            )]
        }
        _ => {
            let own = Level::ALL.into_iter().filter(|other| *other >= level);
            let inbox = own.flat_map(published_at).collect();
            let lane = |lane: Lane| {
                Row(
                    lane_stream(lane),
                    vec![subject::lane_all(lane)],
                    lane_percent(lane),
                    Limits,
                    FOR_EVER,
                    New,
                )
            };
            let inbox = Row(HIERARCHY, inbox, 10, Limits, FOR_EVER, New);
            [vec![inbox], Lane::ALL.map(lane).into()].concat()
        }
    };
    let others = vec![
        Row("AGENT_COORDINATION", vec![subject::AGENTS_ALL.into()], 8, WorkQueue, DAY, New),
        Row("DEAD_LETTERS", vec![subject::DEAD_LETTERS_ALL.into()], 8, Limits, MONTH, Old),
        Row("DOMAIN_EVENTS", vec!["lucent.events.domain.>".into()], 10, Interest, 365 * DAY, New),
        Row(ORDERS, vec![order::ORDERS_ALL.into()], 3, Limits, ORDERS_AGE, New),
        Row(COMMANDS, vec!["lucent.commands.>".into()], 4, Limits, HOUR, Old),
        Row("JOBS", vec!["jobs.>".into()], 6, WorkQueue, DAY, Old),
        Row("SIGNALS", vec!["signals.>".into()], 4, Interest, 7 * DAY, Old),
    ];
    [custody, others].concat().into_iter().map(|row| row.spec(level, limits)).collect()
}

/// Name, subjects, per cent of the store, retention, age, discard.
#[derive(Clone)]
struct Row(&'static str, Vec<String>, u64, Retention, Duration, Discard);

impl Row {
    fn spec(self, level: Level, limits: &StreamLimits) -> StreamSpec {
        let Row(name, subjects, percent, retention, max_age, discard) = self;
        let audit = name == COMMANDS;
        let max_bytes = limits.share(percent);
        let lane = Lane::ALL.into_iter().find(|lane| lane_stream(*lane) == name);
        StreamSpec {
            name: name.to_owned(),
            subjects,
            retention,
            max_age,
            max_msgs: (audit || name == ORDERS).then_some(100_000),
            max_bytes,
            replicas: limits.replicas(level, if audit { 1 } else { MOST_REPLICAS }),
            discard,
            // The server wants a window no longer than the age.
            duplicate_window: if max_age == FOR_EVER { WINDOW } else { WINDOW.min(max_age) },
            max_msg_size: limits.max_msg_size.min(u32::try_from(max_bytes).unwrap_or(u32::MAX)),
            no_ack: audit,
            // Replicas of global's coordinator store so. Elsewhere one agent writes.
            atomic: name == HIERARCHY && level == Level::Global,
            republish: match lane {
                Some(lane) => {
                    Some([format!("lucent.lane.{lane}.below.>"), subject::HIERARCHY_ALL.to_owned()])
                }
                None => (name == ORDERS).then(|| [order::HERE_ALL.to_owned(), "lucent.>".to_owned()]),
            },
        }
    }
}

/// The stream in which a lane waits for the way up, below global.
pub const fn lane_stream(lane: Lane) -> &'static str {
    match lane {
        Lane::Critical => "LANE_CRITICAL",
        Lane::Normal => "LANE_NORMAL",
        Lane::Bulk => "LANE_BULK",
    }
}

/// What a lane's stream takes of the store.
const fn lane_percent(lane: Lane) -> u64 {
    match lane {
        Lane::Critical => 6,
        Lane::Normal => 16,
        Lane::Bulk => 18,
    }
}

/// Bytes that a lane's stream may hold.
pub fn lane_bytes(lane: Lane, limits: &StreamLimits) -> u64 {
    limits.share(lane_percent(lane))
}

/// The subjects of the agents of a level.
fn published_at(level: Level) -> Vec<String> {
    let base = format!("lucent.hierarchy.{level}");
    match level {
        Level::Global => vec![base.clone(), format!("{base}.>")],
        _ => vec![format!("{base}.>")],
    }
}

/// Bucket, per cent of the store, values a key, time to live.
///
/// Cursors stay for ever: a child may return after months. Bindings and tasks stay as long as a dead
/// letter that speaks of them, and longer than an attempt that was given up may still report.
const BUCKETS: [(&str, u64, u8, Option<Duration>); 3] =
    [(LINK_BUCKET, 1, 1, None), (BINDINGS_BUCKET, 2, 1, Some(MONTH)), (TASKS_BUCKET, 4, 8, Some(MONTH))];

/// The buckets of a server at `level`, the same at every level. They are the agent's alone.
pub fn kv_buckets(level: Level, limits: &StreamLimits) -> Vec<KvSpec> {
    BUCKETS
        .map(|(bucket, percent, history, ttl)| KvSpec {
            bucket: bucket.to_owned(),
            history,
            max_bytes: limits.share(percent),
            ttl,
            replicas: limits.replicas(level, MOST_REPLICAS),
        })
        .into()
}

/// The names of [`kv_buckets`].
pub(crate) fn bucket_names() -> impl Iterator<Item = &'static str> {
    BUCKETS.into_iter().map(|(bucket, ..)| bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(level: Level) -> (Vec<StreamSpec>, StreamLimits) {
        let limits = StreamLimits::new(1 << 30);
        (streams(level, &limits), limits)
    }

    fn named(level: Level, name: &str) -> StreamSpec {
        at(level).0.into_iter().find(|s| s.name == name).unwrap()
    }

    #[test]
    fn all_streams_and_buckets_fit_into_the_store_together() {
        for level in Level::ALL {
            for store in [64 << 20, (1 << 30) + 7, 1 << 50] {
                let limits = StreamLimits::new(store);
                let (streams, buckets) = (streams(level, &limits), kv_buckets(level, &limits));
                let all = streams.iter().map(|s| s.max_bytes).chain(buckets.iter().map(|b| b.max_bytes));
                assert!(all.clone().all(|bytes| bytes > 0));
                assert!(all.sum::<u64>() <= store);
                assert!(streams.iter().all(|s| u64::from(s.max_msg_size) <= s.max_bytes));
            }
        }
    }

    #[test]
    fn no_event_on_its_way_up_is_dropped_silently() {
        for level in [Level::Node, Level::Cluster, Level::Site] {
            for name in ["HIERARCHY", "LANE_CRITICAL", "LANE_NORMAL", "LANE_BULK"] {
                let stream = named(level, name);
                assert_eq!((stream.discard, stream.retention), (Discard::New, Retention::Limits));
                assert_eq!((stream.max_age, stream.max_msgs), (Duration::ZERO, None));
            }
        }
        assert_eq!(named(Level::Global, "HIERARCHY").discard, Discard::Old);
    }

    #[test]
    fn no_subject_is_stored_twice_and_every_pattern_reaches_all_depths() {
        for level in Level::ALL {
            let patterns: Vec<_> = at(level).0.into_iter().flat_map(|s| s.subjects).collect();
            for (i, pattern) in patterns.iter().enumerate() {
                let prefix = pattern.strip_suffix('>').unwrap_or(pattern);
                assert!(!pattern.contains('*'), "a `*` would miss deeper subjects");
                let clash = |other: &String| other.starts_with(prefix) && pattern.ends_with('>');
                assert!(!patterns.iter().skip(i + 1).any(clash), "{pattern}");
            }
        }
    }

    /// What comes from below is heard again under `lucent.hierarchy.`: were it stored again, the agent
    /// would take it for an event of this level.
    #[test]
    fn what_a_lane_says_again_is_not_stored_again() {
        for (level, below) in [(Level::Cluster, "node"), (Level::Site, "node"), (Level::Site, "cluster")] {
            let inbox = named(level, "HIERARCHY").subjects;
            assert!(!inbox.iter().any(|subject| subject.starts_with(&format!("lucent.hierarchy.{below}"))));
        }
        assert!(named(Level::Node, "LANE_BULK").republish.is_some());
        let global: Vec<_> =
            at(Level::Global).0.into_iter().filter(|stream| stream.republish.is_some()).collect();
        assert!(matches!(global.as_slice(), [only] if only.name == ORDERS));
    }

    #[test]
    fn a_request_is_answered_by_its_service_and_not_by_the_audit_copy() {
        for level in Level::ALL {
            let silent: Vec<_> = at(level).0.into_iter().filter(|s| s.no_ack).map(|s| s.name).collect();
            assert_eq!(silent, ["COMMANDS"]);
        }
    }

    #[test]
    fn only_the_core_replicates() {
        let (node, limits) = at(Level::Site);
        assert!(node.iter().all(|s| s.replicas == 1));
        assert!(kv_buckets(Level::Site, &limits).iter().all(|b| b.replicas == 1));
        assert_eq!(named(Level::Global, "HIERARCHY").replicas, 3);
        assert_eq!(named(Level::Global, "COMMANDS").replicas, 1);
        let single = StreamLimits { core_replicas: 1, ..limits };
        assert!(streams(Level::Global, &single).iter().all(|s| s.replicas == 1));
    }

    #[test]
    fn the_agents_buckets_bear_its_prefix() {
        assert!(bucket_names().all(|bucket| bucket.starts_with("LUCENT_")));
    }

    #[test]
    fn specs_survive_json() {
        let (specs, limits) = at(Level::Global);
        let json = serde_json::to_string(&specs).unwrap();
        assert_eq!(serde_json::from_str::<Vec<StreamSpec>>(&json).unwrap(), specs);
        let buckets = kv_buckets(Level::Global, &limits);
        let json = serde_json::to_string(&buckets).unwrap();
        assert_eq!(serde_json::from_str::<Vec<KvSpec>>(&json).unwrap(), buckets);
    }
}
