//! Sees from outside that the link is there, and helps where the own server does not: a leaf connection that is
//! not dialled any more, or that is there and carries nothing.

mod rule;

use std::{net::SocketAddr, time::Duration};

pub use rule::Step;
use rule::{Rule, Sight};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::uplink::UplinkState;
use crate::{
    clock::Monotonic,
    metrics::{Metrics, Reason},
};

/// How often is looked while the link is open.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a parent may take to greet, over a line of two seconds there and back.
const GREETS_WITHIN: Duration = Duration::from_secs(5);
/// How long the own server may take to tell of its connections.
const TELLS_WITHIN: Duration = Duration::from_secs(2);

/// What the watchdog needs.
pub struct WatchdogParts {
    /// How long a link may be closed while a parent greets.
    pub patience: Duration,
    /// `host:port` of the parent.
    pub parents: Vec<String>,
    /// Where the own server tells of its connections.
    pub monitor: SocketAddr,
    /// The account that its connection to the parent is of.
    pub account: &'static str,
    /// What the link is doing.
    pub uplink: watch::Receiver<UplinkState>,
    /// Until when the link is cut on purpose.
    pub cut: watch::Receiver<Option<Instant>>,
    /// Takes the steps.
    pub server: mpsc::Sender<Step>,
    /// Told what is stuck.
    pub stuck: watch::Sender<Option<Stuck>>,
    /// What is counted.
    pub metrics: Metrics,
}

/// A link that does not come up though it could, for `agent status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stuck {
    /// For how long, in seconds.
    pub seconds: u64,
    /// What is wrong.
    pub reason: String,
    /// What was done about it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_step: Option<Step>,
}

/// Watches until cancelled.
pub async fn run(parts: WatchdogParts, cancel: CancellationToken) -> Result<(), std::convert::Infallible> {
    let clock = Monotonic::new();
    let mut rule = Rule::new(parts.patience);
    let mut last_step = None;
    // Each look at a closed link is a connection to each of the parent's addresses.
    let closed_every = (parts.patience / 6).clamp(LOOK_EVERY / 2, GREETS_WITHIN);
    loop {
        let sight = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            sight = parts.sight() => sight,
        };
        if let Some(step) = rule.look(sight, clock.now(), Uuid::new_v4().as_u128() as u64) {
            let (long, reason) = rule.stuck(clock.now()).unwrap_or_default();
            tracing::warn!(?step, seconds = long.as_secs(), reason, "the link to the parent is stuck");
            parts.metrics.link_heals.get_or_create(&Reason { reason: step.as_str().into() }).inc();
            last_step = Some(step);
            // The server is busy with the step before.
            let _ = parts.server.try_send(step);
        }
        let stuck = rule.stuck(clock.now()).map(|(long, reason)| Stuck {
            seconds: long.as_secs(),
            reason: reason.to_owned(),
            last_step,
        });
        if sight == Sight::Well {
            last_step = None;
        }
        parts.stuck.send_if_modified(|known| std::mem::replace(known, stuck.clone()) != stuck);
        let pause = if sight == Sight::Well { LOOK_EVERY } else { closed_every };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl WatchdogParts {
    async fn sight(&self) -> Sight {
        let cut = self.cut.borrow().is_some_and(|until| until > Instant::now());
        if cut || self.uplink.borrow().open {
            return Sight::Well;
        }
        let Some(leaf) = self.has_leaf().await else { return Sight::NoParent };
        for parent in &self.parents {
            if greets(parent).await {
                return Sight::Greets { leaf };
            }
        }
        Sight::NoParent
    }

    /// Whether the own server is connected to a parent; `None` where it does not tell.
    async fn has_leaf(&self) -> Option<bool> {
        let (monitor, account) = (self.monitor, self.account);
        let ask = move || {
            let config = ureq::Agent::config_builder().timeout_global(Some(TELLS_WITHIN)).build();
            let page = config.new_agent().get(format!("http://{monitor}/leafz")).call().ok()?;
            let leaves: Leaves = serde_json::from_slice(&page.into_body().read_to_vec().ok()?).ok()?;
            Some(leaves.leafs.iter().any(|leaf| leaf.account == account))
        };
        tokio::task::spawn_blocking(ask).await.ok().flatten()
    }
}

#[derive(Deserialize)]
struct Leaves {
    #[serde(default)]
    leafs: Vec<Leaf>,
}

#[derive(Deserialize)]
struct Leaf {
    account: String,
}

/// Whether a server greets at this `host:port`, as one does that takes leaf connections.
async fn greets(parent: &str) -> bool {
    let greeted = async {
        let mut greeting = [0; 5];
        let mut stream = TcpStream::connect(parent).await.ok()?;
        stream.read_exact(&mut greeting).await.ok()?;
        Some(&greeting == b"INFO ")
    };
    tokio::time::timeout(GREETS_WITHIN, greeted).await.ok().flatten().unwrap_or(false)
}
