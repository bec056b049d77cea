//! Messages of a stream in order, with a bound on the bytes that are at hand and not only on their number:
//! a thousand large ones would be hundreds of megabytes.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use futures_util::StreamExt as _;

/// Messages asked for at a time.
const MESSAGES: usize = 1_000;
/// The server speaks at least so often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a request waits for messages.
const EXPIRES: Duration = Duration::from_secs(30);
/// A reader that asks for nothing for so long is forgotten by the server.
const INACTIVE: Duration = Duration::from_secs(300);

/// Reads a stream in order. Once it fails it is to be opened again behind the last place that was read.
pub struct InOrder {
    messages: pull::Stream,
    /// How many the server has sent.
    sent: u64,
}

impl InOrder {
    /// Begins behind a place. So many bytes are asked for at a time, and half as many again may be at hand. It
    /// must be more than the largest message, which would be passed over.
    pub async fn open<I>(stream: &Stream<I>, read: u64, bytes: usize) -> Result<InOrder, String> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: read + 1 },
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
        let asking = consumer.stream().max_messages_per_batch(MESSAGES).max_bytes_per_batch(bytes);
        let messages = asking.heartbeat(HEARTBEAT).expires(EXPIRES).messages().await;
        Ok(InOrder { messages: messages.map_err(|e| e.to_string())?, sent: 0 })
    }

    /// The next message. Cancel-safe.
    pub async fn next(&mut self) -> Result<jetstream::Message, String> {
        let message = match self.messages.next().await {
            Some(message) => message.map_err(|e| e.to_string())?,
            None => return Err("the server ended it".to_owned()),
        };
        let number = message.info().map_err(|e| e.to_string())?.consumer_sequence;
        if number != self.sent + 1 {
            return Err(format!("message {number} came after {}", self.sent));
        }
        self.sent = number;
        Ok(message)
    }
}
