//! Publishers that wait until their events are durable at a level above.

use std::{collections::BTreeMap, time::Duration};

use hierarchy::{Lane, Level, link::Tick};

use super::door::Waiter;

/// Most publishers that wait at once.
const MOST: usize = 16 * 1024;

/// A batch of this agent is durable at a level above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Where.
    pub level: Level,
    /// In which lane.
    pub lane: Lane,
    /// The incarnation of the numbers.
    pub incarnation: u64,
    /// The batch's first number.
    pub first: u64,
    /// The batch's last number.
    pub last: u64,
}

/// Waiters by what they wait for.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    waiting: BTreeMap<(Level, Lane, u64), (Waiter, Tick)>,
}

impl Awaited {
    /// Takes a waiter for this number; hands it back where too many wait.
    pub(super) fn wait(
        &mut self,
        level: Level,
        lane: Lane,
        number: u64,
        waiter: Waiter,
        now: Tick,
    ) -> Option<Waiter> {
        if self.waiting.len() >= MOST {
            return Some(waiter);
        }
        let until = now + waiter.patience;
        self.waiting.insert((level, lane, number), (waiter, until));
        None
    }

    /// Who has what it waited for, with their events' numbers. What is durable at a level is so below, too.
    pub(super) fn reached(&mut self, reached: Reached) -> Vec<(Waiter, Level, u64)> {
        let lane = reached.lane;
        let done = |level: Level| (level, lane, reached.first)..=(level, lane, reached.last);
        let levels = Level::ALL.into_iter().filter(|level| *level <= reached.level);
        let keys: Vec<_> =
            levels.flat_map(|level| self.waiting.range(done(level)).map(|(key, _)| *key)).collect();
        let answered = |key: (Level, Lane, u64)| {
            let (waiter, _) = self.waiting.remove(&key)?;
            Some((waiter, key.0, key.2))
        };
        keys.into_iter().filter_map(answered).collect()
    }

    /// Who has waited long enough.
    pub(super) fn overdue(&mut self, now: Tick) -> Vec<(Waiter, u64)> {
        let due = self.waiting.extract_if(.., |_, (_, until)| *until <= now);
        due.map(|((_, _, number), (waiter, _))| (waiter, number)).collect()
    }

    /// Everybody, at the end.
    pub(super) fn all(&mut self) -> Vec<(Waiter, u64)> {
        self.overdue(Tick::MAX)
    }
}

/// The shortest time in which somebody is told that nothing was heard is a matter of how often it is asked.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
