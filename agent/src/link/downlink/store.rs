//! Sound batches on their way into the store: each is counted once it is there, in the order in which they
//! were sent.

use async_nats::HeaderMap;
use bytes::Bytes;
use hierarchy::{
    Digest, Lane, Level, Path,
    link::{Parcel, ParentMessage, Record, Span},
    loss::Loss,
    signing::Verified,
};

use super::{
    Downlink, ToChild,
    judge::Judged,
    writes::{Answer, Write},
};
use crate::{
    lanes::{kept_at, stream_of, tail::Stored},
    link::{contents::Contents, header},
    metrics::Reason,
};

/// Batches on their way into the store, of all children.
pub(super) const MAX_STORING: usize = 2_000;

/// A batch that waits for its turn to be counted.
pub(super) struct Sent {
    ticket: u64,
    lane: Lane,
    subject: String,
    bytes: Bytes,
    digest: Digest,
    kid: Digest,
    origin: Path,
    span: Span,
    count: u64,
    /// Somebody waits for the word that it is durable here.
    awaited: bool,
    /// The place it got, once the store has told; 0 where it failed.
    place: Option<u64>,
}

impl Sent {
    fn reached(&self, level: Level) -> ParentMessage {
        let (origin, lane) = (self.origin.clone(), self.lane);
        let Span { incarnation, first, last } = self.span;
        ParentMessage::Reached { level, origin, lane, incarnation, first, last }
    }

    fn stored(self, place: u64) -> Stored {
        let Sent { subject, bytes, digest, kid, origin, span, count, .. } = self;
        let parcel = Parcel { after: 0, last: place, bytes, digest, kid };
        let contents = Contents { origin: Some(origin), span, count };
        Stored { place, below: Some(subject), parcel, contents }
    }
}

/// A batch that was given to the store.
pub(super) struct Given {
    child: Path,
    lane: Lane,
    last: u64,
    events: u32,
    ticket: u64,
}

impl Downlink {
    pub(super) async fn store(
        &mut self,
        child: &Path,
        lane: Lane,
        batch: &Judged<'_>,
        bytes: &Bytes,
        record: Record,
    ) {
        let Verified { envelope, digest } = &batch.verified;
        let author = &envelope.identity().path;
        let mut headers = HeaderMap::new();
        headers.insert(header::CHILD, child.to_string());
        headers.insert(header::RECORD, record.to_string());
        headers.insert(header::ORIGIN, author.to_string());
        headers.insert(header::DIGEST, digest.to_string());
        headers.insert(header::KID, envelope.kid().to_string());
        headers.insert(header::LANE, lane.as_str());
        headers.insert(header::EVENTS, batch.span.to_string());
        headers.insert(header::COUNT, envelope.batch().map_or(0, |head| head.count).to_string());
        let level = self.parts.path.level();
        let Some(subject) = kept_at(level, lane, envelope.subject()) else { return };
        self.notice(child, batch);

        // The client hands out a bounded number of tickets and takes them back only when receipts are
        // awaited: without this, a crowd of children would wait for itself.
        while self.storing.len() >= MAX_STORING
            && let Some(done) = self.storing.next().await
        {
            self.on_done(done);
        }
        let events = envelope.batch().map_or(0, |head| head.count);
        self.count_against_limit(child, lane, bytes.len() as u64, events.into());
        let (child, last, ticket) = (child.clone(), record.last, self.next_ticket);
        self.next_ticket += 1;
        let sent = Sent {
            ticket,
            lane,
            subject: envelope.subject().to_owned(),
            bytes: bytes.clone(),
            digest: *digest,
            kid: envelope.kid(),
            origin: author.clone(),
            span: batch.span,
            count: events.into(),
            awaited: envelope.batch().is_some_and(|head| head.tell.contains(&level)),
            place: None,
        };
        let slot = slot(level, lane);
        if self.sent[slot].is_empty()
            && let Some(tails) = &self.parts.tails
        {
            tails[lane].set_sound(self.counted[slot]);
        }
        self.sent[slot].push_back(sent);
        if let Some(state) = self.children.get_mut(&child) {
            state.storing += 1;
        }
        let key = Given { child, lane, last, events, ticket };
        let stream = stream_of(level, lane);
        self.storing.push(Write { key, stream, subject, headers, bytes: bytes.clone() }).await;
    }

    pub(super) fn on_done(&mut self, (given, stored): Answer<Given>) -> Path {
        let Given { child, lane, last, events, ticket } = given;
        if let Some(state) = self.children.get_mut(&child) {
            state.storing -= 1;
            match &stored {
                Ok(_) => {
                    state.parent.on_stored(lane, last);
                    state.stored.inc();
                    state.events.inc_by(events.into());
                }
                Err(reason) => {
                    tracing::warn!(%child, %lane, last, reason, "a batch could not be stored; it will come again");
                    state.parent.on_store_failed(lane, last);
                }
            }
        }
        let slot = slot(self.parts.path.level(), lane);
        let mut lost = Vec::new();
        let sent = &mut self.sent[slot];
        if let Some(entry) = sent.iter_mut().find(|sent| sent.ticket == ticket) {
            entry.place = Some(stored.unwrap_or(0));
        }
        // Behind one that failed nothing counts until the lane is healed.
        while let Some(sent) = sent.pop_front_if(|sent| sent.place.is_some_and(|place| place > 0)) {
            let place = sent.place.unwrap_or_default();
            self.counted[slot] = self.counted[slot].max(place);
            self.origins.settled(&sent.origin, sent.lane, sent.span);
            if sent.span.first == 1
                && let Some(state) = self.children.get(&sent.origin)
            {
                let before = self.origins.before(&sent.origin, sent.lane, sent.span.incarnation);
                lost.extend(
                    before.and_then(|before| state.words.lost_with_store(&sent.origin, sent.lane, before)),
                );
            }
            if sent.awaited
                && let Some(child) = self.parts.path.child_towards(&sent.origin)
            {
                let message = sent.reached(self.parts.path.level());
                self.answers.push(ToChild { child, message });
            }
            if let Some(tails) = &self.parts.tails {
                tails[lane].push(sent.stored(place));
            }
        }
        if let Some(tails) = &self.parts.tails {
            tails[lane].set_sound(if sent.is_empty() { u64::MAX } else { self.counted[slot] });
        }
        for loss in lost {
            self.lose(loss);
        }
        child
    }

    fn lose(&self, loss: Loss) {
        tracing::warn!(origin = %loss.origin, lane = %loss.lane, span = %loss.span(), reason = %loss.reason,
            "events are lost; a loss receipt says which");
        let label = Reason { reason: loss.reason.as_str().into() };
        self.parts.metrics.losses.get_or_create(&label).inc_by(loss.count);
        let noted = self.parts.notes.as_ref().map(|notes| notes.note(loss));
        if let Some(Err(error)) = noted {
            tracing::warn!(%error, "lost events are not accounted for");
        }
    }
}

/// Which of the streams a lane's batches go into, told by the lane it stands for: at global all lanes share
/// one.
pub(super) fn slot(level: Level, lane: Lane) -> Lane {
    match level {
        Level::Global => Lane::default(),
        _ => lane,
    }
}
