//! Forgetting: what the parent holds durably leaves this level's store.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream;
use hierarchy::ByLane;
use nats_config::streams::lane_stream;
use tokio_util::sync::CancellationToken;

use crate::{lanes::Guards, metrics::Watermark};

/// How often the store is trimmed. A purge is cheap for the server, but not free.
const EVERY: Duration = Duration::from_millis(500);

/// Purges each lane up to the lowest of these places: the batch before the last one that the parent has
/// (`released`; that one stays, for the next session to compare), and what the guards allow.
pub async fn run(
    js: jetstream::Context,
    released: Arc<ByLane<Watermark>>,
    guards: Vec<Arc<Guards>>,
    cancel: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut purged = ByLane::<u64>::default();
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = timer.tick() => {}
        }
        for (lane, purged) in purged.iter_mut() {
            let bound = guards.iter().map(|guard| guard.get(lane)).min().unwrap_or(u64::MAX);
            let target = released[lane].get().saturating_sub(1).min(bound);
            if target <= *purged {
                continue;
            }
            let purge = async {
                let stream = js.get_stream_no_info(lane_stream(lane)).await.map_err(|e| e.to_string())?;
                stream.purge().sequence(target + 1).await.map_err(|e| e.to_string())
            };
            match purge.await {
                Ok(_) => *purged = target,
                // The server may be restarting. What is not purged now is purged later.
                Err(reason) => tracing::debug!(%lane, reason, "the lane was not trimmed"),
            }
        }
    }
}
