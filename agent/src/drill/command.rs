//! `agent drill`: asks for a drill and waits for its report.

use std::time::Duration;

use futures_util::StreamExt as _;
use hierarchy::{
    envelope::Parsed,
    link::Batch,
    subject::{DRILL, Speaker},
};

use super::{ASK, Order, Report};
use crate::attach::{AttachError, OwnAgent, attach};

/// How much longer than the cut the report may take.
const PATIENCE: Duration = Duration::from_secs(660);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// There is no agent to ask.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// It does not answer.
    #[error("the agent does not answer: {0}; is it running?")]
    Unanswered(String),
    /// It refuses.
    #[error("the drill is refused: {0}")]
    Refused(String),
    /// Nothing was heard of it.
    #[error("no report has come; the cut has ended by itself, `agent status` tells how the link is")]
    Silent,
}

/// Asks the agent of this machine; returns once the report has come.
pub async fn ask(agent: &OwnAgent, order: &Order) -> Result<Report, DrillError> {
    let unanswered = |reason: String| DrillError::Unanswered(reason);
    let client = attach(agent, "drill").await?;
    let subject = Speaker::of(&order.cut).with_tail(DRILL);
    let mut reports = client.subscribe(subject).await.map_err(|e| unanswered(e.to_string()))?;
    let body = serde_json::to_vec(order).map_err(|e| unanswered(e.to_string()))?;
    let answer = client.request(ASK, body.into()).await.map_err(|e| unanswered(e.to_string()))?;
    let answer: serde_json::Value =
        serde_json::from_slice(&answer.payload).map_err(|e| unanswered(e.to_string()))?;
    if let Some(reason) = answer["error"].as_str() {
        return Err(DrillError::Refused(reason.to_owned()));
    }
    let report = async {
        while let Some(message) = reports.next().await {
            if let Some(report) = read(&message.payload).filter(|report| report.cut == order.cut) {
                return Some(report);
            }
        }
        None
    };
    let within = Duration::from_secs(order.seconds) + PATIENCE;
    tokio::time::timeout(within, report).await.ok().flatten().ok_or(DrillError::Silent)
}

/// A report as its own agent publishes it, or in the batch in which it arrives above.
fn read(bytes: &[u8]) -> Option<Report> {
    let Ok(envelope) = Parsed::parse(bytes) else { return serde_json::from_slice(bytes).ok() };
    let batch = Batch::read(&envelope).ok()?;
    batch.events.iter().find_map(|event| serde_json::from_slice(&event.bytes()).ok())
}

impl Report {
    /// The report for people.
    pub fn to_text(&self) -> String {
        let drained = match self.drained_after_ms {
            Some(ms) => format!("what had waited was gone {:.1} s later", ms as f64 / 1000.0),
            None => "what had waited is not gone yet".to_owned(),
        };
        format!(
            "the link of {} to its parent was cut for {} s\n{} batches waited at its end\n\
             the link was up again after {:.1} s; {drained}\n",
            self.cut,
            self.seconds,
            self.buffered,
            self.healed_after_ms as f64 / 1000.0,
        )
    }
}
