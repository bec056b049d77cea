//! The cursors can be relied on: they are checkpointed as they grow, and after a failed write read anew from
//! what the streams really hold.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream;
use bytes::Bytes;
use futures_util::StreamExt as _;
use hierarchy::{
    ByLane, Lane, Level, Path,
    subject::{self, Speaker},
};
use tokio_util::sync::CancellationToken;

use super::{ChildState, Downlink, DownlinkError, store::slot};
use crate::link::cursors::{self, Checkpoint};

impl Downlink {
    /// After a failed store: waits for the rest, makes sure nothing is on its way any more, and reads
    /// from the stream what is really there.
    pub(super) async fn heal(
        &mut self,
        child: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), DownlinkError> {
        let broken = |state: &ChildState| state.parent.is_broken() && state.storing == 0;
        if !self.children.get(child).is_some_and(broken) {
            return Ok(());
        }
        self.settle().await;
        let mut wait = Duration::from_millis(100);
        let recovered = loop {
            if fence(&self.parts.js, self.parts.path.level()).await.is_ok()
                && let Ok(recovered) =
                    cursors::recover(&self.parts.js, &self.parts.bucket, self.parts.path.level()).await
            {
                break recovered;
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(Duration::from_secs(5)),
            }
        };
        self.counted = recovered.places;
        self.origins = recovered.origins;
        self.sent = ByLane::default();
        self.sound_again();
        for (path, state) in &mut self.children {
            if state.parent.is_broken() {
                let cursors = recovered.children.get(path).copied().unwrap_or_default();
                tracing::info!(child = %path, "the store is sound again");
                state.parent.on_recovered(&cursors);
            }
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
        match cursors::save(&self.parts.bucket, &checkpoint).await {
            Ok(()) => {
                for (lane, place) in checkpoint.places.iter() {
                    self.parts.checkpointed.set(lane, *place);
                }
                self.kept = checkpoint;
            }
            Err(error) => tracing::warn!(%error, "no checkpoint"),
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
