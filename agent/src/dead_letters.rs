//! Where refused messages go: a bounded copy with the reason, for people to look at.

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use hierarchy::{Path, Refusal, subject};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// At most this much of a refused message is kept.
const KEPT_BYTES: usize = 64 * 1024;
/// Dead letters that wait to be stored; more are counted and dropped.
const QUEUE: usize = 256;
/// Dead letters stored in a second: what a hostile child can make this agent write.
const PER_SECOND: u32 = 100;

/// A refused message.
#[derive(Debug)]
pub struct DeadLetter {
    /// Who sent it, as far as known.
    pub origin: Path,
    /// Why it was refused.
    pub reason: Refusal,
    /// More about the reason, for people; may be empty.
    pub detail: String,
    /// The subject it came on.
    pub subject: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Takes dead letters from anywhere in the agent. Never blocks.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    queue: mpsc::Sender<DeadLetter>,
    metrics: Metrics,
}

/// Stores what [`DeadLetters`] takes.
pub struct DeadLetterWriter {
    queue: mpsc::Receiver<DeadLetter>,
    metrics: Metrics,
}

/// A taker and its writer.
pub fn dead_letters(metrics: &Metrics) -> (DeadLetters, DeadLetterWriter) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let taker = DeadLetters { queue: sender, metrics: metrics.clone() };
    (taker, DeadLetterWriter { queue: receiver, metrics: metrics.clone() })
}

impl DeadLetters {
    /// Counts the refusal and keeps a copy, unless too many are waiting already.
    pub fn bury(&self, letter: DeadLetter) {
        self.metrics.refuse(letter.reason);
        tracing::debug!(reason = %letter.reason, origin = %letter.origin, subject = letter.subject,
            detail = letter.detail, "refused");
        if self.queue.try_send(letter).is_err() {
            self.metrics.dead_letters_dropped.inc();
        }
    }
}

impl DeadLetterWriter {
    /// Stores dead letters until cancelled. While the store is away they wait; beyond the bound they
    /// are dropped and counted.
    pub async fn run(
        mut self,
        js: jetstream::Context,
        cancel: CancellationToken,
    ) -> Result<(), std::convert::Infallible> {
        let mut window = tokio::time::interval(std::time::Duration::from_secs(1));
        let mut left = PER_SECOND;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = window.tick() => left = PER_SECOND,
                Some(letter) = self.queue.recv() => match left.checked_sub(1) {
                    Some(rest) => {
                        left = rest;
                        self.store(&js, letter).await;
                    }
                    None => {
                        self.metrics.dead_letters_dropped.inc();
                    }
                },
            }
        }
    }

    async fn store(&self, js: &jetstream::Context, letter: DeadLetter) {
        let mut headers = HeaderMap::new();
        headers.insert("Lucent-Reason", letter.reason.name());
        headers.insert("Lucent-Origin", letter.origin.to_string());
        headers.insert("Lucent-Subject", printable(&letter.subject));
        headers.insert("Lucent-Bytes", letter.bytes.len().to_string());
        if !letter.detail.is_empty() {
            headers.insert("Lucent-Detail", printable(&letter.detail));
        }
        let kept = letter.bytes.slice(..letter.bytes.len().min(KEPT_BYTES));
        let stored = match js.publish_with_headers(subject::dead_letter(&letter.origin), headers, kept).await
        {
            Ok(ack) => ack.await.map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            self.metrics.dead_letters_dropped.inc();
            tracing::warn!(%error, reason = %letter.reason, "a dead letter could not be stored");
        }
    }
}

/// A header value may hold no line breaks, and should not be long.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}
