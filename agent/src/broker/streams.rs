//! The level's streams and buckets, made as `nats_config` describes them.

use std::path::Path;

use async_nats::jetstream::{
    self, ErrorCode,
    context::GetStreamErrorKind,
    stream::{Config, DiscardPolicy, Info, Republish, RetentionPolicy, StorageType},
};
use nats_config::{
    KvSpec, StreamSpec,
    streams::{Discard, Retention},
};

use super::{BrokerError, store::set_aside};
use crate::clock;

/// The key in a stream's metadata under which its time of birth stands, in milliseconds since 1970. What the
/// server tells as the time of creation does not serve: once a stream's configuration was written by a
/// server that was started again, it tells the time of that start.
const BORN: &str = "lucent-born";

/// Makes every stream and bucket that is missing and brings the others up to date. `nats` is the directory of
/// the agent's own server, where damaged files are set aside.
pub async fn ensure(
    js: &jetstream::Context,
    streams: &[StreamSpec],
    buckets: &[KvSpec],
    nats: Option<&Path>,
) -> Result<(), BrokerError> {
    for spec in streams {
        let mut made = ensure_one(js, spec, nats).await;
        if made.is_err() && nats.is_none() {
            // A replica that was started at the same time made it just now, at another time of birth.
            made = ensure_one(js, spec, nats).await;
        }
        let made = made?;
        // An older server passes over options it does not know, so what it made is read back.
        if made.config.max_bytes != spec.max_bytes as i64
            || made.config.retention != retention(spec.retention)
        {
            tracing::warn!(stream = spec.name, "the server holds this stream otherwise than it was asked to");
        }
    }
    for spec in buckets {
        let config = bucket_config(spec);
        known(js, &config.name, nats).await?;
        make(js, config, nats).await?;
    }
    Ok(())
}

async fn ensure_one(
    js: &jetstream::Context,
    spec: &StreamSpec,
    nats: Option<&Path>,
) -> Result<Info, BrokerError> {
    let known = known(js, &spec.name, nats).await?;
    let born = known.and_then(|stream| stream.config.metadata.get(BORN).cloned());
    let born = born.unwrap_or_else(|| clock::wall().0.to_string());
    let config = Config { metadata: [(BORN.to_owned(), born)].into(), ..stream_config(spec) };
    make(js, config, nats).await
}

/// The stream, where the server has it. One whose description it refused keeps its blocks: it is made anew over
/// them, and has again what they hold.
async fn known(
    js: &jetstream::Context,
    name: &str,
    nats: Option<&Path>,
) -> Result<Option<Info>, BrokerError> {
    match js.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().clone())),
        Err(error) if is_missing(&error.kind()) => {
            if let Some(nats) = nats
                && let Some(kept) = set_aside::keep_description(nats, name)?
            {
                tracing::error!(stream = name, kept_in = %kept.display(),
                    "the server refused this stream, whose description is damaged: it is made anew over its blocks");
            }
            Ok(None)
        }
        Err(error) => Err(failed(name, error)),
    }
}

/// Makes the stream or brings it up to date. Where its own files are in the way they are set aside.
async fn make(js: &jetstream::Context, config: Config, nats: Option<&Path>) -> Result<Info, BrokerError> {
    let name = config.name.clone();
    let refused = match js.create_or_update_stream(config.clone()).await {
        Ok(made) => return Ok(made),
        Err(error) => error,
    };
    let Some(nats) = nats.filter(|nats| set_aside::is_in_the_way(nats, &name)) else {
        return Err(failed(&name, refused));
    };
    // One that is there and cannot be brought up to date has sound files.
    if known(js, &name, None).await?.is_some() {
        return Err(failed(&name, refused));
    }
    let kept = set_aside::whole(nats, &name)?;
    tracing::error!(stream = name, %refused, kept_in = %kept.display(),
        "the server cannot make this stream over its files: they are set aside, and it is made anew");
    js.create_or_update_stream(config).await.map_err(|error| failed(&name, error))
}

fn failed(name: &str, error: impl std::fmt::Display) -> BrokerError {
    BrokerError::Stream { name: name.to_owned(), reason: error.to_string() }
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
