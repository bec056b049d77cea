//! The cursors can be relied on: they are checkpointed as they grow, and after a failed write read anew from
//! what the streams really hold.

use std::{collections::BTreeMap, future::Future, time::Duration};

use async_nats::jetstream;
use bytes::Bytes;
use hierarchy::{
    ByLane, Lane, Level, Path,
    link::Parent,
    subject::{self, Speaker},
};
use tokio_util::sync::CancellationToken;

use super::{ChildState, Downlink, DownlinkError, DownlinkParts, store::slot};
use crate::link::{
    cursors::{self, Checkpoint},
    fences,
};

/// What keeps another replica out.
pub(super) struct Guard {
    /// The place of the fence.
    pub(super) fence: u64,
    /// The revision of the last checkpoint.
    checkpoint: u64,
}

/// What the streams hold, with nothing on its way into them any more. With others that may write, too, the
/// checkpoint is kept again before it is relied on: from then on they cannot keep an older one.
pub(super) async fn take_stock(
    parts: &DownlinkParts,
    fence_off: bool,
) -> Result<(Checkpoint, Option<Guard>), DownlinkError> {
    let (js, level) = (&parts.js, parts.path.level());
    if !parts.shared {
        if fence_off {
            fence(js, level).await?;
        }
        let (known, _) = cursors::recover(js, &parts.bucket, level, None).await?;
        return Ok((known, None));
    }
    let fence = fences::raise(js).await?;
    let (known, revision) = cursors::recover(js, &parts.bucket, level, Some(fence)).await?;
    let checkpoint = cursors::save(&parts.bucket, &known, Some(revision)).await?;
    Ok((known, Some(Guard { fence, checkpoint })))
}

impl Downlink {
    /// After a failed store: waits for the rest, makes sure nothing is on its way any more, and reads
    /// from the stream what is really there.
    pub(super) async fn heal(
        &mut self,
        child: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), DownlinkError> {
        let broken = |state: &ChildState| state.parent.is_broken() && state.storing == 0;
        if self.children.get(child).is_some_and(broken) { self.heal_all(cancel).await } else { Ok(()) }
    }

    pub(super) async fn heal_all(&mut self, cancel: &CancellationToken) -> Result<(), DownlinkError> {
        self.settle().await;
        let Some((known, guard)) = patiently(cancel, || take_stock(&self.parts, true)).await else {
            return Ok(());
        };
        self.counted = known.places;
        self.origins = known.origins.clone();
        self.sent = ByLane::default();
        if let Some(guard) = &guard {
            self.storing.reopen(guard.fence);
        }
        self.guard = guard;
        self.in_doubt = false;
        self.sound_again();
        for (path, state) in &mut self.children {
            let cursors = known.children.get(path).copied().unwrap_or_default();
            if self.parts.shared {
                // Another one may have taken batches of any child meanwhile.
                state.parent = Parent::new(&cursors);
            } else if state.parent.is_broken() {
                state.parent.on_recovered(&cursors);
            } else {
                continue;
            }
            tracing::info!(child = %path, "the store is sound again");
        }
        Ok(())
    }

    /// What is in the lanes now has been looked at.
    pub(super) fn sound_again(&self) {
        for (_, tail) in self.parts.tails.iter().flat_map(|tails| tails.iter()) {
            tail.healed();
        }
    }

    /// Waits for all that is on its way into the store.
    pub(super) async fn settle(&mut self) {
        while let Some(done) = self.storing.next().await {
            self.on_done(done);
        }
    }

    pub(super) async fn checkpoint(&mut self) {
        let children: BTreeMap<_, _> =
            self.children.iter().map(|(path, state)| (path.clone(), state.parent.cursors())).collect();
        let level = self.parts.path.level();
        let places = ByLane::new(|lane| self.counted[slot(level, lane)]);
        let checkpoint = Checkpoint { places, children, origins: self.origins.clone() };
        if checkpoint == self.kept || self.children.values().any(|state| state.parent.is_broken()) {
            return;
        }
        let after = self.guard.as_ref().map(|guard| guard.checkpoint);
        match cursors::save(&self.parts.bucket, &checkpoint, after).await {
            Ok(revision) => {
                if let Some(guard) = &mut self.guard {
                    guard.checkpoint = revision;
                }
                for (lane, place) in checkpoint.places.iter() {
                    self.parts.checkpointed.set(lane, *place);
                }
                self.kept = checkpoint;
            }
            Err(error) => {
                tracing::warn!(%error, "no checkpoint");
                // Kept or not, or another replica's is there: only looking tells.
                self.in_doubt = self.guard.is_some();
            }
        }
    }
}

/// Tries again until it is done; `None` where it was cancelled before.
pub(super) async fn patiently<T, F>(cancel: &CancellationToken, attempt: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, DownlinkError>>,
{
    let mut wait = Duration::from_millis(50);
    loop {
        if cancel.is_cancelled() {
            return None;
        }
        match attempt().await {
            Ok(done) => return Some(done),
            Err(error) => tracing::info!(%error, "the store cannot be looked into yet"),
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_secs(5)),
        }
    }
}

/// Behind the receipt of a fence in each stream, no earlier publish of this connection can still be stored.
async fn fence(js: &jetstream::Context, level: Level) -> Result<(), jetstream::context::PublishError> {
    let fences = match level {
        Level::Global => vec![Speaker::Global.with_tail(subject::FENCE)],
        _ => Lane::ALL.map(subject::lane_fence).into(),
    };
    for fence in fences {
        js.publish(fence, Bytes::from_static(b"{}")).await?.await?;
    }
    Ok(())
}
