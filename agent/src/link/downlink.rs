//! The parent's shell: verifies what children send, stores it durably, answers.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    Client, HeaderMap, Message, Subscriber,
    jetstream::{self, kv, message::PublishMessage},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hierarchy::{
    ByLane, Digest, Lane, Level, Path, Refusal,
    link::{
        Batch, ChildMessage, Origins, Parcel, ParcelHead, Parent, ParentMessage, ParentOutput, Record, Span,
        Verdict,
        batch::check_speaker,
        message::{Offer, cut},
    },
    loss::{Loss, LossReceipt},
    signing::{Binding, Signer, Timeliness, Verified, Verifier},
    subject::{self, Speaker},
};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    bindings::Bindings,
    contents::Contents,
    cursors::{self, Checkpoint},
    header, wire,
    words::Words,
};
use crate::{
    accounting::LossNotes,
    clock,
    dead_letters::{DeadLetter, DeadLetters},
    lanes::{Fill, Guards, Tails, kept_at, stream_of, tail::Stored},
    metrics::{ChildLabel, Metrics, Reason},
};

/// Batches may have waited this long below a cut link.
pub const STORED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of each lane that a child may have under way.
const CREDIT: ByLane<u64> = ByLane { critical: 4 << 20, normal: 4 << 20, bulk: 4 << 20 };
/// With so many batches on their way into the store nothing more is taken of a lane.
const BUSY: ByLane<usize> =
    ByLane { critical: MAX_STORING, normal: MAX_STORING / 4 * 3, bulk: MAX_STORING / 2 };
/// Most children of one parent.
const MAX_CHILDREN: usize = 10_000;
/// Batches on their way into the store, of all children.
const MAX_STORING: usize = 2_000;
/// How often the cursors are checkpointed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// What the coordinator wants to know of its children.
#[derive(Debug)]
pub enum FromChild {
    /// The child greeted.
    Hello {
        /// Who.
        child: Path,
        /// Its software version.
        version: String,
    },
    /// The child sent something sound.
    Seen {
        /// Who.
        child: Path,
        /// Its software version, where it has told it since this agent was started.
        version: Option<String>,
        /// Batches that wait in its store.
        lag: Option<(Lane, u64)>,
    },
    /// What a child says of itself, or of those below it.
    Report {
        /// See [`hierarchy::subject::TELEMETRY`] and [`hierarchy::subject::ROLLUP`].
        subject: String,
        /// Which life of the child's store.
        incarnation: u64,
        /// The event's sequence number in it.
        seq: u64,
        /// Its data.
        data: Vec<u8>,
    },
}

/// What children say about work.
#[derive(Debug)]
pub enum WorkFromChild {
    /// The child offers to take work.
    Credit {
        /// Who.
        child: Path,
        /// The offer's number.
        number: u64,
        /// Room by kind.
        offers: Vec<Offer>,
        /// How long it holds.
        valid_for: Duration,
    },
    /// The child's answer to a hand-off.
    HandoffReply {
        /// Who.
        child: Path,
        /// The task.
        task: String,
        /// Which try of it.
        attempt: u32,
        /// Why it was not taken.
        refused: Option<String>,
    },
}

/// A message to a child outside the flow of batches.
#[derive(Debug)]
pub struct ToChild {
    /// To whom.
    pub child: Path,
    /// What.
    pub message: ParentMessage,
}

/// What the shell needs.
pub struct DownlinkParts {
    /// Where this agent stands.
    pub path: Path,
    /// Signs answers.
    pub signer: Arc<Signer>,
    /// Knows whom to trust.
    pub verifier: Verifier,
    /// Keeps authors' bindings.
    pub bindings: Bindings,
    /// The store.
    pub js: jetstream::Context,
    /// The link's bucket.
    pub bucket: kv::Store,
    /// The connection in account DOWN.
    pub down: Client,
    /// Told who is there and how they are.
    pub reports: mpsc::Sender<FromChild>,
    /// Told what they say about work.
    pub work: mpsc::Sender<WorkFromChild>,
    /// Messages to send.
    pub orders: mpsc::Receiver<ToChild>,
    /// Told what the last checkpoint has counted in, and so what may leave the lanes.
    pub checkpointed: Arc<Guards>,
    /// The newest of the lanes; `None` at global, where nothing is sent on.
    pub tails: Option<Tails>,
    /// How full the lanes are; `None` at global.
    pub fill: Option<Arc<Fill>>,
    /// For what is lost with a child's store.
    pub notes: Option<LossNotes>,
    /// For what is refused.
    pub dead_letters: DeadLetters,
    /// What is counted.
    pub metrics: Metrics,
}

/// The shell stops only when its store is lost for good.
#[derive(Debug, thiserror::Error)]
pub enum DownlinkError {
    /// Subscribing failed.
    #[error("cannot listen to children: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    /// The cursors could not be read.
    #[error(transparent)]
    Cursors(#[from] cursors::CursorError),
    /// The connection ended.
    #[error("the connection to the own nats-server ended")]
    Closed,
}

struct ChildState {
    parent: Parent,
    /// How far the child says it has numbered.
    words: Words,
    version: Option<String>,
    storing: usize,
    stored: prometheus_client::metrics::counter::Counter,
    events: prometheus_client::metrics::counter::Counter,
}

/// A batch that was given to the store.
struct Sent {
    ticket: u64,
    lane: Lane,
    subject: String,
    bytes: Bytes,
    digest: Digest,
    kid: Digest,
    origin: Path,
    span: Span,
    count: u64,
    /// The place it got, once the store has told; 0 where it failed.
    place: Option<u64>,
}

impl Sent {
    fn stored(self, place: u64) -> Stored {
        let Sent { subject, bytes, digest, kid, origin, span, count, .. } = self;
        let parcel = Parcel { after: 0, last: place, bytes, digest, kid };
        let contents = Contents { origin: Some(origin), span, count };
        Stored { place, below: Some(subject), parcel, contents }
    }
}

/// What became of a batch that was given to the store.
struct Done {
    child: Path,
    lane: Lane,
    last: u64,
    events: u32,
    ticket: u64,
    stored: Result<u64, String>,
}

/// The parent's shell.
pub struct Downlink {
    parts: DownlinkParts,
    children: HashMap<Path, ChildState>,
    storing: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Publishes to each stream in the order in which they were sent.
    sent: ByLane<VecDeque<Sent>>,
    next_ticket: u64,
    /// Everything in each stream up to here is counted in the children's cursors.
    counted: ByLane<u64>,
    /// What has arrived of each origin.
    origins: Origins,
    kept: Checkpoint,
}

impl Downlink {
    /// Recovers the cursors, then serves until cancelled.
    pub async fn run(parts: DownlinkParts, cancel: CancellationToken) -> Result<(), DownlinkError> {
        let kept = cursors::recover(&parts.js, &parts.bucket, parts.path.level()).await?;
        let mut inbox = parts.down.subscribe(subject::LINK_UP_ALL).await?;
        let mut downlink = Downlink {
            counted: kept.places,
            origins: kept.origins.clone(),
            children: HashMap::new(),
            storing: FuturesUnordered::new(),
            sent: ByLane::default(),
            next_ticket: 0,
            kept,
            parts,
        };
        for (child, cursors) in downlink.kept.children.clone() {
            let state = downlink.new_child(&child, Parent::new(&cursors, &CREDIT));
            downlink.children.insert(child, state);
        }
        downlink.sound_again();
        let served = downlink.serve(&mut inbox, &cancel).await;
        downlink.settle().await;
        downlink.checkpoint().await;
        served
    }

    async fn serve(
        &mut self,
        inbox: &mut Subscriber,
        cancel: &CancellationToken,
    ) -> Result<(), DownlinkError> {
        let mut timer = tokio::time::interval(CHECKPOINT_EVERY);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut touched = Vec::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                message = inbox.next() => {
                    let message = message.ok_or(DownlinkError::Closed)?;
                    touched.extend(self.on_message(message).await);
                }
                Some(done) = self.storing.next(), if !self.storing.is_empty() => touched.push(self.on_done(done)),
                Some(order) = self.parts.orders.recv() => self.send(&order.child, &order.message, None).await,
                _ = timer.tick() => self.checkpoint().await,
            }
            // One receipt covers all that is durable by now.
            while let Some(Some(done)) = self.storing.next().now_or_never() {
                touched.push(self.on_done(done));
            }
            for child in touched.drain(..) {
                self.heal(&child, cancel).await?;
                self.reply(&child).await;
            }
        }
    }

    /// Handles one message; the child it came from.
    async fn on_message(&mut self, message: Message) -> Option<Path> {
        let subject = message.subject.as_str();
        let Some(child) = subject::link_up_child(&self.parts.path, subject) else {
            self.refuse(&self.parts.path.clone(), Refusal::WrongSubject, "not a direct child", &message);
            return None;
        };
        if !self.children.contains_key(&child) {
            if self.children.len() >= MAX_CHILDREN {
                self.refuse(&child, Refusal::NotPermitted, "too many children", &message);
                return None;
            }
            let state = self.new_child(&child, Parent::new(&ByLane::default(), &CREDIT));
            self.children.insert(child.clone(), state);
        }
        if let Err(refusal) = self.learn_peer(&child, &message).await {
            tracing::warn!(%child, %refusal, "a child's identity is refused");
            self.refuse(&child, refusal, "key binding", &message);
            return None;
        }
        let peer = self.parts.signer.identity().trust_domain.identity(child.clone());
        match wire::open::<ChildMessage>(
            &self.parts.verifier,
            &peer,
            subject,
            &message.payload,
            clock::wall(),
        ) {
            Ok((said, rest)) => self.on_child(&child, said, rest, &message).await,
            Err(Refusal::UnknownKid) => {
                // This agent was restarted, or has forgotten the key: let the child greet and show it.
                self.send(&child, &ParentMessage::Reset { session: 0 }, None).await;
            }
            Err(refusal) => self.refuse(&child, refusal, "link message", &message),
        }
        Some(child)
    }

    async fn on_child(&mut self, child: &Path, said: ChildMessage, rest: Bytes, message: &Message) {
        match said {
            ChildMessage::Hello { session, lanes, version } => {
                tracing::info!(%child, version, "child greets");
                if let Some(state) = self.children.get_mut(child) {
                    state.parent.on_hello(session, lanes);
                    state.version = Some(version.clone());
                }
                self.report(FromChild::Hello { child: child.clone(), version });
            }
            ChildMessage::Frame { session, lane, bindings, parcels, last } => {
                let Some(bodies) = cut(&parcels, rest) else {
                    return self.refuse(child, Refusal::Malformed, "frame lengths", message);
                };
                if let Err(refusal) = self.learn_authors(&bindings).await {
                    self.refuse(child, refusal, "author's key binding", message);
                }
                self.on_frame(child, session, lane, &parcels, &bodies).await;
                let end = parcels.last().map_or(0, |parcel| parcel.last);
                self.seen(child, Some((lane, last.saturating_sub(end))));
            }
            ChildMessage::Credit { number, offers, valid_for_ms } => {
                let valid_for = Duration::from_millis(valid_for_ms.min(60_000));
                self.seen(child, None);
                let child = child.clone();
                let _ = self.parts.work.try_send(WorkFromChild::Credit { child, number, offers, valid_for });
            }
            ChildMessage::HandoffReply { task, attempt, refused } => {
                let child = child.clone();
                // A reply that finds the queue full is asked for again.
                let _ =
                    self.parts.work.try_send(WorkFromChild::HandoffReply { child, task, attempt, refused });
            }
        }
    }

    async fn on_frame(
        &mut self,
        child: &Path,
        session: u64,
        lane: Lane,
        parcels: &[ParcelHead],
        bodies: &[Bytes],
    ) {
        let mut judged = Vec::with_capacity(parcels.len());
        for (head, bytes) in parcels.iter().zip(bodies) {
            match self.judge(child, lane, head, bytes) {
                Err(Refusal::UnknownKid) => {
                    return self.send(child, &ParentMessage::Reset { session }, None).await;
                }
                verdict => judged.push(verdict),
            }
        }
        let verdicts: Vec<Verdict> = judged
            .iter()
            .map(|judged| match judged {
                Ok(judged) => Verdict::Sound {
                    origin: judged.verified.envelope.identity().path.clone(),
                    span: judged.span,
                },
                Err(refusal) => Verdict::Refused(*refusal),
            })
            .collect();
        let credit = self.credit(lane);
        let Some(state) = self.children.get_mut(child) else { return };
        state.parent.set_credit(lane, credit);
        let before = state.parent.repeated();
        let outputs = state.parent.on_frame(session, lane, parcels, &verdicts, &mut self.origins);
        let repeated = state.parent.repeated() - before;
        if repeated > 0 {
            let label = ChildLabel { child: child.to_string() };
            self.parts.metrics.batches_repeated.get_or_create(&label).inc_by(repeated);
        }
        for output in outputs {
            match output {
                ParentOutput::Store { index, record } => {
                    if let Ok(batch) = &judged[index] {
                        self.store(child, lane, batch, &bodies[index], record).await;
                    }
                }
                ParentOutput::Bury { index, reason } => self.parts.dead_letters.bury(DeadLetter {
                    origin: child.clone(),
                    reason,
                    detail: format!("batch {} of {child}", parcels[index].last),
                    subject: subject::link_up(child),
                    bytes: bodies[index].clone(),
                }),
                ParentOutput::Gap { index, span } => {
                    if let Ok(judged) = &judged[index] {
                        let origin = &judged.verified.envelope.identity().path;
                        tracing::debug!(%child, %origin, %lane, %span, "not among what arrives");
                    }
                }
                ParentOutput::Reset { session } => {
                    self.send(child, &ParentMessage::Reset { session }, None).await;
                }
            }
        }
    }

    /// A parent under pressure slows bulk before normal before critical; and what waits here for the level
    /// above had better wait below.
    fn credit(&self, lane: Lane) -> u64 {
        let full = self.parts.fill.as_ref().is_some_and(|fill| fill.holds_back(lane));
        if full || self.storing.len() >= BUSY[lane] { 0 } else { CREDIT[lane] }
    }

    /// Everything that must hold before a batch may be stored.
    fn judge<'a>(
        &self,
        child: &Path,
        lane: Lane,
        head: &ParcelHead,
        bytes: &'a Bytes,
    ) -> Result<Judged<'a>, Refusal> {
        let verified = self.parts.verifier.verify(bytes, clock::wall(), Timeliness::Stored(STORED_FOR))?;
        let author = verified.envelope.identity();
        if verified.digest != head.digest {
            return Err(Refusal::BadSignature);
        }
        if author.trust_domain != self.parts.signer.identity().trust_domain || !child.contains(&author.path) {
            return Err(Refusal::IdentityMismatch);
        }
        check_speaker(&author.path, &verified.envelope)?;
        let span = verified.envelope.batch().and_then(Span::of).ok_or(Refusal::BadPayload)?;
        if verified.envelope.priority() != lane {
            return Err(Refusal::BadPayload);
        }
        // The author's direct parent looks into the events; the levels above need not do it again.
        let events = if author.path == *child { Some(Batch::read(&verified.envelope)?) } else { None };
        Ok(Judged { verified, span, events })
    }

    async fn store(&mut self, child: &Path, lane: Lane, batch: &Judged<'_>, bytes: &Bytes, record: Record) {
        let Verified { envelope, digest } = &batch.verified;
        let author = &envelope.identity().path;
        let mut headers = HeaderMap::new();
        headers.insert(header::CHILD, child.to_string());
        headers.insert(header::RECORD, record.to_string());
        headers.insert(header::ORIGIN, author.to_string());
        headers.insert(header::DIGEST, digest.to_string());
        headers.insert(header::KID, envelope.kid().to_string());
        headers.insert(header::LANE, lane.as_str());
        headers.insert(header::EVENTS, batch.span.to_string());
        headers.insert(header::COUNT, envelope.batch().map_or(0, |head| head.count).to_string());
        let level = self.parts.path.level();
        let publish = PublishMessage::build()
            .payload(bytes.clone())
            .headers(headers)
            .expected_stream(stream_of(level, lane));
        let Some(subject) = kept_at(level, lane, envelope.subject()) else { return };
        self.notice(child, batch);

        // The client hands out a bounded number of tickets and takes them back only when receipts are
        // awaited: without this, a crowd of children would wait for itself.
        while self.storing.len() >= MAX_STORING
            && let Some(done) = self.storing.next().await
        {
            self.on_done(done);
        }
        let events = envelope.batch().map_or(0, |head| head.count);
        let (child, last, ticket) = (child.clone(), record.last, self.next_ticket);
        self.next_ticket += 1;
        let sent = Sent {
            ticket,
            lane,
            subject: envelope.subject().to_owned(),
            bytes: bytes.clone(),
            digest: *digest,
            kid: envelope.kid(),
            origin: author.clone(),
            span: batch.span,
            count: events.into(),
            place: None,
        };
        let slot = slot(level, lane);
        if self.sent[slot].is_empty()
            && let Some(tails) = &self.parts.tails
        {
            tails[lane].set_sound(self.counted[slot]);
        }
        self.sent[slot].push_back(sent);
        if let Some(state) = self.children.get_mut(&child) {
            state.storing += 1;
        }
        let sent = self.parts.js.send_publish(subject, publish).await;
        self.storing.push(Box::pin(async move {
            let stored = match sent {
                Ok(ack) => ack.await.map(|ack| ack.sequence).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            Done { child, lane, last, events, ticket, stored }
        }));
    }

    /// Passes on what a direct child says on the agents' own subjects.
    fn notice(&mut self, child: &Path, batch: &Judged<'_>) {
        let (Some(events), Some(head)) = (&batch.events, batch.verified.envelope.batch()) else { return };
        let speaker = Speaker::of(child);
        for event in &events.events {
            let Some(subject) = head.subjects.get(usize::from(event.sub)) else { continue };
            match speaker.tail_of(subject) {
                Some(subject::TELEMETRY | subject::ROLLUP) => {
                    let (incarnation, seq) = (head.incarnation, event.seq);
                    let (subject, data) = (subject.clone(), event.bytes());
                    self.report(FromChild::Report { subject, incarnation, seq, data });
                }
                Some(subject::LOSS) => {
                    let published = LossReceipt::parse(&event.bytes()).ok().and_then(|told| told.published);
                    if let (Some(published), Some(state)) = (published, self.children.get_mut(child)) {
                        state.words.heard(published);
                    }
                }
                _ => {}
            }
        }
    }

    fn on_done(&mut self, done: Done) -> Path {
        let Done { child, lane, last, events, ticket, stored } = done;
        if let Some(state) = self.children.get_mut(&child) {
            state.storing -= 1;
            match &stored {
                Ok(_) => {
                    state.parent.on_stored(lane, last);
                    state.stored.inc();
                    state.events.inc_by(events.into());
                }
                Err(reason) => {
                    tracing::warn!(%child, %lane, last, reason, "a batch could not be stored; it will come again");
                    state.parent.on_store_failed(lane, last);
                }
            }
        }
        let slot = slot(self.parts.path.level(), lane);
        let mut lost = Vec::new();
        let sent = &mut self.sent[slot];
        if let Some(entry) = sent.iter_mut().find(|sent| sent.ticket == ticket) {
            entry.place = Some(stored.unwrap_or(0));
        }
        // Behind one that failed nothing counts until the lane is healed.
        while let Some(sent) = sent.pop_front_if(|sent| sent.place.is_some_and(|place| place > 0)) {
            let place = sent.place.unwrap_or_default();
            self.counted[slot] = self.counted[slot].max(place);
            self.origins.settled(&sent.origin, sent.lane, sent.span);
            if sent.span.first == 1 && sent.origin == child {
                let before = self.origins.before(&sent.origin, sent.lane, sent.span.incarnation);
                let state = self.children.get(&child);
                lost.extend(state.and_then(|state| state.words.lost_with_store(&child, sent.lane, before?)));
            }
            if let Some(tails) = &self.parts.tails {
                tails[lane].push(sent.stored(place));
            }
        }
        if let Some(tails) = &self.parts.tails {
            tails[lane].set_sound(if sent.is_empty() { u64::MAX } else { self.counted[slot] });
        }
        for loss in lost {
            self.lose(loss);
        }
        child
    }

    fn lose(&self, loss: Loss) {
        tracing::warn!(origin = %loss.origin, lane = %loss.lane, span = %loss.span(), reason = %loss.reason,
            "events are lost; a loss receipt says which");
        let label = Reason { reason: loss.reason.as_str().into() };
        self.parts.metrics.losses.get_or_create(&label).inc_by(loss.count);
        let noted = self.parts.notes.as_ref().map(|notes| notes.note(loss));
        if let Some(Err(error)) = noted {
            tracing::warn!(%error, "lost events are not accounted for");
        }
    }

    /// After a failed store: waits for the rest, makes sure nothing is on its way any more, and reads
    /// from the stream what is really there.
    async fn heal(&mut self, child: &Path, cancel: &CancellationToken) -> Result<(), DownlinkError> {
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
    fn sound_again(&self) {
        for (_, tail) in self.parts.tails.iter().flat_map(|tails| tails.iter()) {
            tail.healed();
        }
    }

    /// Waits for all that is on its way into the store.
    async fn settle(&mut self) {
        while let Some(done) = self.storing.next().await {
            self.on_done(done);
        }
    }

    async fn reply(&mut self, child: &Path) {
        let Some(state) = self.children.get_mut(child) else { return };
        for reply in state.parent.take_replies(clock::wall(), crate::VERSION) {
            let welcome = matches!(reply, ParentMessage::Welcome { .. });
            let binding = welcome.then(|| self.parts.signer.binding().clone());
            self.send(child, &reply, binding).await;
        }
    }

    async fn send(&mut self, child: &Path, message: &ParentMessage, binding: Option<Binding>) {
        let subject = subject::link_down(child);
        let bytes = wire::seal(&self.parts.signer, &subject, message, &[], clock::wall());
        let sent = match binding {
            Some(binding) => {
                let mut headers = HeaderMap::new();
                headers.insert(header::BINDING, binding.to_json());
                self.parts.down.publish_with_headers(subject, headers, bytes).await
            }
            None => self.parts.down.publish(subject, bytes).await,
        };
        if let Err(error) = sent {
            tracing::debug!(%child, %error, "an answer was not sent; the child will ask again");
        }
    }

    /// A greeting brings the child's own binding.
    async fn learn_peer(&mut self, child: &Path, message: &Message) -> Result<(), Refusal> {
        let Some(text) = message.headers.as_ref().and_then(|headers| headers.get(header::BINDING)) else {
            return Ok(());
        };
        let binding = Binding::from_json(text.as_str().as_bytes())?;
        self.learn_authors(std::slice::from_ref(&binding)).await?;
        tracing::debug!(%child, "binding learned");
        Ok(())
    }

    async fn learn_authors(&mut self, bindings: &[Binding]) -> Result<(), Refusal> {
        for binding in bindings {
            let kid = self.parts.verifier.learn(binding)?;
            if let Err(error) = self.parts.bindings.keep(kid, binding).await {
                tracing::warn!(%error, "a key binding was not kept");
                return Err(Refusal::UnknownKid);
            }
        }
        Ok(())
    }

    async fn checkpoint(&mut self) {
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

    fn new_child(&self, child: &Path, parent: Parent) -> ChildState {
        let label = ChildLabel { child: child.to_string() };
        ChildState {
            parent,
            words: Words::default(),
            version: None,
            storing: 0,
            stored: self.parts.metrics.batches_stored.get_or_create_owned(&label),
            events: self.parts.metrics.events_stored.get_or_create_owned(&label),
        }
    }

    fn refuse(&self, origin: &Path, reason: Refusal, detail: &str, message: &Message) {
        self.parts.dead_letters.bury(DeadLetter {
            origin: origin.clone(),
            reason,
            detail: detail.to_owned(),
            subject: message.subject.to_string(),
            bytes: message.payload.clone(),
        });
    }

    fn seen(&self, child: &Path, lag: Option<(Lane, u64)>) {
        let version = self.children.get(child).and_then(|state| state.version.clone());
        self.report(FromChild::Seen { child: child.clone(), version, lag });
    }

    /// Reports are soft state: telemetry, presence, credit. One that finds the queue full is replaced
    /// by its successor.
    fn report(&self, report: FromChild) {
        let _ = self.parts.reports.try_send(report);
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

/// Which of the streams a lane's batches go into, told by the lane it stands for: at global all lanes share
/// one.
fn slot(level: Level, lane: Lane) -> Lane {
    match level {
        Level::Global => Lane::default(),
        _ => lane,
    }
}

/// A batch that may be stored.
struct Judged<'a> {
    verified: Verified<'a>,
    span: Span,
    events: Option<Batch<'a>>,
}

/// The hand-off of a task, as a message to `child`.
pub fn handoff(child: Path, task: String, attempt: u32, spec: Box<RawValue>) -> ToChild {
    ToChild { child, message: ParentMessage::Handoff { task, attempt, spec } }
}
