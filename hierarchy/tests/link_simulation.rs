//! The two ends of the link in a world that loses, repeats, reorders, crashes and rolls stores back,
//! driven by a seed.
//!
//! The oracle is conservation: every event that the child's store took is in the parent's store once,
//! or was refused by name, or was lost with a store that went back in time, and then only so much of
//! it. In a lane the events of an incarnation are in order. A failing seed is printed;
//! `LUCENT_SEED=n cargo test -p hierarchy --test link_simulation` replays it.
#![allow(clippy::unwrap_used)]

#[path = "link_simulation/child.rs"]
mod child;
#[path = "link_simulation/parent.rs"]
mod parent;
#[path = "link_simulation/random.rs"]
mod random;

use std::{collections::BTreeSet, time::Duration};

use child::{ChildSide, FromChild};
use hierarchy::{
    Lane,
    link::{ParentMessage, Tick},
};
use parent::ParentSide;
use random::Random;

/// An event's name: lane, incarnation of its origin, number.
type Event = (Lane, u64, u64);

#[derive(Clone)]
enum Wire {
    Up(FromChild),
    Down(ParentMessage),
}

struct World {
    random: Random,
    now: Tick,
    wire: Vec<(Tick, Wire)>,
    cut: bool,
    loss: u64,
    child: ChildSide,
    parent: ParentSide,
    /// Events that a store lost when it went back in time, and that nobody else had.
    rolled_back: BTreeSet<Event>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        World {
            now: Tick::ZERO,
            wire: Vec::new(),
            cut: false,
            loss: 10,
            child: ChildSide::new(&mut random),
            parent: ParentSide::new(),
            rolled_back: BTreeSet::new(),
            random,
        }
    }

    fn send(&mut self, wire: Wire) {
        let copies = if self.random.chance(5) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.cut && !self.random.chance(self.loss) {
                let at = self.now + Duration::from_millis(1 + self.random.below(60));
                self.wire.push((at, wire.clone()));
            }
        }
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(1 + self.random.below(10));
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.wire).into_iter().partition(|(at, _)| *at <= self.now);
        self.wire = later;
        for (_, wire) in due {
            match wire {
                _ if self.cut => {}
                Wire::Down(message) => self.child.machine.on_message(&message, self.now),
                Wire::Up(message) => {
                    let answers = self.parent.on_message(message, &mut self.random);
                    answers.into_iter().for_each(|answer| self.send(Wire::Down(answer)));
                }
            }
        }
        let answers = self.parent.run(&mut self.random, self.now);
        answers.into_iter().for_each(|answer| self.send(Wire::Down(answer)));
        let messages = self.child.run(&mut self.random, self.now);
        messages.into_iter().for_each(|message| self.send(Wire::Up(message)));
    }

    fn trouble(&mut self) {
        match self.random.below(600) {
            0 => self.child.restart(&mut self.random, self.now),
            1 => self.parent.restart(&mut self.random),
            2 => self.cut = true,
            3..=8 => self.cut = false,
            9 => self.child.back_up(),
            10 if self.random.chance(40) => {
                let lost = self.child.go_back(&mut self.random, self.now);
                self.lost_unless_at_parent(lost);
            }
            11 if self.random.chance(20) => {
                let lost = self.parent.go_back(&mut self.random);
                self.lost_unless_at_child(lost);
            }
            _ => {}
        }
        if self.random.chance(20) {
            self.child.publish(&mut self.random);
        }
    }

    fn lost_unless_at_parent(&mut self, lost: BTreeSet<Event>) {
        let there = self.parent.safe_events();
        self.rolled_back.extend(lost.difference(&there));
    }

    /// With a receipt on its way the child may forget what it covers at any moment.
    fn lost_unless_at_child(&mut self, lost: BTreeSet<Event>) {
        let acknowledged = self.wire.iter().any(|(_, wire)| matches!(wire, Wire::Down(_)));
        let there = if acknowledged { BTreeSet::new() } else { self.child.held() };
        self.rolled_back.extend(lost.difference(&there));
    }

    /// Nothing is there twice or out of order, and what the child forgot has arrived or is accounted for.
    fn check(&self) {
        let arrived = self.parent.check_order();
        let (held, buried) = (self.child.held(), &self.parent.buried);
        for event in &self.child.published {
            let found = arrived.contains(event)
                || held.contains(event)
                || buried.contains(event)
                || self.rolled_back.contains(event);
            assert!(found, "lost: {event:?} was forgotten and never arrived");
        }
    }

    /// Once there is peace, everything that was not rolled back has arrived, and what is missing is what
    /// the parent says is missing.
    fn check_end(&self) {
        self.check();
        let arrived = self.parent.check_order();
        for event in &self.child.published {
            let (there, buried) = (arrived.contains(event), self.parent.buried.contains(event));
            assert!(there || buried || self.rolled_back.contains(event), "{event:?} never arrived");
            let later = arrived.range((event.0, event.1, event.2 + 1)..=(event.0, event.1, u64::MAX));
            if !there && !buried && later.count() > 0 {
                assert!(self.parent.gaps.contains(event), "{event:?} is missing and nobody says so");
            }
        }
        assert!(self.child.is_empty(), "the queues did not empty after the heal");
    }
}

/// How many batches came in pieces.
fn simulate(seed: u64) -> u64 {
    let mut world = World::new(seed);
    for step in 0..1500 {
        world.trouble();
        world.step();
        if step % 100 == 0 {
            world.check();
        }
    }
    (world.cut, world.loss) = (false, 0);
    for _ in 0..60_000 {
        if world.child.is_empty() && world.wire.is_empty() {
            break;
        }
        world.step();
    }
    world.check_end();
    world.parent.pieced
}

#[test]
fn nothing_is_lost_doubled_or_reordered_whatever_happens() {
    if let Ok(seed) = std::env::var("LUCENT_SEED") {
        simulate(seed.parse().unwrap());
        return;
    }
    let seeds: u64 = std::env::var("LUCENT_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10_000);
    let mut pieced = 0;
    for seed in 1..=seeds {
        match std::panic::catch_unwind(|| simulate(seed)) {
            Ok(batches) => pieced += batches,
            Err(panic) => {
                eprintln!("seed {seed} failed; replay it with LUCENT_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{seeds} seeds, {pieced} batches in pieces");
    assert!(pieced > seeds, "hardly a batch went in pieces");
}
