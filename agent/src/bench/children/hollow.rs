//! A hollow child: all that a parent sees of a child, without a store and a nats-server behind it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hierarchy::{
    ByLane, Identity, Lane, Millis, Path,
    envelope::{Draft, Sender},
    link::{
        Child, ChildLimits, ChildMessage, ChildOutput, Event, LaneHello, PackLimits, Packer, Parcel,
        ParentMessage,
        batch::{Headers, MESSAGE_TYPE},
    },
    signing::{Binding, Signer, SvidKey, TrustBundle, Verifier},
    subject::{self, Speaker},
};
use rustls::{ClientConfig, SignatureScheme, crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::leaf::{self, Leaf, Message};
use crate::{
    clock,
    dev::identities::{IssuedSvid, TRUST_DOMAIN},
    link::{header, wire},
};

/// What all hollow children share.
pub(super) struct Shared {
    pub(super) parent: SocketAddr,
    pub(super) clock: Instant,
    /// Whether the leaf connections are to be up.
    pub(super) up: watch::Receiver<bool>,
    /// How many bulk batches of how many bytes each child is to have waiting.
    pub(super) bulk: watch::Receiver<(usize, usize)>,
    /// For each event its lane, when it was made, and how long it took until the parent's receipt was there: in
    /// milliseconds of the clock.
    pub(super) latencies: mpsc::UnboundedSender<(Lane, f32, f32)>,
    pub(super) open: AtomicU64,
    /// Batches that wait for the parent.
    pub(super) waiting: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) ended: AtomicBool,
}

/// One hollow child.
pub(super) struct Hollow {
    path: Path,
    parent: Identity,
    tls: Arc<ClientConfig>,
    signer: Signer,
    verifier: Verifier,
    machine: Child,
    lanes: ByLane<Store>,
    packers: ByLane<Packer>,
    was_open: bool,
    shared: Arc<Shared>,
}

/// The batches of one lane that wait for the parent, and when each was made.
#[derive(Default)]
struct Store {
    incarnation: u64,
    batches: VecDeque<(Parcel, f32)>,
    last: u64,
    offered: u64,
}

impl Hollow {
    pub(super) fn new(path: &Path, svid: &IssuedSvid, shared: Arc<Shared>) -> Result<Hollow, String> {
        let incarnation = clock::wall().0;
        let signer = signer(path, svid)?;
        let domain = signer.identity().trust_domain.clone();
        let mut trust = TrustBundle::default();
        for authority in certificates(&svid.bundle)? {
            trust.add(domain.clone(), &authority).map_err(|e| e.to_string())?;
        }
        let session = (Uuid::new_v4().as_u128() as u64) >> 12 | 1;
        Ok(Hollow {
            parent: domain.identity(path.parent().unwrap_or_default()),
            tls: leaf::tls(svid)?,
            verifier: Verifier::new(trust, 16),
            machine: Child::new(ChildLimits::default(), session, shared.clock.elapsed()),
            lanes: ByLane::new(|_| Store { incarnation, ..Store::default() }),
            packers: ByLane::new(|lane| {
                Packer::new(Speaker::of(path), lane, incarnation, PackLimits::default())
            }),
            was_open: false,
            path: path.clone(),
            signer,
            shared,
        })
    }

    /// Lives until the benchmark ends.
    pub(super) async fn run(mut self) -> Result<(), String> {
        let (mut up, mut bulk) = (self.shared.up.clone(), self.shared.bulk.clone());
        // Each at its own time of the second.
        let chance = Uuid::new_v4().as_u128() as u64;
        let mut timer = tokio::time::interval_at(
            tokio::time::Instant::now() + Duration::from_millis(chance % 1000),
            Duration::from_secs(1),
        );
        let mut leaf: Option<Leaf> = None;
        while !self.shared.ended.load(Ordering::Acquire) {
            let is_up = *up.borrow_and_update();
            if leaf.is_none() && is_up {
                let down = subject::link_down(&self.path);
                let connecting = Leaf::connect(self.shared.parent, self.tls.clone(), self.path.id(), &down);
                match tokio::time::timeout(Duration::from_secs(10), connecting).await {
                    Ok(Ok(connected)) => leaf = Some(connected),
                    // As nats-server does it.
                    _ => tokio::time::sleep(Duration::from_secs(1)).await,
                }
            }
            if !is_up {
                leaf = None;
            }
            if let Some(connected) = &mut leaf
                && self.speak(connected).await.is_err()
            {
                leaf = None;
            }
            let wake = self.machine.timeout().filter(|_| leaf.is_some());
            let wake = wake.map(|tick| tokio::time::Instant::from_std(self.shared.clock + tick));
            let is_down = leaf.is_none();
            let message = async {
                match &mut leaf {
                    Some(leaf) => leaf.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = message => match message {
                    Ok(message) => self.hear(&message),
                    Err(_) => leaf = None,
                },
                _ = timer.tick() => self.publish(Lane::Normal, 200),
                _ = up.changed() => {}
                _ = bulk.changed() => {
                    let (batches, bytes) = *bulk.borrow_and_update();
                    (0..batches).for_each(|_| self.publish(Lane::Bulk, bytes));
                }
                () = clock::sleep_until(wake) => {}
                () = tokio::time::sleep(Duration::from_secs(1)), if is_down && is_up => {}
            }
        }
        Ok(())
    }

    /// An event, and at once a batch of it.
    fn publish(&mut self, lane: Lane, bytes: usize) {
        let made = self.shared.clock.elapsed();
        let subject = Speaker::of(&self.path).with_tail("bench");
        let data = format!("\"{}\"", "x".repeat(bytes));
        let event =
            Event { ts: clock::wall().0, subject, headers: Headers::new(), data: data.into_bytes().into() };
        self.packers[lane].push(&event, made);
        if let Some(pack) = self.packers[lane].close() {
            let sealed = self.signer.seal(&Draft {
                message_id: Uuid::now_v7(),
                correlation_id: None,
                causation_id: None,
                timestamp: clock::wall(),
                message_type: MESSAGE_TYPE,
                subject: &pack.subject,
                reply_to: None,
                priority: lane,
                batch: Some(pack.head),
                payload: &pack.payload,
            });
            let store = &mut self.lanes[lane];
            store.last += 1;
            let (digest, kid) = (sealed.digest, self.signer.kid());
            let parcel = Parcel { after: store.last - 1, last: store.last, bytes: sealed.bytes, digest, kid };
            store.batches.push_back((parcel, made.as_secs_f32() * 1000.0));
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says all that there is to say.
    async fn speak(&mut self, leaf: &mut Leaf) -> std::io::Result<()> {
        let subject = subject::link_up(&self.path);
        loop {
            self.offer();
            let now = self.shared.clock.elapsed();
            let Some(output) = self.machine.poll(now) else { break };
            match output {
                ChildOutput::Greet { session } => {
                    let lanes = self.lanes_hello();
                    let hello = ChildMessage::Hello { session, lanes, version: crate::VERSION.to_owned() };
                    let headers = format!(
                        "NATS/1.0\r\n{}: {}\r\n\r\n",
                        header::BINDING,
                        self.signer.binding().to_json()
                    );
                    let bytes = wire::seal(&self.signer, &subject, &hello, &[], clock::wall());
                    leaf.publish(&subject, &headers, &bytes).await?;
                }
                ChildOutput::Send { session, lane, load, .. } => {
                    let (message, bodies) = load.message(session, lane, self.lanes[lane].last);
                    let bytes = wire::seal(&self.signer, &subject, &message, &bodies, clock::wall());
                    leaf.publish(&subject, "", &bytes).await?;
                }
                ChildOutput::Resume { lane, after, .. } => {
                    self.release(lane, after);
                    self.lanes[lane].offered = after;
                }
                ChildOutput::Release { lane, up_to, refused, .. } => {
                    self.shared.refused.fetch_add(refused.len() as u64, Ordering::Relaxed);
                    self.release(lane, up_to);
                }
                ChildOutput::Pause => {}
            }
        }
        self.count_open();
        Ok(())
    }

    fn lanes_hello(&self) -> ByLane<LaneHello> {
        self.lanes.map(|_, store| LaneHello { incarnation: store.incarnation, start: 0, last: store.last })
    }

    /// Hands the machine what it wants.
    fn offer(&mut self) {
        for (lane, store) in self.lanes.iter_mut() {
            for (parcel, _) in &store.batches {
                if !self.machine.wants_more(lane) {
                    break;
                }
                if parcel.last > store.offered {
                    store.offered = parcel.last;
                    self.machine.offer(lane, parcel.clone());
                }
            }
        }
    }

    fn release(&mut self, lane: Lane, up_to: u64) {
        let now = self.shared.clock.elapsed().as_secs_f32() * 1000.0;
        while let Some((_, made)) = self.lanes[lane].batches.pop_front_if(|(parcel, _)| parcel.last <= up_to)
        {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            let _ = self.shared.latencies.send((lane, made, now - made));
        }
    }

    fn hear(&mut self, message: &Message) {
        if let Some(binding) = binding(&message.headers) {
            let _ = self.verifier.learn(&binding);
        }
        let subject = subject::link_down(&self.path);
        let now = self.shared.clock.elapsed();
        let opened: Result<(ParentMessage, _), _> =
            wire::open(&self.verifier, &self.parent, &subject, &message.payload, clock::wall());
        match opened {
            Ok((said, _)) => self.machine.on_message(&said, now),
            Err(_) => self.machine.on_stranger(now),
        }
    }

    fn count_open(&mut self) {
        let is_open = self.machine.is_open();
        if is_open && !self.was_open {
            self.shared.open.fetch_add(1, Ordering::Relaxed);
        } else if !is_open && self.was_open {
            self.shared.open.fetch_sub(1, Ordering::Relaxed);
        }
        self.was_open = is_open;
    }
}

fn binding(headers: &[u8]) -> Option<Binding> {
    let text = std::str::from_utf8(headers).ok()?;
    let (_, rest) = text.split_once(&format!("{}: ", header::BINDING))?;
    Binding::from_json(rest.lines().next()?.as_bytes()).ok()
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| e.to_string())
}

fn signer(path: &Path, svid: &IssuedSvid) -> Result<Signer, String> {
    let chain = certificates(&svid.cert)?;
    let key = PrivateKeyDer::from_pem_slice(svid.key.as_bytes()).map_err(|e| e.to_string())?;
    let key = CertifiedKey::from_der(chain.clone(), key, &aws_lc_rs::default_provider())
        .map_err(|e| e.to_string())?;
    let domain: hierarchy::TrustDomain = TRUST_DOMAIN.parse().expect("the development domain is well formed");
    let sender = Sender {
        service_id: "lucent-bench".into(),
        instance_id: "hollow".into(),
        version: crate::VERSION.into(),
        node_id: path.to_string().into(),
    };
    let mut seed = [0; 32];
    aws_lc_rs::default_provider().secure_random.fill(&mut seed).map_err(|_| "no randomness".to_owned())?;
    let now = clock::wall().0;
    // The authority dates its certificates back by an hour.
    let validity = [Millis(now - 1_800_000), Millis(now + 3_600_000)];
    Signer::new(domain.identity(path.clone()), sender, &seed, &Key(key), &chain, validity)
        .map_err(|e| e.to_string())
}

struct Key(CertifiedKey);

impl SvidKey for Key {
    type Error = rustls::Error;

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let scheme = self.0.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        scheme.ok_or_else(|| rustls::Error::General("the key is not ECDSA P-256".into()))?.sign(message)
    }
}
