//! Reads at global what has arrived, as any application there can, and verifies it for itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    Client,
    jetstream::{
        self,
        consumer::{DeliverPolicy, pull},
    },
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hierarchy::{
    Lane, Path,
    envelope::Parsed,
    link::{Batch, batch::Headers},
    signing::{Binding, Timeliness, TrustBundle, Verifier},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::{
    Mesh,
    publisher::{Ledger, NUMBERED},
};

const HIERARCHY: &str = "HIERARCHY";
const BINDINGS_STREAM: &str = "KV_LUCENT_BINDINGS";
/// What waited for a week is still in time.
const STORED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// One event that has arrived at global in a verified batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Which life of the origin's store its number belongs to.
    pub incarnation: u64,
    /// Its lane.
    pub lane: Lane,
    /// Its number in the origin's store.
    pub seq: u64,
    /// The subject that it was published on.
    pub subject: String,
    /// The publisher's headers.
    pub headers: Headers,
    /// The publisher's bytes.
    pub data: Bytes,
}

/// What has arrived.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// By the author of the batch, in the order of global's stream.
    pub events: BTreeMap<Path, Vec<Arrived>>,
    /// Why batches did not verify.
    pub unverified: Vec<String>,
}

/// Reads until it is dropped.
pub struct Observer {
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

/// What is wrong with what has arrived from one publisher.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Acknowledged by the node's store and not arrived.
    pub lost: Vec<u64>,
    /// Places of the node's store that arrived more than once.
    pub doubled: Vec<(u64, u64)>,
    /// Places that arrived behind a later one of the same store.
    pub out_of_order: Vec<(u64, u64)>,
    /// Numbers that arrived more than once although they were published once.
    pub repeated: Vec<u64>,
    /// Numbers that arrived under another place than the store has told.
    pub displaced: Vec<u64>,
}

#[derive(Deserialize)]
struct Numbered {
    origin: Path,
    number: u64,
}

impl Arrived {
    fn numbered(&self) -> Numbered {
        serde_json::from_slice(&self.data).expect("numbered events are JSON")
    }
}

impl Observer {
    /// Reads global's stream from its beginning.
    pub async fn start(mesh: &Mesh) -> Observer {
        let client = mesh.client("global").await;
        let seen = Arc::<Mutex<Seen>>::default();
        let reader = Reader { client, verifier: verifier(mesh), seen: seen.clone(), place: 0 };
        let mut task = JoinSet::new();
        task.spawn(reader.run());
        Observer { seen, _task: task }
    }

    /// What has arrived so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many events have arrived from an origin so far, those of its agent included.
    pub fn count(&self, origin: &Path) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).events.get(origin).map_or(0, Vec::len)
    }

    /// Waits until everything in the ledgers has arrived, or patience ends; then nothing may be wrong with
    /// it, and every batch must have verified.
    pub async fn expect_all<'a>(
        &self,
        ledgers: impl IntoIterator<Item = (&'a Path, &'a Ledger)>,
        patience: Duration,
    ) {
        let ledgers: Vec<_> = ledgers.into_iter().collect();
        let deadline = tokio::time::Instant::now() + patience;
        let faults = |seen: &Seen| -> Vec<(Path, Faults)> {
            ledgers.iter().map(|(origin, ledger)| ((*origin).clone(), seen.faults(origin, ledger))).collect()
        };
        loop {
            let seen = self.seen();
            let found = faults(&seen);
            let lost: usize = found.iter().map(|(_, faults)| faults.lost.len()).sum();
            if lost > 0 && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            let wrong: Vec<_> = found.iter().filter(|(_, faults)| *faults != Faults::default()).collect();
            assert!(wrong.is_empty(), "after {patience:?} at most: {}", summary(&wrong));
            assert_eq!(seen.unverified, Vec::<String>::new(), "batches that do not verify");
            return;
        }
    }
}

/// Long lists are cut: a test that fails must still be readable.
fn summary(wrong: &[&(Path, Faults)]) -> String {
    let list =
        |numbers: Vec<String>| format!("{} [{}]", numbers.len(), numbers[..numbers.len().min(12)].join(", "));
    let plain = |numbers: &[u64]| list(numbers.iter().map(u64::to_string).collect());
    let places = |places: &[(u64, u64)]| list(places.iter().map(|place| format!("{place:?}")).collect());
    wrong.iter().fold(String::new(), |text, (origin, faults)| {
        format!(
            "{text}\n{origin}: lost {}, doubled {}, out of order {}, repeated {}, displaced {}",
            plain(&faults.lost),
            places(&faults.doubled),
            places(&faults.out_of_order),
            plain(&faults.repeated),
            plain(&faults.displaced)
        )
    })
}

impl Seen {
    /// The events of an author, telemetry and other words of the agents left out.
    pub fn of(&self, origin: &str) -> Vec<&Arrived> {
        let all = self.events.get(&crate::path(origin)).map(Vec::as_slice).unwrap_or_default();
        all.iter().filter(|event| !event.subject.contains(".agent.")).collect()
    }

    /// The numbers of a publisher's events, in the order in which they arrived.
    pub fn numbers(&self, origin: &str) -> Vec<u64> {
        let numbered = self.of(origin).into_iter().filter(|event| event.subject.ends_with(NUMBERED));
        numbered.map(|event| event.numbered().number).collect()
    }

    /// Holds what has arrived from a publisher against its ledger.
    pub fn faults(&self, origin: &Path, ledger: &Ledger) -> Faults {
        let mut faults = Faults::default();
        let events = self.events.get(origin).map(Vec::as_slice).unwrap_or_default();
        let mut places = BTreeSet::new();
        let mut newest = BTreeMap::new();
        for event in events {
            let place = (event.incarnation, event.seq);
            let newest = newest.entry(event.lane).or_insert((0, 0));
            if !places.insert((event.lane, place)) {
                faults.doubled.push(place);
            } else if place < *newest {
                faults.out_of_order.push(place);
            }
            *newest = place.max(*newest);
        }

        let mut arrived: BTreeMap<u64, usize> = BTreeMap::new();
        let mut furthest = 0;
        for event in events.iter().filter(|event| event.subject.ends_with(NUMBERED)) {
            let numbered = event.numbered();
            assert_eq!(numbered.origin, *origin, "an event of another origin: {event:?}");
            *arrived.entry(numbered.number).or_default() += 1;
            // In the order in which the node's own server took them.
            let place = ledger.acked.get(&numbered.number).copied().unwrap_or(furthest);
            if place < furthest && !ledger.again.contains(&numbered.number) {
                faults.displaced.push(numbered.number);
            }
            furthest = furthest.max(place);
        }
        for number in ledger.acked.keys() {
            match arrived.get(number) {
                None => faults.lost.push(*number),
                Some(2..) if !ledger.again.contains(number) => faults.repeated.push(*number),
                Some(_) => {}
            }
        }
        faults
    }
}

/// A verifier that trusts the mesh's authority and knows no keys yet.
pub fn verifier(mesh: &Mesh) -> Verifier {
    let authority = CertificateDer::from_pem_slice(mesh.plan.authority.bundle().as_bytes());
    let mut trust = TrustBundle::default();
    let domain = agent::dev::identities::TRUST_DOMAIN.parse().expect("the domain is well formed");
    trust.add(domain, &authority.expect("the bundle is a certificate")).expect("it can be trusted");
    Verifier::new(trust, 4096)
}

struct Reader {
    client: Client,
    verifier: Verifier,
    seen: Arc<Mutex<Seen>>,
    place: u64,
}

impl Reader {
    async fn run(mut self) {
        let js = jetstream::new(self.client.clone());
        loop {
            if let Some(mut messages) = open(&js, self.place).await {
                while let Some(Ok(message)) = messages.next().await {
                    let place = message.info().map_or(0, |info| info.stream_sequence);
                    if place > self.place {
                        self.place = place;
                        self.look(&js, &message.payload).await;
                    }
                }
            }
            // Global's server may have been killed, on purpose.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn look(&mut self, js: &jetstream::Context, bytes: &[u8]) {
        // Global's own events are single and not in batches.
        let Ok(parsed) = Parsed::parse(bytes) else { return };
        let kid = parsed.kid();
        if !self.verifier.knows(&kid)
            && let Some(binding) = binding(js, &kid.to_string()).await
        {
            let _ = self.verifier.learn(&binding);
        }
        let read = self
            .verifier
            .verify(bytes, agent::clock::wall(), Timeliness::Stored(STORED_FOR))
            .and_then(|verified| {
                let head = verified.envelope.batch().cloned().ok_or(hierarchy::Refusal::BadPayload)?;
                let batch = Batch::read(&verified.envelope)?;
                let lane = verified.envelope.priority();
                let arrived: Vec<Arrived> = batch
                    .events
                    .iter()
                    .map(|event| Arrived {
                        incarnation: head.incarnation,
                        lane,
                        seq: event.seq,
                        subject: head.subjects[usize::from(event.sub)].clone(),
                        headers: event.hdr.clone(),
                        data: event.bytes().into(),
                    })
                    .collect();
                Ok((verified.envelope.identity().path.clone(), arrived))
            });
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok((origin, arrived)) => seen.events.entry(origin).or_default().extend(arrived),
            Err(refusal) => seen.unverified.push(format!("place {}: {refusal}", self.place)),
        }
    }
}

async fn open(js: &jetstream::Context, after: u64) -> Option<pull::Ordered> {
    let stream = js.get_stream_no_info(HIERARCHY).await.ok()?;
    let config = pull::OrderedConfig {
        // An application may only make consumers whose names it tells in the request.
        name: Some(format!("observer-{}", uuid::Uuid::new_v4().simple())),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        ..Default::default()
    };
    stream.create_consumer(config).await.ok()?.messages().await.ok()
}

/// The binding of a key, as any application can read it.
pub async fn binding(js: &jetstream::Context, kid: &str) -> Option<Binding> {
    let stream = js.get_stream(BINDINGS_STREAM).await.ok()?;
    let entry = stream.get_last_raw_message_by_subject(&format!("$KV.LUCENT_BINDINGS.{kid}")).await.ok()?;
    Binding::from_json(&entry.payload).ok()
}
