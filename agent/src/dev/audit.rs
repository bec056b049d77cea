//! Holds what arrives at global against what was published: by number from each origin, not by totals.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
    kv,
};
use futures_util::StreamExt as _;
use hierarchy::{
    Path,
    link::Batch,
    signing::{Binding, Timeliness, TrustBundle, Verifier},
};
use nats_config::streams::BINDINGS_BUCKET;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    fleet::{Fleet, FleetError},
    identities::TRUST_DOMAIN,
    traffic::{Sent, TICKS},
};
use crate::{
    clock,
    link::{HIERARCHY, downlink::STORED_FOR},
    supervise::Tasks,
};

/// Latencies kept; more are sampled by replacing in turn.
const LATENCIES: usize = 200_000;

/// What was seen at global.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// By origin.
    pub origins: BTreeMap<Path, Numbers>,
    /// Events in batches whose signature this audit has verified for itself.
    pub verified: u64,
    /// Batches that did not verify.
    pub unverified: u64,
    /// From publishing to the audit's reading, in milliseconds.
    latencies: Vec<f32>,
    measured: usize,
}

/// The numbers seen from one origin.
#[derive(Debug, Clone, Default)]
pub struct Numbers {
    /// Every number up to here was seen, in order.
    pub in_order: u64,
    /// Numbers that came again.
    pub doubled: u64,
    /// Numbers that came before one below them.
    pub ahead: std::collections::BTreeSet<u64>,
    /// How many came.
    pub count: u64,
    /// How many came in front of their predecessor.
    pub out_of_order: u64,
}

/// An example event, as `traffic` writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tick {
    origin: Path,
    number: u64,
    sent_at: u64,
}

/// The audit while it runs.
pub struct Audit {
    seen: Arc<Mutex<Seen>>,
    tasks: Tasks,
}

impl Numbers {
    fn note(&mut self, number: u64) {
        self.count += 1;
        if number <= self.in_order || self.ahead.contains(&number) {
            self.doubled += 1;
        } else if number == self.in_order + 1 {
            self.in_order = number;
            while self.ahead.remove(&(self.in_order + 1)) {
                self.in_order += 1;
            }
        } else {
            self.out_of_order += 1;
            self.ahead.insert(number);
        }
    }

    /// How many of the first `published` numbers have not come.
    pub fn missing(&self, published: u64) -> u64 {
        let ahead = self.ahead.iter().filter(|number| **number <= published).count() as u64;
        published.saturating_sub(self.in_order.min(published) + ahead)
    }
}

impl Audit {
    /// Starts to read global's stream from its beginning.
    pub async fn start(fleet: &Fleet) -> Result<Audit, FleetError> {
        let failed = |reason: String| FleetError::Nats { path: Path::global(), reason };
        let js = jetstream::new(fleet.connect_as_agent(&Path::global()).await?);
        let bindings = js.get_key_value(BINDINGS_BUCKET).await.map_err(|error| failed(error.to_string()))?;
        let bundle = CertificateDer::from_pem_slice(fleet.plan.authority.bundle().as_bytes())
            .map_err(|error| failed(error.to_string()))?;
        let mut trust = TrustBundle::default();
        let domain = TRUST_DOMAIN.parse().map_err(|_| failed("the trust domain".into()))?;
        trust.add(domain, &bundle).map_err(|error| failed(error.to_string()))?;

        let seen = Arc::<Mutex<Seen>>::default();
        let mut tasks = Tasks::new(CancellationToken::new());
        let reader =
            Reader { js, bindings, verifier: Verifier::new(trust, 4096), seen: seen.clone(), place: 0 };
        tasks.spawn("audit", reader.run(tasks.token()));
        Ok(Audit { seen, tasks })
    }

    /// What was seen so far.
    pub fn so_far(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until everything that was sent was seen, or patience ends.
    pub async fn settle(self, sent: &Sent, patience: Duration) -> Seen {
        let deadline = tokio::time::Instant::now() + patience;
        let missing = |seen: &Seen| -> u64 {
            sent.events.iter().map(|(node, published)| seen.missing(node, *published)).sum()
        };
        while missing(&self.so_far()) > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let seen = self.so_far();
        self.tasks.stop(Duration::from_secs(1)).await;
        seen
    }
}

impl Seen {
    /// How many of the first `published` numbers of `origin` have not come.
    pub fn missing(&self, origin: &Path, published: u64) -> u64 {
        self.origins.get(origin).map_or(published, |numbers| numbers.missing(published))
    }

    /// The latency that `q` of all events stay within, in milliseconds.
    pub fn latency(&self, q: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_by(f32::total_cmp);
        match sorted.len() {
            0 => 0.0,
            n => f64::from(sorted[((n as f64 * q) as usize).min(n - 1)]),
        }
    }

    fn measure(&mut self, millis: f32) {
        if self.latencies.len() < LATENCIES {
            self.latencies.push(millis);
        } else {
            self.latencies[self.measured % LATENCIES] = millis;
        }
        self.measured += 1;
    }
}

struct Reader {
    js: jetstream::Context,
    bindings: kv::Store,
    verifier: Verifier,
    seen: Arc<Mutex<Seen>>,
    place: u64,
}

impl Reader {
    async fn run(mut self, cancel: CancellationToken) -> Result<(), String> {
        while !cancel.is_cancelled() {
            let reading = async {
                let stream = self.js.get_stream_no_info(HIERARCHY).await.map_err(|e| e.to_string())?;
                let config = pull::OrderedConfig {
                    deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.place + 1 },
                    ..Default::default()
                };
                let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
                consumer.messages().await.map_err(|e| e.to_string())
            };
            let opened: Result<pull::Ordered, String> = reading.await;
            if let Ok(mut messages) = opened {
                loop {
                    let message = tokio::select! {
                        () = cancel.cancelled() => return Ok(()),
                        message = messages.next() => message,
                    };
                    let Some(Ok(message)) = message else { break };
                    if let Ok(info) = message.info() {
                        self.place = info.stream_sequence;
                    }
                    self.look(&message.payload).await;
                }
            }
            // The server was killed, perhaps on purpose.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    async fn look(&mut self, bytes: &[u8]) {
        // Global's own events are single, not in batches.
        let Ok(parsed) = hierarchy::envelope::Parsed::parse(bytes) else { return };
        let kid = parsed.kid();
        if !self.verifier.knows(&kid)
            && let Ok(Some(text)) = self.bindings.get(kid.to_string()).await
            && let Ok(binding) = Binding::from_json(&text)
        {
            let _ = self.verifier.learn(&binding);
        }
        let now = clock::wall();
        let verified = self.verifier.verify(bytes, now, Timeliness::Stored(STORED_FOR));
        let batch = verified.as_ref().ok().and_then(|verified| Batch::read(&verified.envelope).ok());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (Ok(verified), Some(batch)) = (&verified, batch) else {
            seen.unverified += 1;
            return;
        };
        seen.verified += batch.events.len() as u64;
        let author = &verified.envelope.identity().path;
        let subjects = verified.envelope.batch().map(|head| head.subjects.as_slice()).unwrap_or_default();
        for event in &batch.events {
            let on_ticks = subjects.get(usize::from(event.sub)).is_some_and(|s| s.ends_with(TICKS));
            let Some(tick) = on_ticks.then(|| serde_json::from_slice::<Tick>(&event.bytes()).ok()).flatten()
            else {
                continue;
            };
            if tick.origin == *author {
                seen.origins.entry(tick.origin).or_default().note(tick.number);
                seen.measure(now.0.saturating_sub(tick.sent_at) as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tell_what_is_missing_doubled_and_out_of_order() {
        let mut numbers = Numbers::default();
        for number in [1, 2, 4, 4, 2, 6] {
            numbers.note(number);
        }
        assert_eq!((numbers.in_order, numbers.doubled, numbers.out_of_order), (2, 2, 2));
        assert_eq!(numbers.missing(6), 2);
        numbers.note(3);
        numbers.note(5);
        assert_eq!((numbers.in_order, numbers.missing(6)), (6, 0));
        assert_eq!(numbers.missing(8), 2);
    }
}
