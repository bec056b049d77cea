//! The ORDERS stream and what is noted beside it. One task writes, one order at a time, so that after a crash
//! the stream tells how far it came.

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{DeliverPolicy, pull},
        kv,
        message::PublishMessage,
        stream::Stream,
    },
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hierarchy::{
    ByLane, Digest, Path,
    link::{Cursor, Origins, Parcel, Record, Span},
    order::{self, EXPIRES},
};
use nats_config::streams::ORDERS;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    OrdersError,
    book::{Book, Kept, Waits},
};
use crate::{broker::streams, clock, link::header};

/// The header with an order's id.
pub(super) const ID: &str = "Lucent-Order";
/// The header with the subject that an order is said on where it is for.
const SUBJECT: &str = "Lucent-Subject";
/// The key of [`Notes`] in the link's bucket.
const KEY: &str = "orders";

/// What is known beside the stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Notes {
    /// See [`streams::born`] of the stream that this belongs to.
    born: u64,
    /// The incarnation of the stream's places.
    pub(super) life: u64,
    /// The incarnation of this agent's own numbers; a new one with each start.
    pub(super) numbering: u64,
    /// All records up to this place are counted in.
    place: u64,
    /// How far the parent's orders have come.
    pub(super) cursors: ByLane<Cursor>,
    /// Which orders of whom have come.
    pub(super) origins: Origins,
}

/// The stream.
pub(super) struct Store {
    path: Path,
    js: jetstream::Context,
    stream: Stream,
    bucket: kv::Store,
    pub(super) notes: Notes,
}

/// An order to store.
pub(super) struct Entry<'a> {
    pub(super) kept: Kept,
    pub(super) digest: Digest,
    pub(super) kid: Digest,
    pub(super) span: Span,
    /// Where the parent handed it down: its place in the parent's store.
    pub(super) record: Option<Record>,
    /// The publisher's headers, for those that are said here.
    pub(super) headers: Vec<(&'a str, &'a str)>,
    pub(super) bytes: Bytes,
    /// Refused by the server where it has this id already.
    pub(super) once: Option<String>,
}

/// Where an order lies in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// It was put there.
    At(u64),
    /// The server had one of the same id there.
    Before(u64),
}

impl Store {
    /// The stream as it is, with all that lies in it; and how far the parent's orders really came.
    pub(super) async fn open(
        path: &Path,
        js: &jetstream::Context,
        bucket: kv::Store,
    ) -> Result<(Store, Book), OrdersError> {
        let stream = js.get_stream(ORDERS).await.map_err(OrdersError::store("read"))?;
        let noted = bucket.get(KEY).await.map_err(OrdersError::store("read"))?;
        let noted: Notes = noted.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let info = stream.cached_info();
        let (born, last) = (streams::born(info), info.state.last_sequence);
        let went_back = noted.place > last;
        let notes = if noted.life != 0 && noted.born == born && !went_back {
            noted
        } else {
            // What has come stays known: an order that was carried out must not be again.
            let life = clock::wall().0.max(noted.life + 1);
            Notes { born, life, place: 0, cursors: ByLane::default(), ..noted }
        };
        let mut store = Store { path: path.clone(), js: js.clone(), stream, bucket, notes };
        let book = store.read_all(last).await?;
        Ok((store, book))
    }

    async fn read_all(&mut self, last: u64) -> Result<Book, OrdersError> {
        let mut book = Book::default();
        if self.stream.cached_info().state.messages == 0 {
            return Ok(book);
        }
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            headers_only: true,
            ..Default::default()
        };
        let consumer = self.stream.create_consumer(config).await.map_err(OrdersError::store("read"))?;
        let mut messages = consumer.messages().await.map_err(OrdersError::store("read"))?;
        loop {
            let message = tokio::time::timeout(super::SILENCE, messages.next()).await;
            let Ok(Some(message)) = message else { return Err(OrdersError::silent()) };
            let message = message.map_err(OrdersError::store("read"))?;
            let info = message.info().map_err(OrdersError::store("read"))?;
            let (place, pending) = (info.stream_sequence, info.pending);
            match message.headers.as_ref().and_then(|headers| self.kept(&message.subject, headers)) {
                Some(kept) => {
                    self.count(place, message.headers.as_ref(), &kept);
                    book.add(place, kept);
                }
                None if message.subject.as_str() == order::FENCE => {}
                None => tracing::warn!(place, subject = %message.subject, "not an order; it is passed over"),
            }
            if pending == 0 || place >= last {
                return Ok(book);
            }
        }
    }

    fn kept(&self, subject: &str, headers: &HeaderMap) -> Option<Kept> {
        let waits = match subject {
            order::BELOW => Waits::ForAll,
            _ => order::waits_for(&self.path, subject).map_or(Waits::Here, Waits::For),
        };
        Some(Kept {
            id: text(headers, ID)?.parse().ok()?,
            author: text(headers, header::ORIGIN)?.parse().ok()?,
            subject: text(headers, SUBJECT)?.to_owned(),
            lane: text(headers, header::LANE)?.parse().ok()?,
            expires: text(headers, EXPIRES)?.parse().ok()?,
            waits,
        })
    }

    /// An order that was stored after the last note.
    fn count(&mut self, place: u64, headers: Option<&HeaderMap>, kept: &Kept) {
        let Some(headers) = headers.filter(|_| place > self.notes.place) else { return };
        self.notes.place = place;
        let record = text(headers, header::RECORD).and_then(|text| text.parse::<Record>().ok());
        let digest = text(headers, header::DIGEST).and_then(|text| text.parse().ok());
        let span = text(headers, header::EVENTS).and_then(|text| text.parse().ok());
        if let (Some(record), Some(digest), Some(span)) = (record, digest, span) {
            let cursor = &mut self.notes.cursors[kept.lane];
            *cursor = cursor.follow(record, digest).unwrap_or(*cursor);
            self.notes.origins.settled(&kept.author, kept.lane, span);
        }
    }

    /// The last place that was given.
    pub(super) fn last(&self) -> u64 {
        self.notes.place.max(self.stream.cached_info().state.last_sequence)
    }

    /// Stores an order.
    pub(super) async fn write(&mut self, entry: &Entry<'_>) -> Result<Written, OrdersError> {
        let Entry { kept, digest, kid, span, record, .. } = entry;
        let mut headers = HeaderMap::new();
        for (name, value) in &entry.headers {
            headers.append(*name, *value);
        }
        headers.insert(ID, kept.id.to_string());
        headers.insert(SUBJECT, kept.subject.as_str());
        headers.insert(EXPIRES, kept.expires.to_string());
        headers.insert(header::ORIGIN, kept.author.to_string());
        headers.insert(header::LANE, kept.lane.as_str());
        headers.insert(header::DIGEST, digest.to_string());
        headers.insert(header::KID, kid.to_string());
        headers.insert(header::EVENTS, span.to_string());
        if let Some(record) = record {
            headers.insert(header::RECORD, record.to_string());
        }
        let subject = match &kept.waits {
            Waits::Here => order::here(&kept.subject),
            Waits::For(child) => order::waiting_for(child),
            Waits::ForAll => order::BELOW.to_owned(),
        };
        let mut publish =
            PublishMessage::build().payload(entry.bytes.clone()).headers(headers).expected_stream(ORDERS);
        if let Some(once) = &entry.once {
            publish = publish.message_id(once);
        }
        let ack = self.js.send_publish(subject, publish).await.map_err(OrdersError::store("written"))?;
        let ack = ack.await.map_err(OrdersError::store("written"))?;
        self.notes.place = self.notes.place.max(ack.sequence);
        Ok(if ack.duplicate { Written::Before(ack.sequence) } else { Written::At(ack.sequence) })
    }

    /// Which order lies at this place.
    pub(super) async fn id_at(&self, place: u64) -> Option<Uuid> {
        let found = self.stream.get_raw_message(place).await.ok()?;
        text(&found.headers, ID)?.parse().ok()
    }

    /// The order at this place, for the way down behind `after`; `None` where it is gone.
    pub(super) async fn parcel(&self, after: u64, place: u64) -> Result<Option<Parcel>, OrdersError> {
        let found = match self.stream.get_raw_message(place).await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(OrdersError::store("read")(error)),
        };
        let digest = |name| text(&found.headers, name).and_then(|text| text.parse::<Digest>().ok());
        let (Some(digest), Some(kid)) = (digest(header::DIGEST), digest(header::KID)) else {
            return Ok(None);
        };
        Ok(Some(Parcel { after, last: place, bytes: found.payload, digest, kid }))
    }

    /// Removes what is done with. What could not be removed goes by its age.
    pub(super) async fn remove(&self, places: impl IntoIterator<Item = u64>) {
        for place in places {
            if let Err(error) = self.stream.delete_message(place).await {
                tracing::debug!(%error, place, "an order that is done with stays for now");
            }
        }
    }

    /// Behind the receipt of a fence no earlier order can still be stored.
    pub(super) async fn fence(&self) -> Result<(), OrdersError> {
        let fence =
            self.js.publish(order::FENCE, Bytes::new()).await.map_err(OrdersError::store("written"))?;
        let place = fence.await.map_err(OrdersError::store("written"))?.sequence;
        self.remove([place]).await;
        Ok(())
    }

    /// Whether nobody else has written: an error where somebody has, and the stream is to be read anew.
    pub(super) async fn is_ours(&self) -> Result<(), OrdersError> {
        let info = self.stream.get_info().await.map_err(OrdersError::store("read"))?;
        if info.state.last_sequence > self.last() {
            return Err(OrdersError::Store("read", "a replica has written, too".into()));
        }
        Ok(())
    }

    /// Keeps the notes.
    pub(super) async fn save(&self) -> Result<(), OrdersError> {
        let text = serde_json::to_vec(&self.notes).map_err(OrdersError::store("written"))?;
        self.bucket.put(KEY, text.into()).await.map_err(OrdersError::store("written"))?;
        Ok(())
    }

    /// A new incarnation of this agent's numbers begins: which of the last one were given is not known.
    pub(super) async fn number_anew(&mut self) -> Result<u64, OrdersError> {
        self.notes.numbering = clock::wall().0.max(self.notes.numbering + 1);
        self.save().await?;
        Ok(self.notes.numbering)
    }

    /// Places get a new meaning for the children.
    pub(super) async fn begin_anew(&mut self) -> Result<(), OrdersError> {
        self.notes.life = clock::wall().0.max(self.notes.life + 1);
        self.save().await
    }
}

fn is_missing(error: &jetstream::stream::RawMessageError) -> bool {
    use jetstream::stream::RawMessageErrorKind;
    matches!(error.kind(), RawMessageErrorKind::NoMessageFound)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.as_str())
}
