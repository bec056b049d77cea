//! The inbox: stream HIERARCHY below global, where events wait for the moment it takes to pack them.
//!
//! What was packed is removed. After a restart some of it may still be there: each batch in a lane
//! says up to which place of the inbox it goes, and until the inbox is purged that batch stays.

use std::time::Duration;

use async_nats::jetstream::{
    self, ErrorCode,
    consumer::{DeliverPolicy, pull},
    kv,
    stream::LastRawMessageErrorKind,
};
use futures_util::StreamExt as _;
use hierarchy::{ByLane, Lane, Millis, link::Span, subject};
use nats_config::streams::{HIERARCHY, lane_stream};
use serde::{Deserialize, Serialize};

use super::{IngestError, store_error};
use crate::{clock, lanes::Guards, link::header};

/// How long a broken reader waits before it is made anew.
const RETRY: Duration = Duration::from_millis(200);
/// Messages asked for at a time: of 16 KiB they are 4 MiB.
const AT_ONCE: i64 = 256;
/// The key of [`Numbering`] in the link's bucket.
const NUMBERING: &str = "numbering";

/// A message of the inbox.
pub(super) struct Stored {
    pub(super) place: u64,
    pub(super) published: Millis,
    pub(super) message: jetstream::Message,
}

/// How far a lane had come when the agent started.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// The last place of the inbox that was packed.
    place: u64,
    /// The latest time of anything packed: what is later was published after the inbox was rolled back.
    latest: Millis,
}

enum Reader {
    Open(Box<pull::Ordered>),
    Broken(tokio::time::Instant),
}

/// Reads HIERARCHY in order.
pub(super) struct Inbox {
    js: jetstream::Context,
    reader: Reader,
    /// The server that the reader was opened at.
    server: String,
    /// Last place that was read.
    read: u64,
    purged: u64,
    marks: ByLane<Mark>,
    newest_incarnation: u64,
}

impl Inbox {
    /// Begins with the oldest message.
    pub(super) async fn open(js: &jetstream::Context, guards: &Guards) -> Result<Inbox, IngestError> {
        let mut marks = ByLane::<Mark>::default();
        let mut newest_incarnation = 0;
        for lane in Lane::ALL {
            let stream = js.get_stream_no_info(lane_stream(lane)).await.map_err(store_error("read"))?;
            let last = match stream.get_last_raw_message_by_subject(&subject::lane_own(lane)).await {
                Ok(last) => last,
                Err(error) if is_missing(&error.kind()) => continue,
                Err(error) => return Err(store_error("read")(error)),
            };
            guards.set(lane, last.sequence.saturating_sub(1));
            let header = |name| last.headers.get(name).map(|value| value.as_str());
            if let Some(span) = header(header::EVENTS).and_then(|text| text.parse::<Span>().ok()) {
                newest_incarnation = newest_incarnation.max(span.incarnation);
            }
            let mark = header(header::INBOX).and_then(|text| text.split_once(' '));
            if let Some((place, latest)) = mark
                && let (Ok(place), Ok(latest)) = (place.parse(), latest.parse())
            {
                marks[lane] = Mark { place, latest: Millis(latest) };
            }
        }
        // What comes from now on was never packed, also where places are given again since the inbox was
        // rolled back, and times are earlier since the clock was.
        let stream = js.get_stream(HIERARCHY).await.map_err(store_error("read"))?;
        let end = stream.cached_info().state.last_sequence;
        for (_, mark) in marks.iter_mut() {
            mark.place = mark.place.min(end);
        }
        let reader = Reader::Broken(tokio::time::Instant::now());
        let mut inbox = Inbox {
            js: js.clone(),
            reader,
            server: String::new(),
            read: 0,
            purged: 0,
            marks,
            newest_incarnation,
        };
        inbox.reopen_if_broken().await;
        Ok(inbox)
    }

    /// The newest incarnation found in the lanes.
    pub(super) fn newest_incarnation(&self) -> u64 {
        self.newest_incarnation
    }

    /// Whether the message was packed before this agent was started.
    pub(super) fn was_packed(&self, lane: Lane, place: u64, published: Millis) -> bool {
        let mark = self.marks[lane];
        place <= mark.place && published <= mark.latest
    }

    /// The next message; `None` where the reader broke, and is to be opened again. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Stored> {
        let Reader::Open(messages) = &mut self.reader else { return std::future::pending().await };
        let message = match messages.next().await {
            Some(Ok(message)) => message,
            other => {
                tracing::debug!(?other, "the reader of the inbox ended");
                self.reader = Reader::Broken(tokio::time::Instant::now() + RETRY);
                return None;
            }
        };
        let (place, published) = {
            let info = message.info().ok()?;
            (info.stream_sequence, info.published.unix_timestamp_nanos() / 1_000_000)
        };
        self.read = place;
        Some(Stored { place, published: Millis(published as u64), message })
    }

    /// A server that was started again does not know the reader any more, which would notice after its
    /// patience only.
    pub(super) fn notice_server(&mut self, server: String) {
        if self.server != server && !self.server.is_empty() && matches!(self.reader, Reader::Open(_)) {
            self.reader = Reader::Broken(tokio::time::Instant::now());
        }
        self.server = server;
    }

    /// While the server is away this is tried again and again.
    pub(super) async fn reopen_if_broken(&mut self) {
        let Reader::Broken(at) = self.reader else { return };
        if at > tokio::time::Instant::now() {
            return;
        }
        self.reader = match self.reopen().await {
            Ok(messages) => Reader::Open(Box::new(messages)),
            Err(reason) => {
                tracing::debug!(reason, "the inbox cannot be read yet");
                Reader::Broken(tokio::time::Instant::now() + RETRY)
            }
        };
    }

    async fn reopen(&mut self) -> Result<pull::Ordered, String> {
        let stream = self.js.get_stream(HIERARCHY).await.map_err(|e| e.to_string())?;
        let last = stream.cached_info().state.last_sequence;
        if last < self.read {
            tracing::warn!(read = self.read, inbox_ends_at = last, "the inbox went back in time");
            (self.read, self.purged) = (last, last.min(self.purged));
        }
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.read + 1 },
            max_batch: AT_ONCE,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
        consumer.messages().await.map_err(|e| e.to_string())
    }

    /// Removes what is before `oldest`, or all that was read where nothing waits. The place up to which
    /// the inbox is empty now; `None` where it did not answer.
    pub(super) async fn purge(&mut self, oldest: Option<u64>) -> Option<u64> {
        let target = oldest.map_or(self.read, |oldest| oldest - 1);
        if target <= self.purged {
            return Some(self.purged);
        }
        let purge = async {
            let stream = self.js.get_stream_no_info(HIERARCHY).await.map_err(|e| e.to_string())?;
            stream.purge().sequence(target + 1).await.map_err(|e| e.to_string())
        };
        match purge.await {
            Ok(_) => {
                self.purged = target;
                Some(target)
            }
            // The server may be restarting. What is not purged now is purged later.
            Err(reason) => {
                tracing::debug!(reason, "the inbox was not trimmed");
                None
            }
        }
    }
}

fn is_missing(kind: &LastRawMessageErrorKind) -> bool {
    match kind {
        LastRawMessageErrorKind::NoMessageFound => true,
        LastRawMessageErrorKind::JetStream(error) => error.error_code() == ErrorCode::NO_MESSAGE_FOUND,
        _ => false,
    }
}

/// The origin's numbering, kept so that no incarnation is used twice.
#[derive(Debug, Serialize, Deserialize)]
struct Numbering {
    incarnation: u64,
}

/// An incarnation that was never used: by time, by chance where the clock cannot be trusted, and above
/// the last one that is known.
pub(super) async fn next_incarnation(bucket: &kv::Store, newest: u64) -> Result<u64, IngestError> {
    let noted = bucket.get(NUMBERING).await.map_err(store_error("read"))?;
    let noted = noted.and_then(|text| serde_json::from_slice::<Numbering>(&text).ok());
    let newest = newest.max(noted.map_or(0, |noted| noted.incarnation));
    let chance = u64::from(uuid::Uuid::new_v4().as_u128() as u32 & 0xf_ffff);
    let incarnation = ((clock::wall().0 / 1000) << 20 | chance).max(newest + 1);
    let text = serde_json::to_vec(&Numbering { incarnation }).map_err(store_error("written"))?;
    bucket.put(NUMBERING, text.into()).await.map_err(store_error("written"))?;
    Ok(incarnation)
}
