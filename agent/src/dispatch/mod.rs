//! Dispatch: tasks come in, are matched, handed down, run, and their results return.
//!
//! ```text
//!  submitter -> AGENT_COORDINATION -> Hub ==hand-off==> Hub ==hand-off==> Worker -> runner
//!                    ^                                                      |
//!                    | retry                                                | report: an event
//!                  Home <------------------- HIERARCHY <====== link up =====+
//! ```
//! [`hub`] runs at every coordinator, [`worker`] at every node, [`home`] where tasks are submitted.

pub mod custody;
pub mod home;
pub mod hub;
mod queue;
pub mod records;
pub mod worker;

/// The work queue, at every level.
pub const AGENT_COORDINATION: &str = "AGENT_COORDINATION";

/// Marks a queued message as a [`hierarchy::task::TaskSpec`] of an agent, not a submission.
pub const TASK_HEADER: &str = "Lucent-Task";

/// The agent's own consumers carry a name that applications may not use.
const CONSUMER: &str = nats_config::names::AGENT_CONSUMERS[0];

/// How long an offer holds. Three offers may be lost before a child counts as full.
const CREDIT_VALID_MS: u64 = 3_500;
/// How often children offer.
const CREDIT_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Why dispatch stopped.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The work queue or the records cannot be used.
    #[error("the {what} cannot be used: {reason}; is JetStream available?")]
    Store {
        /// Which of them.
        what: &'static str,
        /// What it said.
        reason: String,
    },
}

impl DispatchError {
    fn on<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> DispatchError {
        move |error| DispatchError::Store { what, reason: error.to_string() }
    }
}
