//! Drills: an agent's link to its parent is cut on purpose, so that people see what an outage does before
//! one comes.
//!
//! `agent drill` asks the agent of its machine; the word goes down from agent to agent to the one whose link
//! is meant. A cut ends by itself: it is nothing but a time in that agent's memory, so it ends with the agent,
//! too. The report goes up as an event, once the link has healed and what waited has gone.

pub mod command;

use std::time::Duration;

use async_nats::{Client, jetstream};
use futures_util::StreamExt as _;
use hierarchy::{
    Path,
    link::ParentMessage,
    subject::{DRILL, Speaker},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    link::{downlink::ToChild, uplink::UplinkState},
};

/// Where an agent is asked for a drill. No application may publish here.
pub const ASK: &str = "lucent.agent.drill";
/// The longest cut.
pub const MOST: Duration = Duration::from_secs(24 * 3600);
/// How long the link may take to heal and the lanes to empty until the report is written all the same.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often is looked whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// Whose link to its parent is to be cut.
    pub cut: Path,
    /// For how long.
    pub seconds: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// Whose link was cut.
    pub cut: Path,
    /// When, in milliseconds since 1970.
    pub began: u64,
    /// How long it was asked to stay cut.
    pub seconds: u64,
    /// Batches that waited when the cut ended.
    pub buffered: u64,
    /// From the end of the cut until the parent had accepted a session, in milliseconds.
    pub healed_after_ms: u64,
    /// From then on until nothing of what had waited was left; absent where that took too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained_after_ms: Option<u64>,
}

/// What the drills need.
pub struct DrillParts {
    /// Where this agent stands.
    pub path: Path,
    /// The store.
    pub js: jetstream::Context,
    /// The connection in account MESH.
    pub mesh: Client,
    /// The link to the parent; `None` at global.
    pub uplink: Option<watch::Receiver<UplinkState>>,
    /// Cuts the link until then.
    pub cut: watch::Sender<Option<Instant>>,
    /// For orders that are meant for others.
    pub to_children: Option<mpsc::Sender<ToChild>>,
    /// Orders of the parent.
    pub orders: mpsc::Receiver<Order>,
}

/// Serves until cancelled; one drill at a time.
pub async fn run(mut parts: DrillParts, cancel: CancellationToken) -> Result<(), async_nats::SubscribeError> {
    let mut asked = parts.mesh.subscribe(ASK).await?;
    loop {
        let (order, reply) = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            Some(order) = parts.orders.recv() => (Ok(order), None),
            message = asked.next() => {
                let Some(message) = message else { return Ok(()) };
                (serde_json::from_slice::<Order>(&message.payload).map_err(|e| e.to_string()), message.reply)
            }
        };
        let taken = order.and_then(|order| parts.take(order));
        if let Some(reply) = reply {
            let answer = match &taken {
                Ok(_) => json!({ "accepted": true }),
                Err(reason) => json!({ "error": reason }),
            };
            // Who does not hear asks again.
            let _ = parts.mesh.publish(reply, answer.to_string().into()).await;
        }
        if let Ok(Some(order)) = taken {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = parts.drill(order) => {}
            }
        }
    }
}

impl DrillParts {
    /// The order, where it is this agent's own to carry out; passes on what is not.
    fn take(&self, order: Order) -> Result<Option<Order>, String> {
        let Order { cut, seconds } = &order;
        if *seconds == 0 || Duration::from_secs(*seconds) > MOST {
            return Err(format!("a cut lasts 1 to {} seconds", MOST.as_secs()));
        }
        if *cut == self.path {
            return match self.uplink {
                Some(_) => Ok(Some(order)),
                None => Err("global has no link to cut; name a site, a cluster or a node".into()),
            };
        }
        let child =
            self.path.child_towards(cut).ok_or_else(|| format!("{cut} is not below {}", self.path))?;
        let message = ParentMessage::Drill { cut: cut.clone(), seconds: *seconds };
        match &self.to_children {
            Some(to_children) if to_children.try_send(ToChild { child, message }).is_ok() => Ok(None),
            _ => Err("the agent is busy; ask again".into()),
        }
    }

    async fn drill(&mut self, order: Order) {
        let Order { cut, seconds } = order;
        let Some(uplink) = self.uplink.clone() else { return };
        let began = clock::wall().0;
        let until = Instant::now() + Duration::from_secs(seconds);
        tracing::warn!(seconds, "a drill: the link to the parent is cut on purpose");
        self.cut.send_replace(Some(until));
        tokio::time::sleep_until(until).await;
        let buffered = uplink.borrow().lag();
        self.cut.send_replace(None);
        tracing::warn!(buffered, "the drill's cut is over");

        let healed = wait_until(until, || uplink.borrow().open).await;
        let ends = uplink.borrow().lanes.map(|_, lane| lane.cursor + lane.lag);
        let since = Instant::now();
        let drained = wait_until(since, || {
            uplink.borrow().lanes.iter().all(|(lane, state)| state.cursor >= ends[lane])
        })
        .await;
        let report = Report {
            cut,
            began,
            seconds,
            buffered,
            healed_after_ms: healed.unwrap_or(PATIENCE).as_millis() as u64,
            drained_after_ms: drained.map(|took| took.as_millis() as u64),
        };
        tracing::info!(?report, "the drill is over");
        let subject = Speaker::of(&self.path).with_tail(DRILL);
        let body = serde_json::to_vec(&report).unwrap_or_default();
        let stored = match self.js.publish(subject, body.into()).await {
            Ok(ack) => ack.await.map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            tracing::warn!(%error, "the report of the drill could not be stored");
        }
    }
}

/// How long after `since` it became so.
async fn wait_until(since: Instant, mut so: impl FnMut() -> bool) -> Option<Duration> {
    while !so() {
        if since.elapsed() > PATIENCE {
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Some(since.elapsed())
}
