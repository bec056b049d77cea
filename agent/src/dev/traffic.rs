//! Example traffic: events at every node, tasks at global.

use std::{
    collections::BTreeMap,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, jetstream};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use hierarchy::{Level, Path, envelope::Parsed, subject::Speaker};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::fleet::{Fleet, FleetError};
use crate::{clock, supervise::Tasks};

/// The example worker, so that `agent dev` needs no file beside the binary.
const WORKER: &str = include_str!("../../../examples/workers/yield_forecast.py");
/// What stands in for it where there is no Python: any program that speaks JSON lines is a worker.
const SHELL_WORKER: &str = "cat >/dev/null; echo '{\"progress\":0.5,\"message\":\"half way\"}'; echo '{\"result\":{\"forecast\":[]}}'";
/// How often a task is submitted.
const TASK_EVERY: Duration = Duration::from_secs(2);
/// Events that wait for the store's word, for each node.
const UNACKED: usize = 256;
/// The subject that example events end in.
pub const TICKS: &str = "ticks";

/// The program that runs the example tasks.
pub struct Worker {
    command: Vec<String>,
}

impl Worker {
    /// Writes the worker into `dir` and chooses how it is run.
    pub fn install(dir: &FilePath) -> Result<Worker, FleetError> {
        let file: PathBuf = dir.join("yield_forecast.py");
        std::fs::write(&file, WORKER)
            .map_err(|error| FleetError::Plan(format!("{}: {error}", file.display())))?;
        let python = std::process::Command::new("python3").arg("--version").output();
        let command = match python {
            Ok(output) if output.status.success() => vec!["python3".to_owned(), file.display().to_string()],
            _ => {
                eprintln!("python3 is not to be found: the example tasks run a shell script instead");
                vec!["sh".to_owned(), "-c".to_owned(), SHELL_WORKER.to_owned()]
            }
        };
        Ok(Worker { command })
    }

    /// The section of a node's configuration.
    pub fn runner(&self) -> String {
        let command: Vec<String> = self.command.iter().map(|part| format!("{part:?}")).collect();
        format!(
            "\n[[runner]]\nagent_type = \"yield\"\ntask = \"*\"\ncommand = [{}]\nslots = 2\ntimeout = \"1m\"\n",
            command.join(", ")
        )
    }
}

/// What was sent.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// Events that each node's store has taken.
    pub events: BTreeMap<Path, u64>,
    /// Tasks submitted.
    pub tasks_submitted: u64,
    /// Tasks that came back with a result.
    pub tasks_completed: u64,
    /// Tasks that came back without.
    pub tasks_failed: u64,
}

#[derive(Debug, Default)]
struct TaskCounts {
    submitted: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
}

/// The traffic while it runs.
pub struct Traffic {
    events: BTreeMap<Path, Arc<AtomicU64>>,
    tasks: Arc<TaskCounts>,
    publishing: Tasks,
    answering: Tasks,
}

impl Traffic {
    /// Starts `rate` events a second at each node, and a task every two seconds at global.
    pub async fn start(fleet: &Fleet, rate: u32) -> Result<Traffic, FleetError> {
        let mut publishing = Tasks::new(CancellationToken::new());
        let mut answering = Tasks::new(CancellationToken::new());
        let mut events = BTreeMap::new();
        for node in fleet.at(Level::Node) {
            let client = fleet.connect(&node).await?;
            let taken = Arc::<AtomicU64>::default();
            events.insert(node.clone(), taken.clone());
            publishing.spawn("publisher", publish(client, node, rate, taken, publishing.token()));
        }
        let global = fleet.connect(&Path::global()).await?;
        let tasks = Arc::<TaskCounts>::default();
        let inbox = global.new_inbox();
        let answers = global
            .subscribe(inbox.clone())
            .await
            .map_err(|error| FleetError::Nats { path: Path::global(), reason: error.to_string() })?;
        answering.spawn("answers", count_answers(answers, tasks.clone(), answering.token()));
        publishing.spawn("tasks", submit(global, inbox, tasks.clone(), publishing.token()));
        Ok(Traffic { events, tasks, publishing, answering })
    }

    /// What was sent so far.
    pub fn so_far(&self) -> Sent {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Sent {
            events: self.events.iter().map(|(node, taken)| (node.clone(), load(taken))).collect(),
            tasks_submitted: load(&self.tasks.submitted),
            tasks_completed: load(&self.tasks.completed),
            tasks_failed: load(&self.tasks.failed),
        }
    }

    /// Stops publishing, waits for the answers that are still to come, and tells what was sent.
    pub async fn stop(self, patience: Duration) -> Sent {
        let Traffic { events, tasks, publishing, answering } = self;
        publishing.stop(Duration::from_secs(5)).await;
        let deadline = tokio::time::Instant::now() + patience;
        let open = || {
            let answered = tasks.completed.load(Ordering::Relaxed) + tasks.failed.load(Ordering::Relaxed);
            answered < tasks.submitted.load(Ordering::Relaxed)
        };
        while open() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        answering.stop(Duration::from_secs(1)).await;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Sent {
            events: events.iter().map(|(node, taken)| (node.clone(), load(taken))).collect(),
            tasks_submitted: load(&tasks.submitted),
            tasks_completed: load(&tasks.completed),
            tasks_failed: load(&tasks.failed),
        }
    }
}

/// Publishes at a steady rate. An event counts once the node's store has taken it; one whose receipt is
/// lost is published again, so its number may be stored twice only if the server was lost in between.
async fn publish(
    client: Client,
    node: Path,
    rate: u32,
    taken: Arc<AtomicU64>,
    cancel: CancellationToken,
) -> Result<(), String> {
    let js = jetstream::new(client);
    let subject = Speaker::of(&node).with_tail(TICKS);
    let mut timer = tokio::time::interval(Duration::from_secs(1) / rate.min(1000));
    let at_once = rate.div_ceil(1000);
    let mut unacked = FuturesUnordered::new();
    let mut number = 0_u64;
    while !cancel.is_cancelled() {
        timer.tick().await;
        for _ in 0..at_once {
            number += 1;
            let body = json!({ "origin": node, "number": number, "sentAt": clock::wall().0, "price": 2847.52 + (number % 100) as f64 / 100.0 });
            let ack = js
                .publish(subject.clone(), Bytes::from(body.to_string()))
                .await
                .map_err(|e| e.to_string())?;
            unacked.push(ack.into_future());
        }
        // The receipts at hand, and beyond the bound one more for each event.
        while let Some(Some(ack)) = unacked.next().now_or_never() {
            ack.map_err(|e| e.to_string())?;
        }
        while unacked.len() > UNACKED
            && let Some(ack) = unacked.next().await
        {
            ack.map_err(|e| e.to_string())?;
        }
        taken.store(number - unacked.len() as u64, Ordering::Relaxed);
    }
    while let Some(ack) = unacked.next().await {
        ack.map_err(|e| e.to_string())?;
    }
    taken.store(number, Ordering::Relaxed);
    Ok(())
}

async fn submit(
    client: Client,
    reply_to: String,
    tasks: Arc<TaskCounts>,
    cancel: CancellationToken,
) -> Result<(), String> {
    let js = jetstream::new(client);
    let mut timer = tokio::time::interval(TASK_EVERY);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = timer.tick() => {}
        }
        let number = tasks.submitted.load(Ordering::Relaxed);
        let history: Vec<f64> = (0..80).map(|n| 5.0 + (f64::from(n) / 7.0 + number as f64).sin()).collect();
        let body = json!({
            "messageId": uuid::Uuid::now_v7(),
            "messageType": "YieldAnalysisJob",
            "subject": "lucent.agents.yield.analysis",
            "replyTo": reply_to,
            "payload": { "history": history, "horizon": 6 },
            "metadata": { "max_retries": 2, "priority": "normal" },
        });
        let ack = js
            .publish("lucent.agents.yield.analysis", body.to_string().into())
            .await
            .map_err(|e| e.to_string())?;
        ack.await.map_err(|e| e.to_string())?;
        tasks.submitted.fetch_add(1, Ordering::Relaxed);
    }
}

async fn count_answers(
    mut answers: async_nats::Subscriber,
    tasks: Arc<TaskCounts>,
    cancel: CancellationToken,
) -> Result<(), String> {
    loop {
        let answer = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            answer = answers.next() => answer.ok_or("the connection to global ended")?,
        };
        let succeeded = Parsed::parse(&answer.payload)
            .ok()
            .and_then(|envelope| serde_json::from_str::<serde_json::Value>(envelope.payload().get()).ok())
            .is_some_and(|payload| payload["state"] == "succeeded");
        let counter = if succeeded { &tasks.completed } else { &tasks.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
