//! What goes up, by policy; what does not is counted.

use coordinator::policy::{Decision, DropReason, Policy};
use hierarchy::subject;

use crate::metrics::{Metrics, Reason};

/// Decides by subject: for single events where they are packed, for whole batches where they pass.
#[derive(Debug)]
pub struct Gate {
    policy: Policy,
    metrics: Metrics,
}

impl Gate {
    /// The gate that this policy makes.
    pub fn new(policy: Policy, metrics: Metrics) -> Gate {
        Gate { policy, metrics }
    }

    /// Whether what was published on this subject goes up.
    pub fn lets_up(&mut self, subject: &str) -> bool {
        if is_beyond_policy(subject) {
            return true;
        }
        let action = match self.policy.decide(subject) {
            Decision::Forward => return true,
            Decision::Aggregate => "aggregated",
            Decision::Drop(DropReason::Dropped) => "dropped",
            Decision::Drop(DropReason::SampledOut) => "sampled-out",
        };
        self.metrics.policy_kept.get_or_create(&Reason { reason: action.into() }).inc();
        false
    }
    /// Whether what was published on this subject may have been kept back earlier. Counts nothing.
    pub fn may_keep_back(&self, subject: &str) -> bool {
        !is_beyond_policy(subject) && self.policy.may_keep_back(subject)
    }
}

/// What tasks wait for and what accounts for losses is not a matter of policy.
fn is_beyond_policy(subject: &str) -> bool {
    let tail = subject.splitn(5, '.').nth(4).unwrap_or_default();
    matches!(tail, subject::TASK_RESULT | subject::LOSS)
}
