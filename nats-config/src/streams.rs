//! The streams and key-value buckets of each level, as plain data.

use std::time::Duration;

use hierarchy::{Level, subject};
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
    /// How long a message stays at most.
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
    /// How long HIERARCHY holds an event that it cannot hand on; at global, how far back it reaches.
    pub hierarchy_max_age: Duration,
    /// How many servers of the core hold a message. Below the core it is always one.
    pub core_replicas: u8,
    /// Bytes of the largest message: the server's `max_payload`.
    pub max_msg_size: u32,
}

/// The cursors of the links.
pub const LINK_BUCKET: &str = "LUCENT_LINK";
/// The key bindings under which messages were signed.
pub const BINDINGS_BUCKET: &str = "LUCENT_BINDINGS";
/// The state of tasks.
pub const TASKS_BUCKET: &str = "LUCENT_TASKS";

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// The server allows no more.
const MOST_REPLICAS: u8 = 5;

impl StreamLimits {
    /// The limits of a server at `level` with `max_file_store` bytes.
    pub const fn new(level: Level, max_file_store: u64) -> StreamLimits {
        let hierarchy_max_age = match level {
            Level::Node | Level::Cluster | Level::Site => DAY,
            Level::Global => Duration::from_secs(7 * 24 * 3600),
        };
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
/// - **HIERARCHY** is the custody of events on their way up. It never drops an event on its own
///   account below global: a full stream refuses, and the agent decides by lane what gives way and
///   writes the loss receipt. An event leaves when the agent purges up to the cursor that the parent
///   holds durably. A work queue would say the same, but asks for an acknowledgement of every
///   message; limits and a purge are about four times cheaper. What age removes, the agent accounts
///   for by the gap between its cursor and the first sequence. At global nothing is handed on: the
///   stream is a log, whose oldest events go.
/// - **DOMAIN_EVENTS** and **SIGNALS** keep a message for the consumers that exist when it arrives. Without
///   any it is acknowledged and gone: make the durable consumer before the publisher.
/// - **DOMAIN_EVENTS** and **AGENT_COORDINATION** refuse when full: an error is better than a trade or a task
///   that nobody hears of. JOBS and SIGNALS drop their oldest.
/// - **COMMANDS** is an audit copy of requests. It must neither refuse nor answer.
/// - **DEAD_LETTERS** is kept by limits, since a work queue cannot be browsed.
pub fn streams(level: Level, limits: &StreamLimits) -> Vec<StreamSpec> {
    use {Discard::*, Retention::*};
    let core = level == Level::Global;
    let hierarchy_discard = if core { Old } else { New };
    // Name, subjects, per cent of the store, retention, age, discard.
    [
        ("HIERARCHY", subject::HIERARCHY_ALL, 50, Limits, limits.hierarchy_max_age, hierarchy_discard),
        ("AGENT_COORDINATION", subject::AGENTS_ALL, 8, WorkQueue, DAY, New),
        ("DEAD_LETTERS", subject::DEAD_LETTERS_ALL, 8, Limits, MONTH, Old),
        ("DOMAIN_EVENTS", "lucent.events.domain.>", 12, Interest, 365 * DAY, New),
        ("COMMANDS", "lucent.commands.>", 4, Limits, HOUR, Old),
        ("JOBS", "jobs.>", 6, WorkQueue, DAY, Old),
        ("SIGNALS", "signals.>", 4, Interest, 7 * DAY, Old),
    ]
    .map(|(name, subjects, percent, retention, max_age, discard)| {
        let audit = name == "COMMANDS";
        let max_bytes = limits.share(percent);
        StreamSpec {
            name: name.to_owned(),
            subjects: vec![subjects.to_owned()],
            retention,
            max_age,
            max_msgs: audit.then_some(100_000),
            max_bytes,
            replicas: limits.replicas(level, if audit { 1 } else { MOST_REPLICAS }),
            discard,
            // The server wants a window no longer than the age.
            duplicate_window: Duration::from_secs(120).min(max_age),
            max_msg_size: limits.max_msg_size.min(u32::try_from(max_bytes).unwrap_or(u32::MAX)),
            no_ack: audit,
        }
    })
    .into()
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
        let limits = StreamLimits::new(level, 1 << 30);
        (streams(level, &limits), limits)
    }

    fn named(level: Level, name: &str) -> StreamSpec {
        at(level).0.into_iter().find(|s| s.name == name).unwrap()
    }

    #[test]
    fn all_streams_and_buckets_fit_into_the_store_together() {
        for level in Level::ALL {
            for store in [64 << 20, (1 << 30) + 7, 1 << 50] {
                let limits = StreamLimits::new(level, store);
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
            let hierarchy = named(level, "HIERARCHY");
            assert_eq!((hierarchy.discard, hierarchy.retention), (Discard::New, Retention::Limits));
            assert_eq!(hierarchy.max_age, DAY);
        }
        assert_eq!(named(Level::Global, "HIERARCHY").discard, Discard::Old);
    }

    #[test]
    fn no_subject_is_stored_twice_and_every_pattern_reaches_all_depths() {
        for level in Level::ALL {
            let patterns: Vec<_> = at(level).0.into_iter().flat_map(|s| s.subjects).collect();
            for (i, pattern) in patterns.iter().enumerate() {
                let prefix = pattern.strip_suffix('>').expect("a `*` would miss deeper subjects");
                assert!(patterns.iter().skip(i + 1).all(|other| !other.starts_with(prefix)));
            }
        }
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
