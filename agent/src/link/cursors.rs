//! How far each child has come: kept in the streams themselves, with a checkpoint so that finding out
//! after a restart reads seconds of them and not days.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
    kv,
};
use futures_util::TryStreamExt as _;
use hierarchy::{
    ByLane, Digest, Lane, Level, Path,
    link::{Cursor, Origins, Record, Span},
    subject::{self, Speaker},
};
use serde::{Deserialize, Serialize};

use super::header;
use crate::lanes::stream_of;

/// The key of the checkpoint in the link's bucket.
const KEY: &str = "cursors";
/// A stream that is silent for so long has told all it holds.
const SILENCE: Duration = Duration::from_secs(5);

/// What is known of all children once the streams were read up to some places.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The place in each lane's stream: all records up to here are counted in. At global the lanes share
    /// one stream, and the place.
    pub places: ByLane<u64>,
    /// The children's cursors.
    pub children: BTreeMap<Path, ByLane<Cursor>>,
    /// What has arrived of each origin.
    pub origins: Origins,
}

/// The cursors could not be read or kept.
#[derive(Debug, thiserror::Error)]
#[error("the link's cursors cannot be {doing}: {reason}; is JetStream available?")]
pub struct CursorError {
    doing: &'static str,
    reason: String,
}

impl CursorError {
    fn on<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> CursorError {
        move |error| CursorError { doing, reason: error.to_string() }
    }
}

/// Keeps the checkpoint; its revision. With `after` only if that is the revision of the one before: an older
/// one of another replica, on its way for long, must not take the place of a newer one.
pub async fn save(
    bucket: &kv::Store,
    checkpoint: &Checkpoint,
    after: Option<u64>,
) -> Result<u64, CursorError> {
    let text = serde_json::to_vec(checkpoint).map_err(CursorError::on("kept"))?;
    match after {
        None => bucket.put(KEY, text.into()).await.map_err(CursorError::on("kept")),
        Some(after) => bucket.update(KEY, text.into(), after).await.map_err(CursorError::on("kept")),
    }
}

/// The last checkpoint, brought up to the end of the streams, and the revision of that checkpoint. Orphans,
/// records of a store that failed half-way, are removed from them. With `up_to` the stream is read up to there
/// at least: a server of a cluster may answer that has not seen the end yet.
pub async fn recover(
    js: &jetstream::Context,
    bucket: &kv::Store,
    own: Level,
    up_to: Option<u64>,
) -> Result<(Checkpoint, u64), CursorError> {
    let (kept, revision) = newest(bucket).await?;
    let is_kept = kept.is_some();
    let mut recovery = Recovery { own, is_kept, up_to, found: kept.unwrap_or_default() };
    match own {
        Level::Global => recovery.read(js, None).await?,
        _ => {
            for lane in Lane::ALL {
                recovery.read(js, Some(lane)).await?;
            }
        }
    }
    Ok((recovery.found, revision))
}

struct Recovery {
    own: Level,
    is_kept: bool,
    up_to: Option<u64>,
    found: Checkpoint,
}

impl Recovery {
    /// Reads one lane's stream, or where no lane is given the stream that they share.
    async fn read(&mut self, js: &jetstream::Context, lane: Option<Lane>) -> Result<(), CursorError> {
        let shared = lane.unwrap_or_default();
        let stream = js.get_stream(stream_of(self.own, shared)).await.map_err(CursorError::on("read"))?;
        let state = &stream.cached_info().state;
        let last = self.up_to.unwrap_or(state.last_sequence);
        let mut at = self.found.places[shared];
        if at > last {
            tracing::warn!(%shared, counted = at, stream_ends_at = last, "the store went back in time");
            self.forget(lane);
            at = 0;
        }
        if (state.messages > 0 || self.up_to.is_some()) && at < last {
            let config = pull::OrderedConfig {
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: at + 1 },
                headers_only: true,
                ..Default::default()
            };
            let consumer = stream.create_consumer(config).await.map_err(CursorError::on("read"))?;
            let mut messages = consumer.messages().await.map_err(CursorError::on("read"))?;
            while at < last {
                let next = tokio::time::timeout(SILENCE, messages.try_next()).await;
                if self.up_to.is_some() && !matches!(next, Ok(Ok(Some(_)))) {
                    return Err(CursorError::on("read")("the server that reads lags behind"));
                }
                // The last messages may have been removed since: silence is the end, too.
                let Ok(next) = next else { break };
                let Some(message) = next.map_err(CursorError::on("read"))? else { break };
                let info = message.info().map_err(CursorError::on("read"))?;
                let (place, pending) = (info.stream_sequence, info.pending);
                at = place;
                if let Some(entry) = self.entry(lane, &message)
                    && !self.count(&entry)
                {
                    tracing::warn!(child = %entry.child, lane = %entry.lane, record = %entry.record, place,
                        "an orphan of a failed store is removed; it will come again");
                    stream.delete_message(place).await.map_err(CursorError::on("read"))?;
                }
                if pending == 0 && self.up_to.is_none() {
                    break;
                }
            }
        }
        match lane {
            Some(lane) => self.found.places[lane] = at,
            None => self.found.places = ByLane::new(|_| at),
        }
        Ok(())
    }

    /// What this agent noted beside a batch; `None` for messages of other writers.
    fn entry(&self, lane: Option<Lane>, message: &jetstream::Message) -> Option<Entry> {
        // Applications may not write on these subjects, so there a record is the agent's own.
        let lane = match lane {
            Some(lane) => subject::of_lane_below(lane, &message.subject).map(|_| lane)?,
            None => {
                Speaker::parse(&message.subject).filter(|speaker| speaker.level() < self.own)?;
                text(message, header::LANE)?.parse().ok()?
            }
        };
        Some(Entry {
            lane,
            child: text(message, header::CHILD)?.parse().ok()?,
            record: text(message, header::RECORD)?.parse().ok()?,
            digest: text(message, header::DIGEST)?.parse().ok()?,
            origin: text(message, header::ORIGIN)?.parse().ok()?,
            span: text(message, header::EVENTS)?.parse().ok()?,
        })
    }

    /// Counts an entry in; false for an orphan.
    fn count(&mut self, entry: &Entry) -> bool {
        let cursors = self.found.children.entry(entry.child.clone()).or_default();
        let cursor = &mut cursors[entry.lane];
        // Without a checkpoint what came before the first record is not known: it is taken as it is.
        if !self.is_kept && *cursor == Cursor::default() {
            *cursor = Cursor::before(entry.record);
        }
        let Some(next) = cursor.follow(entry.record, entry.digest) else { return false };
        *cursor = next;
        self.found.origins.settled(&entry.origin, entry.lane, entry.span);
        true
    }

    /// The store ends before the checkpoint: what it says of these lanes is not to be relied on.
    fn forget(&mut self, lane: Option<Lane>) {
        let lanes = lane.map_or_else(|| Lane::ALL.to_vec(), |lane| vec![lane]);
        for lane in lanes {
            for cursors in self.found.children.values_mut() {
                cursors[lane] = Cursor::default();
            }
            self.found.origins.forget(lane);
        }
        self.is_kept = false;
    }
}

/// A stored batch of a child.
struct Entry {
    lane: Lane,
    child: Path,
    record: Record,
    digest: Digest,
    origin: Path,
    span: Span,
}

fn text<'a>(message: &'a jetstream::Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(|value| value.as_str())
}

/// The newest checkpoint that can be read. What cannot be is not the agent's: an application can have the
/// server write an answer onto any subject, and so onto this key.
async fn newest(bucket: &kv::Store) -> Result<(Option<Checkpoint>, u64), CursorError> {
    let history = bucket.history(KEY).await.map_err(CursorError::on("read"))?;
    let entries: Vec<kv::Entry> = history.try_collect().await.map_err(CursorError::on("read"))?;
    let readable = entries.iter().rev().find_map(|entry| serde_json::from_slice(&entry.value).ok());
    if readable.is_none() && !entries.is_empty() {
        tracing::error!("no checkpoint of the link can be read; the whole of the lanes is");
    }
    Ok((readable, entries.last().map_or(0, |entry| entry.revision)))
}
