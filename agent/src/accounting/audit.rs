//! Global's ledger: a projection of its stream, with a checkpoint.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
    kv,
    stream::{RawMessageErrorKind, Stream},
};
use coordinator::{Ledger, ledger::Report};
use futures_util::StreamExt as _;
use hierarchy::{
    Lane, Path,
    envelope::Parsed,
    link::{Batch, Span},
    loss::LossReceipt,
    subject,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::heard::Heard;
use crate::{
    clock::Monotonic,
    link::{HIERARCHY, header},
    metrics::{LedgerLabel, Metrics},
};

/// The key of the checkpoint in the link's bucket.
const KEY: &str = "ledger";
/// How much later than the batches behind a hole its receipt may come.
const GRACE: Duration = Duration::from_secs(15);
/// How often holes age and the report is made.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the ledger is kept.
const KEEP_EVERY: u64 = 5;
/// How long a restart may take to read what came since the checkpoint before figures are shown all the same.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(10);
/// Rows of a report.
const ROWS: usize = 500;
/// How long a broken reader waits before it is made anew.
const RETRY: Duration = Duration::from_millis(500);

/// What the audit needs.
pub struct AuditParts {
    /// The store.
    pub js: jetstream::Context,
    /// The link's bucket.
    pub bucket: kv::Store,
    /// Told what became of everything.
    pub report: watch::Sender<Option<Report>>,
    /// What is counted.
    pub metrics: Metrics,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// The place in the stream: all up to here is in the ledger.
    place: u64,
    ledger: Ledger,
}

/// Reads until cancelled.
pub async fn run(parts: AuditParts, cancel: CancellationToken) -> Result<(), std::convert::Infallible> {
    let kept = match parts.bucket.get(KEY).await {
        Ok(text) => text.and_then(|text| serde_json::from_slice::<Kept>(&text).ok()).unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "the ledger cannot be read; it is made anew from the stream");
            Kept::default()
        }
    };
    let clock = Monotonic::new();
    let heard = Heard::default();
    let mut audit = Audit { saved: kept.place, kept, heard, parts, clock, looks: 0, alarmed: 0 };
    while !cancel.is_cancelled() {
        if let Err(reason) = audit.read(&cancel).await {
            tracing::debug!(reason, "the ledger's reader ended");
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    audit.keep().await;
    Ok(())
}

struct Audit {
    parts: AuditParts,
    kept: Kept,
    heard: Heard,
    saved: u64,
    clock: Monotonic,
    looks: u64,
    /// Unaccounted events that were cried out already.
    alarmed: u64,
}

impl Audit {
    async fn read(&mut self, cancel: &CancellationToken) -> Result<(), String> {
        let stream = self.parts.js.get_stream(HIERARCHY).await.map_err(|e| e.to_string())?;
        let last = stream.cached_info().state.last_sequence;
        if last < self.kept.place {
            tracing::warn!(counted = self.kept.place, stream_ends_at = last, "the store went back in time");
            self.kept.place = last;
        }
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.kept.place + 1 },
            headers_only: true,
            max_batch: 500,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
        let mut messages = consumer.messages().await.map_err(|e| e.to_string())?;
        let (mut behind, opened) = (true, tokio::time::Instant::now());
        let mut timer = tokio::time::interval(LOOK_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                message = messages.next() => {
                    let message = message.ok_or("the reader ended")?.map_err(|e| e.to_string())?;
                    self.count(&stream, &message).await?;
                }
                _ = timer.tick() => {
                    // After a restart the figures would jump back to the checkpoint. (The last places may be
                    // gone, so that nothing tells that they were reached.)
                    behind &= self.kept.place < last && opened.elapsed() < CATCH_UP_WITHIN;
                    if !behind {
                        self.look().await;
                    }
                }
            }
        }
    }

    async fn count(&mut self, stream: &Stream, message: &jetstream::Message) -> Result<(), String> {
        let place = message.info().map_err(|e| e.to_string())?.stream_sequence;
        if let Some((origin, lane, span, count)) = batch(message) {
            self.heard.hear(&origin, self.clock.now());
            if let Err(refused) = self.kept.ledger.arrived(&origin, lane, span, count) {
                tracing::debug!(%refused, "not in the ledger");
            }
            if message.subject.ends_with(subject::LOSS) {
                match stream.get_raw_message(place).await {
                    Ok(stored) => self.hear(&origin, &stored.payload),
                    // An orphan was removed meanwhile; it comes again.
                    Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => {}
                    // The place is read again, or what the receipt states would count as missing.
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        self.kept.place = place;
        Ok(())
    }

    /// The words of a hop. Whether they are its own was verified before they were stored.
    fn hear(&mut self, hop: &Path, bytes: &[u8]) {
        let Ok(envelope) = Parsed::parse(bytes) else { return };
        let Ok(batch) = Batch::read(&envelope) else { return };
        for event in &batch.events {
            match LossReceipt::parse(&event.bytes()) {
                Ok(receipt) => {
                    for loss in &receipt.losses {
                        tracing::debug!(%hop, origin = %loss.origin, lane = %loss.lane, span = %loss.span(),
                            reason = %loss.reason, "a loss");
                        if let Err(refused) = self.kept.ledger.lost(hop, loss) {
                            tracing::warn!(%refused, "a loss receipt is passed over");
                        }
                    }
                    if let Some(published) = &receipt.published
                        && let Err(refused) = self.kept.ledger.published(hop, published)
                    {
                        tracing::debug!(%refused, "not in the ledger");
                    }
                }
                Err(refused) => tracing::warn!(%hop, %refused, "a loss receipt is passed over"),
            }
        }
    }

    async fn look(&mut self) {
        let now = self.clock.now();
        self.kept.ledger.tick(now, GRACE, |origin| self.heard.all_on_the_way(origin, now));
        let report = self.kept.ledger.report(ROWS);
        let mut unaccounted = 0;
        for (lane, totals) in report.totals.iter() {
            unaccounted += totals.unaccounted;
            let states = [
                ("published", totals.published),
                ("arrived", totals.arrived),
                ("policy", totals.policy),
                ("lost", totals.lost_events()),
                ("in-flight", totals.in_flight),
                ("missing", totals.missing),
                ("unaccounted", totals.unaccounted),
            ];
            for (state, events) in states {
                let label = LedgerLabel { lane: lane.as_str(), state };
                self.parts.metrics.ledger.get_or_create(&label).set(events as i64);
            }
        }
        if unaccounted > self.alarmed {
            tracing::error!(
                unaccounted,
                "events are missing that nobody accounts for; see agent status --loss"
            );
        }
        self.alarmed = unaccounted;
        self.parts.report.send_replace(Some(report));
        self.looks += 1;
        if self.looks.is_multiple_of(KEEP_EVERY) {
            self.keep().await;
        }
    }

    async fn keep(&mut self) {
        if self.saved == self.kept.place {
            return;
        }
        let Ok(text) = serde_json::to_vec(&self.kept) else { return };
        match self.parts.bucket.put(KEY, text.into()).await {
            Ok(_) => self.saved = self.kept.place,
            Err(error) => {
                tracing::warn!(%error, "the ledger was not kept; a restart reads more of the stream")
            }
        }
    }
}

/// What this agent noted beside a stored batch.
fn batch(message: &jetstream::Message) -> Option<(Path, Lane, Span, u64)> {
    let headers = message.headers.as_ref()?;
    let text = |name| headers.get(name).map(|value| value.as_str());
    Some((
        text(header::ORIGIN)?.parse().ok()?,
        text(header::LANE)?.parse().ok()?,
        text(header::EVENTS)?.parse().ok()?,
        text(header::COUNT)?.parse().ok()?,
    ))
}
