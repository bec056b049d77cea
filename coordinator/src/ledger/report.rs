//! The ledger as `agent status --loss` shows it.

use std::cmp::Reverse;

use hierarchy::{ByLane, Lane, Path};
use serde::{Deserialize, Serialize};

use super::{Ledger, totals::Totals};

/// One origin's lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Who numbered the events.
    pub origin: Path,
    /// In which lane.
    pub lane: Lane,
    /// What became of them.
    #[serde(flatten)]
    pub totals: Totals,
}

/// What became of all events that a level knows of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Of all origins.
    pub totals: ByLane<Totals>,
    /// How many origins there are.
    pub origins: usize,
    /// How many statements were not taken.
    pub refused: u64,
    /// By origin and lane, in their order; lanes in which nothing was published are left out.
    pub rows: Vec<Row>,
    /// How many rows there are that did not fit in.
    pub left_out: usize,
}

impl Ledger {
    /// What became of everything, with at most so many rows. Where there are more, those stay that need
    /// looking after: the most unaccounted events first, then the most missing, then the most lost.
    pub fn report(&self, rows: usize) -> Report {
        let mut totals = ByLane::<Totals>::default();
        let mut all = Vec::new();
        for (origin, lane, of_lane) in self.accounts() {
            totals[lane].merge(&of_lane);
            if !of_lane.is_empty() {
                all.push((origin, lane, of_lane));
            }
        }
        let left_out = all.len().saturating_sub(rows);
        if left_out > 0 {
            all.sort_by_key(|(_, _, t)| Reverse((t.unaccounted, t.missing, t.lost_events())));
            all.truncate(rows);
            all.sort_by_key(|(origin, lane, _)| (*origin, *lane));
        }
        let row =
            |(origin, lane, totals): (&Path, Lane, Totals)| Row { origin: origin.clone(), lane, totals };
        let rows = all.into_iter().map(row).collect();
        Report { totals, origins: self.origins.len(), refused: self.refused, rows, left_out }
    }

    /// What became of the events of all origins, by lane.
    pub fn totals(&self) -> ByLane<Totals> {
        let mut totals = ByLane::<Totals>::default();
        self.accounts().for_each(|(_, lane, of_lane)| totals[lane].merge(&of_lane));
        totals
    }

    fn accounts(&self) -> impl Iterator<Item = (&Path, Lane, Totals)> {
        let lanes = |(origin, lanes): (_, &'_ ByLane<super::account::Account>)| {
            let of = lanes.map(|_, account| account.totals());
            Lane::ALL.map(|lane| (origin, lane, of[lane].clone()))
        };
        self.origins.iter().flat_map(lanes)
    }
}
