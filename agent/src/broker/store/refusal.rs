//! Answers in the place of streams that are frozen: the server says nothing to who publishes there, and a
//! publisher had better know at once than after its patience.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::{Client, Message};
use futures_util::{StreamExt as _, stream::SelectAll};
use nats_config::{KvSpec, StreamSpec};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::StoreState;
use crate::lanes::Fill;

/// How long after the word the answers have ended.
pub(super) const HEARD_WITHIN: Duration = Duration::from_millis(200);
/// JetStream's own code of an error that says that there is no room.
const INSUFFICIENT_RESOURCES: u32 = 10023;

/// What the answers are made of.
pub struct RefusalParts {
    /// How the store fares.
    pub store: watch::Receiver<StoreState>,
    /// The connection in account MESH.
    pub mesh: Client,
    /// The streams of this level.
    pub streams: Vec<StreamSpec>,
    /// Its buckets.
    pub buckets: Vec<KvSpec>,
    /// Told to hold the children back.
    pub fill: Arc<Fill>,
}

/// Answers until cancelled.
pub async fn run(
    mut parts: RefusalParts,
    cancel: CancellationToken,
) -> Result<(), async_nats::SubscribeError> {
    let subjects = subjects(&parts);
    let mut frozen = BTreeMap::new();
    let mut refused = SelectAll::new();
    // A stream stays frozen for as long as this very server runs.
    let mut server = String::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = parts.store.changed() => {
                if changed.is_err() {
                    cancel.cancelled().await;
                    return Ok(());
                }
                let state = parts.store.borrow_and_update().clone();
                parts.fill.set_no_room(state.trouble.is_some());
                if state.frozen != frozen {
                    // Dropped subscriptions end with the next word to the server.
                    refused = SelectAll::new();
                    server = parts.mesh.server_info().server_id;
                    for (stream, subject) in &subjects {
                        if state.frozen.contains_key(stream) {
                            let name = stream.clone();
                            let heard = parts.mesh.subscribe(subject.clone()).await?;
                            refused.push(heard.map(move |message| (name.clone(), message)).boxed());
                        }
                    }
                    let _ = tokio::time::timeout(HEARD_WITHIN / 2, parts.mesh.flush()).await;
                    frozen = state.frozen;
                }
            }
            Some((stream, message)) = refused.next(), if !refused.is_empty() => {
                let state = parts.store.borrow().clone();
                if state.frozen.contains_key(&stream) && parts.mesh.server_info().server_id == server {
                    refuse(&parts.mesh, &stream, message, state.trouble.as_deref()).await;
                }
            }
        }
    }
}

/// Streams with their subjects, as far as somebody waits for the stream's word.
fn subjects(parts: &RefusalParts) -> Vec<(String, String)> {
    let streams = parts.streams.iter().filter(|spec| !spec.no_ack);
    let streams =
        streams.flat_map(|spec| spec.subjects.iter().map(|subject| (spec.name.clone(), subject.clone())));
    let buckets =
        parts.buckets.iter().map(|spec| (format!("KV_{}", spec.bucket), format!("$KV.{}.>", spec.bucket)));
    streams.chain(buckets).collect()
}

async fn refuse(mesh: &Client, stream: &str, message: Message, trouble: Option<&str>) {
    let Some(reply) = message.reply else { return };
    let description = format!("{}; publish again later", trouble.unwrap_or("the stream takes nothing"));
    let error = json!({ "code": 503, "err_code": INSUFFICIENT_RESOURCES, "description": description });
    let answer = json!({ "error": error, "stream": stream, "seq": 0 });
    // Who does not hear asks again.
    let _ = mesh.publish(reply, answer.to_string().into()).await;
}
