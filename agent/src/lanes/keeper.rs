//! Keeps each lane within its bounds: what gives way is stated in a loss receipt first.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
    stream::Stream,
};
use futures_util::StreamExt as _;
use hierarchy::{
    ByLane, Lane, Millis, Path,
    loss::{Loss, LossReason},
};
use nats_config::streams::lane_stream;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Fill, Guards};
use crate::{
    accounting::LossNotes,
    clock,
    link::contents::Contents,
    metrics::{LaneLabel, Metrics, Reason, Watermark},
};

/// How often the lanes are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// A full lane is emptied to this share of its bound, in per cent, so that not each new batch drops one.
const DOWN_TO: u64 = 95;
/// Most batches dropped in one go; their losses fit into the notes.
const AT_ONCE: usize = 2_000;
/// A stream that is silent for so long has told all it holds.
const SILENCE: Duration = Duration::from_secs(2);

/// What a lane may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Bytes.
    pub bytes: u64,
    /// How long a batch may wait.
    pub age: Duration,
}

/// What the keeper needs.
pub struct KeeperParts {
    /// Where this agent stands.
    pub path: Path,
    /// The store.
    pub js: jetstream::Context,
    /// What each lane may hold.
    pub bounds: ByLane<Bound>,
    /// What the parent has: it leaves without further ado.
    pub released: Arc<ByLane<Watermark>>,
    /// Told which lanes are full.
    pub fill: Arc<Fill>,
    /// What must stay, whatever happens.
    pub guards: Vec<Arc<Guards>>,
    /// For what gives way.
    pub notes: LossNotes,
    /// What is counted.
    pub metrics: Metrics,
}

/// Keeps until cancelled.
pub async fn run(parts: KeeperParts, cancel: CancellationToken) -> Result<(), std::convert::Infallible> {
    let began = (clock::wall(), tokio::time::Instant::now());
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = timer.tick() => {}
        }
        // A step of the wall clock makes nothing older: in doubt a batch stays.
        let now = clock::wall().min(began.0.plus(began.1.elapsed()));
        for lane in Lane::ALL {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                kept = parts.keep(lane, now) => {
                    if let Err(reason) = kept {
                        tracing::debug!(%lane, reason, "the lane was not looked at");
                    }
                }
            }
        }
    }
}

impl KeeperParts {
    async fn keep(&self, lane: Lane, now: Millis) -> Result<(), String> {
        let stream = self.js.get_stream(lane_stream(lane)).await.map_err(|e| e.to_string())?;
        let state = &stream.cached_info().state;
        let bound = self.bounds[lane];
        let label = LaneLabel { lane: lane.as_str() };
        self.metrics.lane_bytes.get_or_create(&label).set(state.bytes as i64);
        self.fill
            .set(lane, u8::try_from(state.bytes.saturating_mul(100) / bound.bytes.max(1)).unwrap_or(u8::MAX));
        if state.messages == 0 {
            return Ok(());
        }
        // What is most urgent is not dropped for want of room: new events are refused.
        let excess = match lane {
            Lane::Critical => 0,
            _ if state.bytes > bound.bytes => state.bytes - bound.bytes / 100 * DOWN_TO,
            _ => 0,
        };
        let waited = now.0.saturating_sub(millis(state.first_timestamp));
        if excess == 0 && Duration::from_millis(waited) <= bound.age {
            return Ok(());
        }
        let allowed = self.guards.iter().map(|guard| guard.get(lane)).min().unwrap_or(u64::MAX);
        let dropped = self.choose(lane, &stream, now, excess, allowed).await?;
        let Some(last) = dropped.last else { return Ok(()) };
        if dropped.events > 0 {
            tracing::warn!(%lane, batches = dropped.batches, events = dropped.events, reason = %dropped.reason,
                "the lane's oldest give way; a loss receipt says which");
            self.notes.told().await;
        }
        stream.purge().sequence(last + 1).await.map_err(|e| e.to_string())?;
        Ok(())
    }

    /// Notes the losses of the oldest batches, as many as are too old or too much.
    async fn choose(
        &self,
        lane: Lane,
        stream: &Stream,
        now: Millis,
        mut excess: u64,
        allowed: u64,
    ) -> Result<Dropped, String> {
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            headers_only: true,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
        let mut messages = consumer.messages().await.map_err(|e| e.to_string())?;
        let oldest = now.0.saturating_sub(self.bounds[lane].age.as_millis() as u64);
        let mut dropped = Dropped { last: None, batches: 0, events: 0, reason: LossReason::Age };
        while dropped.batches < AT_ONCE {
            let Ok(Some(Ok(message))) = tokio::time::timeout(SILENCE, messages.next()).await else { break };
            let (place, published, pending) = {
                let info = message.info().map_err(|e| e.to_string())?;
                (info.stream_sequence, millis(info.published), info.pending)
            };
            let headers = message.headers.clone().unwrap_or_default();
            let reason = if excess > 0 { LossReason::Overflow } else { LossReason::Age };
            if (excess == 0 && published >= oldest) || place > allowed {
                break;
            }
            let size = headers.get("Nats-Msg-Size").and_then(|size| size.as_str().parse::<u64>().ok());
            excess = excess.saturating_sub(size.unwrap_or(0));
            let arrived = place <= self.released[lane].get();
            if !arrived && let Some(contents) = Contents::read(&headers) {
                let loss: Loss = contents.lost(&self.path, lane, reason);
                // Full means that the rest waits for the next look.
                if self.notes.note(loss).is_err() {
                    break;
                }
                let label = Reason { reason: reason.as_str().into() };
                self.metrics.losses.get_or_create(&label).inc_by(contents.count);
                dropped.events += contents.count;
            }
            dropped.batches += 1;
            dropped.last = Some(place);
            dropped.reason = reason;
            if pending == 0 {
                break;
            }
        }
        Ok(dropped)
    }
}

struct Dropped {
    /// The last place that gives way.
    last: Option<u64>,
    batches: usize,
    events: u64,
    reason: LossReason,
}

fn millis(time: time::OffsetDateTime) -> u64 {
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}
