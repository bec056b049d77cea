//! What became of so many events.

use std::collections::BTreeMap;

use hierarchy::loss::LossReason;
use serde::{Deserialize, Serialize};

/// What became of so many events. Each number that was given counts in exactly one place, so that
/// `published = arrived + policy + lost + in flight + missing`, always.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Numbers that their origins gave: as far as they say themselves, or as they were heard of.
    pub published: u64,
    /// Events that arrived.
    pub arrived: u64,
    /// Numbers without an event: the origin's own policy dropped it before it went into a batch.
    pub policy: u64,
    /// Events that a hop states to have dropped, by reason, and that did not arrive after all.
    pub lost: BTreeMap<LossReason, u64>,
    /// Numbers that nothing is known of and that nothing behind them has overtaken: on their way.
    pub in_flight: u64,
    /// Numbers that nothing is known of though what came behind them has arrived.
    pub missing: u64,
    /// Those of the missing that have been so for longer than a loss receipt may take.
    pub unaccounted: u64,
}

impl Totals {
    /// Events that were lost, for whatever reason.
    pub fn lost_events(&self) -> u64 {
        self.lost.values().fold(0, |sum, lost| sum.saturating_add(*lost))
    }

    pub(super) fn lose(&mut self, reason: LossReason, events: u64) {
        if events > 0 {
            add(self.lost.entry(reason).or_default(), events);
        }
    }

    pub(super) fn merge(&mut self, more: &Totals) {
        // Destructured so that a new field is not forgotten here.
        let Totals { published, arrived, policy, lost, in_flight, missing, unaccounted } = more;
        add(&mut self.published, *published);
        add(&mut self.arrived, *arrived);
        add(&mut self.policy, *policy);
        lost.iter().for_each(|(reason, events)| self.lose(*reason, *events));
        add(&mut self.in_flight, *in_flight);
        add(&mut self.missing, *missing);
        add(&mut self.unaccounted, *unaccounted);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.published == 0
    }
}

/// Sums over thousands of origins that lie about their numbers could reach the end.
fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}
