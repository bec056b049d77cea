//! `agent send`: gives an order, and waits for what becomes of it where that is asked for.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt as _;
use hierarchy::{
    Lane, Millis,
    envelope::Parsed,
    link::Batch,
    order::{Fate, OrderReport, Target},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ask::EXPIRES_IN;
use crate::attach::{AttachError, OwnAgent, attach};

/// Reports of all agents of a level and below, in whatever subject they come.
const REPORTS: [&str; 2] = ["lucent.hierarchy.*.*.agent.>", "lucent.hierarchy.global.agent.>"];
/// Reports may also come in a batch of several subjects, on the bare subject of their author.
const BATCHES: &str = "lucent.hierarchy.*.*";

/// What is asked for.
#[derive(Debug)]
pub struct Ask {
    /// Whom it is for.
    pub target: Target,
    /// What it is said on: `commands.{...}` or `services.{...}`.
    pub subject: String,
    /// What is said.
    pub body: Bytes,
    /// The lane that it goes down in.
    pub lane: Lane,
    /// For how long it is good.
    pub good_for: Duration,
    /// How long to wait for a report of its target; `None` not to wait.
    pub wait: Option<Duration>,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Given {
    /// The order.
    pub order: Uuid,
    /// Until when it is good.
    pub expires: String,
    /// What became of it at its target, or on its way there; absent where that was not waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<OrderReport>,
}

/// Why there is no order, or no word of it.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// There is no agent to ask.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The agent did not answer.
    #[error("the agent does not answer: {0}; it is not known whether the order was given")]
    Silent(String),
    /// It refuses.
    #[error("the order is refused: {0}")]
    Refused(String),
    /// Nothing was heard of it in time.
    #[error("order {0} was given, and nothing was heard of it in time; it is good until {1}")]
    NoReport(Uuid, Millis),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Refused { error: Refusal },
    Given(Given),
}

#[derive(Deserialize)]
struct Refusal {
    description: String,
}

/// Asks the agent of this machine.
pub async fn send(agent: &OwnAgent, ask: Ask) -> Result<Given, SendError> {
    let silent = |reason: String| SendError::Silent(reason);
    let client = attach(agent, "send").await?;
    let mut heard = Vec::new();
    for subject in REPORTS.into_iter().chain([BATCHES]) {
        heard.push(client.subscribe(subject).await.map_err(|e| silent(e.to_string()))?);
    }
    let mut reports = futures_util::stream::select_all(heard);
    let mut headers = HeaderMap::new();
    headers.insert("Lucent-Priority", ask.lane.as_str());
    headers.insert(EXPIRES_IN, ask.good_for.as_secs().to_string());
    let subject = format!("lucent.send.{}.{}", ask.target, ask.subject);
    let answer = client.request_with_headers(subject, headers, ask.body).await;
    let answer = answer.map_err(|e| silent(e.to_string()))?;
    let given = match serde_json::from_slice(&answer.payload).map_err(|e| silent(e.to_string()))? {
        Answer::Refused { error } => return Err(SendError::Refused(error.description)),
        Answer::Given(given) => given,
    };
    let Some(wait) = ask.wait else { return Ok(given) };
    let decides = |report: &OrderReport| {
        let concerns = report.at == ask.target.path || report.fate == Fate::Expired;
        report.order == given.order && concerns
    };
    let report = async {
        loop {
            let message = reports.next().await?;
            if let Some(report) = read(&message.payload).into_iter().find(decides) {
                return Some(report);
            }
        }
    };
    match tokio::time::timeout(wait, report).await {
        Ok(Some(report)) => Ok(Given { report: Some(report), ..given }),
        _ => Err(SendError::NoReport(given.order, given.expires.parse().unwrap_or_default())),
    }
}

/// Reports as their own agent publishes them, or in the batch in which they arrive above.
fn read(bytes: &[u8]) -> Vec<OrderReport> {
    let Ok(envelope) = Parsed::parse(bytes) else {
        return serde_json::from_slice(bytes).into_iter().collect();
    };
    let Ok(batch) = Batch::read(&envelope) else { return Vec::new() };
    batch.events.iter().filter_map(|event| serde_json::from_slice(&event.bytes()).ok()).collect()
}

impl Given {
    /// For people.
    pub fn to_text(&self) -> String {
        let Given { order, expires, report } = self;
        match report {
            None => format!("order {order} is given; it is good until {expires}\n"),
            Some(OrderReport { fate: Fate::Said, at, subject, when, .. }) => {
                format!("order {order} was said at {at} on {subject} at {when}\n")
            }
            Some(OrderReport { fate: Fate::Expired, at, when, .. }) => {
                format!("order {order} expired at {at} at {when}; it was not said\n")
            }
        }
    }

    /// Whether its time was up before it was said.
    pub fn is_expired(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.fate == Fate::Expired)
    }
}
