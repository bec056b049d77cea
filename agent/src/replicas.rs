//! The shell around [`coordinator::Lease`]: asks the store, tells who may act, and stops who may not.

use std::{future::Future, pin::Pin, time::Duration};

use async_nats::jetstream::kv;
use coordinator::{
    Lease,
    lease::{Answer, Limits, Record, Replica, Request, Standing},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{clock, metrics::Metrics};

/// The key of the lease in the link's bucket.
const KEY: &str = "lease";

/// A time for which this replica holds the lease.
#[derive(Debug, Clone)]
pub struct Term {
    /// How often the lease has changed hands.
    pub epoch: u64,
    /// Cancelled when the lease is lost: whatever acts must end at once.
    pub over: CancellationToken,
}

/// What others may know of the replicas.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaState {
    /// What this one is called.
    pub instance: String,
    /// Whether this one acts.
    pub acts: bool,
    /// Who held the lease when it was last looked at; absent where it was released, or not seen yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// How often the lease has changed hands.
    pub epoch: u64,
}

/// What the keeper of the lease needs.
pub struct LeaseParts {
    /// The bucket in which it lies.
    pub bucket: kv::Store,
    /// What this replica is called.
    pub instance: String,
    /// Its times.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Metrics,
}

/// The way to the keeper of the lease.
pub struct Seat {
    term: watch::Receiver<Option<Term>>,
    state: watch::Receiver<ReplicaState>,
    orders: mpsc::Sender<Order>,
}

enum Order {
    Stand,
    Release(oneshot::Sender<()>),
}

/// A seat and the task that keeps its lease.
pub fn seat(parts: LeaseParts) -> (Seat, Keeper) {
    let me = Replica { id: uuid::Uuid::new_v4().to_string(), instance: parts.instance.clone() };
    let state = ReplicaState { instance: parts.instance.clone(), acts: false, holder: None, epoch: 0 };
    let (term_tx, term) = watch::channel(None);
    let (state_tx, state) = watch::channel(state);
    let (orders, orders_rx) = mpsc::channel(4);
    let lease = Lease::new(me, parts.limits, clock::since_boot());
    let keeper = Keeper { lease, parts, orders: orders_rx, term: term_tx, state: state_tx };
    (Seat { term, state, orders }, keeper)
}

impl Seat {
    /// How the replicas stand, as it changes.
    pub fn state(&self) -> watch::Receiver<ReplicaState> {
        self.state.clone()
    }

    /// Takes the lease as soon as it is free; waits until then.
    pub async fn take(&mut self) -> Term {
        let _ = self.orders.send(Order::Stand).await;
        let held = |term: &Option<Term>| term.as_ref().is_some_and(|term| !term.over.is_cancelled());
        match self.term.wait_for(held).await.map(|term| term.clone()) {
            Ok(Some(term)) => term,
            // The keeper has ended, and with it the agent.
            _ => std::future::pending().await,
        }
    }

    /// Leaves the lease to whoever wants it, without delay. Nothing may act here any more.
    pub async fn release(&self, patience: Duration) {
        let (done, released) = oneshot::channel();
        let release = async {
            let _ = self.orders.send(Order::Release(done)).await;
            let _ = released.await;
        };
        if tokio::time::timeout(patience, release).await.is_err() {
            tracing::warn!("the lease was not released; another replica takes over when it has run out");
        }
    }
}

/// Keeps the lease of one replica.
pub struct Keeper {
    lease: Lease,
    parts: LeaseParts,
    orders: mpsc::Receiver<Order>,
    term: watch::Sender<Option<Term>>,
    state: watch::Sender<ReplicaState>,
}

type Asking = Pin<Box<dyn Future<Output = Answer> + Send>>;

impl Keeper {
    /// Keeps it until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut asking: Option<Asking> = None;
        loop {
            if let Some(request) = self.lease.poll(clock::since_boot()) {
                asking = Some(self.ask(request));
            }
            self.tell();
            let wake = self.lease.timeout().saturating_sub(clock::since_boot());
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                answer = answered(&mut asking) => {
                    asking = None;
                    self.lease.on_answer(answer, clock::since_boot());
                }
                Some(order) = self.orders.recv() => match order {
                    Order::Stand => self.lease.stand(),
                    Order::Release(done) => {
                        if asking.is_some() {
                            let answer = answered(&mut asking).await;
                            asking = None;
                            self.lease.on_answer(answer, clock::since_boot());
                        }
                        if let Some(request) = self.lease.release(clock::since_boot()) {
                            self.ask(request).await;
                            tracing::info!("the lease is released");
                        }
                        self.tell();
                        let _ = done.send(());
                    }
                },
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    fn tell(&mut self) {
        let standing = self.lease.standing(clock::since_boot());
        let known = self.lease.known();
        let state = ReplicaState {
            instance: self.parts.instance.clone(),
            acts: matches!(standing, Standing::Holder { .. }),
            holder: known.holder.as_ref().map(|holder| holder.instance.clone()),
            epoch: known.epoch,
        };
        self.parts.metrics.lease_held.set(state.acts.into());
        self.parts.metrics.lease_epoch.set(state.epoch as i64);
        self.state.send_if_modified(|told| {
            let changed = *told != state;
            *told = state;
            changed
        });
        let held = self.term.borrow().as_ref().map(|term| term.over.clone());
        match (standing, held) {
            (Standing::Holder { epoch, .. }, None) => {
                tracing::info!(epoch, "this replica acts");
                self.parts.metrics.take_overs.inc();
                self.term.send_replace(Some(Term { epoch, over: CancellationToken::new() }));
            }
            (Standing::Standby, Some(over)) => {
                tracing::warn!(holder = ?self.state.borrow().holder, "this replica acts no more");
                over.cancel();
                self.term.send_replace(None);
            }
            _ => {}
        }
    }

    fn ask(&self, request: Request) -> Asking {
        let (bucket, within) = (self.parts.bucket.clone(), self.parts.limits.renew);
        Box::pin(async move {
            let answer = tokio::time::timeout(within, perform(&bucket, request)).await;
            answer.ok().and_then(Result::ok).unwrap_or(Answer::Failed)
        })
    }
}

async fn answered(asking: &mut Option<Asking>) -> Answer {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

async fn perform(bucket: &kv::Store, request: Request) -> Result<Answer, async_nats::Error> {
    match request {
        Request::Read => {
            let entry = bucket.entry(KEY).await?;
            Ok(Answer::Found(entry.map(|entry| (entry.revision, read(&entry.value)))))
        }
        Request::Write { record, after } => {
            let text = serde_json::to_vec(&record)?;
            Ok(Answer::Written(bucket.update(KEY, text.into(), after).await?))
        }
    }
}

/// What cannot be read is not the agents': somebody's whom nobody knows, to be replaced when it grows old.
fn read(value: &[u8]) -> Record {
    let stranger = || Replica { id: String::new(), instance: "unknown".into() };
    serde_json::from_slice(value).unwrap_or_else(|_| Record { epoch: 0, holder: Some(stranger()) })
}

/// Host name and process id.
pub fn default_instance() -> String {
    let host = nix::sys::utsname::uname().ok();
    let host = host.as_ref().and_then(|name| name.nodename().to_str()).unwrap_or("agent");
    format!("{host}/{}", std::process::id())
}
