//! One origin's lane: a bounded number of incarnations.

use hierarchy::link::Tick;
use serde::{Deserialize, Serialize};

use super::{Patience, runs::Runs, totals::Totals};

/// Incarnations that are kept apart, as many as a link remembers of an origin's lane.
pub(super) const MAX_INCARNATIONS: usize = 16;

/// What is known of one origin's lane.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Account {
    /// In order; an origin's incarnations rise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    incarnations: Vec<(u64, Runs)>,
    /// What became of the incarnations that were folded.
    #[serde(default, skip_serializing_if = "Totals::is_empty")]
    folded: Totals,
    /// The newest one that was folded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    folded_to: Option<u64>,
}

impl Account {
    /// Changes what is known of an incarnation. `None` where it was folded.
    pub(super) fn change(&mut self, incarnation: u64, change: impl FnOnce(&mut Runs)) -> Option<()> {
        let index = match self.incarnations.binary_search_by_key(&incarnation, |(known, _)| *known) {
            Ok(index) => index,
            Err(_) if self.folded_to >= Some(incarnation) => return None,
            Err(index) => {
                // Most origins have one or two; a vector would make room for four.
                self.incarnations.reserve_exact(1);
                self.incarnations.insert(index, (incarnation, Runs::default()));
                index
            }
        };
        change(&mut self.incarnations[index].1);
        if self.incarnations.len() > MAX_INCARNATIONS {
            self.fold_one();
        }
        Some(())
    }

    /// Lets holes age.
    pub(super) fn tick(&mut self, now: Tick, patience: Patience) {
        let arrived = self.newest_arrived();
        for (incarnation, runs) in &mut self.incarnations {
            runs.tick(now, patience, Some(*incarnation) < arrived);
        }
    }

    /// What became of all that the origin numbered in this lane.
    pub(super) fn totals(&self) -> Totals {
        let arrived = self.newest_arrived();
        let mut totals = self.folded.clone();
        for (incarnation, runs) in &self.incarnations {
            totals.merge(&runs.totals(Some(*incarnation) < arrived));
        }
        totals
    }

    /// The newest incarnation of which anything arrived in this lane: a lane keeps its order, so nothing of
    /// older ones is on its way any more. That it has begun says less, since the critical lane tells it
    /// while this one may have hours of work left.
    fn newest_arrived(&self) -> Option<u64> {
        let arrived = self.incarnations.iter().rev().find(|(_, runs)| runs.has_arrived());
        arrived.map(|(incarnation, _)| *incarnation).max(self.folded_to)
    }

    /// Folds the oldest incarnation of which nothing can be learnt any more; else the oldest, as if nothing
    /// of it would come any more. The newest one stays.
    fn fold_one(&mut self) {
        let older = self.incarnations.len() - 1;
        let settled = self.incarnations[..older].iter().position(|(_, runs)| runs.is_settled());
        let (incarnation, runs) = self.incarnations.remove(settled.unwrap_or(0));
        let mut totals = runs.totals(true);
        totals.unaccounted = totals.missing;
        self.folded.merge(&totals);
        self.folded_to = self.folded_to.max(Some(incarnation));
    }
}
