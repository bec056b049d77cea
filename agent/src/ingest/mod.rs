//! What this level publishes becomes signed batches in the lanes, whether the link is up or not.
//!
//! ```text
//!   applications, agent --> HIERARCHY --> Inbox --+
//!                                                 +--> Packer --> one write at a time --> LANE_*
//!   applications --> lucent.publish.> ---> Door --+    (a lane)
//! ```
//! While a lane's write is under way everything that comes for it is packed into the next: so a store
//! that syncs each write is synced once for many events, and a publisher at the door is answered when
//! its event is as durable as the store makes it.

mod awaited;
pub mod door;
pub mod inbox;
mod lane;

use std::{sync::Arc, time::Duration};

use async_nats::{
    Client, Subscriber,
    jetstream::{self, kv},
};
use awaited::Awaited;
pub use awaited::Reached;
use futures_util::{FutureExt as _, StreamExt as _};
use hierarchy::{
    ByLane, Lane, Path, Refusal,
    envelope::MAX_EVENT_BYTES,
    link::{Event, PackLimits, Packer, Span},
    loss::{Loss, LossReason},
    signing::Signer,
    subject::{self, Speaker},
};
use lane::{Intake, LaneWriter, Written};
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use crate::{
    accounting::{LossNotes, Numbered},
    broker::store::StoreState,
    clock::{MeshTime, Monotonic},
    dead_letters::{DeadLetter, DeadLetters},
    ingest::{door::Asked, inbox::Inbox},
    lanes::{Fill, Guards, LaneRules, Tails, gate::Gate},
    metrics::{Metrics, Reason},
};

/// How often what was packed leaves the inbox.
const PURGE_EVERY: Duration = Duration::from_millis(500);
/// Messages taken in one go.
const AT_ONCE: usize = 256;

/// What the ingest needs.
pub struct IngestParts {
    /// Where this agent stands; below global.
    pub path: Path,
    /// Signs batches.
    pub signer: Arc<Signer>,
    /// What to date them with.
    pub time: MeshTime,
    /// The store.
    pub js: jetstream::Context,
    /// The link's bucket.
    pub bucket: kv::Store,
    /// The connection in account MESH.
    pub mesh: Client,
    /// What goes up.
    pub gate: Gate,
    /// Which lane it goes in.
    pub rules: LaneRules,
    /// When a batch is full.
    pub pack: PackLimits,
    /// Told what must stay in the lanes.
    pub guards: Arc<Guards>,
    /// The newest of the lanes.
    pub tails: Tails,
    /// Told how far events are numbered.
    pub numbered: Arc<Numbered>,
    /// For what the policy drops.
    pub notes: LossNotes,
    /// Which lanes are full.
    pub fill: Arc<Fill>,
    /// Whether the store takes anything.
    pub store: watch::Receiver<StoreState>,
    /// Told which batches have reached a level above.
    pub reached: mpsc::Receiver<Reached>,
    /// For what is refused.
    pub dead_letters: DeadLetters,
    /// What is counted.
    pub metrics: Metrics,
}

/// Why the ingest stopped.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The store does not answer.
    #[error("the store of this level cannot be {0}: {1}; is JetStream available?")]
    Store(&'static str, String),
    /// Subscribing failed.
    #[error("cannot listen to publishers: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    /// The connection ended.
    #[error("the connection to the own nats-server ended")]
    Closed,
}

/// The ingest.
pub struct Ingest {
    parts: IngestParts,
    speaker: Speaker,
    clock: Monotonic,
    inbox: Inbox,
    lanes: ByLane<LaneWriter>,
    incarnation: u64,
    awaited: Awaited,
}

impl Ingest {
    /// Packs until cancelled; then writes what it holds.
    pub async fn run(parts: IngestParts, cancel: CancellationToken) -> Result<(), IngestError> {
        let inbox = Inbox::open(&parts.js, &parts.guards).await?;
        let incarnation = inbox::next_incarnation(&parts.bucket, inbox.newest_incarnation()).await?;
        let speaker = Speaker::of(&parts.path);
        // Apart from others: a client hands out a bounded number of tickets for receipts.
        let js = jetstream::context::ContextBuilder::new()
            .timeout(Duration::from_secs(5))
            .build(parts.mesh.clone());
        let lanes = ByLane::new(|lane| {
            LaneWriter::new(
                lane,
                Packer::new(speaker.clone(), lane, incarnation, parts.pack),
                parts.signer.clone(),
                parts.time.clone(),
                js.clone(),
                parts.tails.clone(),
            )
        });
        let mut asked = door::listen(&parts.mesh).await?;
        tracing::debug!(incarnation, "events are numbered anew");
        parts.numbered.begin(incarnation);
        let mut ingest = Ingest {
            parts,
            speaker,
            clock: Monotonic::new(),
            inbox,
            lanes,
            incarnation,
            awaited: Awaited::default(),
        };
        let served = ingest.serve(&mut asked, &cancel).await;
        ingest.finish().await;
        served
    }

    async fn serve(&mut self, asked: &mut Subscriber, cancel: &CancellationToken) -> Result<(), IngestError> {
        let mut timer = tokio::time::interval(PURGE_EVERY);
        let mut look = tokio::time::interval(awaited::LOOK_EVERY);
        for timer in [&mut timer, &mut look] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let due = self.lanes.iter().filter_map(|(_, lane)| lane.due()).min();
            let wake = due.map(|tick| self.clock.instant(tick));
            let room = self.lanes.iter().all(|(_, lane)| lane.has_room());
            let ByLane { critical, normal, bulk } = &mut self.lanes;
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                done = critical.written() => self.on_written(Lane::Critical, done).await,
                done = normal.written() => self.on_written(Lane::Normal, done).await,
                done = bulk.written() => self.on_written(Lane::Bulk, done).await,
                message = self.inbox.next(), if room => {
                    self.on_stored(message);
                    self.take_more_of_inbox();
                }
                message = asked.next(), if room || self.parts.store.borrow().trouble.is_some() => {
                    self.on_asked(message.ok_or(IngestError::Closed)?);
                    self.take_more_of_door(asked);
                }
                () = crate::clock::sleep_until(wake) => {}
                Some(reached) = self.parts.reached.recv() => self.on_reached(reached).await,
                _ = timer.tick() => {
                    self.inbox.notice_server(self.parts.mesh.server_info().server_id);
                    self.purge().await;
                }
                _ = look.tick() => self.give_up_waiting(),
            }
            self.inbox.reopen_if_broken().await;
            let now = self.clock.now();
            for (_, lane) in self.lanes.iter_mut() {
                lane.close_due(now);
                lane.start_writing(&self.parts.guards);
            }
        }
    }

    fn take_more_of_inbox(&mut self) {
        for _ in 1..AT_ONCE {
            if !self.lanes.iter().all(|(_, lane)| lane.has_room()) {
                return;
            }
            match self.inbox.next().now_or_never() {
                Some(message) => self.on_stored(message),
                None => return,
            }
        }
    }

    fn take_more_of_door(&mut self, asked: &mut Subscriber) {
        for _ in 1..AT_ONCE {
            match asked.next().now_or_never() {
                Some(Some(message)) => self.on_asked(message),
                _ => return,
            }
        }
    }

    /// One message of the inbox.
    fn on_stored(&mut self, message: Option<inbox::Stored>) {
        let Some(inbox::Stored { place, published, message }) = message else { return };
        let own = self.speaker.tail_of(&message.subject).is_some();
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
        let event = Event {
            ts: published.0,
            subject: message.subject.to_string(),
            headers: door::carried_headers(message.headers.as_ref()),
            data: message.payload.clone(),
        };
        let lane = self.parts.rules.lane_of(&event.subject, message.headers.as_ref(), &event.data);
        if self.inbox.was_packed(lane, place, published) {
            return;
        }
        // What accounts for losses always has room: the keeper's bound lies below the store's.
        let accounts = self.speaker.tail_of(&event.subject) == Some(subject::LOSS);
        if lane == Lane::Critical && !accounts && self.parts.fill.is_full(lane) {
            return self.give_up(lane, event);
        }
        self.pack(lane, &event, Intake::Inbox { place, published });
    }

    /// One request at the door.
    fn on_asked(&mut self, message: async_nats::Message) {
        match door::read(&self.speaker, message) {
            Ok(Asked { event, headers, waiter }) => {
                let trouble = self.parts.store.borrow().trouble.clone();
                if let Some(trouble) = trouble {
                    return waiter.no_store(&self.parts.mesh, &trouble);
                }
                let lane = self.parts.rules.lane_of(&event.subject, headers.as_ref(), &event.data);
                match lane {
                    Lane::Critical if self.parts.fill.is_full(lane) => waiter.full(&self.parts.mesh, lane),
                    _ => self.pack(lane, &event, Intake::Door(waiter)),
                }
            }
            Err(refused) => {
                self.parts.dead_letters.bury(DeadLetter {
                    origin: self.parts.path.clone(),
                    reason: refused.reason,
                    detail: refused.detail.clone(),
                    subject: refused.subject.clone(),
                    bytes: refused.bytes.clone(),
                });
                refused.answer(&self.parts.mesh);
            }
        }
    }

    fn pack(&mut self, lane: Lane, event: &Event, intake: Intake) {
        let now = self.clock.now();
        if self.parts.gate.lets_up(&event.subject) {
            return self.lanes[lane].push(event, intake, now);
        }
        let number = self.lanes[lane].skip();
        if let Intake::Door(waiter) = intake {
            // Nothing of it will be durable, so there is nothing to wait for.
            waiter.dropped(&self.parts.mesh, lane, number);
        }
    }

    /// The inbox has told the publisher that it took the event, and now the lane cannot: all that is left is
    /// to say so.
    fn give_up(&mut self, lane: Lane, event: Event) {
        if let Some(span) = self.lanes[lane].give_up() {
            self.account_for(lane, span, LossReason::Overflow, 1);
        }
        self.parts.dead_letters.bury(DeadLetter {
            origin: self.parts.path.clone(),
            reason: Refusal::LaneFull,
            detail: format!("lane {lane} is full: the parent has not taken what waits in it"),
            subject: event.subject,
            bytes: event.data,
        });
    }

    async fn on_written(&mut self, lane: Lane, written: Written) {
        let Some(durable) = self.lanes[lane].on_written(written, self.clock.now()) else { return };
        self.parts.metrics.events_packed.inc_by(durable.events.into());
        self.parts.numbered.raise(lane, durable.last);
        let (own, now) = (self.parts.path.level(), self.clock.now());
        for (waiter, seq) in durable.waiters {
            match waiter.level {
                None => waiter.stored(&self.parts.mesh, own, lane, seq).await,
                Some(level) => {
                    if let Some(waiter) = self.awaited.wait(level, lane, seq, waiter, now) {
                        waiter.unknown(&self.parts.mesh, own, seq);
                    }
                }
            }
        }
    }

    async fn on_reached(&mut self, reached: Reached) {
        // What an earlier run numbered, nobody waits for any more.
        if reached.incarnation != self.incarnation {
            return;
        }
        for (waiter, level, seq) in self.awaited.reached(reached) {
            waiter.stored(&self.parts.mesh, level, reached.lane, seq).await;
        }
    }

    fn give_up_waiting(&mut self) {
        for (waiter, seq) in self.awaited.overdue(self.clock.now()) {
            waiter.unknown(&self.parts.mesh, self.parts.path.level(), seq);
        }
    }

    /// What is in the lanes may leave the inbox; and then the lanes' batches are not needed any more to
    /// tell what of the inbox was packed.
    async fn purge(&mut self) {
        self.account_for_skipped();
        let oldest = self.lanes.iter().filter_map(|(_, lane)| lane.oldest_of_inbox()).min();
        if let Some(purged) = self.inbox.purge(oldest).await {
            for (lane, writer) in self.lanes.iter_mut() {
                writer.inbox_purged(purged);
                self.parts.guards.set(lane, writer.guard());
            }
        }
    }

    /// Numbers that the policy dropped and that no batch answers for.
    fn account_for_skipped(&mut self) {
        for lane in Lane::ALL {
            if let Some(span) = self.lanes[lane].take_skipped() {
                self.account_for(lane, span, LossReason::Policy, 0);
            }
        }
    }

    fn account_for(&self, lane: Lane, span: Span, reason: LossReason, count: u64) {
        let Span { incarnation, first, last } = span;
        let origin = self.parts.path.clone();
        let loss = Loss { origin, lane, incarnation, reason, first, last, count };
        let label = Reason { reason: reason.as_str().into() };
        self.parts.metrics.losses.get_or_create(&label).inc_by(count);
        if let Err(error) = self.parts.notes.note(loss) {
            tracing::warn!(%error, "dropped events are not accounted for");
        }
        self.parts.numbered.raise(lane, last);
    }

    /// At the end what was taken at the door is still written and answered; the rest is in the inbox.
    async fn finish(&mut self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        for lane in Lane::ALL {
            self.lanes[lane].close();
            while !self.lanes[lane].is_idle() {
                self.lanes[lane].start_writing(&self.parts.guards);
                let Ok(written) = tokio::time::timeout_at(deadline, self.lanes[lane].written()).await else {
                    return;
                };
                self.on_written(lane, written).await;
            }
        }
        self.purge().await;
        for (waiter, seq) in self.awaited.all() {
            waiter.unknown(&self.parts.mesh, self.parts.path.level(), seq);
        }
    }
}

fn store_error<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> IngestError {
    move |error| IngestError::Store(doing, error.to_string())
}
