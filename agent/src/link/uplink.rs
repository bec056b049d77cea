//! The child's shell: reads the store, packs and signs, sends, and lets go of what has arrived.

use std::{sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap, Message, Subscriber,
    jetstream::{
        self,
        consumer::{DeliverPolicy, pull},
        kv,
    },
};
use coordinator::policy::{Decision, DropReason, Policy};
use futures_util::{FutureExt as _, StreamExt as _};
use hierarchy::{
    Digest, Identity, Path, Refusal,
    envelope::{Draft, MAX_EVENT_BYTES},
    link::{
        Child, ChildLimits, ChildMessage, ChildOutput, Event, Pack, PackLimits, Packer, Parcel,
        ParentMessage, batch,
    },
    signing::{Binding, Signer, Verifier},
    subject::{self, Speaker},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{HIERARCHY, bindings::Bindings, header, wire};
use crate::{
    broker::streams,
    clock::{self, Monotonic},
    dead_letters::{DeadLetter, DeadLetters},
    metrics::{Metrics, Reason, Watermark},
};

/// How long a broken reader of the store waits before it is made anew.
const READER_RETRY: Duration = Duration::from_millis(200);
/// Messages read from the store in one go.
const AT_ONCE: usize = 64;
/// With so many frames under way the parent is busy.
const BUSY: usize = 2;
/// How much longer a batch may fill while the parent is busy.
const BUSY_LINGER: Duration = Duration::from_millis(20);
/// The key of [`Life`] in the link's bucket.
const LIFE: &str = "life";

/// What the shell needs.
pub struct UplinkParts {
    /// Where this agent stands; below global.
    pub path: Path,
    /// Signs batches and messages.
    pub signer: Arc<Signer>,
    /// Knows whom to trust.
    pub verifier: Verifier,
    /// Bindings of the authors below.
    pub bindings: Bindings,
    /// The store.
    pub js: jetstream::Context,
    /// The link's bucket.
    pub bucket: kv::Store,
    /// The connection in account UP.
    pub up: Client,
    /// What goes up.
    pub policy: Policy,
    /// When a batch is full.
    pub pack: PackLimits,
    /// How much is under way.
    pub limits: ChildLimits,
    /// Told the place up to which the store may be trimmed.
    pub released: Arc<Watermark>,
    /// Told what the link is doing.
    pub state: watch::Sender<UplinkState>,
    /// Told what the parent hands down.
    pub handoffs: mpsc::Sender<ParentMessage>,
    /// Messages to send.
    pub orders: mpsc::Receiver<ChildMessage>,
    /// For what is refused.
    pub dead_letters: DeadLetters,
    /// What is counted.
    pub metrics: Metrics,
}

/// What the link is doing, for `agent status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UplinkState {
    /// Whether the parent has accepted a session.
    pub open: bool,
    /// The place up to which the parent has everything.
    pub cursor: u64,
    /// Messages that wait.
    pub lag: u64,
    /// The parent's software version, once it has told it.
    pub parent_version: Option<String>,
    /// When the parent last answered, in milliseconds since 1970.
    pub last_answer: Option<u64>,
}

/// Why the shell stopped.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The store does not answer.
    #[error("the store of this level cannot be {0}: {1}; is JetStream available?")]
    Store(&'static str, String),
    /// Subscribing failed.
    #[error("cannot listen to the parent: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    /// The connection ended.
    #[error("the connection to the own nats-server ended")]
    Closed,
}

/// One life of the store: places of different lives are never compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Life {
    /// Its number; grows.
    incarnation: u64,
    /// The place after which it begins.
    start: u64,
    /// See [`streams::born`] of the stream that it is a life of.
    born: u64,
}

/// What reading the store brings.
type Stored = Option<Result<jetstream::Message, pull::OrderedError>>;

enum Source {
    /// The parent has not said where to begin.
    Idle,
    Reading(Box<pull::Ordered>),
    /// The reader broke; to be made anew at this tick.
    Broken(hierarchy::link::Tick),
}

/// The child's shell.
pub struct Uplink {
    parts: UplinkParts,
    parent: Identity,
    life: Life,
    clock: Monotonic,
    machine: Child,
    packer: Packer,
    source: Source,
    /// Last place read from the store.
    read: u64,
    /// Last place handed to the machine, or kept back by policy.
    offered: u64,
    /// Last place known to be in the store.
    end: u64,
}

impl Uplink {
    /// Sends what the store holds until cancelled.
    pub async fn run(parts: UplinkParts, cancel: CancellationToken) -> Result<(), UplinkError> {
        let life = current_life(&parts.js, &parts.bucket).await?;
        let mut inbox = parts.up.subscribe(subject::link_down(&parts.path)).await?;
        let clock = Monotonic::new();
        let parent = parts.path.parent().unwrap_or_default();
        let mut uplink = Uplink {
            parent: parts.signer.identity().trust_domain.identity(parent),
            machine: Child::new(parts.limits, fresh_session(), clock.now()),
            packer: Packer::new(Speaker::of(&parts.path), life.incarnation, parts.pack),
            source: Source::Idle,
            read: 0,
            offered: 0,
            end: 0,
            life,
            clock,
            parts,
        };
        uplink.serve(&mut inbox, &cancel).await
    }

    async fn serve(&mut self, inbox: &mut Subscriber, cancel: &CancellationToken) -> Result<(), UplinkError> {
        loop {
            while let Some(output) = self.machine.poll(self.clock.now()) {
                self.perform(output).await?;
            }
            self.let_go_of_kept_back();
            let wake = [self.machine.timeout(), self.pack_due(), self.source.retry_at()];
            let wake = wake.into_iter().flatten().min().map(|tick| self.clock.instant(tick));
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                message = inbox.next() => self.on_parent(message.ok_or(UplinkError::Closed)?).await,
                stored = self.source.next(), if self.machine.wants_more() => self.on_stored_run(stored),
                Some(order) = self.parts.orders.recv(), if self.machine.is_open() => {
                    self.send(&order, &[]).await;
                }
                () = sleep_until(wake) => {}
            }
            self.on_time().await;
        }
    }

    async fn on_time(&mut self) {
        let now = self.clock.now();
        if self.pack_due().is_some_and(|due| due <= now)
            && let Some(pack) = self.packer.close()
        {
            self.offer_pack(pack);
        }
        if self.source.retry_at().is_some_and(|at| at <= now) {
            self.read_after(self.read).await;
        }
    }

    /// When the open batch is to be closed though it is not full. While the parent is still busy with
    /// earlier frames nothing is gained by haste: the batch goes on to fill, so that under load each
    /// signature and each sync to disk covers more.
    fn pack_due(&self) -> Option<hierarchy::link::Tick> {
        let due = self.packer.due()?;
        if self.machine.under_way() < BUSY { Some(due) } else { Some(due + BUSY_LINGER) }
    }

    async fn perform(&mut self, output: ChildOutput) -> Result<(), UplinkError> {
        match output {
            ChildOutput::Greet { session } => {
                // While nothing is read, the end of the store is asked for: people want to see it grow.
                if let Ok(stream) = self.parts.js.get_stream(HIERARCHY).await {
                    self.end = self.end.max(stream.cached_info().state.last_sequence);
                    self.publish_state();
                }
                let Life { incarnation, start, .. } = self.life;
                let version = crate::VERSION.to_owned();
                self.send(&ChildMessage::Hello { session, incarnation, start, last: self.end, version }, &[])
                    .await;
            }
            ChildOutput::Send { session, parcels, announce } => {
                self.send_frame(session, parcels, announce).await
            }
            ChildOutput::Resume { after } => self.resume(after).await?,
            ChildOutput::Release { up_to, refused, .. } => {
                self.parts.released.raise(up_to);
                self.parts.metrics.batches_delivered.inc();
                for parcel in refused {
                    tracing::warn!(place = parcel.last, reason = %parcel.reason, "the parent refuses a batch");
                }
                self.publish_state();
            }
            ChildOutput::Pause => {
                tracing::warn!(parent = %self.parent.path, "the link to the parent is down; events wait here");
                self.source = Source::Idle;
                self.packer.clear();
                self.publish_state();
            }
        }
        Ok(())
    }

    async fn resume(&mut self, after: u64) -> Result<(), UplinkError> {
        let Ok(stream) = self.parts.js.get_stream(HIERARCHY).await else {
            tracing::warn!("the own store does not answer; greeting the parent again later");
            self.machine.on_stranger(self.clock.now());
            return Ok(());
        };
        let last = stream.cached_info().state.last_sequence;
        if after > last {
            // The parent has more than this store ever held: it was rolled back or restored. What is in
            // it has arrived before; what comes now must not be taken for what the parent has.
            self.life = Life {
                incarnation: clock::wall().0.max(self.life.incarnation + 1),
                start: last,
                born: self.life.born,
            };
            tracing::warn!(
                parent_has = after,
                store_ends_at = last,
                "the store went back in time; a new incarnation begins"
            );
            keep_life(&self.parts.bucket, &self.life).await?;
            self.packer = Packer::new(Speaker::of(&self.parts.path), self.life.incarnation, self.parts.pack);
            self.machine.on_stranger(self.clock.now());
            return Ok(());
        }
        tracing::info!(parent = %self.parent.path, after, "the link to the parent is up");
        self.end = self.end.max(last);
        self.parts.released.raise(after);
        self.packer.clear();
        (self.read, self.offered) = (after, after);
        self.publish_state();
        self.read_after(after).await;
        Ok(())
    }

    /// Begins to read the store behind a place. While the server is away this is tried again later.
    async fn read_after(&mut self, place: u64) {
        self.source = match open_reader(&self.parts.js, place).await {
            Ok(messages) => Source::Reading(Box::new(messages)),
            Err(reason) => {
                tracing::debug!(reason, "the store cannot be read yet");
                Source::Broken(self.clock.now() + READER_RETRY)
            }
        };
    }

    /// One message of the store, and those that are at hand behind it.
    fn on_stored_run(&mut self, first: Stored) {
        self.on_stored(first);
        for _ in 1..AT_ONCE {
            if !self.machine.wants_more() || self.machine.is_ready() {
                return;
            }
            match self.source.next().now_or_never() {
                Some(stored) => self.on_stored(stored),
                None => return,
            }
        }
    }

    fn on_stored(&mut self, stored: Stored) {
        let message = match stored {
            Some(Ok(message)) => message,
            other => {
                tracing::debug!(?other, "the reader of the store ended");
                self.source = Source::Broken(self.clock.now() + READER_RETRY);
                return;
            }
        };
        let Ok(info) = message.info() else { return };
        let (place, pending) = (info.stream_sequence, info.pending);
        let published = info.published.unix_timestamp_nanos() / 1_000_000;
        if place <= self.read {
            return;
        }
        let known = self.read.max(self.parts.released.get());
        if place > known + 1 {
            self.parts.metrics.events_overflowed.inc_by(place - known - 1);
        }
        self.read = place;
        self.end = self.end.max(place + pending);
        self.parts.metrics.uplink_lag.set((self.end - self.machine.cursor().min(self.end)) as i64);

        let speaker = Speaker::of(&self.parts.path);
        let own = speaker.tail_of(&message.subject).is_some();
        let relayed =
            message.headers.as_ref().filter(|headers| !own && headers.get(header::RECORD).is_some());
        if let Some(headers) = relayed {
            return self.relay(place, headers, &message);
        }
        let refusal = match () {
            () if !own => Some((Refusal::WrongSubject, "an application may speak only for its own agent")),
            () if message.payload.len() > MAX_EVENT_BYTES => Some((Refusal::Oversized, "larger than 1 MiB")),
            () => None,
        };
        if let Some((reason, detail)) = refusal {
            self.parts.dead_letters.bury(DeadLetter {
                origin: self.parts.path.clone(),
                reason,
                detail: detail.into(),
                subject: message.subject.to_string(),
                bytes: message.payload.clone(),
            });
            return;
        }
        if !self.goes_up(&message.subject) {
            return;
        }
        let event = Event {
            seq: place,
            ts: published as u64,
            subject: message.subject.to_string(),
            headers: carried_headers(message.headers.as_ref()),
            data: message.payload.clone(),
        };
        for pack in self.packer.push(&event, self.clock.now()) {
            self.offer_pack(pack);
        }
    }

    /// A batch of an agent below goes on as it is.
    fn relay(&mut self, place: u64, headers: &HeaderMap, message: &Message) {
        if let Some(pack) = self.packer.close() {
            self.offer_pack(pack);
        }
        if !self.goes_up(&message.subject) {
            return;
        }
        let digest = |name| headers.get(name).and_then(|value| value.as_str().parse::<Digest>().ok());
        let (Some(digest), Some(kid)) = (digest(header::DIGEST), digest(header::KID)) else { return };
        self.offer(Parcel { after: self.offered, last: place, bytes: message.payload.clone(), digest, kid });
    }

    fn goes_up(&mut self, subject: &str) -> bool {
        // What tasks wait for is not a matter of policy, and a fence concerns this store alone.
        let tail = subject.splitn(5, '.').nth(4).unwrap_or_default();
        match tail {
            subject::TASK_RESULT => return true,
            subject::FENCE => return false,
            _ => {}
        }
        let action = match self.parts.policy.decide(subject) {
            Decision::Forward => return true,
            Decision::Aggregate => "aggregated",
            Decision::Drop(DropReason::Dropped) => "dropped",
            Decision::Drop(DropReason::SampledOut) => "sampled-out",
        };
        self.parts.metrics.policy_kept.get_or_create(&Reason { reason: action.into() }).inc();
        false
    }

    fn offer_pack(&mut self, pack: Pack) {
        self.parts.metrics.events_packed.inc_by(pack.head.count.into());
        let last = pack.head.last;
        let sealed = self.parts.signer.seal(&Draft {
            message_id: Uuid::now_v7(),
            correlation_id: None,
            causation_id: None,
            timestamp: clock::wall(),
            message_type: batch::MESSAGE_TYPE,
            subject: &pack.subject,
            reply_to: None,
            priority: pack.priority,
            batch: Some(pack.head),
            payload: &pack.payload,
        });
        let kid = self.parts.signer.kid();
        self.offer(Parcel { after: self.offered, last, bytes: sealed.bytes, digest: sealed.digest, kid });
    }

    fn offer(&mut self, parcel: Parcel) {
        self.offered = parcel.last;
        self.machine.offer(parcel);
    }

    /// What a policy keeps back is done with once everything before it has arrived.
    fn let_go_of_kept_back(&mut self) {
        if self.machine.is_idle() && self.packer.due().is_none() && self.read > self.parts.released.get() {
            self.parts.released.raise(self.read);
        }
    }

    async fn on_parent(&mut self, message: Message) {
        let now = self.clock.now();
        if let Some(binding) = message.headers.as_ref().and_then(|headers| headers.get(header::BINDING)) {
            let learned = Binding::from_json(binding.as_str().as_bytes())
                .and_then(|binding| self.parts.verifier.learn(&binding));
            if let Err(refusal) = learned {
                tracing::warn!(%refusal, parent = %self.parent.path, "the parent's identity is refused");
                self.parts.metrics.refuse(refusal);
                return;
            }
        }
        let subject = message.subject.as_str();
        match wire::open(&self.parts.verifier, &self.parent, subject, &message.payload, clock::wall()) {
            Ok((said @ ParentMessage::Handoff { .. }, _)) => {
                // Full means that the parent will hand it down again.
                let _ = self.parts.handoffs.try_send(said);
            }
            Ok((said, _)) => {
                self.machine.on_message(&said, now);
                self.note_answer(&said);
            }
            Err(Refusal::UnknownKid) => self.machine.on_stranger(now),
            Err(refusal) => {
                tracing::warn!(%refusal, parent = %self.parent.path, "a message of the parent is refused");
                self.parts.metrics.refuse(refusal);
            }
        }
    }

    async fn send_frame(&mut self, session: u64, parcels: Vec<Parcel>, announce: Vec<Digest>) {
        let mut bindings = Vec::with_capacity(announce.len());
        for kid in announce {
            if kid == self.parts.signer.kid() {
                continue;
            }
            match self.parts.bindings.get(kid).await {
                Ok(Some(binding)) => bindings.push(binding),
                Ok(None) => {
                    tracing::warn!(%kid, "the binding of a stored batch is gone; the parent will refuse it")
                }
                Err(error) => tracing::warn!(%error, "a binding could not be read"),
            }
        }
        let mut frame = ChildOutput::frame(session, &parcels, self.end);
        if let ChildMessage::Frame { bindings: list, .. } = &mut frame {
            *list = bindings;
        }
        self.send(&frame, &parcels).await;
    }

    async fn send(&mut self, message: &ChildMessage, parcels: &[Parcel]) {
        let subject = subject::link_up(&self.parts.path);
        let bytes = wire::seal(&self.parts.signer, &subject, message, parcels, clock::wall());
        self.parts.metrics.frames_sent.inc();
        self.parts.metrics.frame_bytes_sent.inc_by(bytes.len() as u64);
        let sent = if matches!(message, ChildMessage::Hello { .. }) {
            let mut headers = HeaderMap::new();
            headers.insert(header::BINDING, self.parts.signer.binding().to_json());
            self.parts.up.publish_with_headers(subject, headers, bytes).await
        } else {
            self.parts.up.publish(subject, bytes).await
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a frame was not sent; it will be repeated");
        }
    }

    fn note_answer(&mut self, said: &ParentMessage) {
        let version = match said {
            ParentMessage::Welcome { version, .. } => Some(version.clone()),
            _ => None,
        };
        let now = clock::wall().0;
        self.parts.state.send_modify(|state| {
            state.last_answer = Some(now);
            if version.is_some() {
                state.parent_version = version;
            }
        });
    }

    fn publish_state(&mut self) {
        let (open, cursor) = (self.machine.is_open(), self.machine.cursor());
        let lag = self.end.saturating_sub(cursor.max(self.parts.released.get()));
        self.parts.metrics.uplink_open.set(open.into());
        self.parts.metrics.uplink_lag.set(lag as i64);
        self.parts.state.send_modify(|state| (state.open, state.cursor, state.lag) = (open, cursor, lag));
    }
}

impl Source {
    async fn next(&mut self) -> Stored {
        match self {
            Source::Reading(messages) => messages.next().await,
            Source::Idle | Source::Broken(_) => std::future::pending().await,
        }
    }

    fn retry_at(&self) -> Option<hierarchy::link::Tick> {
        match self {
            Source::Broken(at) => Some(*at),
            Source::Idle | Source::Reading(_) => None,
        }
    }
}

async fn sleep_until(wake: Option<tokio::time::Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn open_reader(js: &jetstream::Context, after: u64) -> Result<pull::Ordered, String> {
    let stream = js.get_stream_no_info(HIERARCHY).await.map_err(|e| e.to_string())?;
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        max_batch: 1000,
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
    consumer.messages().await.map_err(|e| e.to_string())
}

/// Headers go up with the event, but for those that mean something to servers and agents.
fn carried_headers(headers: Option<&HeaderMap>) -> batch::Headers {
    let reserved = |name: &str| name.starts_with("Nats-") || name.starts_with("Lucent-");
    headers
        .into_iter()
        .flat_map(HeaderMap::iter)
        .map(|(name, values)| (name.to_string(), values.iter().map(|value| value.to_string()).collect()))
        .filter(|(name, _): &(String, Vec<String>)| !reserved(name))
        .collect()
}

/// Session numbers must stay exact in readers that keep numbers as doubles.
fn fresh_session() -> u64 {
    let random = Uuid::new_v4().as_u128() as u64;
    (random >> 12) | 1
}

fn store_error<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> UplinkError {
    move |error| UplinkError::Store(doing, error.to_string())
}

/// The store's life as it was noted, or a new one where the stream is not the one that was noted.
async fn current_life(js: &jetstream::Context, bucket: &kv::Store) -> Result<Life, UplinkError> {
    let stream = js.get_stream(HIERARCHY).await.map_err(store_error("read"))?;
    let born = streams::born(stream.cached_info());
    let noted = bucket.get(LIFE).await.map_err(store_error("read"))?;
    let noted: Option<Life> = noted.and_then(|text| serde_json::from_slice(&text).ok());
    match noted {
        Some(life) if life.born == born => Ok(life),
        _ => {
            let life = Life { incarnation: born, start: 0, born };
            keep_life(bucket, &life).await?;
            Ok(life)
        }
    }
}

async fn keep_life(bucket: &kv::Store, life: &Life) -> Result<(), UplinkError> {
    let text = serde_json::to_vec(life).map_err(store_error("written"))?;
    bucket.put(LIFE, text.into()).await.map_err(store_error("written"))?;
    Ok(())
}
