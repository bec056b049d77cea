//! Forgetting: what the parent holds durably leaves this level's store.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream;
use tokio_util::sync::CancellationToken;

use super::HIERARCHY;
use crate::metrics::Watermark;

/// How often the store is trimmed. A purge is cheap for the server, but not free.
const EVERY: Duration = Duration::from_millis(500);

/// Purges HIERARCHY up to the lower of two places: what the parent has (`released`), and what the
/// checkpoint of the children's cursors no longer needs (`checkpointed`).
pub async fn run(
    js: jetstream::Context,
    released: Arc<Watermark>,
    checkpointed: Option<Arc<Watermark>>,
    cancel: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut purged = 0;
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = timer.tick() => {}
        }
        let bound = checkpointed.as_ref().map_or(u64::MAX, |mark| mark.get());
        let target = released.get().min(bound);
        if target <= purged {
            continue;
        }
        let purge = async {
            let stream = js.get_stream_no_info(HIERARCHY).await.map_err(|e| e.to_string())?;
            stream.purge().sequence(target + 1).await.map_err(|e| e.to_string())
        };
        match purge.await {
            Ok(_) => purged = target,
            // The server may be restarting. What is not purged now is purged later.
            Err(reason) => tracing::debug!(reason, "the store was not trimmed"),
        }
    }
}
