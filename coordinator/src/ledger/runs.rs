//! What is known of the numbers of one incarnation and lane: every number from 1 to the highest one heard
//! of, in runs of the same state.

use hierarchy::{link::Tick, loss::LossReason};
use serde::{Deserialize, Serialize};

use super::{Patience, totals::Totals};

/// Runs that are kept apart. Beyond it the lowest are settled as they are.
pub(super) const MAX_RUNS: usize = 1024;

/// All numbers of one incarnation and lane.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Runs {
    /// The numbers 1 to `settled.published`, of which nothing can be learnt any more: they arrived, or
    /// there were too many runs.
    settled: Totals,
    /// Those behind, in order, each run beginning where the one before ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    open: Vec<Run>,
    /// The highest number that arrived.
    arrived_to: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    last: u64,
    /// How many of the numbers have an event; 0 while they are unknown.
    events: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Unknown {
        /// The tick that first found it missing. Another run of the agent has another clock, so a hole's
        /// grace begins again with it.
        #[serde(skip)]
        since: Option<Tick>,
        /// Its grace is over.
        overdue: bool,
    },
    Lost(LossReason),
    Arrived,
}

impl State {
    /// What was heard first stays, but what arrived is not lost.
    fn wins_over(self, other: State) -> bool {
        match other {
            State::Unknown { .. } => true,
            State::Lost(_) => self == State::Arrived,
            State::Arrived => false,
        }
    }
}

impl Runs {
    /// A batch arrived.
    pub(super) fn arrived(&mut self, first: u64, last: u64, events: u64) {
        self.arrived_to = self.arrived_to.max(last);
        self.state(first, last, events, State::Arrived);
    }

    /// A hop states that it dropped these.
    pub(super) fn lost(&mut self, first: u64, last: u64, events: u64, reason: LossReason) {
        self.state(first, last, events, State::Lost(reason));
    }

    /// The numbers up to `last` were given.
    pub(super) fn published(&mut self, last: u64) {
        self.reach(last);
        self.tidy();
    }

    /// Whether any of it arrived.
    pub(super) fn has_arrived(&self) -> bool {
        self.arrived_to > 0
    }

    /// Whether everything is known, for good.
    pub(super) fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// Lets holes age. `passed` says that what was numbered after this incarnation has arrived.
    pub(super) fn tick(&mut self, now: Tick, patience: Patience, passed: bool) {
        let arrived_to = self.arrived_to;
        for run in &mut self.open {
            if let State::Unknown { since, overdue: overdue @ false } = &mut run.state
                && (passed || run.last < arrived_to)
                && patience.is_over(*since.get_or_insert(now), now)
            {
                (*since, *overdue) = (None, true);
            }
        }
        self.tidy();
    }

    /// What became of all numbers.
    pub(super) fn totals(&self, passed: bool) -> Totals {
        let mut totals = self.settled.clone();
        for run in &self.open {
            let overtaken = passed || run.last < self.arrived_to;
            run.count(&mut totals, overtaken);
        }
        totals
    }

    /// Puts a statement about a range over what it wins over.
    fn state(&mut self, first: u64, last: u64, events: u64, state: State) {
        if last <= self.settled.published {
            return;
        }
        self.reach(last);
        let (begin, end) = (self.cut(first - 1), self.cut(last));
        let events_to = |number: u64| share(events, last + 1 - first, number + 1 - first);
        let mut start = self.start_of(begin);
        for run in &mut self.open[begin..end] {
            if state.wins_over(run.state) {
                (run.state, run.events) = (state, events_to(run.last) - events_to(start - 1));
            }
            start = run.last + 1;
        }
        self.tidy();
    }

    /// Makes the numbers up to `last` known to be there.
    fn reach(&mut self, last: u64) {
        if last >= self.start_of(self.open.len()) {
            self.open.push(Run { last, events: 0, state: State::Unknown { since: None, overdue: false } });
        }
    }

    /// Cuts the run that reaches over the end of `number` in two there. The index of the run behind.
    fn cut(&mut self, number: u64) -> usize {
        let index = self.open.partition_point(|run| run.last <= number);
        let start = self.start_of(index);
        if number < start {
            return index;
        }
        let run = &mut self.open[index];
        let events = share(run.events, run.last + 1 - start, number + 1 - start);
        run.events -= events;
        let left = Run { last: number, events, state: run.state };
        self.open.insert(index, left);
        index + 1
    }

    /// The first number of a run.
    fn start_of(&self, index: usize) -> u64 {
        let before = index.checked_sub(1).map_or(self.settled.published, |before| self.open[before].last);
        before + 1
    }

    /// Joins runs of one state, and settles what cannot change or finds no room.
    fn tidy(&mut self) {
        self.open.dedup_by(|next, run| {
            let same = next.state == run.state;
            if same {
                (run.last, run.events) = (next.last, run.events + next.events);
            }
            same
        });
        let excess = self.open.len().saturating_sub(MAX_RUNS);
        let arrived = self.open[excess..].first().is_some_and(|run| run.state == State::Arrived);
        for run in self.open.drain(..excess + usize::from(arrived)) {
            run.settle(&mut self.settled);
        }
    }
}

impl Run {
    /// Counts the numbers behind those counted before, which are `totals.published`.
    fn count(&self, totals: &mut Totals, overtaken: bool) {
        let numbers = self.last - totals.published;
        totals.published = self.last;
        totals.policy += match self.state {
            State::Unknown { .. } => 0,
            State::Lost(_) | State::Arrived => numbers - self.events,
        };
        match self.state {
            State::Arrived => totals.arrived += self.events,
            State::Lost(reason) => totals.lose(reason, self.events),
            State::Unknown { .. } if !overtaken => totals.in_flight += numbers,
            State::Unknown { overdue, .. } => {
                totals.missing += numbers;
                totals.unaccounted += if overdue { numbers } else { 0 };
            }
        }
    }

    /// Counts the numbers for good: a hole is one for ever.
    fn settle(mut self, settled: &mut Totals) {
        if let State::Unknown { overdue, .. } = &mut self.state {
            *overdue = true;
        }
        self.count(settled, true);
    }
}

/// How many of `events`, spread evenly over `len` numbers, the first `part` numbers have. Where each number
/// has its event, and wherever ranges are not cut, this is exact.
fn share(events: u64, len: u64, part: u64) -> u64 {
    (u128::from(events) * u128::from(part) / u128::from(len)) as u64
}
