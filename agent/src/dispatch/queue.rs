//! The level's work queue: what it delivers, and keeping it told that work goes on.

use std::time::Duration;

use async_nats::jetstream::{
    self, AckKind, Message,
    consumer::{AckPolicy, pull},
};
use futures_util::StreamExt as _;
use hierarchy::{Refusal, task::TaskSpec};

use super::{AGENT_COORDINATION, CONSUMER, DispatchError, TASK_HEADER};

/// A message that nobody speaks for this long is delivered again: the agent was restarted.
const ACK_WAIT: Duration = Duration::from_secs(20);
/// How often the queue is told that a message is still being worked on.
pub(super) const STILL_WORKING_EVERY: Duration = Duration::from_secs(6);
/// How long a broken reader waits.
const RETRY: Duration = Duration::from_millis(500);

/// Reads the work queue; goes on by itself when the server was away.
pub(super) struct Queue {
    js: jetstream::Context,
    messages: Option<pull::Stream>,
    at_once: i64,
}

impl Queue {
    /// The queue's reader; at most `at_once` messages are delivered and not acknowledged.
    pub(super) fn new(js: jetstream::Context, at_once: usize) -> Queue {
        Queue { js, messages: None, at_once: at_once as i64 }
    }

    /// The next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> Message {
        loop {
            if let Some(messages) = &mut self.messages {
                match messages.next().await {
                    Some(Ok(message)) => return message,
                    other => {
                        tracing::debug!(?other, "the work queue's reader ended");
                        self.messages = None;
                    }
                }
            }
            match self.open().await {
                Ok(messages) => self.messages = Some(messages),
                Err(error) => {
                    tracing::debug!(%error, "the work queue cannot be read yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn open(&self) -> Result<pull::Stream, DispatchError> {
        let store = DispatchError::on("work queue");
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: self.at_once,
            ..Default::default()
        };
        let stream =
            self.js.get_stream_no_info(AGENT_COORDINATION).await.map_err(|e| store(e.to_string()))?;
        let consumer = stream.create_consumer(config).await.map_err(|e| store(e.to_string()))?;
        consumer.stream().max_messages_per_batch(64).messages().await.map_err(|e| store(e.to_string()))
    }
}

/// A task as an agent queued it, or `None` for a submission.
pub(super) fn queued_task(message: &Message) -> Option<Result<TaskSpec, (Refusal, String)>> {
    message.headers.as_ref()?.get(TASK_HEADER)?;
    let spec = serde_json::from_slice(&message.payload);
    Some(spec.map_err(|error| (Refusal::Malformed, format!("not a queued task: {error}"))))
}

/// Says that the message is still being worked on. A lost word costs a second delivery, which is
/// recognised.
pub(super) async fn still_working(message: &Message) {
    if let Err(error) = message.ack_with(AckKind::Progress).await {
        tracing::debug!(%error, "the work queue was not told that work goes on");
    }
}

/// The message is done with. Waits for the server's word.
pub(super) async fn done(message: &Message) {
    if let Err(error) = message.double_ack().await {
        tracing::warn!(%error, "a finished task may be delivered again");
    }
}
