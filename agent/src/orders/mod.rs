//! Orders on their way down: commands and the desired state of services, from any level to one agent below it
//! or a whole subtree. The link the other way round: a queue for each child, custody by the child's durable
//! receipt, no order carried out twice or after its time.
//!
//! ```text
//!  lucent.send.> --> ask --> ORDERS (to a child, or below) --> Outbound ==Orders==> Inbound --> ORDERS ...
//!                      \                                                               \
//!                       +--> ORDERS (here) --said again--> lucent.commands...           +--> (here)
//! ```
//! One task does it all: what it writes is written one order at a time, so that after a crash the store tells
//! what was done.

mod ask;
mod book;
pub mod command;
mod inbound;
mod outbound;
mod store;

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap, Message,
    jetstream::{self, kv},
};
use book::{Book, Kept, Waits};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hierarchy::{
    ByLane, Lane, Path, Refusal,
    envelope::Draft,
    link::{ChildMessage, Event, Parent, ParentMessage},
    order::{self, Fate, MESSAGE_TYPE, OrderReport, Target},
    signing::{Signer, Verifier},
    subject::{self, Speaker},
};
use inbound::Inbound;
use outbound::Outbound;
use store::{Entry, Store, Written};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    clock::{self, MeshTime, Monotonic},
    dead_letters::{DeadLetter, DeadLetters},
    link::{bindings::Bindings, header, wire},
    metrics::{Metrics, Reason},
};

/// Who answers requests.
const GROUP: &str = "lucent-orders";
/// How often is looked whether a replica has written.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Bytes of each lane that the parent may have under way.
const CREDIT: u64 = 4 << 20;
/// A stream that is silent for so long will not tell the rest.
const SILENCE: Duration = Duration::from_secs(5);
/// The wait before the store is looked into again after it failed; doubles up to [`MOST_PATIENCE`].
const PATIENCE: Duration = Duration::from_millis(200);
const MOST_PATIENCE: Duration = Duration::from_secs(5);

/// What the orders need.
pub struct OrdersParts {
    /// Where this agent stands.
    pub path: Path,
    /// Its direct children.
    pub children: Vec<Path>,
    /// Signs orders and messages.
    pub signer: Arc<Signer>,
    /// Knows the authors of orders from above.
    pub verifier: Verifier,
    /// Keeps their bindings.
    pub bindings: Bindings,
    /// The store.
    pub js: jetstream::Context,
    /// The link's bucket.
    pub bucket: kv::Store,
    /// Whether replicas of this agent may have written, too.
    pub shared: bool,
    /// The connection in account MESH.
    pub mesh: Client,
    /// The connection in account DOWN; `None` at a node.
    pub down: Option<Client>,
    /// What the parent says in the flow of orders.
    pub from_parent: mpsc::Receiver<(ChildMessage, Bytes)>,
    /// Messages to the parent; `None` at global.
    pub to_parent: Option<mpsc::Sender<ChildMessage>>,
    /// What children say in the flow of orders.
    pub from_children: mpsc::Receiver<(Path, ParentMessage)>,
    /// For what is refused.
    pub dead_letters: DeadLetters,
    /// The time that orders expire by.
    pub time: MeshTime,
    /// What is counted.
    pub metrics: Metrics,
}

/// Why the task stopped.
#[derive(Debug, thiserror::Error)]
pub enum OrdersError {
    /// The store does not answer.
    #[error("orders cannot be {0}: {1}; is JetStream available?")]
    Store(&'static str, String),
    /// Subscribing failed.
    #[error("cannot listen to who sends orders: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    /// The connection ended.
    #[error("the connection to the own nats-server ended")]
    Closed,
}

impl OrdersError {
    fn store<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> OrdersError {
        move |error| OrdersError::Store(doing, error.to_string())
    }

    fn silent() -> OrdersError {
        OrdersError::Store("read", "the stream fell silent".into())
    }
}

/// The task.
pub struct Orders {
    parts: OrdersParts,
    clock: Monotonic,
    store: Store,
    book: Book,
    inbound: Inbound,
    outbound: HashMap<Path, Outbound>,
    /// The incarnation of this agent's numbers, and the next number of each lane.
    numbering: u64,
    next: ByLane<u64>,
    session: u64,
}

impl Orders {
    /// Takes, hands down and receives orders until cancelled.
    pub async fn run(parts: OrdersParts, cancel: CancellationToken) -> Result<(), OrdersError> {
        // One of a group, so that of two replicas that both think they act only one hears a request.
        let mut asked = parts.mesh.queue_subscribe(order::SEND_ALL, GROUP.to_owned()).await?;
        let (mut store, book) = Store::open(&parts.path, &parts.js, parts.bucket.clone()).await?;
        let numbering = store.number_anew().await?;
        let mut orders = Orders {
            inbound: inbound_of(&store),
            clock: Monotonic::new(),
            store,
            book,
            outbound: HashMap::new(),
            numbering,
            next: ByLane::new(|_| 1),
            session: u64::from(Uuid::new_v4().as_u128() as u32) << 16,
            parts,
        };
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if let Err(error) = orders.hand_down().await {
                orders.recover(&error, &cancel).await;
            }
            let wake = orders.wake();
            let done = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                message = asked.next() => orders.on_asked(message.ok_or(OrdersError::Closed)?).await,
                Some((said, rest)) = orders.parts.from_parent.recv() => orders.on_parent(said, rest).await,
                Some((child, answer)) = orders.parts.from_children.recv() => {
                    orders.on_child(&child, &answer);
                    Ok(())
                }
                () = clock::sleep_until(wake) => {
                    orders.expire().await;
                    Ok(())
                }
                _ = look.tick(), if orders.parts.shared => orders.store.is_ours().await,
            };
            if let Err(error) = done {
                orders.recover(&error, &cancel).await;
            }
            if cancel.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Sends each child what waits for it.
    async fn hand_down(&mut self) -> Result<(), OrdersError> {
        for child in self.parts.children.clone() {
            if !self.outbound.contains_key(&child) && self.book.waits_for(&child) {
                self.session += 1;
                self.outbound.insert(child.clone(), Outbound::new(self.session, self.clock.now()));
            }
            self.drive(&child).await?;
        }
        self.parts.metrics.orders_waiting.set(self.book.waiting() as i64);
        Ok(())
    }

    fn wake(&self) -> Option<tokio::time::Instant> {
        let flows = self.outbound.values().filter_map(|flow| flow.machine.timeout());
        let expiry = self.book.due().map(|due| {
            let left = Duration::from_millis(due.0.saturating_sub(self.parts.time.now().0) + 1);
            // A wall clock may be set: it is looked at again.
            self.clock.now() + left.min(Duration::from_secs(60))
        });
        flows.chain(expiry).min().map(|tick| self.clock.instant(tick))
    }

    async fn on_asked(&mut self, message: Message) -> Result<(), OrdersError> {
        let reply = message.reply.clone();
        let (answer, done) =
            match ask::read(&self.parts.path, &self.parts.children, &message, self.parts.time.now()) {
                Ok(asked) => match self.give(asked).await {
                    Ok(answer) => (answer, Ok(())),
                    Err(error) => (ask::failed(&error.to_string()), Err(error)),
                },
                Err(refused) => {
                    self.refuse(&message, refused.reason, &refused.detail);
                    (refused.answer(), Ok(()))
                }
            };
        if let Some(reply) = reply {
            // Who does not hear asks again.
            let _ = self.parts.mesh.publish(reply, answer).await;
        }
        done
    }

    /// Makes an order of a request, and stores it for whom it is.
    async fn give(&mut self, asked: ask::Asked) -> Result<Bytes, OrdersError> {
        let ask::Asked { target, lane, expires, name, said } = asked;
        let number = self.next[lane];
        self.next[lane] += 1;
        let (head, payload) = order::pack(self.numbering, number, &said);
        let span = hierarchy::link::Span { incarnation: self.numbering, first: number, last: number };
        let id = Uuid::now_v7();
        let sealed = self.parts.signer.seal(&Draft {
            message_id: id,
            correlation_id: None,
            causation_id: None,
            timestamp: self.parts.time.stamp(),
            message_type: MESSAGE_TYPE,
            subject: &order::subject_for(&target),
            reply_to: None,
            priority: lane,
            batch: Some(head),
            payload: &payload,
        });
        let mut known = None;
        for waits in self.copies(&target) {
            let (bytes, headers) = match waits {
                Waits::Here => (said.data.clone(), headers_of(&said)),
                _ => (sealed.bytes.clone(), Vec::new()),
            };
            let once = name.as_ref().map(|name| match &waits {
                Waits::Here => format!("{name}.here"),
                _ => format!("{name}.below"),
            });
            let author = self.parts.path.clone();
            let kept = Kept { id, author, subject: said.subject.clone(), lane, expires, waits };
            let (digest, kid) = (sealed.digest, self.parts.signer.kid());
            let entry = Entry { kept, digest, kid, span, record: None, headers, bytes, once };
            if let Written::Before(place) = self.keep(entry).await? {
                known = self.store.id_at(place).await;
            }
        }
        tracing::debug!(order = %known.unwrap_or(id), %target, subject = said.subject, "an order is given");
        Ok(ask::accepted(known.unwrap_or(id), expires))
    }

    /// For whom an order is stored here: those below it is for, then applications of this level.
    fn copies(&self, target: &Target) -> Vec<Waits> {
        let below = match self.parts.path.child_towards(&target.path) {
            Some(child) => Some(Waits::For(child)),
            None => (target.all && !self.parts.children.is_empty()).then_some(Waits::ForAll),
        };
        let here = target.includes(&self.parts.path).then_some(Waits::Here);
        below.into_iter().chain(here).collect()
    }

    /// Stores one copy of an order, and tells where it was said here.
    async fn keep(&mut self, entry: Entry<'_>) -> Result<Written, OrdersError> {
        let written = self.store.write(&entry).await?;
        if let Written::At(place) = written {
            if entry.kept.waits == Waits::Here {
                self.report(&entry.kept, Fate::Said, None).await;
            }
            self.book.add(place, entry.kept);
        }
        Ok(written)
    }

    /// Notes how far the parent's orders have come.
    async fn note(&mut self) -> Result<(), OrdersError> {
        self.store.notes.cursors = self.inbound.machine.cursors();
        self.store.notes.origins = self.inbound.origins.clone();
        self.store.save().await
    }

    /// Orders whose time is up are not handed down any more, and it is told who lacks them.
    async fn expire(&mut self) {
        while let Some((place, kept, lacking)) =
            self.book.take_expired(self.parts.time.now(), &self.parts.children)
        {
            for child in lacking {
                tracing::warn!(order = %kept.id, %child, subject = kept.subject,
                    "an order expired before the child had it");
                self.report(&kept, Fate::Expired, Some(child)).await;
            }
            self.store.remove([place]).await;
        }
    }

    async fn report(&self, kept: &Kept, fate: Fate, waited_for: Option<Path>) {
        self.parts.metrics.orders.get_or_create(&Reason { reason: fate.as_str().into() }).inc();
        let report = OrderReport {
            order: kept.id,
            author: kept.author.clone(),
            at: self.parts.path.clone(),
            subject: kept.subject.clone(),
            fate,
            waited_for,
            when: self.parts.time.now(),
        };
        let subject = Speaker::of(&self.parts.path).with_tail(subject::ORDER);
        let body = serde_json::to_vec(&report).unwrap_or_default();
        let told = match self.parts.js.publish(subject, body.into()).await {
            Ok(ack) => ack.await.map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::warn!(%error, order = %kept.id, fate = fate.as_str(), "what became of an order is not told");
        }
    }

    /// A message to a child in the flow of orders. What is lost is sent again.
    async fn tell(&self, child: &Path, message: ChildMessage, bodies: &[Bytes]) {
        let Some(down) = &self.parts.down else { return };
        let greeting = matches!(message, ChildMessage::Hello { .. });
        let subject = subject::link_down(child);
        let message = ParentMessage::Orders(Box::new(message));
        let bytes = wire::seal(&self.parts.signer, &subject, &message, bodies, self.parts.time.stamp());
        let sent = if greeting {
            let mut headers = HeaderMap::new();
            headers.insert(header::BINDING, self.parts.signer.binding().to_json());
            down.publish_with_headers(subject, headers, bytes).await
        } else {
            down.publish(subject, bytes).await
        };
        if let Err(error) = sent {
            tracing::debug!(%child, %error, "orders were not sent; they will be sent again");
        }
    }

    /// An answer that finds the queue full is asked for again.
    fn answer_parent(&self, reply: ParentMessage) {
        if let Some(parent) = &self.parts.to_parent {
            let _ = parent.try_send(ChildMessage::Orders(Box::new(reply)));
        }
    }

    /// The store failed: what it really holds is read anew, and all flows begin anew.
    async fn recover(&mut self, error: &OrdersError, cancel: &CancellationToken) {
        tracing::warn!(%error, "the store of orders failed; it is read anew");
        let mut wait = PATIENCE;
        loop {
            let opened = async {
                self.store.fence().await?;
                Store::open(&self.parts.path, &self.parts.js, self.parts.bucket.clone()).await
            };
            match opened.await {
                Ok((store, book)) => {
                    (self.store, self.book) = (store, book);
                    self.inbound = inbound_of(&self.store);
                    self.outbound.clear();
                    return tracing::info!("the store of orders is sound again");
                }
                Err(error) => tracing::debug!(%error, "the store of orders is not sound yet"),
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(MOST_PATIENCE),
            }
        }
    }

    fn refuse(&self, message: &Message, reason: Refusal, detail: &str) {
        self.parts.dead_letters.bury(DeadLetter {
            origin: self.parts.path.clone(),
            reason,
            detail: detail.to_owned(),
            subject: message.subject.to_string(),
            bytes: message.payload.clone(),
        });
    }
}

fn inbound_of(store: &Store) -> Inbound {
    let notes = &store.notes;
    let mut machine = Parent::new(&notes.cursors);
    for lane in Lane::ALL {
        machine.set_credit(lane, CREDIT);
    }
    Inbound { machine, origins: notes.origins.clone() }
}

/// The headers that an order is said with.
fn headers_of(said: &Event) -> Vec<(&str, &str)> {
    let pairs = said.headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    pairs.map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
