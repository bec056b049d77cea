//! Batches on their way into the store.
//!
//! An agent that is alone sends each at once, many under way. Where another replica may write, too, those that
//! wait go together: all of a group are stored, or none, and only if the fence is still the holder's. One
//! group is under way at a time, and behind one that failed nothing is sent. So what is stored of a child has
//! no holes, whatever of it was lost on the way, and readers see nothing that is taken back.

use std::{collections::VecDeque, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
    },
};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use uuid::Uuid;

use crate::link::fences;

/// Most batches of a group, and most bytes of them unless one alone has more.
const GROUP: usize = 128;
const GROUP_BYTES: usize = 4 << 20;
/// The server's headers for messages that are stored together.
const GROUP_ID: &str = "Nats-Batch-Id";
const GROUP_PLACE: &str = "Nats-Batch-Sequence";
const GROUP_END: &str = "Nats-Batch-Commit";
/// A server of a cluster may not be quite done with the group before this one: how often it is asked again.
const BUSY_TRIES: u32 = 20;
const BUSY_WAIT: Duration = Duration::from_millis(3);

/// Something to be stored, with what it is known by.
pub(super) struct Write<K> {
    pub(super) key: K,
    pub(super) stream: &'static str,
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) bytes: Bytes,
}

/// The place of what was stored, or why it was not, or may not have been.
pub(super) type Answer<K> = (K, Result<u64, String>);

/// What was given to the store and not yet answered for.
pub(super) struct Writes<K> {
    js: jetstream::Context,
    fencing: Fencing,
    under_way: FuturesUnordered<BoxFuture<'static, Vec<Answer<K>>>>,
    waiting: VecDeque<Write<K>>,
    answered: VecDeque<Answer<K>>,
    count: usize,
}

#[derive(Clone, Copy)]
enum Fencing {
    /// Nobody else writes.
    Alone,
    /// The place of the own fence.
    Behind(u64),
    /// A write failed: nothing more is taken until there is a new fence.
    Shut,
}

impl<K: Send + Sync + 'static> Writes<K> {
    /// Nothing yet. With the place of a fence writes go in groups behind it.
    pub(super) fn new(js: jetstream::Context, fence: Option<u64>) -> Writes<K> {
        Writes {
            js,
            fencing: fence.map_or(Fencing::Alone, Fencing::Behind),
            under_way: FuturesUnordered::new(),
            waiting: VecDeque::new(),
            answered: VecDeque::new(),
            count: 0,
        }
    }

    /// There is a new fence, and nothing on its way.
    pub(super) fn reopen(&mut self, fence: u64) {
        self.fencing = Fencing::Behind(fence);
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) async fn push(&mut self, write: Write<K>) {
        self.count += 1;
        match self.fencing {
            Fencing::Alone => {
                let Write { key, stream, subject, headers, bytes } = write;
                let message = message(stream, headers, bytes);
                let sent = self.js.send_publish(subject, message).await;
                self.under_way.push(Box::pin(async move {
                    let stored = match sent {
                        Ok(ack) => ack.await.map(|ack| ack.sequence),
                        Err(error) => Err(error),
                    };
                    vec![(key, stored.map_err(|error| error.to_string()))]
                }));
            }
            Fencing::Behind(_) => {
                self.waiting.push_back(write);
                self.send_group();
            }
            Fencing::Shut => self.answered.push_back(refuse(write)),
        }
    }

    /// The next one that was answered for; `None` where nothing is on its way. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Answer<K>> {
        while self.answered.is_empty() {
            let answers = self.under_way.next().await?;
            if matches!(self.fencing, Fencing::Behind(_)) && answers.iter().any(|(_, stored)| stored.is_err())
            {
                self.fencing = Fencing::Shut;
            }
            self.answered.extend(answers);
            if matches!(self.fencing, Fencing::Shut) {
                self.answered.extend(self.waiting.drain(..).map(refuse));
            }
            self.send_group();
        }
        self.count -= 1;
        self.answered.pop_front()
    }

    fn send_group(&mut self) {
        let Fencing::Behind(fence) = self.fencing else { return };
        if !self.under_way.is_empty() || self.waiting.is_empty() {
            return;
        }
        let mut bytes = 0;
        let fitting = self.waiting.iter().take(GROUP).take_while(|write| {
            bytes += write.bytes.len();
            bytes <= GROUP_BYTES
        });
        let count = fitting.count().max(1);
        let group = self.waiting.drain(..count).collect();
        self.under_way.push(Box::pin(store(self.js.clone(), group, fence)));
    }
}

fn refuse<K>(write: Write<K>) -> Answer<K> {
    (write.key, Err("one before it was not stored".into()))
}

fn message(stream: &str, headers: HeaderMap, bytes: Bytes) -> PublishMessage {
    PublishMessage::build().payload(bytes).headers(headers).expected_stream(stream)
}

async fn store<K: Sync>(js: jetstream::Context, group: Vec<Write<K>>, fence: u64) -> Vec<Answer<K>> {
    let mut tries = 0;
    let stored = loop {
        match send(&js, &group, fence).await {
            Err(error) if is_busy(&error) && tries < BUSY_TRIES => {
                tries += 1;
                tokio::time::sleep(BUSY_WAIT).await;
            }
            stored => break stored.map_err(|error| error.to_string()),
        }
    };
    let behind = (0..group.len() as u64).rev();
    let places = group.into_iter().zip(behind);
    places.map(|(write, behind)| (write.key, stored.clone().map(|last| last - behind))).collect()
}

/// Refused, since the server has not finished with the write before. What is refused is not stored.
fn is_busy(error: &PublishError) -> bool {
    use jetstream::ErrorCode;
    use std::error::Error as _;

    let source = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    error.kind() == PublishErrorKind::Other
        && source.is_some_and(|error| error.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
}

/// Stores all or none; the place of the last one.
async fn send<K: Sync>(js: &jetstream::Context, group: &[Write<K>], fence: u64) -> Result<u64, PublishError> {
    let id = Uuid::new_v4().simple().to_string();
    let mut end = None;
    for (at, Write { stream, subject, headers, bytes, .. }) in group.iter().enumerate() {
        let (mut headers, is_last) = (headers.clone(), at + 1 == group.len());
        if at == 0 {
            fences::name_in(&mut headers, fence);
        }
        if group.len() > 1 {
            headers.insert(GROUP_ID, id.as_str());
            headers.insert(GROUP_PLACE, (at + 1).to_string());
        }
        if is_last {
            if group.len() > 1 {
                headers.insert(GROUP_END, "1");
            }
            end = Some(js.send_publish(subject.clone(), message(stream, headers, bytes.clone())).await?);
        } else {
            let sent = js.client().publish_with_headers(subject.clone(), headers, bytes.clone()).await;
            sent.map_err(|error| PublishError::with_source(PublishErrorKind::BrokenPipe, error))?;
        }
    }
    match end {
        Some(end) => Ok(end.await?.sequence),
        None => Ok(0),
    }
}
