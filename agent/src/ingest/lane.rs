//! One lane's way from events to durable batches: numbers, packs, signs, writes one batch at a time.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{self, message::PublishMessage},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use hierarchy::{
    Digest, Lane, Millis,
    envelope::Draft,
    link::{Event, Pack, Packer, Parcel, Span, Tick, batch},
    signing::Signer,
    subject,
};
use uuid::Uuid;

use super::door::Waiter;
use crate::{
    clock::MeshTime,
    lanes::{Guards, Tails, tail::Stored},
    link::{contents::Contents, header},
};

/// Batches that wait while one is written; beyond it nothing more is taken in.
const MAX_QUEUE: usize = 4;
/// Publishers that wait for an answer; beyond it nothing more is taken in.
const MAX_WAITING: usize = 8192;
/// Events that come further apart than this do not wait for each other.
const RARE: Duration = Duration::from_millis(5);
/// How much longer a batch is kept open that fills so fast that it will soon be full: each signature and
/// each sync to disk then covers more.
const FILLING_FOR: Duration = Duration::from_millis(15);
/// Wait before a write that failed is tried again; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_millis(50);
const MAX_RETRY: Duration = Duration::from_secs(2);

/// Where an event came from, and so what is to happen once it is durable.
pub(super) enum Intake {
    /// The inbox, which may forget it.
    Inbox {
        /// Its place there.
        place: u64,
        /// When the inbox took it.
        published: Millis,
    },
    /// The door, where its publisher may wait.
    Door(Waiter),
}

/// What a batch was made of.
#[derive(Default)]
struct Made {
    /// First and last place in the inbox, and the latest time there.
    inbox: Option<(u64, u64, Millis)>,
    /// Publishers that wait, with their events' numbers.
    waiters: Vec<(Waiter, u64)>,
}

/// A signed batch.
struct Batch {
    span: Span,
    count: u32,
    bytes: Bytes,
    digest: Digest,
    kid: Digest,
    made: Made,
}

/// What a write has made durable.
pub(super) struct Durable {
    /// The last number.
    pub(super) last: u64,
    /// How many events.
    pub(super) events: u32,
    /// Who is to be told, with their events' numbers.
    pub(super) waiters: Vec<(Waiter, u64)>,
}

/// How a write ended: the batch's place in the lane.
pub(super) type Written = Result<u64, String>;

/// Writes one lane.
pub(super) struct LaneWriter {
    lane: Lane,
    stream: &'static str,
    signer: Arc<Signer>,
    time: MeshTime,
    js: jetstream::Context,
    tails: Tails,
    packer: Packer,
    /// What the open batch is being made of.
    making: Made,
    /// When the last event came.
    last_push: Tick,
    /// The open batch holds an event that nothing came shortly before: where company is rare there is
    /// nothing to wait for.
    alone: bool,
    queue: VecDeque<Batch>,
    writing: Option<BoxFuture<'static, Written>>,
    failures: u32,
    /// Own batches whose events may still be in the inbox: place in the lane, last place in the inbox.
    unpurged: VecDeque<(u64, u64)>,
    /// Place of the newest own batch.
    newest: u64,
    /// The latest time of anything packed.
    latest: Millis,
}

impl LaneWriter {
    pub(super) fn new(
        lane: Lane,
        packer: Packer,
        signer: Arc<Signer>,
        time: MeshTime,
        js: jetstream::Context,
        tails: Tails,
    ) -> LaneWriter {
        LaneWriter {
            lane,
            stream: nats_config::streams::lane_stream(lane),
            signer,
            time,
            js,
            tails,
            packer,
            making: Made::default(),
            last_push: Tick::ZERO,
            alone: false,
            queue: VecDeque::new(),
            writing: None,
            failures: 0,
            unpurged: VecDeque::new(),
            newest: 0,
            latest: Millis(0),
        }
    }

    /// Whether more may be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUE && self.making.waiters.len() < MAX_WAITING
    }

    /// Whether everything is written.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.packer.due().is_none()
    }

    /// When [`LaneWriter::close_due`] has something to close: while a write is under way nothing is
    /// gained by haste, and whoever waits at the door need not wait for company.
    pub(super) fn due(&self) -> Option<Tick> {
        if !self.queue.is_empty() {
            return None;
        }
        let due = self.packer.due()?;
        Some(match () {
            () if self.alone || !self.making.waiters.is_empty() => Tick::ZERO,
            () if self.packer.is_filling() => due + FILLING_FOR,
            () => due,
        })
    }

    pub(super) fn close_due(&mut self, now: Tick) {
        if self.due().is_some_and(|due| due <= now) {
            self.close();
        }
    }

    /// Closes the open batch, as it is.
    pub(super) fn close(&mut self) {
        if let Some(pack) = self.packer.close() {
            self.enqueue(pack);
        }
    }

    pub(super) fn push(&mut self, event: &Event, intake: Intake, now: Tick) {
        self.alone = self.packer.due().is_none() && now.saturating_sub(self.last_push) >= RARE;
        self.last_push = now;
        let packs = self.packer.push(event, now);
        let number = self.packer.last();
        let mut intake = Some(intake);
        for pack in packs {
            if pack.head.last >= number
                && let Some(intake) = intake.take()
            {
                self.note(intake, number);
            }
            self.enqueue(pack);
        }
        if let Some(intake) = intake {
            self.note(intake, number);
        }
    }

    /// Numbers an event that the policy drops.
    pub(super) fn skip(&mut self) -> u64 {
        self.packer.skip();
        self.packer.last()
    }

    /// Numbers an event that cannot be kept. The numbers that no batch will answer for, with this one.
    pub(super) fn give_up(&mut self) -> Option<Span> {
        self.close();
        self.packer.skip();
        self.packer.take_skipped()
    }

    fn note(&mut self, intake: Intake, number: u64) {
        match intake {
            Intake::Inbox { place, published } => {
                self.latest = self.latest.max(published);
                let first = self.making.inbox.map_or(place, |(first, ..)| first);
                self.making.inbox = Some((first, place, self.latest));
            }
            Intake::Door(waiter) => self.making.waiters.push((waiter, number)),
        }
    }

    fn enqueue(&mut self, pack: Pack) {
        let mut pack = pack;
        let made = std::mem::take(&mut self.making);
        for level in made.waiters.iter().filter_map(|(waiter, _)| waiter.level) {
            if !pack.head.tell.contains(&level) {
                pack.head.tell.push(level);
            }
        }
        let head = &pack.head;
        let span = Span { incarnation: head.incarnation, first: head.first, last: head.last };
        let count = head.count;
        let sealed = self.signer.seal(&Draft {
            message_id: Uuid::now_v7(),
            correlation_id: None,
            causation_id: None,
            timestamp: self.time.stamp(),
            message_type: batch::MESSAGE_TYPE,
            subject: &pack.subject,
            reply_to: None,
            priority: pack.lane,
            batch: Some(pack.head),
            payload: &pack.payload,
        });
        let kid = self.signer.kid();
        self.queue.push_back(Batch { span, count, bytes: sealed.bytes, digest: sealed.digest, kid, made });
    }

    /// Begins to write the oldest batch, unless one is being written. One at a time: only so a write
    /// whose outcome is unknown can be repeated without another one coming in between. A batch that is
    /// thereby stored twice is recognised by the parent.
    pub(super) fn start_writing(&mut self, guards: &Guards) {
        if self.writing.is_some() {
            return;
        }
        let Some(batch) = self.queue.front() else { return };
        guards.set(self.lane, self.guard().min(self.newest));
        let mut headers = HeaderMap::new();
        headers.insert(header::EVENTS, batch.span.to_string());
        headers.insert(header::DIGEST, batch.digest.to_string());
        headers.insert(header::KID, batch.kid.to_string());
        headers.insert(header::COUNT, batch.count.to_string());
        if let Some((_, last, latest)) = batch.made.inbox {
            headers.insert(header::INBOX, format!("{last} {}", latest.0));
        }
        let publish = PublishMessage::build()
            .payload(batch.bytes.clone())
            .headers(headers)
            .expected_stream(self.stream);
        let (js, subject) = (self.js.clone(), subject::lane_own(self.lane));
        let wait = match self.failures {
            0 => Duration::ZERO,
            n => (RETRY * 2u32.pow(n.min(10))).min(MAX_RETRY),
        };
        let write = async move {
            // A timer takes up to a millisecond even for no time at all.
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let sent = js.send_publish(subject, publish).await.map_err(|error| error.to_string())?;
            sent.await.map(|receipt| receipt.sequence).map_err(|error| error.to_string())
        };
        self.writing = Some(write.boxed());
    }

    /// Waits for the write under way; for ever where there is none. Cancel-safe.
    pub(super) async fn written(&mut self) -> Written {
        match &mut self.writing {
            Some(writing) => {
                let written = writing.await;
                self.writing = None;
                written
            }
            None => std::future::pending().await,
        }
    }

    /// What is durable now; `None` where the write failed and is tried again.
    pub(super) fn on_written(&mut self, written: Written, now: Tick) -> Option<Durable> {
        let place = match written {
            Ok(place) => place,
            Err(reason) => {
                self.failures = self.failures.saturating_add(1);
                tracing::warn!(lane = %self.lane, reason, "a batch could not be stored; it is tried again");
                return None;
            }
        };
        self.failures = 0;
        self.newest = place;
        let batch = self.queue.pop_front()?;
        self.tails[self.lane].push(Stored {
            place,
            below: None,
            parcel: Parcel {
                after: 0,
                last: place,
                bytes: batch.bytes,
                digest: batch.digest,
                kid: batch.kid,
            },
            contents: Contents { origin: None, span: batch.span, count: batch.count.into() },
        });
        if let Some((_, last, _)) = batch.made.inbox {
            self.unpurged.push_back((place, last));
        }
        self.close_due(now);
        Some(Durable { last: batch.span.last, events: batch.count, waiters: batch.made.waiters })
    }

    /// Numbers of dropped events that no batch will answer for.
    pub(super) fn take_skipped(&mut self) -> Option<Span> {
        if self.queue.is_empty() { self.packer.take_skipped() } else { None }
    }

    /// The first place of the inbox that is not yet in the lane.
    pub(super) fn oldest_of_inbox(&self) -> Option<u64> {
        let waiting = self.queue.iter().filter_map(|batch| batch.made.inbox);
        waiting.chain(self.making.inbox).map(|(first, ..)| first).min()
    }

    /// The inbox is empty up to here.
    pub(super) fn inbox_purged(&mut self, purged: u64) {
        while self.unpurged.pop_front_if(|(_, last)| *last <= purged).is_some() {}
    }

    /// Batches behind this place must stay in the lane, for a restart to find out what was packed.
    pub(super) fn guard(&self) -> u64 {
        match (self.unpurged.front(), &self.writing) {
            (Some((place, _)), _) => place - 1,
            (None, Some(_)) => self.newest,
            (None, None) => u64::MAX,
        }
    }
}
