//! What the home level knows of its tasks: one record each, in a bucket of its own store.

use async_nats::jetstream::kv;
use hierarchy::{Millis, Path, task::TaskSpec};
use serde::{Deserialize, Serialize};

use super::DispatchError;

/// One task's record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskRecord {
    /// The newest try.
    pub spec: TaskSpec,
    /// When it was submitted.
    pub submitted: Millis,
    /// How far it is.
    pub state: TaskState,
}

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum TaskState {
    /// In this level's queue.
    Queued,
    /// A try failed; the next waits.
    Retrying {
        /// When it is due.
        due: Millis,
        /// Why the last one failed.
        reason: String,
    },
    /// There is a result.
    Succeeded {
        /// Who ran it.
        node: Path,
    },
    /// It was given up.
    Dead {
        /// Why.
        reason: String,
    },
}

impl TaskState {
    /// Whether nothing more happens to the task.
    pub fn is_final(&self) -> bool {
        matches!(self, TaskState::Succeeded { .. } | TaskState::Dead { .. })
    }
}

/// The records, in the bucket `LUCENT_TASKS`.
#[derive(Debug, Clone)]
pub struct Records(kv::Store);

impl Records {
    /// The records in this bucket.
    pub fn new(bucket: kv::Store) -> Records {
        Records(bucket)
    }

    /// Makes the record of a new task; false where there is one already.
    pub async fn create(&self, record: &TaskRecord) -> Result<bool, DispatchError> {
        match self.0.create(key(&record.spec.id), encode(record)?).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(DispatchError::on("task records")(error)),
        }
    }

    /// The record of a task and its revision.
    pub async fn get(&self, task: &str) -> Result<Option<(TaskRecord, u64)>, DispatchError> {
        let entry = self.0.entry(key(task)).await.map_err(DispatchError::on("task records"))?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else {
            return Ok(None);
        };
        let record = serde_json::from_slice(&entry.value).map_err(DispatchError::on("task records"))?;
        Ok(Some((record, entry.revision)))
    }

    /// Replaces the record, unless somebody else did since `revision` was read.
    pub async fn update(&self, record: &TaskRecord, revision: u64) -> Result<(), DispatchError> {
        self.0
            .update(key(&record.spec.id), encode(record)?, revision)
            .await
            .map_err(DispatchError::on("task records"))?;
        Ok(())
    }

    /// The tasks that wait for another try.
    pub async fn retrying(&self) -> Result<Vec<TaskRecord>, DispatchError> {
        use futures_util::TryStreamExt as _;

        let keys: Vec<String> = self
            .0
            .keys()
            .await
            .map_err(DispatchError::on("task records"))?
            .try_collect()
            .await
            .map_err(DispatchError::on("task records"))?;
        let mut retrying = Vec::new();
        for task in keys.iter().filter_map(|key| key.strip_prefix("task.")) {
            if let Some((record, _)) = self.get(task).await?
                && matches!(record.state, TaskState::Retrying { .. })
            {
                retrying.push(record);
            }
        }
        Ok(retrying)
    }
}

fn key(task: &str) -> String {
    format!("task.{task}")
}

fn encode(record: &TaskRecord) -> Result<bytes::Bytes, DispatchError> {
    let text = serde_json::to_vec(record).map_err(DispatchError::on("task records"))?;
    Ok(text.into())
}
