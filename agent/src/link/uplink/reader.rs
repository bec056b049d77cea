//! Reads one lane in order, from wherever the parent says: from its stream until the newest is reached,
//! then from the hands of those who store.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream;
use futures_util::FutureExt as _;
use hierarchy::{
    ByLane, Digest, Lane,
    link::{Parcel, Tick, resume::Held},
    subject,
};
use nats_config::streams::lane_stream;

use crate::{
    lanes::{
        Tails,
        in_order::InOrder,
        tail::{Next, Stored, Tail},
    },
    link::{contents::Contents, header},
};

/// How long a broken reader waits before it is made anew.
const RETRY: Duration = Duration::from_millis(200);
/// What the server counts beside a message's payload: its subject, and where it lies.
const HEADROOM: usize = 64 << 10;
/// How long a place may be missing among the newest: those who store do not finish in order.
const MISSING_FOR: Duration = Duration::from_millis(20);

enum Source {
    /// The parent has not said where to begin.
    Idle,
    /// The stream, until its end; with a batch that was read and is not known to be sound.
    Stream { messages: Box<InOrder>, held: Option<Stored> },
    /// The newest are handed over.
    Tail,
    /// The stream is to be opened at this tick.
    Broken(Tick),
}

/// Reads one lane.
pub(super) struct LaneReader {
    lane: Lane,
    js: jetstream::Context,
    tails: Arc<ByLane<Tail>>,
    source: Source,
    /// How often the lane was healed when the source was opened.
    heals: u64,
    /// Last place that was read.
    pub(super) read: u64,
    /// Last place known to be in the stream.
    end: u64,
}

impl LaneReader {
    pub(super) fn new(lane: Lane, js: jetstream::Context, tails: Tails) -> LaneReader {
        LaneReader { lane, js, tails, source: Source::Idle, heals: 0, read: 0, end: 0 }
    }

    fn tail(&self) -> &Tail {
        &self.tails[self.lane]
    }

    /// Last place known to be in the stream.
    pub(super) fn end(&self) -> u64 {
        self.end.max(self.tail().end())
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
        self.tail().want(false);
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
            Source::Idle | Source::Stream { .. } | Source::Tail => None,
        }
    }

    /// While the server is away this is tried again and again.
    pub(super) async fn reopen(&mut self, now: Tick) {
        if self.retry_at().is_none_or(|at| at > now) {
            return;
        }
        // Before the stream is read, so that nothing falls between the two.
        self.tail().want(true);
        self.heals = self.tail().heals();
        self.source = match open(&self.js, self.lane, self.read).await {
            Ok(messages) => Source::Stream { messages: Box::new(messages), held: None },
            Err(reason) => {
                tracing::debug!(lane = %self.lane, reason, "the lane cannot be read yet");
                Source::Broken(now + RETRY)
            }
        };
    }

    /// The next batch; `None` where the reader is to be opened again. For ever where it is not open.
    /// Cancel-safe.
    pub(super) async fn next(&mut self, now: Tick) -> Option<Stored> {
        loop {
            let tail = &self.tails[self.lane];
            if !matches!(self.source, Source::Idle | Source::Broken(_)) && tail.heals() != self.heals {
                self.source = Source::Broken(now);
                return None;
            }
            match &mut self.source {
                Source::Idle | Source::Broken(_) => return std::future::pending().await,
                Source::Tail => match tail.next_after(self.read) {
                    Next::Batch(stored) => {
                        self.read = stored.place;
                        return Some(stored);
                    }
                    Next::Nothing => tail.changed().await,
                    Next::Further => {
                        if tokio::time::timeout(MISSING_FOR, tail.changed()).await.is_err() {
                            self.source = Source::Broken(now);
                            return None;
                        }
                    }
                },
                Source::Stream { held: Some(held), .. } if !tail.is_sound(held.place) => tail.changed().await,
                Source::Stream { held, messages } => {
                    if let Some(stored) = held.take() {
                        self.read = stored.place;
                        return Some(stored);
                    }
                    let message = match messages.next().await {
                        Ok(message) => message,
                        Err(reason) => {
                            tracing::debug!(lane = %self.lane, reason, "the reader of the lane ended");
                            self.source = Source::Broken(now + RETRY);
                            return None;
                        }
                    };
                    let Ok(info) = message.info() else { continue };
                    let (place, pending) = (info.stream_sequence, info.pending);
                    self.end = self.end.max(place + pending);
                    match stored(self.lane, place, &message) {
                        Some(stored) if tail.is_sound(place) => {
                            self.read = place;
                            if pending == 0 {
                                self.source = Source::Tail;
                            }
                            return Some(stored);
                        }
                        Some(stored) => *held = Some(stored),
                        None => self.read = place,
                    }
                }
            }
        }
    }

    /// The next batch, if it is at hand.
    pub(super) fn next_at_hand(&mut self, now: Tick) -> Option<Stored> {
        self.next(now).now_or_never().flatten()
    }
}

/// What a message of the lane holds; `None` for a fence, and for what no agent wrote.
fn stored(lane: Lane, place: u64, message: &jetstream::Message) -> Option<Stored> {
    let headers = message.headers.as_ref()?;
    let (digest, kid) = (digest(headers, header::DIGEST)?, digest(headers, header::KID)?);
    let parcel = Parcel { after: 0, last: place, bytes: message.payload.clone(), digest, kid };
    let below = subject::of_lane_below(lane, &message.subject);
    Some(Stored { place, below, parcel, contents: Contents::read(headers)? })
}

async fn open(js: &jetstream::Context, lane: Lane, read: u64) -> Result<InOrder, String> {
    let stream = js.get_stream_no_info(lane_stream(lane)).await.map_err(|e| e.to_string())?;
    InOrder::open(&stream, read, js.client().server_info().max_payload + HEADROOM).await
}

fn digest(headers: &async_nats::HeaderMap, name: &str) -> Option<Digest> {
    headers.get(name).and_then(|value| value.as_str().parse().ok())
}
