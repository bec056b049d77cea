//! The level's streams and buckets, made as `nats_config` describes them.

use async_nats::jetstream::{
    self, ErrorCode,
    context::GetStreamErrorKind,
    stream::{Config, DiscardPolicy, Info, Republish, RetentionPolicy, StorageType},
};
use nats_config::{
    KvSpec, StreamSpec,
    streams::{Discard, Retention},
};

use super::BrokerError;
use crate::clock;

/// The key in a stream's metadata under which its time of birth stands, in milliseconds since 1970. What the
/// server tells as the time of creation does not serve: once a stream's configuration was written by a
/// server that was started again, it tells the time of that start.
const BORN: &str = "lucent-born";

/// Makes every stream and bucket that is missing and brings the others up to date.
pub async fn ensure(
    js: &jetstream::Context,
    streams: &[StreamSpec],
    buckets: &[KvSpec],
) -> Result<(), BrokerError> {
    for spec in streams {
        let mut made = ensure_one(js, spec).await;
        if made.is_err() {
            // A replica that was started at the same time made it just now, at another time of birth.
            made = ensure_one(js, spec).await;
        }
        let made = made.map_err(|reason| BrokerError::Stream { name: spec.name.clone(), reason })?;
        // An older server passes over options it does not know, so what it made is read back.
        if made.config.max_bytes != spec.max_bytes as i64
            || made.config.retention != retention(spec.retention)
        {
            tracing::warn!(stream = spec.name, "the server holds this stream otherwise than it was asked to");
        }
    }
    for spec in buckets {
        js.create_or_update_stream(bucket_config(spec))
            .await
            .map_err(|error| BrokerError::Stream { name: spec.bucket.clone(), reason: error.to_string() })?;
    }
    Ok(())
}

async fn ensure_one(js: &jetstream::Context, spec: &StreamSpec) -> Result<Info, String> {
    let born = match js.get_stream(&spec.name).await {
        Ok(stream) => stream.cached_info().config.metadata.get(BORN).cloned(),
        Err(error) if is_missing(&error.kind()) => None,
        Err(error) => return Err(error.to_string()),
    };
    let born = born.unwrap_or_else(|| clock::wall().0.to_string());
    let config = Config { metadata: [(BORN.to_owned(), born)].into(), ..stream_config(spec) };
    js.create_or_update_stream(config).await.map_err(|error| error.to_string())
}

/// Which life of the store this stream is: a stream that was made anew has a later one, and no restart changes
/// it. 0 where the server keeps no metadata (before 2.10).
pub fn born(stream: &Info) -> u64 {
    stream.config.metadata.get(BORN).and_then(|born| born.parse().ok()).unwrap_or(0)
}

fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// The stream behind a bucket, as NATS clients in all languages agree to make it. The client's own call
/// first asks for the account's figures, which it cannot read from servers before 2.10.
fn bucket_config(spec: &KvSpec) -> Config {
    Config {
        name: format!("KV_{}", spec.bucket),
        subjects: vec![format!("$KV.{}.>", spec.bucket)],
        max_messages_per_subject: spec.history.into(),
        max_messages: -1,
        max_bytes: spec.max_bytes as i64,
        max_age: spec.ttl.unwrap_or_default(),
        max_message_size: -1,
        num_replicas: spec.replicas.into(),
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..Default::default()
    }
}

fn stream_config(spec: &StreamSpec) -> Config {
    Config {
        name: spec.name.clone(),
        subjects: spec.subjects.clone(),
        retention: retention(spec.retention),
        max_age: spec.max_age,
        max_messages: spec.max_msgs.map_or(-1, |n| n as i64),
        max_bytes: spec.max_bytes as i64,
        max_message_size: spec.max_msg_size as i32,
        num_replicas: spec.replicas.into(),
        discard: match spec.discard {
            Discard::Old => DiscardPolicy::Old,
            Discard::New => DiscardPolicy::New,
        },
        duplicate_window: spec.duplicate_window,
        storage: StorageType::File,
        no_ack: spec.no_ack,
        allow_atomic_publish: spec.atomic,
        republish: spec.republish.as_ref().map(|[source, destination]| Republish {
            source: source.clone(),
            destination: destination.clone(),
            headers_only: false,
        }),
        ..Default::default()
    }
}

fn retention(retention: Retention) -> RetentionPolicy {
    match retention {
        Retention::Limits => RetentionPolicy::Limits,
        Retention::Interest => RetentionPolicy::Interest,
        Retention::WorkQueue => RetentionPolicy::WorkQueue,
    }
}
