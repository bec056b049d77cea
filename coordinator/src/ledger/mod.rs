//! What became of every event: published = arrived + dropped by policy + lost + in flight + missing.
//!
//! Each origin numbers its events without a gap, by incarnation and lane. The ledger of a level hears three
//! kinds of statements about those numbers: batches that arrived, losses that hops state in receipts, and how
//! far the origins say they have numbered. They come in any order, more than once, and may contradict each
//! other; arrived wins over lost, and otherwise the first word stays.
//!
//! A lane keeps its order all the way up. So a number of which nothing is known is *in flight* as long as
//! nothing behind it in its lane has arrived, of this incarnation or a newer one; afterwards it is *missing*.
//! Receipts and the origins' words overtake, and so prove nothing of the kind. Since a receipt may come a
//! little later than the batches behind the hole that it explains, what is missing becomes *unaccounted* only
//! after a grace.

mod account;
mod report;
mod runs;
mod totals;

use std::{collections::BTreeMap, ops::Range, time::Duration};

use hierarchy::{
    ByLane, Lane, Path,
    link::{Span, Tick},
    loss::{self, Loss, MAX_NUMBER, Published},
};
use serde::{Deserialize, Serialize};

use account::Account;
pub use report::{Report, Row};
pub use totals::Totals;

/// Most origins that a ledger keeps, as many as a link tells apart.
pub const MAX_ORIGINS: usize = 100_000;

/// What one level knows of the events of all origins at or below it. A checkpoint can hold it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ledger {
    origins: BTreeMap<Path, ByLane<Account>>,
    refused: u64,
}

/// Why a statement was not taken. Each is counted in [`Report::refused`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// There are too many origins.
    #[error(
        "{0} is not in the ledger, which holds {MAX_ORIGINS} origins: what becomes of its events is not known"
    )]
    TooManyOrigins(Path),
    /// The incarnation is too old.
    #[error(
        "incarnation {incarnation} of {origin} is settled in the ledger: it comes from a store restored from \
         too old a copy, or again"
    )]
    Settled {
        /// Whose.
        origin: Path,
        /// Which.
        incarnation: u64,
    },
    /// The hop had nothing to do with these events.
    #[error("{hop} states losses of {origin}, whose events do not pass it: look into {hop}")]
    NotOnTheWay {
        /// Who states it.
        hop: Path,
        /// Of whom.
        origin: Path,
    },
    /// No numbers are like that.
    #[error(
        "a statement about numbers of {origin} contradicts itself: they run from 1 to {MAX_NUMBER}, and each \
         has at most one event; look into {origin}"
    )]
    Unsound {
        /// Whose.
        origin: Path,
    },
}

/// How long a hole may go without an explanation.
#[derive(Debug, Clone, Copy)]
struct Patience {
    grace: Duration,
    heard: Option<(Tick, Tick)>,
}

/// Who is cut off for so long had better be asked about.
const LONGEST_PATIENCE: Duration = Duration::from_secs(3600);

impl Patience {
    fn is_over(self, since: Tick, now: Tick) -> bool {
        let heard = self.heard.map(|(begin, end)| end.saturating_sub(begin.max(since)));
        heard.is_some_and(|heard| heard > self.grace) || now.saturating_sub(since) > LONGEST_PATIENCE
    }
}

impl Ledger {
    /// Nothing was heard of.
    pub fn new() -> Ledger {
        Ledger::default()
    }

    /// A batch of `origin` arrived that answers for `span` and holds `count` events. A batch that arrived
    /// before changes nothing.
    pub fn arrived(&mut self, origin: &Path, lane: Lane, span: Span, count: u64) -> Result<(), NotTaken> {
        let taken = sound(origin, span, count).and_then(|()| {
            let change = |runs: &mut runs::Runs| runs.arrived(span.first, span.last, count);
            self.change(origin, lane, span.incarnation, change)
        });
        self.counted(taken)
    }

    /// `hop` states a loss.
    pub fn lost(&mut self, hop: &Path, loss: &Loss) -> Result<(), NotTaken> {
        let Loss { origin, lane, incarnation, reason, first, last, count } = loss;
        let taken = if hop.contains(origin) {
            sound(origin, loss.span(), *count).and_then(|()| {
                self.change(origin, *lane, *incarnation, |runs| runs.lost(*first, *last, *count, *reason))
            })
        } else {
            Err(NotTaken::NotOnTheWay { hop: hop.clone(), origin: origin.clone() })
        };
        self.counted(taken)
    }

    /// `origin` says how far it has numbered.
    pub fn published(&mut self, origin: &Path, published: &Published) -> Result<(), NotTaken> {
        let mut taken = Ok(());
        for (lane, &last) in published.lanes.iter().filter(|(_, last)| **last > 0) {
            let span = Span { incarnation: published.incarnation, first: 1, last };
            let told = sound(origin, span, 0)
                .and_then(|()| self.change(origin, lane, span.incarnation, |runs| runs.published(last)));
            taken = taken.and(told);
        }
        self.counted(taken)
    }

    /// Lets time pass: what has been missing for longer than `grace` becomes unaccounted. Until the first
    /// tick that finds it missing a hole does not age; nor does it while somebody who might explain it cannot
    /// be heard. `heard` tells from when to when all agents on the way from an origin were heard without a long
    /// pause; `None` where one was not.
    pub fn tick(&mut self, now: Tick, grace: Duration, heard: impl Fn(&Path) -> Option<Range<Tick>>) {
        for (origin, lanes) in &mut self.origins {
            let patience = Patience { grace, heard: heard(origin).map(|heard| (heard.start, heard.end)) };
            lanes.iter_mut().for_each(|(_, account)| account.tick(now, patience));
        }
    }

    fn change(
        &mut self,
        origin: &Path,
        lane: Lane,
        incarnation: u64,
        change: impl FnOnce(&mut runs::Runs),
    ) -> Result<(), NotTaken> {
        let full = self.origins.len() >= MAX_ORIGINS;
        let lanes = match self.origins.get_mut(origin) {
            Some(lanes) => lanes,
            None if full => return Err(NotTaken::TooManyOrigins(origin.clone())),
            None => self.origins.entry(origin.clone()).or_default(),
        };
        let settled = || NotTaken::Settled { origin: origin.clone(), incarnation };
        lanes[lane].change(incarnation, change).ok_or_else(settled)
    }

    fn counted(&mut self, taken: Result<(), NotTaken>) -> Result<(), NotTaken> {
        self.refused += u64::from(taken.is_err());
        taken
    }
}

fn sound(origin: &Path, span: Span, count: u64) -> Result<(), NotTaken> {
    loss::is_sound(span, count).then_some(()).ok_or_else(|| NotTaken::Unsound { origin: origin.clone() })
}

#[cfg(test)]
mod tests;
