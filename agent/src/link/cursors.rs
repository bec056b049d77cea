//! How far each child has come: kept in the stream itself, with a checkpoint so that finding out after
//! a restart reads seconds of the stream and not days.

use std::collections::BTreeMap;

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
    kv,
};
use futures_util::TryStreamExt as _;
use hierarchy::{
    Level, Path,
    link::{Cursor, Record},
    subject::Speaker,
};
use serde::{Deserialize, Serialize};

use super::{HIERARCHY, header};

/// The key of the checkpoint in the link's bucket.
const KEY: &str = "cursors";

/// What is known of all children once the stream was read up to a place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The place in the stream: all records up to here are counted in.
    pub stream: u64,
    /// The children's cursors.
    pub children: BTreeMap<Path, Cursor>,
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

/// Keeps the checkpoint.
pub async fn save(bucket: &kv::Store, checkpoint: &Checkpoint) -> Result<(), CursorError> {
    let text = serde_json::to_vec(checkpoint).map_err(CursorError::on("kept"))?;
    bucket.put(KEY, text.into()).await.map_err(CursorError::on("kept"))?;
    Ok(())
}

/// The last checkpoint, brought up to the end of the stream. Orphans, records of a store that failed
/// half-way, are removed from the stream.
pub async fn recover(
    js: &jetstream::Context,
    bucket: &kv::Store,
    own: Level,
) -> Result<Checkpoint, CursorError> {
    let kept = newest(bucket).await?;
    let is_kept = kept.is_some();
    let mut checkpoint = kept.unwrap_or_default();
    let stream = js.get_stream(HIERARCHY).await.map_err(CursorError::on("read"))?;
    let last = stream.cached_info().state.last_sequence;
    if last <= checkpoint.stream {
        return Ok(checkpoint);
    }
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: checkpoint.stream + 1 },
        headers_only: true,
        ..Default::default()
    };
    if stream.cached_info().state.messages == 0 {
        return Ok(checkpoint);
    }
    let consumer = stream.create_consumer(config).await.map_err(CursorError::on("read"))?;
    let mut messages = consumer.messages().await.map_err(CursorError::on("read"))?;
    let mut at = checkpoint.stream;
    while at < last {
        let next = tokio::time::timeout(std::time::Duration::from_secs(5), messages.try_next());
        // The last messages may have been removed since: silence is the end, too.
        let Ok(next) = next.await else { break };
        let Some(message) = next.map_err(CursorError::on("read"))? else { break };
        let info = message.info().map_err(CursorError::on("read"))?;
        let (place, pending) = (info.stream_sequence, info.pending);
        at = place;
        // Applications may not write on the subjects of the levels below, so only there a record is the
        // agent's own.
        let written_here = Speaker::parse(&message.subject).is_some_and(|speaker| speaker.level() < own);
        if let Some((child, record)) = written_here.then(|| link_record(message.headers.as_ref())).flatten() {
            // Without a checkpoint what came before the first record is not known: it is taken as it is.
            let unknown = if is_kept { Cursor::default() } else { Cursor::before(record) };
            let cursor = checkpoint.children.entry(child.clone()).or_insert(unknown);
            match cursor.follow(record) {
                Some(next) => *cursor = next,
                None => {
                    tracing::warn!(%child, %record, place, "an orphan of a failed store is removed; it will come again");
                    stream.delete_message(place).await.map_err(CursorError::on("read"))?;
                }
            }
        }
        if pending == 0 {
            break;
        }
    }
    checkpoint.stream = at.max(checkpoint.stream);
    Ok(checkpoint)
}

/// The newest checkpoint that can be read. What cannot be is not the agent's: an application can have the
/// server write an answer onto any subject, and so onto this key.
async fn newest(bucket: &kv::Store) -> Result<Option<Checkpoint>, CursorError> {
    let history = bucket.history(KEY).await.map_err(CursorError::on("read"))?;
    let entries: Vec<kv::Entry> = history.try_collect().await.map_err(CursorError::on("read"))?;
    let readable = entries.iter().rev().find_map(|entry| serde_json::from_slice(&entry.value).ok());
    if readable.is_none() && !entries.is_empty() {
        tracing::error!("no checkpoint of the link can be read; the whole stream is");
    }
    Ok(readable)
}

/// The child and record that this agent noted beside a batch; `None` for messages of other writers.
fn link_record(headers: Option<&async_nats::HeaderMap>) -> Option<(Path, Record)> {
    let headers = headers?;
    let child = headers.get(header::CHILD)?.as_str().parse().ok()?;
    let record = headers.get(header::RECORD)?.as_str().parse().ok()?;
    Some((child, record))
}
