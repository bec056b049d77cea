//! Where tasks are submitted: commits the first result, retries failures, answers the submitter.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Duration};

use async_nats::jetstream::{
    self, AckKind, Message,
    consumer::{AckPolicy, pull},
};
use futures_util::StreamExt as _;
use hierarchy::{
    Lane, Path, Refusal,
    envelope::{Draft, Parsed},
    link::Batch,
    signing::Signer,
    subject,
    task::{self, TaskOutcome, TaskReport, TaskSpec},
};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    CONSUMER, DispatchError,
    custody::Custody,
    records::{Records, TaskState},
};
use crate::{
    clock::{MeshTime, sleep_until},
    dead_letters::{DeadLetter, DeadLetters},
    link::HIERARCHY,
    metrics::{Metrics, Reason},
};

/// Wait before something that failed for want of the server is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What the home needs.
pub struct HomeParts {
    /// Where this agent stands.
    pub path: Path,
    /// Where reports arrive and answers are published.
    pub js: jetstream::Context,
    /// Signs answers.
    pub signer: Arc<Signer>,
    /// What to date them with.
    pub time: MeshTime,
    /// The tasks' records.
    pub records: Records,
    /// Puts the next try into the queue.
    pub custody: Custody,
    /// For tasks that are given up.
    pub dead_letters: DeadLetters,
    /// What is counted.
    pub metrics: Metrics,
}

/// The home.
pub struct Home {
    parts: HomeParts,
    /// Tasks whose next try is due, soonest first; a step of the wall clock delays none.
    due: BinaryHeap<Reverse<(Instant, String)>>,
}

impl Home {
    /// Collects results until cancelled.
    pub async fn run(parts: HomeParts, cancel: CancellationToken) -> Result<(), DispatchError> {
        let mut home = Home { due: BinaryHeap::new(), parts };
        while let Err(error) = home.recall().await {
            tracing::warn!(%error, "the tasks that wait for another try are not known yet");
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        while !cancel.is_cancelled() {
            match home.open().await {
                Ok(mut reports) => home.collect(&mut reports, &cancel).await,
                Err(error) => tracing::debug!(%error, "reports cannot be read yet"),
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        Ok(())
    }

    async fn recall(&mut self) -> Result<(), DispatchError> {
        let now = self.parts.time.now();
        for record in self.parts.records.retrying().await? {
            if let TaskState::Retrying { due, .. } = record.state {
                let wait = due.since(now).min(task::LONGEST_WAIT);
                self.due.push(Reverse((Instant::now() + wait, record.spec.id)));
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<pull::Stream, DispatchError> {
        let store = DispatchError::on("event stream");
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            filter_subject: format!("lucent.hierarchy.*.*.{}", subject::TASK_RESULT),
            ..Default::default()
        };
        let stream = self.parts.js.get_stream_no_info(HIERARCHY).await.map_err(|e| store(e.to_string()))?;
        let consumer = stream.create_consumer(config).await.map_err(|e| store(e.to_string()))?;
        consumer.messages().await.map_err(|e| store(e.to_string()))
    }

    /// Until the reader breaks or the agent stops.
    async fn collect(&mut self, reports: &mut pull::Stream, cancel: &CancellationToken) {
        loop {
            let next_due = self.due.peek().map(|Reverse((due, _))| *due);
            tokio::select! {
                () = cancel.cancelled() => return,
                message = reports.next() => match message {
                    Some(Ok(message)) => self.on_message(message).await,
                    _ => return,
                },
                () = sleep_until(next_due) => self.start_due().await,
            }
        }
    }

    async fn on_message(&mut self, message: Message) {
        for report in reports_in(&message.payload) {
            if report.home != self.parts.path {
                continue;
            }
            if let Err(error) = self.on_report(report).await {
                tracing::warn!(%error, "a result waits to be committed");
                let _ = message.ack_with(AckKind::Nak(Some(RETRY))).await;
                return;
            }
        }
        let _ = message.ack().await;
    }

    /// The first result is committed; whatever else is said of the task afterwards changes nothing.
    async fn on_report(&mut self, report: TaskReport) -> Result<(), DispatchError> {
        let Some((mut record, revision)) = self.parts.records.get(&report.task).await? else {
            tracing::debug!(task = report.task, "a result of a task that has no record here");
            return Ok(());
        };
        if record.state.is_final() || report.attempt != record.spec.attempt {
            return Ok(());
        }
        match &report.outcome {
            TaskOutcome::Succeeded { result } => {
                record.state = TaskState::Succeeded { node: report.node.clone() };
                self.parts.records.update(&record, revision).await?;
                self.count("completed");
                self.answer(&record.spec, json!({ "state": "succeeded", "result": result }), &report).await;
            }
            TaskOutcome::Failed { reason, log_tail } => match record.spec.retry(jitter()) {
                Some((next, wait)) => {
                    let due = self.parts.time.now().plus(wait);
                    tracing::info!(
                        task = record.spec.id,
                        attempt = record.spec.attempt,
                        reason,
                        ?wait,
                        "a task is tried again"
                    );
                    record.state = TaskState::Retrying { due, reason: reason.clone() };
                    record.spec = next;
                    self.parts.records.update(&record, revision).await?;
                    self.due.push(Reverse((Instant::now() + wait, record.spec.id)));
                }
                None => {
                    record.state = TaskState::Dead { reason: reason.clone() };
                    self.parts.records.update(&record, revision).await?;
                    self.count("dead");
                    self.bury(&record.spec, reason, log_tail);
                    let said = json!({ "state": "dead", "error": reason, "logTail": log_tail });
                    self.answer(&record.spec, said, &report).await;
                }
            },
        }
        Ok(())
    }

    async fn start_due(&mut self) {
        let now = Instant::now();
        while self.due.peek().is_some_and(|Reverse((due, _))| *due <= now)
            && let Some(Reverse((_, task))) = self.due.pop()
        {
            if let Err(error) = self.start_again(&task).await {
                tracing::warn!(%error, task, "the next try waits");
                return self.due.push(Reverse((now + RETRY, task)));
            }
        }
    }

    async fn start_again(&mut self, task: &str) -> Result<(), DispatchError> {
        let Some((mut record, revision)) = self.parts.records.get(task).await? else { return Ok(()) };
        if !matches!(record.state, TaskState::Retrying { .. }) {
            return Ok(());
        }
        // Queued first: a crash between the two queues it again, and the queue knows it by its id.
        self.parts.custody.enqueue(&record.spec).await?;
        record.state = TaskState::Queued;
        self.parts.records.update(&record, revision).await
    }

    /// Tells the result where the submitter waits. The event stream holds the node's own report for who
    /// comes later.
    async fn answer(&self, spec: &TaskSpec, said: serde_json::Value, report: &TaskReport) {
        let mut payload = json!({
            "taskId": spec.id,
            "agentType": spec.agent_type,
            "task": spec.task,
            "attempt": report.attempt,
            "node": report.node,
            "started": report.started.to_string(),
            "finished": report.finished.to_string(),
        });
        if let (Some(payload), serde_json::Value::Object(said)) = (payload.as_object_mut(), said) {
            payload.extend(said);
        }
        let Ok(payload) = serde_json::value::to_raw_value(&payload) else { return };
        let own = format!("lucent.responses.agents.{}", spec.id);
        for subject in std::iter::once(own.as_str()).chain(spec.reply_to.as_deref()) {
            let envelope = self.parts.signer.seal(&Draft {
                message_id: Uuid::now_v7(),
                correlation_id: spec.correlation_id.as_deref().filter(|id| needs_no_escape(id)),
                causation_id: Some(&spec.id),
                timestamp: self.parts.time.stamp(),
                message_type: "TaskResult",
                subject,
                reply_to: None,
                priority: Lane::Normal,
                batch: None,
                payload: &payload,
            });
            if let Err(error) = self.parts.js.client().publish(subject.to_owned(), envelope.bytes).await {
                tracing::warn!(%error, subject, "a result could not be told");
            }
        }
    }

    fn bury(&self, spec: &TaskSpec, reason: &str, log_tail: &str) {
        let bytes = serde_json::to_vec(&json!({ "task": spec, "reason": reason, "logTail": log_tail }));
        self.parts.dead_letters.bury(DeadLetter {
            origin: self.parts.path.clone(),
            reason: Refusal::TriesExhausted,
            detail: format!("task {}: {reason}", spec.id),
            subject: spec.subject(),
            bytes: bytes.unwrap_or_default().into(),
        });
    }

    fn count(&self, outcome: &str) {
        self.parts.metrics.tasks.get_or_create(&Reason { reason: outcome.into() }).inc();
    }
}

/// The reports in a stored batch. It was verified when it was stored; what it says of itself is checked
/// here: a node speaks only for its own tries.
fn reports_in(stored: &[u8]) -> Vec<TaskReport> {
    let Ok(envelope) = Parsed::parse(stored) else { return Vec::new() };
    let Ok(batch) = Batch::read(&envelope) else { return Vec::new() };
    let author = &envelope.identity().path;
    let reports =
        batch.events.iter().filter_map(|event| serde_json::from_slice::<TaskReport>(&event.bytes()).ok());
    reports.filter(|report| report.node == *author).collect()
}

fn needs_no_escape(text: &str) -> bool {
    text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
}

/// A random number from 0 to 1.
fn jitter() -> f64 {
    f64::from(Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX)
}
