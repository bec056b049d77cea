//! The child's shell: reads the lanes, sends, and lets go of what has arrived.

mod conversation;
mod life;
mod reader;
mod recall;

use std::{collections::VecDeque, sync::Arc};

use async_nats::{
    Client, Subscriber,
    jetstream::{self, kv},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hierarchy::{
    ByLane, Digest, Identity, Lane, Path,
    link::{
        Child, ChildLimits, ChildMessage, ChildOutput, LaneHello, ParentClock, ParentMessage, Skew,
        message::RefusedParcel,
        resume::{self, Resume},
    },
    loss::LossReason,
    signing::{Signer, Verifier},
    subject,
};
use life::Lives;
use reader::LaneReader;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{bindings::Bindings, contents::Contents, downlink::ToChild};
use crate::{
    accounting::LossNotes,
    clock::{self, MeshTime, Monotonic},
    drill::Order,
    ingest::Reached,
    lanes::{Tails, gate::Gate, tail::Stored},
    metrics::{LaneLabel, Metrics, Reason, Watermark},
};

/// Messages read from a lane in one go.
const AT_ONCE: usize = 64;

/// What the shell needs.
pub struct UplinkParts {
    /// Where this agent stands; below global.
    pub path: Path,
    /// Signs messages.
    pub signer: Arc<Signer>,
    /// Told the parent's time.
    pub time: MeshTime,
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
    /// What of the levels below goes up.
    pub gate: Gate,
    /// How much is under way.
    pub limits: ChildLimits,
    /// Told the places up to which the lanes may be trimmed.
    pub released: Arc<ByLane<Watermark>>,
    /// Told what the link is doing.
    pub state: watch::Sender<UplinkState>,
    /// Told what the parent hands down.
    pub handoffs: mpsc::Sender<ParentMessage>,
    /// Told what the parent says in the flow of orders.
    pub from_above: mpsc::Sender<(ChildMessage, Bytes)>,
    /// For words about batches from below; `None` at a node.
    pub to_children: Option<mpsc::Sender<ToChild>>,
    /// Told which of this agent's own batches have reached a level above.
    pub reached: mpsc::Sender<Reached>,
    /// Told of drills that the parent hands down.
    pub drills: mpsc::Sender<Order>,
    /// Until when the link is cut on purpose.
    pub cut: watch::Receiver<Option<tokio::time::Instant>>,
    /// Messages to send.
    pub orders: mpsc::Receiver<ChildMessage>,
    /// The newest of the lanes.
    pub tails: Tails,
    /// For what goes no further.
    pub notes: LossNotes,
    /// What is counted.
    pub metrics: Metrics,
}

/// What the link is doing, for `agent status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UplinkState {
    /// Whether the parent has accepted a session.
    pub open: bool,
    /// How far each lane is.
    pub lanes: ByLane<LaneState>,
    /// The parent's software version, once it has told it.
    pub parent_version: Option<String>,
    /// When the parent last answered, in milliseconds since 1970.
    pub last_answer: Option<u64>,
    /// How far this machine's clock is ahead of the parent's, once it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Skew>,
}

/// How far one lane is.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LaneState {
    /// The place up to which the parent has everything.
    pub cursor: u64,
    /// Batches that wait.
    pub lag: u64,
}

impl UplinkState {
    /// Batches that wait, in all lanes.
    pub fn lag(&self) -> u64 {
        self.lanes.iter().map(|(_, lane)| lane.lag).sum()
    }

    /// Whether this machine's clock and the parent's are apart.
    pub fn is_apart(&self) -> bool {
        self.clock.is_some_and(|skew| skew.is_apart())
    }
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

/// The child's shell.
pub struct Uplink {
    parts: UplinkParts,
    parent: Identity,
    lives: Lives,
    clock: Monotonic,
    parent_clock: ParentClock,
    machine: Child,
    readers: ByLane<LaneReader>,
    /// Lanes in which what an earlier run kept back was looked for.
    recalled: ByLane<bool>,
    /// Last place of each lane handed to the machine.
    offered: ByLane<u64>,
    /// What was handed to the machine and is not acknowledged.
    under_way: ByLane<VecDeque<(u64, Contents)>>,
}

impl Uplink {
    /// Sends what the lanes hold until cancelled.
    pub async fn run(parts: UplinkParts, cancel: CancellationToken) -> Result<(), UplinkError> {
        let lives = Lives::open(&parts.js, parts.bucket.clone()).await?;
        let mut inbox = parts.up.subscribe(subject::link_down(&parts.path)).await?;
        let clock = parts.time.monotonic();
        let parent = parts.path.parent().unwrap_or_default();
        let mut uplink = Uplink {
            parent: parts.signer.identity().trust_domain.identity(parent),
            machine: Child::new(parts.limits, fresh_session(), clock.now()),
            readers: ByLane::new(|lane| LaneReader::new(lane, parts.js.clone(), parts.tails.clone())),
            recalled: ByLane::default(),
            offered: ByLane::default(),
            under_way: ByLane::default(),
            lives,
            clock,
            parent_clock: ParentClock::new(fresh_session()),
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
            self.ask_the_time().await;
            let now = self.clock.now();
            let retries = self.readers.iter().filter_map(|(_, reader)| reader.retry_at());
            let question = self.parent_clock.next().filter(|_| self.machine.is_open());
            let wake = retries.chain(self.machine.timeout()).chain(question).min();
            let wake = wake.map(|tick| self.clock.instant(tick));
            let wants = ByLane::new(|lane| self.machine.wants_more(lane));
            let ByLane { critical, normal, bulk } = &mut self.readers;
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                message = inbox.next() => self.on_parent(message.ok_or(UplinkError::Closed)?),
                stored = critical.next(now), if wants.critical => self.on_stored_run(Lane::Critical, stored),
                stored = normal.next(now), if wants.normal => self.on_stored_run(Lane::Normal, stored),
                stored = bulk.next(now), if wants.bulk => self.on_stored_run(Lane::Bulk, stored),
                Some(order) = self.parts.orders.recv(), if self.machine.is_open() => {
                    self.send(&order, &[]).await;
                }
                () = clock::sleep_until(wake) => {}
                Ok(()) = self.parts.cut.changed() => {
                    if self.is_cut() {
                        self.machine.on_stranger(self.clock.now());
                    }
                }
            }
            let now = self.clock.now();
            for (_, reader) in self.readers.iter_mut() {
                reader.reopen(now).await;
            }
        }
    }

    async fn perform(&mut self, output: ChildOutput) -> Result<(), UplinkError> {
        match output {
            ChildOutput::Greet { session } => {
                for (_, reader) in self.readers.iter_mut() {
                    reader.look_at_end().await;
                }
                self.publish_state();
                let lanes = ByLane::new(|lane| {
                    let life = self.lives.of(lane);
                    let last = self.readers[lane].end();
                    LaneHello { incarnation: life.incarnation, start: life.start, last }
                });
                let version = crate::VERSION.to_owned();
                self.send(&ChildMessage::Hello { session, lanes, version }, &[]).await;
            }
            ChildOutput::Send { session, lane, load, announce } => {
                self.send_load(session, lane, load, announce).await;
            }
            ChildOutput::Resume { lane, after, digest } => self.resume(lane, after, digest).await?,
            ChildOutput::Release { lane, up_to, refused, .. } => {
                self.on_released(lane, up_to, &refused);
                self.parts.released[lane].raise(up_to);
                self.parts.metrics.batches_delivered.inc();
                self.publish_state();
            }
            ChildOutput::Pause => {
                tracing::warn!(parent = %self.parent.path, "the link to the parent is down; events wait here");
                for (_, reader) in self.readers.iter_mut() {
                    reader.pause();
                }
                self.publish_state();
            }
        }
        Ok(())
    }

    async fn resume(&mut self, lane: Lane, after: u64, digest: Option<Digest>) -> Result<(), UplinkError> {
        let now = self.clock.now();
        let held = match self.readers[lane].held(after).await {
            Ok(held) => held,
            Err(reason) => {
                tracing::warn!(%lane, reason, "the own store does not answer; greeting the parent again later");
                self.machine.on_stranger(now);
                return Ok(());
            }
        };
        // What a policy keeps back leaves the lane, and the batch at the cursor with it.
        let forgotten = held.at_cursor.is_none() && (after + 1..=held.last + 1).contains(&held.first);
        let at_cursor = held.at_cursor.or(self.machine.settled_at(lane, after).filter(|_| forgotten));
        let held = resume::Held { at_cursor, ..held };
        match resume::decide(held, after, digest) {
            Resume::After => {
                if let Err(reason) = self.recall(lane, held.first, after).await {
                    tracing::warn!(%lane, reason, "the own store does not answer; greeting the parent again later");
                    self.machine.on_stranger(now);
                    return Ok(());
                }
                tracing::info!(parent = %self.parent.path, %lane, after, "the link to the parent is up");
                self.parts.released[lane].raise(after);
                self.offered[lane] = after;
                self.under_way[lane].clear();
                self.readers[lane].start_after(after, now);
                self.readers[lane].reopen(now).await;
                self.publish_state();
            }
            Resume::Anew { start } => {
                tracing::warn!(%lane, parent_has = after, lane_begins_at = held.first, lane_ends_at = held.last,
                    "the store is not the one that the parent knows; all that it holds is offered again");
                self.lives.begin(lane, start).await?;
                self.machine.on_stranger(now);
            }
        }
        Ok(())
    }

    /// Once in each run of the agent, before anything of the lane is let go of.
    async fn recall(&mut self, lane: Lane, first: u64, cursor: u64) -> Result<(), String> {
        if self.recalled[lane] {
            return Ok(());
        }
        if first <= cursor {
            for (place, contents) in recall::kept_back(&self.parts.js, lane, cursor, &self.parts.gate).await?
            {
                self.lose(lane, place, &contents, LossReason::Policy);
            }
        }
        self.recalled[lane] = true;
        Ok(())
    }

    /// One message of a lane, and those that are at hand behind it.
    fn on_stored_run(&mut self, lane: Lane, first: Option<Stored>) {
        if let Some(stored) = first {
            self.on_stored(lane, stored);
        }
        let now = self.clock.now();
        for _ in 1..AT_ONCE {
            if !self.machine.wants_more(lane) || self.machine.is_ready(lane, now) {
                return;
            }
            let Some(stored) = self.readers[lane].next_at_hand(now) else { return };
            self.on_stored(lane, stored);
        }
    }

    fn on_stored(&mut self, lane: Lane, stored: Stored) {
        let Stored { place, below, mut parcel, contents } = stored;
        if below.is_some_and(|subject| !self.parts.gate.lets_up(&subject)) {
            return self.lose(lane, place, &contents, LossReason::Policy);
        }
        self.under_way[lane].push_back((place, contents));
        parcel.after = std::mem::replace(&mut self.offered[lane], place);
        self.machine.offer(lane, parcel);
    }

    fn on_released(&mut self, lane: Lane, up_to: u64, refused: &[RefusedParcel]) {
        while let Some((place, contents)) = self.under_way[lane].pop_front_if(|(place, _)| *place <= up_to) {
            if let Some(parcel) = refused.iter().find(|parcel| parcel.last == place) {
                tracing::warn!(%lane, place, reason = %parcel.reason, "the parent refuses a batch");
                self.lose(lane, place, &contents, LossReason::Refused);
            }
        }
    }

    /// A batch goes no further. It stays in its lane until that was told.
    fn lose(&mut self, lane: Lane, place: u64, contents: &Contents, reason: LossReason) {
        let label = Reason { reason: reason.as_str().into() };
        self.parts.metrics.losses.get_or_create(&label).inc_by(contents.count);
        if let Err(error) =
            self.parts.notes.note_at(lane, place, contents.lost(&self.parts.path, lane, reason))
        {
            tracing::warn!(%error, "dropped events are not accounted for");
        }
    }

    /// What a policy keeps back is done with once everything before it has arrived.
    fn let_go_of_kept_back(&mut self) {
        for lane in Lane::ALL {
            let read = self.readers[lane].read;
            if self.machine.is_idle(lane) && read > self.parts.released[lane].get() {
                self.parts.released[lane].raise(read);
            }
        }
    }

    fn publish_state(&mut self) {
        let open = self.machine.is_open();
        let lanes = ByLane::new(|lane| {
            let cursor = self.machine.cursor(lane);
            let done = cursor.max(self.parts.released[lane].get());
            LaneState { cursor, lag: self.readers[lane].end().saturating_sub(done) }
        });
        self.parts.metrics.uplink_open.set(open.into());
        self.parts.metrics.uplink_window.set(self.machine.budget() as i64);
        for (lane, state) in lanes.iter() {
            let label = LaneLabel { lane: lane.as_str() };
            self.parts.metrics.uplink_lag.get_or_create(&label).set(state.lag as i64);
        }
        self.parts.state.send_modify(|state| (state.open, state.lanes) = (open, lanes));
    }
}

/// Session numbers must stay exact in readers that keep numbers as doubles.
fn fresh_session() -> u64 {
    let random = Uuid::new_v4().as_u128() as u64;
    (random >> 12) | 1
}

fn store_error<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> UplinkError {
    move |error| UplinkError::Store(doing, error.to_string())
}
