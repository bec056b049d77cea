//! Tasks: pieces of AI work, as they are submitted, handed down and reported on.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Millis, Path, Refusal, strict_json, subject};

/// Tries beyond the first that a submitter gets without asking.
const DEFAULT_RETRIES: u32 = 2;
/// Most tries beyond the first.
const MAX_RETRIES: u32 = 100;
/// Wait before the first retry; doubles up to [`LONGEST_WAIT`].
const BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait before the next try.
pub const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A task as it travels between levels and lies in their work queues.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskSpec {
    /// Its name for ever: 1 to 64 of `A-Z a-z 0-9 _ -`.
    pub id: String,
    /// First name in `lucent.agents.{agent_type}.{task}`.
    pub agent_type: String,
    /// Second name; may have further tokens.
    pub task: String,
    /// The level that keeps its record and answers its submitter.
    pub home: Path,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// Tries beyond the first.
    pub max_retries: u32,
    /// 0 to 9; higher goes first.
    pub priority: u8,
    /// The conversation it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Where the result is awaited, besides `lucent.responses.agents.{id}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// What to work on, byte for byte as submitted.
    pub payload: Box<RawValue>,
    /// What the submitter said of it, byte for byte.
    pub metadata: Box<RawValue>,
}

/// How one try ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum TaskOutcome {
    /// There is a result.
    Succeeded {
        /// Any JSON.
        result: Box<RawValue>,
    },
    /// There is none.
    Failed {
        /// Why.
        reason: String,
        /// What the runner said last.
        log_tail: String,
    },
}

/// What a node says of a try that ended: an event on [`subject::TASK_RESULT`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskReport {
    /// The task.
    pub task: String,
    /// Which try.
    pub attempt: u32,
    /// Who waits for it.
    pub home: Path,
    /// Who ran it.
    pub node: Path,
    /// When it was started, by the node's clock.
    pub started: Millis,
    /// When it ended.
    pub finished: Millis,
    /// How.
    pub outcome: TaskOutcome,
}

/// The parts of a submission that matter here. Submitters write the envelope's fields that they know;
/// the rest is passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Submission {
    message_id: Option<String>,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    subject: Option<String>,
    payload: Box<RawValue>,
    #[serde(default)]
    metadata: Option<Box<RawValue>>,
}

#[derive(Deserialize, Default)]
struct Requirements {
    max_retries: Option<u32>,
    priority: Option<Priority>,
}

/// The seeds write priorities as words and as numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Priority {
    Number(u8),
    Word(String),
}

impl TaskSpec {
    /// The task that `body`, published on `subject` at `home`, asks for. `fallback_id` names it where
    /// the submitter did not. Errors come with a sentence for the dead letter.
    pub fn from_submission(
        subject: &str,
        body: &[u8],
        home: Path,
        fallback_id: String,
    ) -> Result<TaskSpec, (Refusal, String)> {
        let wrong = |reason: &str| (Refusal::BadPayload, reason.to_owned());
        let (agent_type, task) = subject::agent_task(subject).ok_or((
            Refusal::WrongSubject,
            "a task's subject is lucent.agents.{agent_type}.{task}".to_owned(),
        ))?;
        if !strict_json::is_strict(body) {
            return Err((Refusal::Malformed, "not one JSON object without repeated keys".into()));
        }
        let submission: Submission = serde_json::from_slice(body)
            .map_err(|error| (Refusal::Malformed, format!("not a task message: {error}")))?;
        if submission.subject.as_deref().is_some_and(|said| said != subject) {
            return Err((Refusal::WrongSubject, "the message names another subject than it came on".into()));
        }
        let requirements: Requirements = match &submission.metadata {
            Some(metadata) => {
                serde_json::from_str(metadata.get()).map_err(|e| wrong(&format!("metadata: {e}")))?
            }
            None => Requirements::default(),
        };
        let id = submission.message_id.unwrap_or(fallback_id);
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(1..=64).contains(&id.len()) || !id.bytes().all(legal) {
            return Err(wrong("messageId must be 1 to 64 of A-Z, a-z, 0-9, `_` and `-`"));
        }
        let reply_is_sound =
            |reply: &String| reply.len() <= 256 && !reply.contains(['*', '>', ' ', '\r', '\n']);
        if submission.reply_to.as_ref().is_some_and(|reply| !reply_is_sound(reply)) {
            return Err(wrong("replyTo is no subject to publish on"));
        }
        let priority = match requirements.priority {
            None => 5,
            Some(Priority::Number(n)) if n <= 9 => n,
            Some(Priority::Word(word)) => match word.as_str() {
                "low" => 2,
                "normal" => 5,
                "high" => 7,
                "critical" => 9,
                _ => return Err(wrong("priority must be 0 to 9, low, normal, high or critical")),
            },
            Some(Priority::Number(_)) => return Err(wrong("priority must be 0 to 9")),
        };
        Ok(TaskSpec {
            id,
            agent_type: agent_type.to_owned(),
            task: task.to_owned(),
            home,
            attempt: 1,
            max_retries: requirements.max_retries.unwrap_or(DEFAULT_RETRIES).min(MAX_RETRIES),
            priority,
            correlation_id: submission.correlation_id,
            reply_to: submission.reply_to,
            payload: submission.payload,
            metadata: submission.metadata.unwrap_or_else(empty_object),
        })
    }

    /// The subject that it is queued on at every level.
    pub fn subject(&self) -> String {
        format!("lucent.agents.{}.{}", self.agent_type, self.task)
    }

    /// The next try and the wait before it; `None` where there is none left. `jitter` is a random
    /// number from 0 to 1.
    pub fn retry(&self, jitter: f64) -> Option<(TaskSpec, Duration)> {
        if self.attempt > self.max_retries {
            return None;
        }
        let doubled = BACKOFF.saturating_mul(2u32.saturating_pow(self.attempt - 1)).min(LONGEST_WAIT);
        let next = TaskSpec { attempt: self.attempt + 1, ..self.clone() };
        Some((next, doubled.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)))
    }
}

fn empty_object() -> Box<RawValue> {
    RawValue::from_string("{}".into()).expect("an empty object is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: &str = "lucent.agents.training.lstm";

    fn submit(body: &str) -> Result<TaskSpec, (Refusal, String)> {
        TaskSpec::from_submission(SUBJECT, body.as_bytes(), Path::global(), "fallback".into())
    }

    #[test]
    fn a_training_job_as_the_services_write_it_is_understood() {
        let task = submit(
            r#"{"messageId":"01993c3e-0000-7000-8000-000000000001","messageType":"ModelTrainingJob",
               "subject":"lucent.agents.training.lstm","replyTo":"lucent.responses.training.42",
               "payload":{"modelType":"lstm","trainingData":"ds-7"},
               "metadata":{"estimated_duration_minutes":180,"required_gpu_memory":"8GB","max_retries":3,"priority":"high"}}"#,
        )
        .unwrap();
        assert_eq!((task.agent_type.as_str(), task.task.as_str()), ("training", "lstm"));
        assert_eq!((task.attempt, task.max_retries, task.priority), (1, 3, 7));
        assert_eq!(task.reply_to.as_deref(), Some("lucent.responses.training.42"));
        assert!(task.payload.get().contains("ds-7"));
        assert_eq!(task.subject(), SUBJECT);
        assert_eq!(submit(r#"{"payload":1}"#).unwrap().id, "fallback");
    }

    #[test]
    fn a_submission_that_cannot_be_carried_out_is_refused_by_name() {
        for (body, refusal) in [
            ("nonsense", Refusal::Malformed),
            (r#"{"messageId":"a"}"#, Refusal::Malformed),
            (r#"{"payload":1,"payload":2}"#, Refusal::Malformed),
            (r#"{"payload":1,"subject":"lucent.agents.other.task"}"#, Refusal::WrongSubject),
            (r#"{"payload":1,"messageId":"a.b"}"#, Refusal::BadPayload),
            (r#"{"payload":1,"replyTo":"a.>"}"#, Refusal::BadPayload),
            (r#"{"payload":1,"metadata":{"priority":"urgent"}}"#, Refusal::BadPayload),
            (r#"{"payload":1,"metadata":{"max_retries":-1}}"#, Refusal::BadPayload),
        ] {
            assert_eq!(submit(body).unwrap_err().0, refusal, "{body}");
        }
    }

    #[test]
    fn retries_wait_longer_each_time_and_end() {
        let mut task = submit(r#"{"payload":1,"metadata":{"max_retries":3}}"#).unwrap();
        let mut waits = Vec::new();
        while let Some((next, wait)) = task.retry(1.0) {
            assert_eq!(next.attempt, task.attempt + 1);
            waits.push(wait.as_secs());
            task = next;
        }
        assert_eq!(waits, [1, 2, 4]);
        assert_eq!(task.attempt, 4);
    }
}
