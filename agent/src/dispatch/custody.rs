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

    /// Notes that the try goes to `child`, before it is sent there, unless another coordinator has noted something
    /// since the note of revision `after` (0: none) was read; what is noted then. A coordinator that was stopped
    /// while another took over must not send the task to a second child.
    pub async fn note_handed(
        &self,
        spec: &TaskSpec,
        child: &Path,
        after: u64,
    ) -> Result<Noted, DispatchError> {
        let key = handed_key(&spec.id, spec.attempt);
        let written = self.bucket.update(&key, child.to_string().into(), after).await;
        match written {
            Ok(revision) => Ok(Noted { child: child.clone(), revision }),
            // Refused, or of unknown outcome: what lies there decides.
            Err(error) => match self.handed_to(spec).await? {
                Some(noted) if noted.revision != after => Ok(noted),
                _ => Err(DispatchError::on("task records")(error)),
            },
        }
    }

    /// To whom the try was handed, where it was.
    pub async fn handed_to(&self, spec: &TaskSpec) -> Result<Option<Noted>, DispatchError> {
        let entry = self.bucket.entry(handed_key(&spec.id, spec.attempt)).await;
        let entry = entry.map_err(DispatchError::on("task records"))?;
        Ok(entry.and_then(|entry| {
            let child = std::str::from_utf8(&entry.value).ok()?.parse().ok()?;
            Some(Noted { child, revision: entry.revision })
        }))
    }
}

/// To whom a try goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// The child.
    pub child: Path,
    /// The note's revision.
    pub revision: u64,
}

fn taken_key(spec: &TaskSpec) -> String {
    format!("taken.{}.{}", spec.id, spec.attempt)
}

fn handed_key(task: &str, attempt: u32) -> String {
    format!("handed.{task}.{attempt}")
}
