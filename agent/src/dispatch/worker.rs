//! A node's part: runs what was handed down, and reports how it ended as an event.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use async_nats::jetstream::{self, Message};
use hierarchy::{
    Path, Refusal,
    link::{ChildMessage, ParentMessage, message::Offer},
    subject::{self, Speaker},
    task::{TaskOutcome, TaskReport, TaskSpec},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    CREDIT_EVERY, CREDIT_VALID_MS, DispatchError,
    custody::Custody,
    queue::{self, Queue, STILL_WORKING_EVERY},
};
use crate::{
    clock, config,
    dead_letters::{DeadLetter, DeadLetters},
    metrics::{Metrics, Reason},
    runner::{Job, Outcome, Progress, process},
};

/// What the worker needs.
pub struct WorkerParts {
    /// Where this agent stands.
    pub path: Path,
    /// The node's queue, and where reports are published.
    pub js: jetstream::Context,
    /// Puts tasks into the queue.
    pub custody: Custody,
    /// What can be run.
    pub runners: Vec<config::Runner>,
    /// What the parent hands down.
    pub from_parent: mpsc::Receiver<ParentMessage>,
    /// Messages to the parent.
    pub to_parent: mpsc::Sender<ChildMessage>,
    /// For what cannot be run.
    pub dead_letters: DeadLetters,
    /// What is counted.
    pub metrics: Metrics,
}

type Attempt = (String, u32);

/// A try that ended; without a report where this agent cut it short.
struct Ended {
    attempt: Attempt,
    report: Option<TaskReport>,
}

/// How often the progress of one task goes up, at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// The worker.
pub struct Worker {
    parts: WorkerParts,
    /// Tries in this node's custody, with the runner that serves each.
    custody: HashMap<Attempt, usize>,
    /// The queue's messages of tries that wait or run.
    held: HashMap<Attempt, Message>,
    waiting: VecDeque<(TaskSpec, usize)>,
    running: JoinSet<Ended>,
    busy: Vec<usize>,
    offer_number: u64,
}

impl Worker {
    /// Runs tasks until cancelled. A task that is cut short then stays in the queue.
    pub async fn run(parts: WorkerParts, cancel: CancellationToken) -> Result<(), DispatchError> {
        let slots: usize = parts.runners.iter().map(|runner| runner.slots).sum();
        let mut queue = Queue::new(parts.js.clone(), (slots * 2).max(16));
        let mut worker = Worker {
            busy: vec![0; parts.runners.len()],
            parts,
            custody: HashMap::new(),
            held: HashMap::new(),
            waiting: VecDeque::new(),
            running: JoinSet::new(),
            offer_number: 0,
        };
        let mut offer = tokio::time::interval(CREDIT_EVERY);
        let mut working = tokio::time::interval(STILL_WORKING_EVERY);
        loop {
            worker.start_waiting(&cancel);
            tokio::select! {
                () = cancel.cancelled() => break,
                message = queue.next() => worker.on_queued(message).await,
                Some(said) = worker.parts.from_parent.recv() => worker.on_parent(said).await,
                Some(Ok(ended)) = worker.running.join_next(), if !worker.running.is_empty() => {
                    worker.on_ended(ended).await;
                    worker.offer_upward();
                }
                _ = offer.tick() => worker.offer_upward(),
                _ = working.tick() => worker.keep_held().await,
            }
        }
        // The runners watch the same token and end their processes.
        while worker.running.join_next().await.is_some() {}
        Ok(())
    }

    async fn on_queued(&mut self, message: Message) {
        let spec = match queue::queued_task(&message) {
            Some(Ok(spec)) => spec,
            Some(Err((reason, detail))) => return self.refuse(&message, reason, detail).await,
            None => {
                let detail = "tasks are submitted at global in this version".to_owned();
                return self.refuse(&message, Refusal::NotPermitted, detail).await;
            }
        };
        let attempt = (spec.id.clone(), spec.attempt);
        if self.held.insert(attempt.clone(), message.clone()).is_some() {
            // Delivered again while it waits or runs: the newer message is the one to acknowledge.
            return;
        }
        match self.runner_for(&spec) {
            Some(runner) => {
                self.custody.insert(attempt, runner);
                self.waiting.push_back((spec, runner));
            }
            None => {
                self.held.remove(&attempt);
                let detail = format!("no runner here serves {}", spec.subject());
                self.refuse(&message, Refusal::Unroutable, detail).await;
            }
        }
    }

    async fn on_parent(&mut self, said: ParentMessage) {
        let ParentMessage::Handoff { task, attempt, spec } = said else { return };
        let refused = self.take(spec.get()).await.err();
        let _ = self.parts.to_parent.send(ChildMessage::HandoffReply { task, attempt, refused }).await;
    }

    async fn take(&mut self, spec: &str) -> Result<(), String> {
        let spec: TaskSpec = serde_json::from_str(spec).map_err(|error| error.to_string())?;
        let attempt = (spec.id.clone(), spec.attempt);
        let runner = self.runner_for(&spec).ok_or("no runner here serves it")?;
        // A try that was taken before is counted already, or has ended and must not take a slot again.
        if self.parts.custody.was_taken(&spec).await.map_err(|error| error.to_string())? {
            return Ok(());
        }
        if self.free(runner) == 0 {
            return Err("no room".into());
        }
        self.parts.custody.take(&spec).await.map_err(|error| error.to_string())?;
        self.custody.insert(attempt, runner);
        Ok(())
    }

    fn start_waiting(&mut self, cancel: &CancellationToken) {
        for _ in 0..self.waiting.len() {
            let Some((spec, runner)) = self.waiting.pop_front() else { return };
            if self.busy[runner] >= self.parts.runners[runner].slots {
                self.waiting.push_back((spec, runner));
                continue;
            }
            self.busy[runner] += 1;
            self.parts.metrics.tasks_running.inc();
            tracing::info!(
                task = spec.id,
                attempt = spec.attempt,
                subject = spec.subject(),
                "running a task"
            );
            let runner = self.parts.runners[runner].clone();
            self.running.spawn(run_one(
                self.parts.js.clone(),
                spec,
                runner,
                self.parts.path.clone(),
                cancel.clone(),
            ));
        }
    }

    async fn on_ended(&mut self, ended: Ended) {
        let Ended { attempt, report } = ended;
        let runner = self.custody.get(&attempt).copied();
        if let Some(runner) = runner {
            self.busy[runner] = self.busy[runner].saturating_sub(1);
        }
        self.parts.metrics.tasks_running.dec();
        let Some(report) = report else { return };
        let outcome = match &report.outcome {
            TaskOutcome::Succeeded { .. } => "succeeded",
            TaskOutcome::Failed { reason, .. } => {
                tracing::warn!(task = attempt.0, attempt = attempt.1, reason, "a task failed");
                "failed"
            }
        };
        self.parts.metrics.tasks.get_or_create(&Reason { reason: outcome.into() }).inc();
        let subject = Speaker::of(&self.parts.path).with_tail(subject::TASK_RESULT);
        let Ok(body) = serde_json::to_vec(&report) else { return };
        let published = match self.parts.js.publish(subject, body.into()).await {
            Ok(ack) => ack.await.map(|_| ()),
            Err(error) => Err(error),
        };
        let held = self.held.remove(&attempt);
        self.custody.remove(&attempt);
        match (published, held) {
            (Ok(()), Some(message)) => queue::done(&message).await,
            (Ok(()), None) => {}
            // Not acknowledged, it is delivered again and runs once more: better twice than never.
            (Err(error), _) => tracing::warn!(%error, task = attempt.0, "a result could not be stored"),
        }
    }

    fn offer_upward(&mut self) {
        self.offer_number += 1;
        let offers = self.parts.runners.iter().enumerate().map(|(index, runner)| Offer {
            agent_type: runner.agent_type.to_string(),
            task: runner.task.to_string(),
            slots: self.free(index) as u32,
        });
        let credit = ChildMessage::Credit {
            number: self.offer_number,
            offers: offers.collect(),
            valid_for_ms: CREDIT_VALID_MS,
        };
        let _ = self.parts.to_parent.try_send(credit);
    }

    async fn keep_held(&self) {
        for message in self.held.values() {
            queue::still_working(message).await;
        }
    }

    fn free(&self, runner: usize) -> usize {
        let taken = self.custody.values().filter(|&&serving| serving == runner).count();
        self.parts.runners[runner].slots.saturating_sub(taken)
    }

    fn runner_for(&self, spec: &TaskSpec) -> Option<usize> {
        self.parts.runners.iter().position(|runner| runner.serves(&spec.agent_type, &spec.task))
    }

    async fn refuse(&self, message: &Message, reason: Refusal, detail: String) {
        tracing::warn!(subject = %message.subject, %reason, detail, "a task is refused");
        self.parts.dead_letters.bury(DeadLetter {
            origin: self.parts.path.clone(),
            reason,
            detail,
            subject: message.subject.to_string(),
            bytes: message.payload.clone(),
        });
        queue::done(message).await;
    }
}

async fn run_one(
    js: jetstream::Context,
    spec: TaskSpec,
    runner: config::Runner,
    node: Path,
    cancel: CancellationToken,
) -> Ended {
    let started = clock::wall();
    let attempt = (spec.id.clone(), spec.attempt);
    let job = Job {
        task_id: spec.id.clone(),
        attempt: spec.attempt,
        agent_type: spec.agent_type.clone(),
        task: spec.task.clone(),
        payload: spec.payload.clone(),
        metadata: spec.metadata.clone(),
        epoch: spec.attempt.into(),
        idempotency_key: spec.id.clone(),
    };
    let (progress, said) = mpsc::channel(16);
    let process = (&runner).into();
    let tell = tell_progress(js, &spec, &node, said);
    let (outcome, ()) = tokio::join!(process::run(&process, job, progress, cancel), tell);
    let outcome = match outcome {
        Outcome::Succeeded { result } => TaskOutcome::Succeeded { result },
        Outcome::Failed { reason, log_tail } => TaskOutcome::Failed { reason: reason.to_string(), log_tail },
        Outcome::Cancelled => return Ended { attempt, report: None },
    };
    let finished = clock::wall();
    let (task, home) = (spec.id, spec.home);
    Ended {
        attempt,
        report: Some(TaskReport { task, attempt: spec.attempt, home, node, started, finished, outcome }),
    }
}

/// Publishes what a runner says of its progress, as events; ends with the runner.
async fn tell_progress(
    js: jetstream::Context,
    spec: &TaskSpec,
    node: &Path,
    mut said: mpsc::Receiver<Progress>,
) {
    let subject = Speaker::of(node).with_tail(subject::TASK_PROGRESS);
    while let Some(mut progress) = said.recv().await {
        // What came meanwhile is newer.
        while let Ok(newer) = said.try_recv() {
            progress = newer;
        }
        let body = serde_json::json!({
            "task": spec.id, "attempt": spec.attempt, "fraction": progress.fraction, "message": progress.message,
        });
        let _ = js.client().publish(subject.clone(), body.to_string().into()).await;
        tokio::time::sleep(PROGRESS_EVERY).await;
    }
}
