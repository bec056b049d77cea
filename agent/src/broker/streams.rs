//! The level's streams and buckets, made as `nats_config` describes them.

use async_nats::jetstream::{
    self, kv,
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use nats_config::{
    KvSpec, StreamSpec,
    streams::{Discard, Retention},
};

use super::BrokerError;

/// Makes every stream and bucket that is missing and brings the others up to date.
pub async fn ensure(
    js: &jetstream::Context,
    streams: &[StreamSpec],
    buckets: &[KvSpec],
) -> Result<(), BrokerError> {
    for spec in streams {
        let made = js.create_or_update_stream(stream_config(spec)).await;
        let made =
            made.map_err(|error| BrokerError::Stream { name: spec.name.clone(), reason: error.to_string() })?;
        // An older server passes over options it does not know, so what it made is read back.
        if made.config.max_bytes != spec.max_bytes as i64
            || made.config.retention != retention(spec.retention)
        {
            tracing::warn!(stream = spec.name, "the server holds this stream otherwise than it was asked to");
        }
    }
    for spec in buckets {
        let config = kv::Config {
            bucket: spec.bucket.clone(),
            history: spec.history.into(),
            max_bytes: spec.max_bytes as i64,
            max_age: spec.ttl.unwrap_or_default(),
            num_replicas: spec.replicas.into(),
            ..Default::default()
        };
        js.create_or_update_key_value(config)
            .await
            .map_err(|error| BrokerError::Stream { name: spec.bucket.clone(), reason: error.to_string() })?;
    }
    Ok(())
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
