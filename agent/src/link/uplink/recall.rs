//! What an earlier run of this agent kept back and may not have told any more.
//!
//! It is noted in memory, told half a second later, and stays in its lane until then. But the parent's cursor
//! passes it with the batches behind it: whoever goes on behind the cursor reads it no more. So once in each run
//! what still lies before the cursor is looked through. What was told already is told again, and what a sampling
//! rule had let up is stated lost as well: global knows what has arrived.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
};
use futures_util::StreamExt as _;
use hierarchy::{Lane, subject};
use nats_config::streams::lane_stream;

use crate::{lanes::gate::Gate, link::contents::Contents};

/// A stream that is silent for so long has told all it holds.
const SILENCE: Duration = Duration::from_secs(2);

/// Places and contents of what the gate may have kept back at or before `cursor`.
pub(super) async fn kept_back(
    js: &jetstream::Context,
    lane: Lane,
    cursor: u64,
    gate: &Gate,
) -> Result<Vec<(u64, Contents)>, String> {
    let stream = js.get_stream_no_info(lane_stream(lane)).await.map_err(|e| e.to_string())?;
    let config =
        pull::OrderedConfig { deliver_policy: DeliverPolicy::All, headers_only: true, ..Default::default() };
    let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
    let mut messages = consumer.messages().await.map_err(|e| e.to_string())?;
    let mut found = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(SILENCE, messages.next()).await {
        let message = message.map_err(|e| e.to_string())?;
        let (place, pending) =
            message.info().map(|info| (info.stream_sequence, info.pending)).map_err(|e| e.to_string())?;
        if place > cursor {
            break;
        }
        let kept =
            subject::of_lane_below(lane, &message.subject).is_some_and(|below| gate.may_keep_back(&below));
        if kept && let Some(contents) = message.headers.as_ref().and_then(Contents::read) {
            found.push((place, contents));
        }
        if pending == 0 {
            break;
        }
    }
    Ok(found)
}
