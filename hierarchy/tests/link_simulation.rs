//! The two ends of the link in a world that loses, repeats, reorders and crashes, driven by a seed.
//!
//! The oracle is conservation: what the child's store held is in the parent's store once, in order,
//! and the child never forgot a place that the parent's store does not have. A failing seed is
//! printed; `LUCENT_SEED=n cargo test -p hierarchy --test link_simulation` replays it.
#![allow(clippy::unwrap_used)]

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use hierarchy::{
    Digest, Millis, Refusal,
    link::{
        Child, ChildLimits, ChildMessage, ChildOutput, Cursor, Parcel, ParcelHead, Parent, ParentMessage,
        ParentOutput, Record, Tick, Verdict,
    },
};

/// xorshift64*: small, seeded, good enough to shuffle events.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone)]
enum Wire {
    Up(ChildMessage),
    Down(ParentMessage),
}

/// A parcel in the parent's durable store.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stored {
    record: Record,
    /// The first place of the child's store that it covers is the one behind this.
    after: u64,
}

struct World {
    random: Random,
    now: Tick,
    wire: Vec<(Tick, Wire)>,
    cut: bool,
    loss: u64,
    // The child's machine.
    child: Child,
    stored: u64,
    released: u64,
    reading: Option<u64>,
    poison: u64,
    // The parent's machine.
    parent: Parent,
    log: Vec<Stored>,
    buried: Vec<u64>,
    checkpoint: Cursor,
    writing: VecDeque<(Stored, bool)>,
}

const INCARNATION: u64 = 7;

fn limits() -> ChildLimits {
    ChildLimits { frames: 4, frame_bytes: 400, frame_parcels: 5, retry: Duration::from_millis(200) }
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let child = Child::new(limits(), random.below(1 << 40), Tick::ZERO);
        World {
            random,
            now: Tick::ZERO,
            wire: Vec::new(),
            cut: false,
            loss: 10,
            child,
            stored: 0,
            released: 0,
            reading: None,
            poison: 13,
            parent: Parent::new(Cursor::default(), 1500),
            log: Vec::new(),
            buried: Vec::new(),
            checkpoint: Cursor::default(),
            writing: VecDeque::new(),
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

    fn run_child(&mut self) {
        while let Some(output) = self.child.poll(self.now) {
            match output {
                ChildOutput::Greet { session } => self.send(Wire::Up(ChildMessage::Hello {
                    session,
                    incarnation: INCARNATION,
                    start: 0,
                    last: self.stored,
                    version: String::new(),
                })),
                ChildOutput::Send { session, parcels, .. } => {
                    let frame = ChildOutput::frame(session, &parcels, self.stored);
                    self.send(Wire::Up(frame));
                }
                ChildOutput::Resume { after } => {
                    self.released = self.released.max(after);
                    self.reading = Some(after);
                }
                ChildOutput::Pause => self.reading = None,
                ChildOutput::Release { up_to, .. } => self.released = self.released.max(up_to),
            }
            self.read_store();
        }
        self.read_store();
    }

    /// Cuts what is stored into parcels anew each time, as a restarted packer does.
    fn read_store(&mut self) {
        while let Some(after) = self.reading
            && after < self.stored
            && self.child.wants_more()
        {
            let last = (after + 1 + self.random.below(4)).min(self.stored);
            let bytes = Bytes::from(vec![0; 20 * (last - after) as usize]);
            let digest = Digest::sha256(&last.to_be_bytes());
            self.child.offer(Parcel { after, last, bytes, digest, kid: Digest([1; 32]) });
            self.reading = Some(last);
        }
    }

    fn deliver(&mut self, wire: Wire) {
        match wire {
            Wire::Down(message) => self.child.on_message(&message, self.now),
            Wire::Up(ChildMessage::Hello { session, incarnation, start, .. }) => {
                self.parent.on_hello(session, incarnation, start);
            }
            Wire::Up(ChildMessage::Frame { session, parcels, .. }) => self.judge(session, &parcels),
            Wire::Up(_) => unreachable!("the simulation sends nothing else"),
        }
    }

    fn judge(&mut self, session: u64, parcels: &[ParcelHead]) {
        let poisoned = |p: &ParcelHead| p.after < self.poison && self.poison <= p.last;
        let verdicts: Vec<_> = parcels
            .iter()
            .map(|p| if poisoned(p) { Verdict::Refused(Refusal::BadPayload) } else { Verdict::Sound })
            .collect();
        for output in self.parent.on_frame(session, parcels, &verdicts) {
            match output {
                ParentOutput::Store { index, record } => {
                    let fails = self.random.chance(2);
                    self.writing.push_back((Stored { record, after: parcels[index].after }, fails));
                }
                ParentOutput::Bury { index, .. } => {
                    self.buried.extend(parcels[index].after + 1..=parcels[index].last);
                }
                ParentOutput::Reset { session } => self.send(Wire::Down(ParentMessage::Reset { session })),
            }
        }
    }

    fn run_store(&mut self) {
        if let Some((stored, fails)) = self.writing.pop_front() {
            if fails {
                self.parent.on_store_failed(stored.record.last);
            } else {
                self.log.push(stored);
                self.parent.on_stored(stored.record.last);
            }
        }
        if self.parent.is_broken() && self.writing.is_empty() {
            let cursor = self.recover();
            self.parent.on_recovered(cursor);
        }
        if self.random.chance(5) && !self.parent.is_storing() {
            self.checkpoint = self.parent.cursor();
        }
        if let Some(reply) = self.parent.take_reply(Millis(0), "") {
            self.send(Wire::Down(reply));
        }
    }

    /// What the store says behind the checkpoint; orphans leave it.
    fn recover(&mut self) -> Cursor {
        let mut cursor = self.checkpoint;
        self.log.retain(|stored| match cursor.follow(stored.record) {
            Some(next) => {
                cursor = next;
                true
            }
            None => false,
        });
        cursor
    }

    fn crash_child(&mut self) {
        self.child = Child::new(limits(), self.random.below(1 << 40), self.now);
        self.reading = None;
    }

    /// The agent dies; its server lives and finishes what it was given, or dies and forgets it.
    fn crash_parent(&mut self) {
        let server_dies = self.random.chance(50);
        for (stored, fails) in std::mem::take(&mut self.writing) {
            if server_dies {
                break;
            }
            if !fails {
                self.log.push(stored);
            }
        }
        let cursor = self.recover();
        self.parent = Parent::new(cursor, 1500);
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(1 + self.random.below(10));
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.wire).into_iter().partition(|(at, _)| *at <= self.now);
        self.wire = later;
        for (_, wire) in due {
            if !self.cut {
                self.deliver(wire);
            }
        }
        self.run_store();
        self.run_child();
    }

    fn trouble(&mut self) {
        match self.random.below(400) {
            0 => self.crash_child(),
            1 => self.crash_parent(),
            2 => self.cut = true,
            3..=8 => self.cut = false,
            _ => {}
        }
        if self.random.chance(20) {
            self.stored += self.random.below(4);
        }
    }

    fn check(&self) {
        let mut arrived: Vec<u64> = Vec::new();
        for Stored { record, after } in &self.log {
            let tail = arrived.last().copied().unwrap_or(0);
            assert!(*after >= tail, "doubled: {record:?} behind {tail}");
            assert!(record.last > *after);
            arrived.extend(after + 1..=record.last);
        }
        let known: std::collections::HashSet<u64> = arrived.iter().chain(&self.buried).copied().collect();
        for place in 1..=self.released {
            assert!(known.contains(&place), "lost: place {place} was forgotten and never arrived");
        }
    }
}

fn simulate(seed: u64) {
    let mut world = World::new(seed);
    for step in 0..1500 {
        world.trouble();
        world.step();
        if step % 100 == 0 {
            world.check();
        }
    }
    // Peace: everything must arrive.
    (world.cut, world.loss) = (false, 0);
    for _ in 0..20_000 {
        // The last places may be refused ones, whose refusal only a checkpoint remembers.
        if world.released == world.stored && world.wire.is_empty() {
            break;
        }
        world.step();
    }
    world.check();
    assert_eq!(world.released, world.stored, "the queue did not empty after the heal");
}

#[test]
fn nothing_is_lost_doubled_or_reordered_whatever_happens() {
    if let Ok(seed) = std::env::var("LUCENT_SEED") {
        return simulate(seed.parse().unwrap());
    }
    let seeds: u64 = std::env::var("LUCENT_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10_000);
    for seed in 1..=seeds {
        if let Err(panic) = std::panic::catch_unwind(|| simulate(seed)) {
            eprintln!("seed {seed} failed; replay it with LUCENT_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{seeds} seeds");
}
