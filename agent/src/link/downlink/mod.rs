//! The parent's shell: verifies what children send, stores it durably, answers.

mod credit;
mod exchange;
mod judge;
mod messages;
mod recovery;
mod store;
mod writes;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    Client, Subscriber,
    jetstream::{self, kv},
};
pub use exchange::{FromChild, ToChild, WorkFromChild, handoff};
use futures_util::{FutureExt as _, StreamExt as _};
use hierarchy::{
    ByLane, Path,
    link::{Budget, Limiter, Origins, Parent, ParentMessage, Tick},
    signing::{Signer, Verifier},
    subject,
};
pub use judge::STORED_FOR;
use recovery::{Guard, patiently, take_stock};
use store::{Given, Sent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use writes::Writes;

use super::{
    bindings::Bindings,
    cursors::{self, Checkpoint},
    words::Words,
};
use crate::{
    accounting::LossNotes,
    clock::{MeshTime, Monotonic},
    config::Leaf,
    dead_letters::DeadLetters,
    lanes::{Fill, Guards, Tails},
    metrics::{ChildLabel, Metrics},
};

/// How long a subscription may take to reach the server.
const HEARD_WITHIN: Duration = Duration::from_millis(500);
/// How often the cursors are checkpointed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How often children are looked at that are held back.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the shell needs.
pub struct DownlinkParts {
    /// Where this agent stands.
    pub path: Path,
    /// Signs answers.
    pub signer: Arc<Signer>,
    /// What time it is.
    pub time: MeshTime,
    /// Knows whom to trust.
    pub verifier: Verifier,
    /// Keeps authors' bindings.
    pub bindings: Bindings,
    /// The store.
    pub js: jetstream::Context,
    /// The link's bucket.
    pub bucket: kv::Store,
    /// Another replica may write into the store, too, if only for a moment. At global alone.
    pub shared: bool,
    /// The connection in account DOWN.
    pub down: Client,
    /// Told who is there and how they are.
    pub reports: mpsc::Sender<FromChild>,
    /// Told what they say about work.
    pub work: mpsc::Sender<WorkFromChild>,
    /// Told what they say in the flow of orders.
    pub from_below: mpsc::Sender<(Path, ParentMessage)>,
    /// Messages to send.
    pub orders: mpsc::Receiver<ToChild>,
    /// Told what the last checkpoint has counted in, and so what may leave the lanes.
    pub checkpointed: Arc<Guards>,
    /// The newest of the lanes; `None` at global, where nothing is sent on.
    pub tails: Option<Tails>,
    /// How many children there may be, how much they may have under way, how fast they may send.
    pub leaf: Leaf,
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
    /// A fence was not taken.
    #[error("no fence could be raised in the store: {0}")]
    Fence(#[from] jetstream::context::PublishError),
    /// The connection ended.
    #[error("the connection to the own nats-server ended")]
    Closed,
}

struct ChildState {
    parent: Parent,
    /// How far the child says it has numbered.
    words: Words,
    version: Option<String>,
    /// Whether something of a lane waits at the child, where the budget was not told yet.
    waiting: ByLane<Option<bool>>,
    limiter: Option<Limiter>,
    /// When the last piece of a batch came.
    last_piece: Tick,
    storing: usize,
    stored: prometheus_client::metrics::counter::Counter,
    events: prometheus_client::metrics::counter::Counter,
}

/// The parent's shell.
pub struct Downlink {
    parts: DownlinkParts,
    children: HashMap<Path, ChildState>,
    storing: Writes<Given>,
    /// Publishes to each stream in the order in which they were sent.
    sent: ByLane<VecDeque<Sent>>,
    next_ticket: u64,
    /// Everything in each stream up to here is counted in the children's cursors.
    counted: ByLane<u64>,
    /// What has arrived of each origin.
    origins: Origins,
    /// Words for publishers below who wait until their events are durable here.
    answers: Vec<ToChild>,
    /// Bytes of batches that have come in part, of all children.
    begun_bytes: usize,
    kept: Checkpoint,
    budget: Budget<Path>,
    /// Children of which a lane is held back, or who could have had more.
    held_back: HashSet<Path>,
    clock: Monotonic,
    /// Present where others may write, too.
    guard: Option<Guard>,
    /// Whether others did, or may have.
    in_doubt: bool,
}

impl Downlink {
    /// Recovers the cursors, then serves until cancelled.
    pub async fn run(parts: DownlinkParts, cancel: CancellationToken) -> Result<(), DownlinkError> {
        let stock = match parts.shared {
            true => patiently(&cancel, || take_stock(&parts, true)).await,
            false => Some(take_stock(&parts, false).await?),
        };
        let Some((kept, guard)) = stock else { return Ok(()) };
        let mut inbox = parts.down.subscribe(subject::LINK_UP_ALL).await?;
        let mut downlink = Downlink {
            counted: kept.places,
            origins: kept.origins.clone(),
            children: HashMap::new(),
            storing: Writes::new(parts.js.clone(), guard.as_ref().map(|guard| guard.fence)),
            sent: ByLane::default(),
            next_ticket: 0,
            answers: Vec::new(),
            begun_bytes: 0,
            kept,
            budget: Budget::new(credit::limits(&parts.leaf)),
            held_back: HashSet::new(),
            clock: Monotonic::new(),
            guard,
            in_doubt: false,
            parts,
        };
        for (child, cursors) in downlink.kept.children.clone() {
            let state = downlink.new_child(&child, Parent::new(&cursors));
            downlink.children.insert(child, state);
        }
        downlink.sound_again();
        if downlink.parts.shared {
            downlink.call_children().await;
        }
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
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
                _ = timer.tick() => {
                    self.checkpoint().await;
                    self.budget.take_back(self.clock.now());
                    self.forget_begun();
                    if self.in_doubt {
                        self.heal_all(cancel).await?;
                    }
                }
                _ = look.tick(), if !self.held_back.is_empty() => touched.extend(self.held_back.drain()),
            }
            // One receipt covers all that is durable by now.
            while let Some(Some(done)) = self.storing.next().now_or_never() {
                touched.push(self.on_done(done));
            }
            for ToChild { child, message } in std::mem::take(&mut self.answers) {
                self.send(&child, &message, None).await;
            }
            touched.sort_unstable();
            touched.dedup();
            for child in touched.drain(..) {
                self.heal(&child, cancel).await?;
                self.set_credit(&child);
                self.reply(&child).await;
            }
            for child in self.served() {
                self.reply(&child).await;
            }
        }
    }

    /// A child whose parent has changed hands hears of it at once, and not when its next frame stays unanswered:
    /// a message under a key that it does not know makes it greet.
    async fn call_children(&mut self) {
        // Whoever greets now must be heard.
        let heard = tokio::time::timeout(HEARD_WITHIN, self.parts.down.flush()).await;
        if !matches!(heard, Ok(Ok(()))) {
            tracing::debug!("the children are not called: the nats-server is slow");
        }
        for child in self.children.keys().cloned().collect::<Vec<_>>() {
            self.send(&child, &ParentMessage::Reset { session: 0 }, None).await;
        }
    }

    fn new_child(&self, child: &Path, parent: Parent) -> ChildState {
        let label = ChildLabel { child: child.to_string() };
        ChildState {
            parent,
            words: Words::default(),
            version: None,
            waiting: ByLane::default(),
            limiter: self.parts.leaf.limit_of(child).map(|limit| Limiter::new(limit, self.clock.now())),
            last_piece: self.clock.now(),
            storing: 0,
            stored: self.parts.metrics.batches_stored.get_or_create_owned(&label),
            events: self.parts.metrics.events_stored.get_or_create_owned(&label),
        }
    }
}
