//! A coordinator's part: matches the tasks in its queue with the room that its children offer.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::Message;
use coordinator::dispatch::{Attempt, DispatchOutput, Dispatcher, MAX_HELD};
use hierarchy::{
    Path, Refusal,
    envelope::MAX_EVENT_BYTES,
    link::{ChildMessage, ParentMessage},
    task::TaskSpec,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    CREDIT_EVERY, CREDIT_VALID_MS, DispatchError,
    custody::Custody,
    queue::{self, Queue, STILL_WORKING_EVERY},
    records::{Records, TaskRecord, TaskState},
};
use crate::{
    clock::{self, Monotonic},
    dead_letters::{DeadLetter, DeadLetters},
    link::downlink::{ToChild, WorkFromChild, handoff},
};

/// What the hub needs.
pub struct HubParts {
    /// Where this agent stands.
    pub path: Path,
    /// The level's queue.
    pub js: async_nats::jetstream::Context,
    /// Puts tasks into it.
    pub custody: Custody,
    /// Records of the tasks whose home this is.
    pub records: Records,
    /// What children say about work.
    pub work: mpsc::Receiver<WorkFromChild>,
    /// Messages to children.
    pub to_children: mpsc::Sender<ToChild>,
    /// What the parent hands down; never anything at global.
    pub from_parent: mpsc::Receiver<ParentMessage>,
    /// Messages to the parent; `None` at global.
    pub to_parent: Option<mpsc::Sender<ChildMessage>>,
    /// For what cannot be dispatched.
    pub dead_letters: DeadLetters,
}

/// The hub.
pub struct Hub {
    parts: HubParts,
    machine: Dispatcher,
    clock: Monotonic,
    held: HashMap<Attempt, Message>,
    /// Revisions of the notes to whom tries go.
    noted: HashMap<Attempt, u64>,
    offer_number: u64,
}

impl Hub {
    /// Dispatches until cancelled.
    pub async fn run(parts: HubParts, cancel: CancellationToken) -> Result<(), DispatchError> {
        let mut queue = Queue::new(parts.js.clone(), MAX_HELD);
        let mut hub = Hub {
            parts,
            machine: Dispatcher::default(),
            clock: Monotonic::new(),
            held: HashMap::new(),
            noted: HashMap::new(),
            offer_number: 0,
        };
        let mut offer = tokio::time::interval(CREDIT_EVERY);
        let mut working = tokio::time::interval(STILL_WORKING_EVERY);
        loop {
            while let Some(output) = hub.machine.poll(hub.clock.now()) {
                hub.perform(output).await;
            }
            let wake = hub
                .machine
                .timeout()
                .map_or(Duration::from_secs(60), |at| at.saturating_sub(hub.clock.now()));
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                Some(work) = hub.parts.work.recv() => hub.on_child(work).await,
                Some(said) = hub.parts.from_parent.recv() => hub.on_parent(said).await,
                message = queue.next(), if hub.machine.room() > 0 => hub.on_queued(message).await,
                _ = offer.tick() => hub.offer_upward().await,
                _ = working.tick() => hub.keep_held().await,
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    async fn on_queued(&mut self, message: Message) {
        let spec = match queue::queued_task(&message) {
            Some(spec) => spec,
            None => self.accept_submission(&message).await,
        };
        let spec = match spec {
            Ok(spec) => spec,
            Err((reason, detail)) => return self.refuse(&message, reason, detail).await,
        };
        let attempt = (spec.id.clone(), spec.attempt);
        let same = |held: &Message| {
            held.info().map(|i| i.stream_sequence).ok() == message.info().map(|i| i.stream_sequence).ok()
        };
        if self.held.get(&attempt).is_some_and(|held| !same(held)) {
            // The same task was submitted twice; one of them is enough.
            return queue::done(&message).await;
        }
        match self.parts.custody.handed_to(&spec).await {
            Ok(Some(noted)) => {
                self.noted.insert(attempt.clone(), noted.revision);
                self.machine.resume(spec, noted.child, self.clock.now());
            }
            Ok(None) => self.machine.submit(spec),
            // It stays in the queue and is delivered again.
            Err(error) => return tracing::warn!(%error, "a task waits"),
        }
        self.held.insert(attempt, message);
    }

    /// A task that somebody published here. Its record is made first; who submits twice has one task.
    async fn accept_submission(&mut self, message: &Message) -> Result<TaskSpec, (Refusal, String)> {
        if self.parts.to_parent.is_some() {
            return Err((Refusal::NotPermitted, "tasks are submitted at global in this version".into()));
        }
        if message.payload.len() > MAX_EVENT_BYTES {
            return Err((Refusal::Oversized, "larger than 1 MiB, so no hand-off could carry it".into()));
        }
        let place = message.info().map_or(0, |info| info.stream_sequence);
        let fallback = format!("task-{}-{place}", self.parts.path.id());
        let spec =
            TaskSpec::from_submission(&message.subject, &message.payload, self.parts.path.clone(), fallback)?;
        let record = TaskRecord { spec: spec.clone(), submitted: clock::wall(), state: TaskState::Queued };
        match self.parts.records.create(&record).await {
            Ok(true) => tracing::debug!(task = spec.id, "a task is submitted"),
            Ok(false) => tracing::debug!(task = spec.id, "a task is submitted or delivered again"),
            Err(error) => tracing::warn!(%error, task = spec.id, "a task has no record yet"),
        }
        Ok(spec)
    }

    async fn on_child(&mut self, work: WorkFromChild) {
        let now = self.clock.now();
        match work {
            WorkFromChild::Credit { child, number, offers, valid_for } => {
                self.machine.on_credit(child, number, offers, valid_for, now);
            }
            WorkFromChild::HandoffReply { child, task, attempt, refused } => {
                if let Some(reason) = &refused {
                    tracing::debug!(%child, task, reason, "a hand-off is refused");
                }
                if let Some(output) = self.machine.on_reply(&child, (task, attempt), refused.is_some()) {
                    self.perform(output).await;
                }
            }
        }
    }

    async fn on_parent(&mut self, said: ParentMessage) {
        let ParentMessage::Handoff { task, attempt, spec } = said else { return };
        let refused = match serde_json::from_str::<TaskSpec>(spec.get()) {
            Ok(spec) => self.parts.custody.take(&spec).await.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(parent) = &self.parts.to_parent {
            let _ = parent.send(ChildMessage::HandoffReply { task, attempt, refused }).await;
        }
    }

    async fn perform(&mut self, output: DispatchOutput) {
        match output {
            DispatchOutput::Handoff { child, task } => {
                let attempt = (task.id.clone(), task.attempt);
                let after = self.noted.get(&attempt).copied().unwrap_or(0);
                match self.parts.custody.note_handed(&task, &child, after).await {
                    Ok(noted) => {
                        self.noted.insert(attempt.clone(), noted.revision);
                        if noted.child != child {
                            tracing::info!(task = task.id, child = %noted.child, "was handed down already");
                            return self.machine.goes_to(&attempt, noted.child, self.clock.now());
                        }
                    }
                    Err(error) => return tracing::warn!(%error, task = task.id, "a hand-off waits"),
                }
                let Ok(spec) = serde_json::value::to_raw_value(&task) else { return };
                tracing::debug!(%child, task = task.id, attempt = task.attempt, "handing down");
                let _ = self.parts.to_children.send(handoff(child, task.id, task.attempt, spec)).await;
            }
            DispatchOutput::Release(attempt) => {
                self.noted.remove(&attempt);
                if let Some(message) = self.held.remove(&attempt) {
                    queue::done(&message).await;
                }
            }
        }
    }

    async fn offer_upward(&mut self) {
        let Some(parent) = &self.parts.to_parent else { return };
        self.offer_number += 1;
        let offers = self.machine.offers(self.clock.now());
        let credit =
            ChildMessage::Credit { number: self.offer_number, offers, valid_for_ms: CREDIT_VALID_MS };
        // While the link is down offers are worth nothing; they must not pile up.
        let _ = parent.try_send(credit);
    }

    async fn keep_held(&self) {
        for message in self.held.values() {
            queue::still_working(message).await;
        }
    }

    async fn refuse(&mut self, message: &Message, reason: Refusal, detail: String) {
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
