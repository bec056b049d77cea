//! Key bindings that outlive the agent: a batch may wait here longer than its author's session.

use std::collections::HashMap;

use async_nats::jetstream::kv;
use hierarchy::{Digest, signing::Binding};

/// Bindings by key id, in a KV bucket, with a bounded memory of recent ones.
#[derive(Debug, Clone)]
pub struct Bindings {
    bucket: kv::Store,
    recent: HashMap<Digest, Binding>,
}

/// Bindings kept in memory; beyond it the memory starts anew.
const RECENT: usize = 4096;

/// The bucket could not be used.
#[derive(Debug, thiserror::Error)]
#[error("key bindings cannot be kept: {0}; is JetStream out of space?")]
pub struct BindingsError(String);

impl Bindings {
    /// The bindings in this bucket.
    pub fn new(bucket: kv::Store) -> Bindings {
        Bindings { bucket, recent: HashMap::new() }
    }

    /// Keeps a binding, durably, before anything signed under it is stored.
    pub async fn keep(&mut self, kid: Digest, binding: &Binding) -> Result<(), BindingsError> {
        if self.recent.get(&kid) == Some(binding) {
            return Ok(());
        }
        self.bucket
            .put(kid.to_string(), binding.to_json().into())
            .await
            .map_err(|error| BindingsError(error.to_string()))?;
        self.remember(kid, binding.clone());
        Ok(())
    }

    /// The binding of a key, where it was kept.
    pub async fn get(&mut self, kid: Digest) -> Result<Option<Binding>, BindingsError> {
        if let Some(binding) = self.recent.get(&kid) {
            return Ok(Some(binding.clone()));
        }
        let entry =
            self.bucket.get(kid.to_string()).await.map_err(|error| BindingsError(error.to_string()))?;
        let binding = entry.and_then(|text| Binding::from_json(&text).ok());
        if let Some(binding) = &binding {
            self.remember(kid, binding.clone());
        }
        Ok(binding)
    }

    fn remember(&mut self, kid: Digest, binding: Binding) {
        if self.recent.len() >= RECENT {
            self.recent.clear();
        }
        self.recent.insert(kid, binding);
    }
}
