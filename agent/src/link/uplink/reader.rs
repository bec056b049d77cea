//! Reads one lane's stream in order, from wherever the parent says.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
};
use futures_util::{FutureExt as _, StreamExt as _};
use hierarchy::{
    Digest, Lane,
    link::{Parcel, Tick, resume::Held},
    subject,
};
use nats_config::streams::lane_stream;

use crate::link::{contents::Contents, header};

/// How long a broken reader waits before it is made anew.
const RETRY: Duration = Duration::from_millis(200);
/// Messages asked for at a time.
const BATCH: usize = 200;

/// What a place of the lane holds.
pub(super) enum Stored {
    /// A batch of this level or below.
    Batch {
        /// Its place.
        place: u64,
        /// Its subject, where it is from below.
        below: Option<String>,
        /// What to send; `after` is for the uplink to fill in.
        parcel: Parcel,
        /// Whose events they are, for when they go no further.
        contents: Contents,
    },
    /// A fence, or something that no agent wrote.
    Other {
        /// Its place.
        place: u64,
    },
}

enum Source {
    /// The parent has not said where to begin.
    Idle,
    Open(Box<pull::Ordered>),
    /// To be opened again at this tick.
    Broken(Tick),
}

/// Reads one lane.
pub(super) struct LaneReader {
    lane: Lane,
    js: jetstream::Context,
    source: Source,
    /// Last place that was read.
    pub(super) read: u64,
    /// Last place known to be in the stream.
    pub(super) end: u64,
}

impl LaneReader {
    pub(super) fn new(lane: Lane, js: jetstream::Context) -> LaneReader {
        LaneReader { lane, js, source: Source::Idle, read: 0, end: 0 }
    }

    /// What the stream holds; the batch at `cursor` is looked at.
    pub(super) async fn held(&mut self, cursor: u64) -> Result<Held, String> {
        let stream = self.js.get_stream(lane_stream(self.lane)).await.map_err(|e| e.to_string())?;
        let state = &stream.cached_info().state;
        // A stream that was emptied names the place behind its last one as the first.
        let (first, last) = (state.first_sequence.max(1), state.last_sequence);
        self.end = last;
        let mut at_cursor = None;
        if state.messages > 0 && (first..=last).contains(&cursor) {
            match stream.get_raw_message(cursor).await {
                Ok(message) => at_cursor = digest(&message.headers, header::DIGEST),
                Err(error) => tracing::debug!(lane = %self.lane, cursor, %error, "no batch at the cursor"),
            }
        }
        Ok(Held { first: if state.messages == 0 { last + 1 } else { first }, last, at_cursor })
    }

    /// Asks for the end of the stream, for people who want to see it grow while nothing is read.
    pub(super) async fn look_at_end(&mut self) {
        if let Ok(stream) = self.js.get_stream(lane_stream(self.lane)).await {
            self.end = self.end.max(stream.cached_info().state.last_sequence);
        }
    }

    pub(super) fn pause(&mut self) {
        self.source = Source::Idle;
    }

    /// Begins behind a place.
    pub(super) fn start_after(&mut self, place: u64, now: Tick) {
        self.read = place;
        self.source = Source::Broken(now);
    }

    /// When [`LaneReader::reopen`] has something to do.
    pub(super) fn retry_at(&self) -> Option<Tick> {
        match self.source {
            Source::Broken(at) => Some(at),
            Source::Idle | Source::Open(_) => None,
        }
    }

    /// While the server is away this is tried again and again.
    pub(super) async fn reopen(&mut self, now: Tick) {
        if self.retry_at().is_none_or(|at| at > now) {
            return;
        }
        self.source = match open(&self.js, self.lane, self.read).await {
            Ok(messages) => Source::Open(Box::new(messages)),
            Err(reason) => {
                tracing::debug!(lane = %self.lane, reason, "the lane cannot be read yet");
                Source::Broken(now + RETRY)
            }
        };
    }

    /// The next message; `None` where the reader broke. For ever where it is not open. Cancel-safe.
    pub(super) async fn next(&mut self, now: Tick) -> Option<Stored> {
        let Source::Open(messages) = &mut self.source else { return std::future::pending().await };
        let message = match messages.next().await {
            Some(Ok(message)) => message,
            other => {
                tracing::debug!(lane = %self.lane, ?other, "the reader of the lane ended");
                self.source = Source::Broken(now + RETRY);
                return None;
            }
        };
        let (place, pending) = {
            let info = message.info().ok()?;
            (info.stream_sequence, info.pending)
        };
        self.read = place;
        self.end = self.end.max(place + pending);
        let headers = message.headers.clone().unwrap_or_default();
        let (Some(digest), Some(kid), Some(contents)) =
            (digest(&headers, header::DIGEST), digest(&headers, header::KID), Contents::read(&headers))
        else {
            return Some(Stored::Other { place });
        };
        let below = subject::of_lane_below(self.lane, &message.subject);
        let parcel = Parcel { after: 0, last: place, bytes: message.payload.clone(), digest, kid };
        Some(Stored::Batch { place, below, parcel, contents })
    }

    /// The next message, if it is at hand.
    pub(super) fn next_at_hand(&mut self, now: Tick) -> Option<Stored> {
        self.next(now).now_or_never().flatten()
    }
}

async fn open(js: &jetstream::Context, lane: Lane, read: u64) -> Result<pull::Ordered, String> {
    let stream = js.get_stream_no_info(lane_stream(lane)).await.map_err(|e| e.to_string())?;
    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: read + 1 },
        max_batch: BATCH as i64,
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|e| e.to_string())?;
    consumer.messages().await.map_err(|e| e.to_string())
}

fn digest(headers: &async_nats::HeaderMap, name: &str) -> Option<Digest> {
    headers.get(name).and_then(|value| value.as_str().parse().ok())
}
