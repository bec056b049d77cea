//! Publishes loss receipts, and how far this agent has numbered its events.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream;
use hierarchy::{
    ByLane, Lane, Path,
    loss::{LossReceipt, Published},
    subject::{self, Speaker},
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::LossNotes;

/// How long a loss waits for company.
const EVERY: Duration = Duration::from_millis(500);
/// How often an agent says how far it has numbered, if that has changed.
const SAY_EVERY: u32 = 4;
/// Wait before a receipt that was not taken is tried again; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// The highest number that is durable in each lane, as the ingest tells.
#[derive(Debug)]
pub struct Numbered {
    incarnation: AtomicU64,
    lanes: ByLane<AtomicU64>,
}

impl Default for Numbered {
    fn default() -> Numbered {
        Numbered { incarnation: AtomicU64::new(0), lanes: ByLane::new(|_| AtomicU64::new(0)) }
    }
}

impl Numbered {
    /// A new incarnation begins.
    pub fn begin(&self, incarnation: u64) {
        self.incarnation.store(incarnation, Ordering::Release);
    }

    /// Everything up to this number is durable.
    pub fn raise(&self, lane: Lane, number: u64) {
        self.lanes[lane].fetch_max(number, Ordering::AcqRel);
    }

    fn published(&self) -> Option<Published> {
        let incarnation = self.incarnation.load(Ordering::Acquire);
        let lanes = self.lanes.map(|_, last| last.load(Ordering::Acquire));
        (incarnation > 0).then_some(Published { incarnation, lanes })
    }
}

/// Tells until cancelled.
pub async fn run(
    path: Path,
    js: jetstream::Context,
    notes: LossNotes,
    numbered: Arc<Numbered>,
    cancel: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let subject = Speaker::of(&path).with_tail(subject::LOSS);
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut said, mut turn) = (None, 0);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = timer.tick() => turn += 1,
        }
        let taken = notes.take();
        for receipt in &taken.receipts {
            if !publish(&js, &subject, receipt, &cancel).await {
                return Ok(());
            }
        }
        notes.tell(taken.notes);
        let published = numbered.published();
        if turn % SAY_EVERY == 0 && beyond_these_words(published, said) {
            let receipt = LossReceipt { losses: Vec::new(), published };
            if !publish(&js, &subject, &receipt, &cancel).await {
                return Ok(());
            }
            said = published;
        }
    }
}

/// Whether there is more to say than that the last of these words was numbered itself.
fn beyond_these_words(now: Option<Published>, said: Option<Published>) -> bool {
    match (now, said) {
        (Some(now), Some(said)) if now.incarnation == said.incarnation => {
            let others = |published: &Published| (published.lanes.normal, published.lanes.bulk);
            others(&now) != others(&said) || now.lanes.critical > said.lanes.critical + 1
        }
        (now, _) => now.is_some(),
    }
}

/// Until the own store has it; false where the agent stops before.
async fn publish(
    js: &jetstream::Context,
    subject: &str,
    receipt: &LossReceipt,
    cancel: &CancellationToken,
) -> bool {
    let Ok(body) = serde_json::to_vec(receipt) else { return true };
    let mut wait = RETRY;
    loop {
        let stored = match js.publish(subject.to_owned(), body.clone().into()).await {
            Ok(ack) => ack.await.map(|_| ()),
            Err(error) => Err(error),
        };
        match stored {
            Ok(()) => return true,
            Err(error) => tracing::warn!(%error, "a loss receipt could not be stored; it is tried again"),
        }
        tokio::select! {
            () = cancel.cancelled() => return false,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(MAX_RETRY),
        }
    }
}
