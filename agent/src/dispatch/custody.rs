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

    /// Puts the task into this level's queue, durably. A hand-off that is repeated, since its answer was
    /// lost, changes nothing.
    pub async fn take(&self, spec: &TaskSpec) -> Result<(), DispatchError> {
        let mark = format!("taken.{}.{}", spec.id, spec.attempt);
        let taken = self.bucket.get(mark.as_str()).await.map_err(DispatchError::on("task records"))?;
        if taken.is_some() {
            return Ok(());
        }
        self.enqueue(spec).await?;
        // Between the two a crash leaves a task without a mark. The parent then hands it down again, and
        // the queue recognises it by its id.
        self.bucket.put(mark.as_str(), "".into()).await.map_err(DispatchError::on("task records"))?;
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

fn handed_key(task: &str, attempt: u32) -> String {
    format!("handed.{task}.{attempt}")
}
