//! A publisher that numbers its events and keeps what the store has acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    ConnectOptions, HeaderMap,
    jetstream::{
        self,
        context::{ContextBuilder, PublishError},
        publish::PublishAck,
    },
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hierarchy::{Path, subject::Speaker};
use serde_json::json;
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};

use crate::{Mesh, eventually::LOOK_EVERY};

/// The tail of the subject that numbered events end in.
pub const NUMBERED: &str = "numbered";
/// Events that wait for the store's word.
const UNACKED: usize = 256;
/// Without the store's word for this long, an event is published again.
const ACK_WITHIN: Duration = Duration::from_secs(2);
/// How long the last acknowledgements may take once publishing has stopped.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// What was published.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// By number: the place that the store has told.
    pub acked: BTreeMap<u64, u64>,
    /// Numbers that were published more than once, since the store's word did not come.
    pub again: BTreeSet<u64>,
}

/// Publishes at a node until it is stopped, whatever happens to the node's server.
pub struct Publisher {
    origin: Path,
    ledger: Arc<Mutex<Ledger>>,
    stop: watch::Sender<bool>,
    task: JoinSet<()>,
}

impl Publisher {
    /// Publishes `rate` events a second at the agent `at`, as an application on its machine does.
    pub async fn start(mesh: &Mesh, at: &str, rate: u32) -> Publisher {
        let origin = crate::path(at);
        let address = mesh.addresses(&origin).expect("the agent runs").nats;
        let options = ConnectOptions::new().reconnect_delay_callback(|_| Duration::from_millis(100));
        let client = options.connect(address).await.expect("the node's server takes applications");
        let js = ContextBuilder::new().timeout(ACK_WITHIN).build(client);
        let ledger = Arc::<Mutex<Ledger>>::default();
        let (stop, stopped) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(publish(js, origin.clone(), rate, ledger.clone(), stopped));
        Publisher { origin, ledger, stop, task }
    }

    /// Where it publishes.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// How many events the store has acknowledged so far.
    pub fn acked(&self) -> usize {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).acked.len()
    }

    /// Stops, and waits until the store has acknowledged everything.
    pub async fn stop(mut self) -> Ledger {
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(SETTLED_WITHIN, self.task.join_next()).await;
        let ended =
            ended.unwrap_or_else(|_| panic!("the store of {} does not acknowledge any more", self.origin));
        ended.expect("there is one task").expect("the publisher does not panic");
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

type Word = Result<PublishAck, PublishError>;

async fn publish(
    js: jetstream::Context,
    origin: Path,
    rate: u32,
    ledger: Arc<Mutex<Ledger>>,
    mut stopped: watch::Receiver<bool>,
) {
    let subject = Speaker::of(&origin).with_tail(NUMBERED);
    let mut timer = tokio::time::interval(Duration::from_secs(1) / rate);
    timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut unacked = FuturesUnordered::new();
    let mut number = 0;
    loop {
        let finishing = *stopped.borrow();
        if finishing && unacked.is_empty() {
            return;
        }
        tokio::select! {
            _ = stopped.changed(), if !finishing => {}
            _ = timer.tick(), if !finishing && unacked.len() < UNACKED => {
                number += 1;
                unacked.push(send(&js, &subject, &origin, number));
            }
            Some((number, word)) = unacked.next(), if !unacked.is_empty() => {
                let acked = word.map(|ack| ack.sequence);
                if acked.is_err() {
                    unacked.push(send(&js, &subject, &origin, number));
                }
                ledger.lock().unwrap_or_else(PoisonError::into_inner).note(number, acked.ok());
            }
        }
    }
}

impl Ledger {
    fn note(&mut self, number: u64, acked: Option<u64>) {
        match acked {
            Some(place) => drop(self.acked.insert(number, place)),
            None => drop(self.again.insert(number)),
        }
    }
}

/// Publishes the event of this number and waits for the store's word. The event's id lets the store
/// recognise a repetition.
async fn send(js: &jetstream::Context, subject: &str, origin: &Path, number: u64) -> (u64, Word) {
    let body =
        json!({ "origin": origin, "number": number, "sentAt": agent::clock::wall().0, "price": 2847.52 });
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("{origin}-{number}"));
    let word = match js.publish_with_headers(subject.to_owned(), headers, body.to_string().into()).await {
        Ok(ack) => ack.await,
        Err(error) => Err(error),
    };
    if word.is_err() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    (number, word)
}
