//! Taking a task into this level's custody, once, and remembering to whom it was handed.

use async_nats::{
    HeaderMap,
    jetstream::{self, kv},
};
use hierarchy::{Path, task::TaskSpec};

use super::{DispatchError, TASK_HEADER};

/// This level's queue and its memory of hand-offs.
#[derive(Debug, Clone)]
pub struct Custody {
    js: jetstream::Context,
    bucket: kv::Store,
}

impl Custody {
    /// The queue of this JetStream, with the memory in the bucket `LUCENT_TASKS`.
    pub fn new(js: jetstream::Context, bucket: kv::Store) -> Custody {
        Custody { js, bucket }
    }

    /// Whether this try was taken before: a hand-off is repeated when its answer was lost.
    pub async fn was_taken(&self, spec: &TaskSpec) -> Result<bool, DispatchError> {
        let taken = self.bucket.get(taken_key(spec)).await.map_err(DispatchError::on("task records"))?;
        Ok(taken.is_some())
    }

    /// Puts the task into this level's queue, durably. What was taken before is not taken again.
    pub async fn take(&self, spec: &TaskSpec) -> Result<(), DispatchError> {
        if self.was_taken(spec).await? {
            return Ok(());
        }
        self.enqueue(spec).await?;
        // Between the two a crash leaves a task without a mark. The parent then hands it down again, and
        // the queue recognises it by its id.
        self.bucket.put(taken_key(spec), "".into()).await.map_err(DispatchError::on("task records"))?;
        Ok(())
    }

    /// Puts a try into this level's queue.
    pub async fn enqueue(&self, spec: &TaskSpec) -> Result<(), DispatchError> {
        let store = DispatchError::on("work queue");
        let mut headers = HeaderMap::new();
        headers.insert(TASK_HEADER, spec.id.as_str());
        headers.insert("Nats-Msg-Id", format!("{}.{}", spec.id, spec.attempt));
        let body = serde_json::to_vec(spec).map_err(|e| store(e.to_string()))?;
        let ack = self.js.publish_with_headers(spec.subject(), headers, body.into()).await;
        ack.map_err(|e| store(e.to_string()))?.await.map_err(|e| store(e.to_string()))?;
        Ok(())
    }

    /// Notes that the try goes to `child`, before it is sent there.
    pub async fn note_handed(&self, spec: &TaskSpec, child: &Path) -> Result<(), DispatchError> {
        let note = self.bucket.put(handed_key(&spec.id, spec.attempt), child.to_string().into()).await;
        note.map_err(DispatchError::on("task records"))?;
        Ok(())
    }

    /// To whom the try was handed, where it was.
    pub async fn handed_to(&self, spec: &TaskSpec) -> Result<Option<Path>, DispatchError> {
        let noted = self.bucket.get(handed_key(&spec.id, spec.attempt)).await;
        let noted = noted.map_err(DispatchError::on("task records"))?;
        Ok(noted.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()))
    }
}

fn taken_key(spec: &TaskSpec) -> String {
    format!("taken.{}.{}", spec.id, spec.attempt)
}

fn handed_key(task: &str, attempt: u32) -> String {
    format!("handed.{task}.{attempt}")
}
