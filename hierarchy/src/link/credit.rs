//! How much a parent lets its children have under way: one budget of bytes for all of them.
//!
//! Bytes count from the promise until they are durable, or until the promise is taken back. Half of the
//! budget is divided among all children for good, so that what is fresh may always be sent at once. The
//! other half is for lanes in which something waits: each gets a share, and where there is not enough they
//! wait in line, the most urgent lane's line first. What is used up is promised anew at the end of the line.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

use super::Tick;
use crate::{ByLane, Lane};

/// From this credit on a lane with nothing under way may send its first batch however large it is. With
/// less only batches that fit may be sent, and for a larger one the child asks.
pub const WHOLE_BATCH: u64 = 64 * 1024;

/// How many eighths of the shared half these lanes may have together: there is always room left for what is
/// more urgent, and a little for what is less so.
const BOUNDS: [(&[Lane], u64); 5] = [
    (&[Lane::Bulk], 4),
    (&[Lane::Normal, Lane::Bulk], 6),
    (&[Lane::Critical], 6),
    (&[Lane::Critical, Lane::Normal], 7),
    (&[Lane::Critical, Lane::Normal, Lane::Bulk], 8),
];

/// How a budget is divided.
#[derive(Debug, Clone, Copy)]
pub struct BudgetLimits {
    /// All promises together, in bytes.
    pub total: u64,
    /// The most that one lane of one child is promised.
    pub lane: u64,
    /// The least that is worth standing in line for: a frame.
    pub share: u64,
    /// How many children there may be.
    pub children: usize,
    /// After so long without anything waiting a promise is taken back.
    pub quiet: Duration,
}

/// What the parent knows of one lane of a child.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Bytes taken and not yet durable.
    pub held: u64,
    /// Bytes that ever became durable, or were refused.
    pub settled: u64,
    /// Whether something waits at the child; `None` where it has said nothing new of it.
    pub waiting: Option<bool>,
    /// How much may come beyond what is held: 0 where the lane is held back, [`u64::MAX`] where nothing limits it.
    pub room: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    promised: u64,
    held: u64,
    settled: u64,
    room: u64,
    /// Something waits, or did until lately.
    active: bool,
    waited: Tick,
    in_line: bool,
    /// The child has said that nothing waits any more.
    done: bool,
}

/// The promises to all children.
#[derive(Debug)]
pub struct Budget<K> {
    limits: BudgetLimits,
    accounts: HashMap<K, ByLane<Account>>,
    /// Promised beyond what each child has for good.
    extra: ByLane<u64>,
    active: ByLane<u64>,
    lines: ByLane<VecDeque<K>>,
    /// Somebody is done, and keeps his promise as long as nobody needs it.
    some_done: bool,
    /// Whose promise has changed without being asked about.
    changed: Vec<(K, Lane)>,
    now: Tick,
}

impl<K: Clone + Eq + Hash> Budget<K> {
    /// Nothing is promised yet.
    pub fn new(limits: BudgetLimits) -> Budget<K> {
        Budget {
            limits,
            accounts: HashMap::new(),
            extra: ByLane::default(),
            active: ByLane::default(),
            lines: ByLane::default(),
            some_done: false,
            changed: Vec::new(),
            now: Tick::ZERO,
        }
    }

    /// What each lane of each child is promised at least, unless it is held back.
    pub fn standing(&self) -> u64 {
        let lanes = (self.limits.children.max(1) * Lane::ALL.len()) as u64;
        (self.limits.total / 2 / lanes).min(self.limits.share)
    }

    /// What is promised in all.
    pub fn promised(&self) -> u64 {
        self.accounts.values().flat_map(|lanes| lanes.iter()).map(|(_, account)| account.promised).sum()
    }

    /// What the child is promised in this lane, beyond its cursor.
    pub fn credit(&self, child: &K, lane: Lane) -> u64 {
        self.accounts.get(child).map_or(0, |lanes| lanes[lane].credit())
    }

    /// Takes in what is known of a lane. Others may be served by it: see [`Budget::take_changed`].
    pub fn update(&mut self, child: &K, lane: Lane, need: Need, now: Tick) -> u64 {
        self.now = now;
        if !self.accounts.contains_key(child) {
            self.accounts.insert(child.clone(), ByLane::default());
        }
        let standing = self.standing();
        let Some(account) = self.accounts.get_mut(child).map(|lanes| &mut lanes[lane]) else { return 0 };
        let before = account.extra(standing);
        let used = need.settled.saturating_sub(account.settled);
        (account.held, account.settled, account.room) = (need.held, need.settled, need.room);
        if need.waiting == Some(true) {
            (account.waited, account.done) = (now, false);
            if !std::mem::replace(&mut account.active, true) {
                self.active[lane] += 1;
            }
        } else if need.waiting == Some(false) && account.active {
            (account.done, self.some_done) = (true, true);
        }
        // What has become durable is promised no more.
        account.promised =
            account.promised.saturating_sub(used).clamp(account.least(standing), account.most());
        let after = account.extra(standing);
        self.extra[lane] = self.extra[lane] + after - before;
        if account.active && !account.done && !account.in_line {
            if self.lines.iter().all(|(other, line)| other > lane || line.is_empty()) {
                self.grant(child, lane);
            } else {
                self.stand_in_line(child, lane);
            }
        }
        if self.some_done && self.lines.iter().any(|(_, line)| !line.is_empty()) {
            self.take_back_if(|account| account.done);
            self.some_done = false;
        }
        self.serve();
        self.credit(child, lane)
    }

    /// Takes back what was promised to lanes in which nothing has waited for a while.
    pub fn take_back(&mut self, now: Tick) {
        self.now = now;
        let quiet = self.limits.quiet;
        // Who stands in line speaks seldom.
        self.take_back_if(|account| now >= account.waited + if account.in_line { quiet * 10 } else { quiet });
        self.serve();
    }

    fn take_back_if(&mut self, is_over: impl Fn(&Account) -> bool) {
        let standing = self.standing();
        for (child, lanes) in &mut self.accounts {
            for (lane, account) in lanes.iter_mut() {
                if !account.active || !is_over(account) {
                    continue;
                }
                if std::mem::take(&mut account.in_line) {
                    self.lines[lane].retain(|other| other != child);
                }
                (account.active, account.done) = (false, false);
                self.active[lane] -= 1;
                let before = account.extra(standing);
                account.promised = account.least(standing);
                self.extra[lane] = self.extra[lane] + account.extra(standing) - before;
                self.changed.push((child.clone(), lane));
            }
        }
    }

    /// Whose promise has changed since the last call: they must be told.
    pub fn take_changed(&mut self) -> Vec<(K, Lane)> {
        std::mem::take(&mut self.changed)
    }

    /// What is not promised for good.
    fn shared(&self) -> u64 {
        self.limits.total - self.standing() * (self.limits.children.max(1) * Lane::ALL.len()) as u64
    }

    /// What may still be promised in a lane.
    fn free(&self, lane: Lane) -> u64 {
        let eighth = self.shared() / 8;
        let of = |lanes: &[Lane]| lanes.iter().map(|lane| self.extra[*lane]).sum::<u64>();
        let left = |(lanes, eighths): &(&[Lane], u64)| (eighth * eighths).saturating_sub(of(lanes));
        BOUNDS.iter().filter(|(lanes, _)| lanes.contains(&lane)).map(left).min().unwrap_or(0)
    }

    /// The child gets its share, or stands in line for it.
    fn grant(&mut self, child: &K, lane: Lane) {
        if !self.try_grant(child, lane) {
            self.stand_in_line(child, lane);
        }
    }

    /// False where there is not enough left for it.
    fn try_grant(&mut self, child: &K, lane: Lane) -> bool {
        let (standing, free) = (self.standing(), self.free(lane));
        let even = self.shared() / 2 / self.active[lane].max(1);
        let Some(account) = self.accounts.get_mut(child).map(|lanes| &mut lanes[lane]) else { return true };
        // The first to come leave most of it to those behind them.
        let early = (free + account.extra(standing)) / 4;
        let share = even.min(early).clamp(self.limits.share, self.limits.lane);
        let wanted = share.max(account.least(standing)).min(account.most());
        let extra = account.extra(standing);
        let more = wanted.saturating_sub(account.promised.max(standing));
        if wanted <= account.promised {
            // Where more children are active than before, what is not used becomes less.
            account.promised = wanted;
        } else if more <= free {
            account.promised = wanted;
        } else if free >= self.limits.share.min(more) {
            account.promised += free;
        } else {
            return false;
        }
        let after = account.extra(standing);
        self.extra[lane] = self.extra[lane] + after - extra;
        true
    }

    fn stand_in_line(&mut self, child: &K, lane: Lane) {
        if let Some(lanes) = self.accounts.get_mut(child)
            && !std::mem::replace(&mut lanes[lane].in_line, true)
        {
            self.lines[lane].push_back(child.clone());
        }
    }

    /// Whoever stands first in line gets what there is, the most urgent first.
    fn serve(&mut self) {
        for lane in Lane::ALL {
            while let Some(child) = self.lines[lane].pop_front() {
                if !self.try_grant(&child, lane) {
                    self.lines[lane].push_front(child);
                    break;
                }
                if let Some(lanes) = self.accounts.get_mut(&child) {
                    (lanes[lane].in_line, lanes[lane].waited) = (false, self.now);
                }
                self.changed.push((child, lane));
            }
        }
    }
}

impl Account {
    /// What the child is told.
    fn credit(&self) -> u64 {
        if self.room == 0 { 0 } else { self.promised }
    }

    /// The least that counts as promised: what is here already, and the standing promise.
    fn least(&self, standing: u64) -> u64 {
        self.held.max(standing.min(self.most()))
    }

    fn most(&self) -> u64 {
        self.held.saturating_add(self.room)
    }

    fn extra(&self, standing: u64) -> u64 {
        self.promised.saturating_sub(standing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: BudgetLimits =
        BudgetLimits { total: 24_000, lane: 1_500, share: 500, children: 20, quiet: Duration::from_secs(1) };

    /// A child that sends as much as it may, and a parent that stores it after a while.
    #[derive(Debug, Default, Clone, Copy)]
    struct Flow {
        backlog: u64,
        held: u64,
        settled: u64,
        held_back: bool,
    }

    struct World {
        budget: Budget<usize>,
        flows: Vec<ByLane<Flow>>,
        now: Tick,
    }

    impl World {
        fn new(children: usize) -> World {
            World { budget: Budget::new(LIMITS), flows: vec![ByLane::default(); children], now: Tick::ZERO }
        }

        fn update(&mut self, child: usize, lane: Lane) {
            let Flow { backlog, held, settled, held_back } = self.flows[child][lane];
            let room = if held_back { 0 } else { u64::MAX };
            self.budget.update(
                &child,
                lane,
                Need { held, settled, waiting: Some(backlog > 0), room },
                self.now,
            );
            self.check();
        }

        /// The child sends all that it may.
        fn send(&mut self, child: usize, lane: Lane) {
            let credit = self.budget.credit(&child, lane);
            let flow = &mut self.flows[child][lane];
            let sent = flow.backlog.min(credit.saturating_sub(flow.held));
            (flow.backlog, flow.held) = (flow.backlog - sent, flow.held + sent);
            self.update(child, lane);
        }

        /// Some of what was sent becomes durable.
        fn settle(&mut self, child: usize, lane: Lane, bytes: u64) {
            let flow = &mut self.flows[child][lane];
            let bytes = bytes.min(flow.held);
            (flow.held, flow.settled) = (flow.held - bytes, flow.settled + bytes);
            self.update(child, lane);
        }

        fn pass(&mut self, millis: u64) {
            self.now += Duration::from_millis(millis);
            self.budget.take_back(self.now);
            self.check();
        }

        fn check(&self) {
            let promised = self.budget.promised();
            assert!(promised <= LIMITS.total, "{promised} bytes are promised");
            let standing = self.budget.standing();
            for (child, lanes) in self.flows.iter().enumerate() {
                for (lane, flow) in lanes.iter() {
                    let credit = self.budget.credit(&child, lane);
                    assert!(credit >= flow.held || flow.held_back, "what is here is promised");
                    assert!(credit <= LIMITS.lane.max(flow.held));
                    let known = self.budget.accounts.contains_key(&child);
                    assert!(
                        !known
                            || flow.held_back
                            || self.budget.accounts[&child][lane].room == 0
                            || credit >= standing
                    );
                }
            }
            for lane in Lane::ALL {
                let accounts = || self.budget.accounts.values().map(|lanes| lanes[lane]);
                assert_eq!(self.budget.extra[lane], accounts().map(|a| a.extra(standing)).sum::<u64>());
                assert_eq!(self.budget.active[lane], accounts().filter(|a| a.active).count() as u64);
                assert_eq!(self.budget.lines[lane].len(), accounts().filter(|a| a.in_line).count());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn promises_stay_within_the_budget_and_everybody_is_served(
            steps in prop::collection::vec((0usize..20, 0usize..3, 0u8..7, 1u64..6_000), 1..200),
        ) {
            let mut world = World::new(20);
            for (child, lane, what, amount) in steps {
                let lane = Lane::ALL[lane];
                match what {
                    0 => world.flows[child][lane].backlog += amount,
                    1 | 2 => world.send(child, lane),
                    3 | 4 => world.settle(child, lane, amount),
                    5 => world.flows[child][lane].held_back = !world.flows[child][lane].held_back,
                    _ => world.pass(amount % 700),
                }
                world.update(child, lane);
            }
            // With time all that waits is taken, whoever it is.
            let left = |flow: &Flow| flow.backlog + flow.held;
            let left = |flows: &[ByLane<Flow>]| -> u64 {
                flows.iter().flat_map(|lanes| lanes.iter().map(|(_, flow)| left(flow))).sum()
            };
            for _ in 0..2_000 {
                if left(&world.flows) == 0 {
                    break;
                }
                for child in 0..20 {
                    for lane in Lane::ALL {
                        world.flows[child][lane].held_back = false;
                        world.update(child, lane);
                        world.send(child, lane);
                        world.settle(child, lane, 1_000);
                    }
                }
                world.pass(100);
            }
            prop_assert_eq!(left(&world.flows), 0);
            // And what was promised for it has come back.
            (0..3).for_each(|_| world.pass(10_100));
            prop_assert_eq!(world.budget.extra, ByLane::default());
        }
    }

    #[test]
    fn a_child_alone_gets_all_that_a_lane_may_have_and_gives_it_back() {
        let mut world = World::new(1);
        world.update(0, Lane::Bulk);
        assert_eq!(world.budget.credit(&0, Lane::Bulk), world.budget.standing());
        world.flows[0][Lane::Bulk].backlog = 1_000_000;
        world.update(0, Lane::Bulk);
        assert_eq!(world.budget.credit(&0, Lane::Bulk), LIMITS.lane);
        world.flows[0][Lane::Bulk].backlog = 0;
        world.pass(1_100);
        assert_eq!(world.budget.take_changed(), [(0, Lane::Bulk)]);
        assert_eq!(world.budget.credit(&0, Lane::Bulk), world.budget.standing());
    }

    #[test]
    fn who_has_no_more_makes_room_at_once_for_those_in_line() {
        let mut world = World::new(20);
        for child in 0..20 {
            world.flows[child][Lane::Bulk].backlog = 100;
            world.update(child, Lane::Bulk);
        }
        assert!(!world.budget.lines[Lane::Bulk].is_empty());
        for _ in 0..20 {
            for child in 0..20 {
                world.send(child, Lane::Bulk);
                world.settle(child, Lane::Bulk, 100);
            }
        }
        assert_eq!(world.now, Tick::ZERO);
        assert!(world.flows.iter().all(|lanes| lanes[Lane::Bulk].backlog == 0));
        assert!(world.budget.lines[Lane::Bulk].is_empty());
    }

    #[test]
    fn critical_is_served_before_bulk_that_waits_longer_and_finds_room_that_bulk_may_not_have() {
        let mut world = World::new(20);
        for child in 0..20 {
            world.flows[child][Lane::Bulk].backlog = 1_000_000;
            world.update(child, Lane::Bulk);
            world.send(child, Lane::Bulk);
        }
        let waiting = world.budget.lines[Lane::Bulk].len();
        assert!(waiting > 0, "bulk fills what it may have");
        // The rest of the budget is not for bulk.
        let mut served = 0;
        for child in 0..20 {
            world.flows[child][Lane::Critical].backlog = 1_000_000;
            world.update(child, Lane::Critical);
            served += usize::from(world.budget.credit(&child, Lane::Critical) > world.budget.standing());
        }
        assert!(served > 0 && world.budget.lines[Lane::Critical].len() == 20 - served);
        // What becomes free goes to critical first.
        world.budget.take_changed();
        for child in 0..20 {
            world.settle(child, Lane::Bulk, 200);
        }
        let changed = world.budget.take_changed();
        assert!(!changed.is_empty() && !world.budget.lines[Lane::Critical].is_empty());
        assert!(changed.iter().all(|(_, lane)| *lane == Lane::Critical), "{changed:?}");
    }

    #[test]
    fn a_thousand_children_that_heal_at_once_are_promised_no_more_than_the_budget() {
        let limits =
            BudgetLimits { total: 64 << 20, lane: 4 << 20, share: 256 << 10, children: 1_000, ..LIMITS };
        let mut budget = Budget::new(limits);
        for child in 0..1_000 {
            for lane in Lane::ALL {
                let need = Need { held: 0, settled: 0, waiting: Some(true), room: u64::MAX };
                budget.update(&child, lane, need, Tick::ZERO);
            }
        }
        assert!(budget.promised() <= 64 << 20);
        let urgent =
            (0..1_000).filter(|child| budget.credit(child, Lane::Critical) > budget.standing()).count();
        assert!(urgent >= 6, "{urgent} children may send what is critical");
    }
}
