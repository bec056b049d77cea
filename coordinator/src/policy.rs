//! What of the events below goes on to the parent, told by their subjects.
//!
//! Rules are an ordered list and the first that matches decides. Behind the configured rules stand the
//! built-in ones, and behind those "forward". A batch is signed as a whole and can only travel whole, so it
//! is decided as a whole: where its subjects disagree, it is forwarded.

use std::num::NonZeroU32;

use hierarchy::{Level, subject};
use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// Most rules that can be configured; each event may be held against all of them.
pub const MAX_RULES: usize = 256;

/// What is done with the subjects that a pattern matches. As configuration:
/// `{ subject = "lucent.hierarchy.*.*.ticks.>", action = "sample", one_in = 10 }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The subjects.
    pub subject: Pattern,
    /// What is done with them.
    #[serde(flatten)]
    pub action: Action,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Send it on to the parent.
    Forward,
    /// Let it count in this level's roll-up, and send only that.
    Aggregate,
    /// Send on the first of each so many, and drop the others.
    Sample {
        /// How many are one group.
        one_in: NonZeroU32,
    },
    /// Do not send it on.
    Drop,
}

/// What becomes of an event or a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It goes to the parent.
    Forward,
    /// It counts in this level's roll-up and goes no further.
    Aggregate,
    /// It goes no further.
    Drop(DropReason),
}

/// Why something goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// A rule drops its subject.
    Dropped,
    /// A rule samples its subject, and this was not the one of its group.
    SampledOut,
}

/// How many events met which end under one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Sent on.
    pub forwarded: u64,
    /// Left to the roll-up.
    pub aggregated: u64,
    /// See [`DropReason::Dropped`].
    pub dropped: u64,
    /// See [`DropReason::SampledOut`].
    pub sampled_out: u64,
}

/// More rules than a policy can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} rules are refused: a policy has at most {MAX_RULES}, so join some with `*` or `>`")]
pub struct TooManyRules(pub usize);

/// The rules of one agent, with what they have done so far.
#[derive(Debug)]
pub struct Policy {
    /// The last one matches everything.
    rules: Vec<Applied>,
    kept_whole: u64,
}

#[derive(Debug)]
struct Applied {
    rule: Rule,
    counts: Counts,
    /// Place in the sampling group: 0 is the one that is sent on.
    place: u32,
}

impl Policy {
    /// The policy of an agent at `level` with these configured rules.
    pub fn new(level: Level, configured: Vec<Rule>) -> Result<Policy, TooManyRules> {
        if configured.len() > MAX_RULES {
            return Err(TooManyRules(configured.len()));
        }
        let rules = configured.into_iter().chain(built_in(level));
        let rules = rules.map(|rule| Applied { rule, counts: Counts::default(), place: 0 }).collect();
        Ok(Policy { rules, kept_whole: 0 })
    }

    /// Decides one event, and counts it.
    pub fn decide(&mut self, subject: &str) -> Decision {
        self.decide_batch(&[subject], 1)
    }

    /// Decides a batch of so many `events` on these subjects, and counts them. Where the subjects'
    /// actions differ, or more than one sampling rule matches, it is forwarded whole. For a sampling
    /// rule, a batch is one member of a group, whatever it holds.
    pub fn decide_batch(&mut self, subjects: &[impl AsRef<str>], events: u64) -> Decision {
        let Some((first, others)) = subjects.split_first() else { return Decision::Forward };
        let index = self.rule_of(first.as_ref());
        let action = self.rules[index].rule.action;
        let agreed = others.iter().all(|subject| {
            let other = self.rule_of(subject.as_ref());
            let sampled = matches!(action, Action::Sample { .. });
            other == index || (!sampled && self.rules[other].rule.action == action)
        });
        if agreed {
            self.rules[index].apply(events)
        } else {
            self.kept_whole = self.kept_whole.saturating_add(events);
            Decision::Forward
        }
    }

    /// Each rule, in order, with what it has done to how many events. A batch counts under the rule of
    /// its first subject.
    pub fn counts(&self) -> impl Iterator<Item = (&Rule, Counts)> {
        self.rules.iter().map(|applied| (&applied.rule, applied.counts))
    }

    /// How many events were forwarded because their batch could only travel whole.
    pub fn kept_whole(&self) -> u64 {
        self.kept_whole
    }

    /// Whether a rule keeps back anything that was published on this subject. Changes and counts nothing.
    pub fn may_keep_back(&self, subject: &str) -> bool {
        self.rules[self.rule_of(subject)].rule.action != Action::Forward
    }

    fn rule_of(&self, subject: &str) -> usize {
        let found = self.rules.iter().position(|applied| applied.rule.subject.matches(subject));
        found.unwrap_or(self.rules.len() - 1)
    }
}

impl Applied {
    fn apply(&mut self, events: u64) -> Decision {
        let counts = &mut self.counts;
        let (decision, count) = match self.rule.action {
            Action::Forward => (Decision::Forward, &mut counts.forwarded),
            Action::Aggregate => (Decision::Aggregate, &mut counts.aggregated),
            Action::Drop => (Decision::Drop(DropReason::Dropped), &mut counts.dropped),
            Action::Sample { one_in } => {
                let place = self.place;
                self.place = (place + 1) % one_in;
                if place == 0 {
                    (Decision::Forward, &mut counts.forwarded)
                } else {
                    (Decision::Drop(DropReason::SampledOut), &mut counts.sampled_out)
                }
            }
        };
        *count = count.saturating_add(events);
        decision
    }
}

/// A coordinator replaces what its children say of themselves by its own roll-up. Telemetry is named at
/// every level, since it covers the coordinator's own machine too; roll-ups only at the children's, since
/// its own is what goes to the parent.
fn built_in(level: Level) -> Vec<Rule> {
    let rule = |subject: &str, action| {
        let subject = subject.parse().expect("a level's name and the words below make a pattern");
        Rule { subject, action }
    };
    let mut rules = Vec::new();
    if let Some(child) = level.child() {
        rules.push(rule(&format!("lucent.hierarchy.*.*.{}", subject::TELEMETRY), Action::Aggregate));
        rules.push(rule(&format!("lucent.hierarchy.{child}.*.{}", subject::ROLLUP), Action::Aggregate));
    }
    rules.push(rule(">", Action::Forward));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKS: &str = "lucent.hierarchy.node.n1.ticks";
    const DEBUG: &str = "lucent.hierarchy.node.n1.debug.x";
    const SAMPLED: Decision = Decision::Drop(DropReason::SampledOut);
    const DROPPED: Decision = Decision::Drop(DropReason::Dropped);

    fn policy(level: Level, rules: &str) -> Policy {
        Policy::new(level, serde_json::from_str(rules).unwrap()).unwrap()
    }

    fn with_rules() -> Policy {
        policy(
            Level::Cluster,
            r#"[{"subject": "lucent.hierarchy.*.*.ticks", "action": "sample", "one_in": 3},
                {"subject": "lucent.hierarchy.*.*.debug.>", "action": "drop"},
                {"subject": "lucent.hierarchy.*.*.trace.>", "action": "drop"},
                {"subject": "lucent.hierarchy.>", "action": "forward"}]"#,
        )
    }

    #[test]
    fn a_coordinator_aggregates_what_its_children_say_of_themselves_and_forwards_the_rest() {
        let mut site = policy(Level::Site, "[]");
        for (subject, expected) in [
            ("lucent.hierarchy.node.n1.agent.telemetry", Decision::Aggregate),
            ("lucent.hierarchy.site.s1.agent.telemetry", Decision::Aggregate),
            ("lucent.hierarchy.cluster.c1.agent.rollup", Decision::Aggregate),
            ("lucent.hierarchy.site.s1.agent.rollup", Decision::Forward),
            ("lucent.hierarchy.cluster.c1.alerts", Decision::Forward),
            ("lucent.events.domain.order.placed", Decision::Forward),
        ] {
            assert_eq!(site.decide(subject), expected, "{subject}");
        }
    }

    #[test]
    fn a_node_forwards_its_telemetry() {
        let mut node = policy(Level::Node, "[]");
        assert_eq!(node.decide("lucent.hierarchy.node.n1.agent.telemetry"), Decision::Forward);
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let mut policy = with_rules();
        assert_eq!(policy.decide(DEBUG), DROPPED);
        // The configured rule stands before the built-in one.
        assert_eq!(policy.decide("lucent.hierarchy.node.n1.agent.telemetry"), Decision::Forward);
    }

    #[test]
    fn sampling_keeps_the_first_of_each_group() {
        let mut policy = with_rules();
        let decisions: Vec<_> = (0..7).map(|_| policy.decide(TICKS)).collect();
        let forward = Decision::Forward;
        assert_eq!(decisions, [forward, SAMPLED, SAMPLED, forward, SAMPLED, SAMPLED, forward]);
        let (_, counts) = policy.counts().next().unwrap();
        assert_eq!(counts, Counts { forwarded: 3, sampled_out: 4, ..Counts::default() });
    }

    #[test]
    fn a_batch_whose_subjects_disagree_is_forwarded_whole_and_counted_so() {
        let mut policy = with_rules();
        assert_eq!(policy.decide_batch(&[DEBUG, TICKS], 40), Decision::Forward);
        assert_eq!(policy.decide_batch(&[TICKS, DEBUG], 2), Decision::Forward);
        assert_eq!(policy.kept_whole(), 42);
        assert!(policy.counts().all(|(_, counts)| counts == Counts::default()));
        // It took no place in the sampling group either.
        assert_eq!(policy.decide(TICKS), Decision::Forward);
        assert_eq!(policy.decide(TICKS), SAMPLED);
    }

    #[test]
    fn a_batch_whose_subjects_agree_is_decided_as_one() {
        let mut policy = with_rules();
        assert_eq!(policy.decide_batch(&[DEBUG, "lucent.hierarchy.node.n1.trace.y"], 7), DROPPED);
        assert_eq!(policy.counts().nth(1).unwrap().1.dropped, 7);
        let ticks = [TICKS, "lucent.hierarchy.node.n2.ticks"];
        assert_eq!(policy.decide_batch(&ticks, 500), Decision::Forward);
        assert_eq!(policy.decide_batch(&ticks, 500), SAMPLED);
        assert_eq!(policy.counts().next().unwrap().1.sampled_out, 500);
        assert_eq!(policy.decide_batch(&[""; 0], 0), Decision::Forward);
    }

    #[test]
    fn a_batch_under_two_sampling_rules_is_forwarded_whole() {
        let mut policy = policy(
            Level::Cluster,
            r#"[{"subject": "a", "action": "sample", "one_in": 3}, {"subject": "b", "action": "sample", "one_in": 3}]"#,
        );
        for _ in 0..4 {
            assert_eq!(policy.decide_batch(&["a", "b"], 1), Decision::Forward);
        }
        assert_eq!(policy.kept_whole(), 4);
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        for bad in [
            r#"{"subject": "a..b", "action": "drop"}"#,
            r#"{"subject": "a", "action": "sample", "one_in": 0}"#,
            r#"{"subject": "a", "action": "sample"}"#,
            r#"{"subject": "a", "action": "burn"}"#,
        ] {
            assert!(serde_json::from_str::<Rule>(bad).is_err(), "{bad}");
        }
        let rule: Rule = serde_json::from_str(r#"{"subject": "a", "action": "drop"}"#).unwrap();
        assert_eq!(Policy::new(Level::Node, vec![rule; 257]).unwrap_err(), TooManyRules(257));
    }
}
