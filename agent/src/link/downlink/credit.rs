//! How much each child may send: its share of the budget, within its limit, and nothing while this level is
//! under pressure.

use std::time::Duration;

use hierarchy::{
    ByLane, Lane, Path,
    link::{BudgetLimits, Need},
};

use super::{Downlink, messages::MAX_CHILDREN, store::MAX_STORING};
use crate::config::Leaf;

/// With so many batches on their way into the store nothing more is promised to a lane.
const BUSY: ByLane<usize> =
    ByLane { critical: MAX_STORING, normal: MAX_STORING / 4 * 3, bulk: MAX_STORING / 2 };

pub(super) fn limits(leaf: &Leaf) -> BudgetLimits {
    let children = if leaf.children.is_empty() { 1_000 } else { leaf.children.len().min(MAX_CHILDREN) };
    BudgetLimits {
        total: leaf.credit,
        lane: 4 << 20,
        share: 256 << 10,
        children,
        quiet: Duration::from_secs(1),
    }
}

impl Downlink {
    /// How much may come of a lane: nothing, nothing that was not promised before, or this much.
    fn room(&mut self, child: &Path, lane: Lane) -> Room {
        // What waits here for the level above had better wait below.
        if self.parts.fill.as_ref().is_some_and(|fill| fill.holds_back(lane)) {
            return Room::None;
        }
        let now = self.clock.now();
        let limiter = self.children.get_mut(child).and_then(|state| state.limiter.as_mut());
        match limiter.map(|limiter| limiter.room(lane, now)) {
            Some(0) => Room::None,
            _ if self.storing.len() >= BUSY[lane] => Room::NoMore,
            Some(bytes) => Room::Some(bytes),
            None => Room::Some(u64::MAX),
        }
    }

    /// A lane that is held back takes nothing, whatever was promised.
    pub(super) fn hold_if_full(&mut self, child: &Path, lane: Lane) {
        if matches!(self.room(child, lane), Room::None)
            && let Some(state) = self.children.get_mut(child)
        {
            state.parent.set_credit(lane, 0);
            self.held_back.insert(child.clone());
        }
    }

    /// Makes out what the child may send from now on.
    pub(super) fn set_credit(&mut self, child: &Path) {
        let now = self.clock.now();
        for lane in Lane::ALL {
            let room = self.room(child, lane);
            let Some(state) = self.children.get_mut(child) else { return };
            let (held, settled) = state.parent.held_and_settled(lane);
            let waiting = state.waiting[lane];
            let bytes = match room {
                Room::None => 0,
                Room::NoMore => 1,
                Room::Some(bytes) => bytes,
            };
            if bytes == 0 || bytes == 1 && waiting == Some(true) {
                self.held_back.insert(child.clone());
            } else {
                state.waiting[lane] = None;
            }
            let need = Need { held, settled, waiting, room: bytes };
            let credit = self.budget.update(child, lane, need, now);
            state.parent.set_credit(lane, credit);
        }
    }

    /// Those who can have more, or less, than they were told.
    pub(super) fn served(&mut self) -> Vec<Path> {
        let changed = self.budget.take_changed();
        for (child, lane) in &changed {
            let credit = self.budget.credit(child, *lane);
            if let Some(state) = self.children.get_mut(child) {
                state.parent.set_credit(*lane, credit);
            }
        }
        changed.into_iter().map(|(child, _)| child).collect()
    }

    /// So much of a child was taken.
    pub(super) fn count_against_limit(&mut self, child: &Path, lane: Lane, bytes: u64, events: u64) {
        let now = self.clock.now();
        if let Some(limiter) = self.children.get_mut(child).and_then(|state| state.limiter.as_mut()) {
            limiter.take(lane, bytes, events, now);
        }
    }
}

enum Room {
    /// The lane is held back.
    None,
    /// What is on its way is taken.
    NoMore,
    Some(u64),
}
