//! What has arrived of each origin: the second line of defence against loss and doubling.
//!
//! A link's cursor says how far a child's *store* was read, and lets a session resume. It cannot tell
//! old from new once that store was restored or rolled back, since places are then given again. The
//! origin's own numbers can: an origin begins a new incarnation of them whenever it starts, and in
//! one incarnation and lane it numbers its events without a gap. So each level knows, whoever brings
//! a batch and from whatever place, whether it has it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cursor::numbers;
use crate::{ByLane, Lane, Path, envelope::BatchHead, loss};

/// Numbers of one origin's events in one lane, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// The origin's incarnation.
    pub incarnation: u64,
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
}

impl Span {
    /// The numbers that a batch answers for; `None` where its head makes no sense, or no loss receipt could
    /// state them.
    pub fn of(head: &BatchHead) -> Option<Span> {
        let span = Span { incarnation: head.incarnation, first: head.first, last: head.last };
        loss::is_sound(span, head.count.into()).then_some(span)
    }

    /// How many numbers it holds.
    pub fn len(&self) -> u64 {
        (self.last + 1).saturating_sub(self.first)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.last < self.first
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.incarnation, self.first, self.last)
    }
}

impl std::str::FromStr for Span {
    type Err = BadSpan;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let [incarnation, first, last] = numbers(s).ok_or(BadSpan)?;
        Ok(Span { incarnation, first, last })
    }
}

/// A text that is no [`Span`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a span is three numbers")]
pub struct BadSpan;

/// What a batch is to a level that may have seen some of its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It follows what is there.
    Next,
    /// It is there already.
    Known,
    /// It is being stored, and may not be yet.
    Pending,
    /// It is new, and what is missing before it never came.
    Gap(Span),
    /// It is partly there: its numbers were given twice.
    Torn,
    /// There are too many origins.
    Full,
}

/// What has arrived, by origin and lane.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Origins {
    known: BTreeMap<Path, ByLane<Vec<Run>>>,
}

/// One incarnation of an origin's lane. In JSON its number and the last number that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
struct Run {
    incarnation: u64,
    /// The last number that was taken, durable or not yet.
    taken: u64,
    /// The last number that is durable.
    durable: u64,
}

impl From<(u64, u64)> for Run {
    fn from((incarnation, durable): (u64, u64)) -> Run {
        Run { incarnation, taken: durable, durable }
    }
}

impl From<Run> for (u64, u64) {
    fn from(run: Run) -> (u64, u64) {
        (run.incarnation, run.durable)
    }
}

/// Most origins that a level keeps apart: whoever speaks is below this agent and was signed for.
const MAX_ORIGINS: usize = 100_000;
/// Incarnations that are remembered of an origin's lane. A batch of an older one can only come from
/// the store of an agent between, restored from a copy older than so many starts of the origin.
const MAX_RUNS: usize = 16;

impl Origins {
    /// Nothing has arrived.
    pub fn new() -> Origins {
        Origins::default()
    }

    /// What a batch with these numbers would be.
    pub fn standing(&self, origin: &Path, lane: Lane, span: Span) -> Standing {
        let Some(runs) = self.known.get(origin).map(|lanes| &lanes[lane]) else {
            let full = self.known.len() >= MAX_ORIGINS;
            return if full { Standing::Full } else { after(Run::from((span.incarnation, 0)), span) };
        };
        let run = runs.iter().find(|run| run.incarnation == span.incarnation);
        after(run.copied().unwrap_or_else(|| Run::from((span.incarnation, 0))), span)
    }

    /// Notes that a batch with these numbers is being stored, so that it is not taken a second time.
    pub fn taken(&mut self, origin: &Path, lane: Lane, span: Span) {
        let run = self.run(origin, lane, span.incarnation);
        run.taken = run.taken.max(span.last);
    }

    /// Notes that a batch with these numbers is durable, and everything before it.
    pub fn settled(&mut self, origin: &Path, lane: Lane, span: Span) {
        let run = self.run(origin, lane, span.incarnation);
        run.durable = run.durable.max(span.last);
        run.taken = run.taken.max(run.durable);
    }

    fn run(&mut self, origin: &Path, lane: Lane, incarnation: u64) -> &mut Run {
        if !self.known.contains_key(origin) {
            self.known.insert(origin.clone(), ByLane::default());
        }
        let lanes = self.known.get_mut(origin).expect("it is there, or was just put there");
        let runs = &mut lanes[lane];
        let at = runs.iter().position(|run| run.incarnation == incarnation).unwrap_or_else(|| {
            if runs.len() >= MAX_RUNS {
                runs.remove(0);
            }
            runs.push(Run::from((incarnation, 0)));
            runs.len() - 1
        });
        &mut runs[at]
    }

    /// The incarnation of an origin's lane before this one, and the last number of it that is durable.
    pub fn before(&self, origin: &Path, lane: Lane, incarnation: u64) -> Option<(u64, u64)> {
        let runs = &self.known.get(origin)?[lane];
        let at = runs.iter().position(|run| run.incarnation == incarnation)?;
        runs[..at].last().map(|run| (run.incarnation, run.durable))
    }

    /// Nothing is known any more of this lane: the store that said so went back in time.
    pub fn forget(&mut self, lane: Lane) {
        for lanes in self.known.values_mut() {
            lanes[lane].clear();
        }
    }
}

fn after(run: Run, span: Span) -> Standing {
    let Span { incarnation, first, .. } = span;
    let last = run.taken;
    match () {
        () if span.last <= run.durable => Standing::Known,
        () if span.last <= last => Standing::Pending,
        () if first <= last => Standing::Torn,
        () if first == last + 1 => Standing::Next,
        () => Standing::Gap(Span { incarnation, first: last + 1, last: first - 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: Lane = Lane::Normal;

    fn span(incarnation: u64, first: u64, last: u64) -> Span {
        Span { incarnation, first, last }
    }

    #[test]
    fn a_batch_is_next_known_torn_or_behind_a_gap() {
        let origin = "s1/c1/n1".parse().unwrap();
        let mut origins = Origins::new();
        assert_eq!(origins.standing(&origin, N, span(5, 1, 10)), Standing::Next);
        origins.taken(&origin, N, span(5, 1, 10));
        assert_eq!(origins.standing(&origin, N, span(5, 1, 10)), Standing::Pending);
        origins.settled(&origin, N, span(5, 1, 10));
        for (batch, standing) in [
            (span(5, 11, 12), Standing::Next),
            (span(5, 1, 10), Standing::Known),
            (span(5, 4, 6), Standing::Known),
            (span(5, 10, 12), Standing::Torn),
            (span(5, 13, 14), Standing::Gap(span(5, 11, 12))),
            (span(6, 1, 4), Standing::Next),
            (span(6, 3, 4), Standing::Gap(span(6, 1, 2))),
        ] {
            assert_eq!(origins.standing(&origin, N, batch), standing, "{batch}");
        }
        assert_eq!(origins.standing(&origin, Lane::Bulk, span(5, 1, 10)), Standing::Next);
    }

    #[test]
    fn an_older_incarnation_that_comes_again_is_recognised() {
        let origin = "s1/c1/n1".parse().unwrap();
        let mut origins = Origins::new();
        for incarnation in 1..=MAX_RUNS as u64 {
            origins.settled(&origin, N, span(incarnation, 1, 10));
        }
        assert_eq!(origins.standing(&origin, N, span(1, 5, 10)), Standing::Known);
        origins.settled(&origin, N, span(99, 1, 1));
        assert_eq!(origins.before(&origin, N, 99), Some((MAX_RUNS as u64, 10)));
        assert_eq!(origins.before(&origin, N, 2), None, "the one before was forgotten");
    }

    #[test]
    fn spans_build_what_they_parse() {
        assert_eq!("7 1 500".parse(), Ok(span(7, 1, 500)));
        assert_eq!(span(7, 1, 500).to_string(), "7 1 500");
        for bad in ["", "7 1", "7 1 500 2", "7 -1 500", "a b c"] {
            assert_eq!(bad.parse::<Span>(), Err(BadSpan), "{bad}");
        }
    }
}
