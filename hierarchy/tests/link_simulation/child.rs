//! The child: a store of batches for each lane, from which whatever has arrived is removed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hierarchy::{
    ByLane, Digest, Lane,
    link::{
        Child, ChildLimits, ChildMessage, ChildOutput, LaneHello, Parcel, Span, Tick, resume, resume::Resume,
    },
};

use crate::{Event, random::Random};

/// A message, and the batches behind it.
pub(crate) type FromChild = (ChildMessage, Vec<Bytes>);

/// The one origin: the child itself.
pub(crate) const ORIGIN: &str = "s1/c1/n1";

/// The store of one lane: batches by place, and the last place ever given in it.
#[derive(Debug, Clone, Default)]
struct Store {
    batches: BTreeMap<u64, Span>,
    last: u64,
}

/// What is known of a store's incarnation; kept in the store, and so rolled back with it.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    incarnation: u64,
    start: u64,
}

#[derive(Debug, Clone, Default)]
struct Lanes {
    stores: ByLane<Store>,
    lives: ByLane<Life>,
}

pub(crate) struct ChildSide {
    pub(crate) machine: Child,
    /// Every event that was ever taken.
    pub(crate) published: BTreeSet<Event>,
    lanes: Lanes,
    copy: Lanes,
    reading: ByLane<Option<u64>>,
    /// The origin's numbering: an incarnation, and the last number given in each lane.
    incarnation: u64,
    numbers: ByLane<u64>,
}

fn limits() -> ChildLimits {
    ChildLimits {
        frames: 4,
        frame_bytes: 400,
        frame_parcels: 5,
        whole_batch: 150,
        retry: std::time::Duration::from_millis(200),
        // Smaller than most batches: they go in pieces until answers have been quick for a while.
        least: 120,
        quick: std::time::Duration::from_millis(100),
    }
}

/// Two batches are the same if they hold the same events.
fn digest(span: Span) -> Digest {
    Digest::sha256(span.to_string().as_bytes())
}

/// The span, so that the parent of this world can read a batch.
fn body(span: Span) -> Bytes {
    let mut text = span.to_string().into_bytes();
    text.resize(20 + 20 * span.len() as usize, b' ');
    text.into()
}

pub(crate) fn read_body(bytes: &Bytes) -> Span {
    std::str::from_utf8(bytes).unwrap().trim_end().parse().unwrap()
}

impl ChildSide {
    pub(crate) fn new(random: &mut Random) -> ChildSide {
        let lanes = Lanes { lives: ByLane::new(|_| Life { incarnation: 7, start: 0 }), ..Lanes::default() };
        ChildSide {
            machine: Child::new(limits(), random.below(1 << 40), Tick::ZERO),
            published: BTreeSet::new(),
            copy: lanes.clone(),
            lanes,
            reading: ByLane::default(),
            incarnation: 1,
            numbers: ByLane::default(),
        }
    }

    pub(crate) fn publish(&mut self, random: &mut Random) {
        let lane = Lane::ALL[random.below(3) as usize];
        let first = self.numbers[lane] + 1;
        let last = first + random.below(4);
        self.numbers[lane] = last;
        let incarnation = self.incarnation;
        self.published.extend((first..=last).map(|number| (lane, incarnation, number)));
        let store = &mut self.lanes.stores[lane];
        // Places are skipped where a write failed.
        store.last += 1 + u64::from(random.chance(10));
        store.batches.insert(store.last, Span { incarnation, first, last });
    }

    /// The agent dies; its store stays.
    pub(crate) fn restart(&mut self, random: &mut Random, now: Tick) {
        self.machine = Child::new(limits(), random.below(1 << 40), now);
        self.reading = ByLane::default();
        self.incarnation += 1;
        self.numbers = ByLane::default();
    }

    pub(crate) fn back_up(&mut self) {
        self.copy = self.lanes.clone();
    }

    /// The store is restored from the copy, or lost, or loses the newest of one lane in a power cut.
    /// Returns what it held and holds no more.
    pub(crate) fn go_back(&mut self, random: &mut Random, now: Tick) -> BTreeSet<Event> {
        let before = self.held();
        match random.below(4) {
            0 => self.lanes = self.copy.clone(),
            1 => {
                let born = random.next() >> 20;
                self.lanes = Lanes {
                    lives: ByLane::new(|_| Life { incarnation: born, start: 0 }),
                    ..Lanes::default()
                };
            }
            _ => {
                let store = &mut self.lanes.stores[Lane::ALL[random.below(3) as usize]];
                store.last -= random.below(5).min(store.last);
                store.batches.split_off(&(store.last + 1));
            }
        }
        self.restart(random, now);
        // What came back from the copy may have been lost before; nothing is lost by that.
        before.difference(&self.held()).copied().collect()
    }

    pub(crate) fn held(&self) -> BTreeSet<Event> {
        let batches = self
            .lanes
            .stores
            .iter()
            .flat_map(|(lane, store)| store.batches.values().map(move |span| (lane, *span)));
        batches
            .flat_map(|(lane, span)| (span.first..=span.last).map(move |n| (lane, span.incarnation, n)))
            .collect()
    }

    /// Whether nothing waits: the newest batch is kept so that the next session can compare it.
    pub(crate) fn is_empty(&self) -> bool {
        self.machine.is_open()
            && self.lanes.stores.iter().all(|(lane, store)| {
                let newest = store.batches.keys().next_back().copied().unwrap_or(0);
                self.machine.cursor(lane) >= newest && self.machine.is_idle(lane)
            })
    }

    pub(crate) fn run(&mut self, random: &mut Random, now: Tick) -> Vec<FromChild> {
        let mut messages = Vec::new();
        loop {
            self.read_stores();
            let Some(output) = self.machine.poll(now) else { return messages };
            match output {
                ChildOutput::Greet { session } => {
                    let lanes = self.lanes.lives.map(|lane, life| LaneHello {
                        incarnation: life.incarnation,
                        start: life.start,
                        last: self.lanes.stores[lane].last,
                    });
                    messages
                        .push((ChildMessage::Hello { session, lanes, version: String::new() }, Vec::new()));
                }
                ChildOutput::Send { session, lane, load, .. } => {
                    messages.push(load.message(session, lane, self.lanes.stores[lane].last));
                }
                ChildOutput::Resume { lane, after, digest } => {
                    self.resume(lane, after, digest, random, now);
                }
                ChildOutput::Pause => self.reading = ByLane::default(),
                ChildOutput::Release { lane, up_to, .. } => self.release(lane, up_to),
            }
        }
    }

    fn resume(&mut self, lane: Lane, after: u64, theirs: Option<Digest>, random: &mut Random, now: Tick) {
        let store = &self.lanes.stores[lane];
        let first = store.batches.keys().next().copied().unwrap_or(store.last + 1);
        let here = store.batches.get(&after).map(|span| digest(*span));
        match resume::decide(resume::Held { first, last: store.last, at_cursor: here }, after, theirs) {
            Resume::After => {
                self.release(lane, after);
                self.reading[lane] = Some(after);
            }
            Resume::Anew { start } => {
                self.lanes.lives[lane] = Life { incarnation: random.next() >> 20, start };
                self.machine.on_stranger(now);
            }
        }
    }

    /// All that has arrived leaves, but for the newest of it.
    fn release(&mut self, lane: Lane, up_to: u64) {
        let store = &mut self.lanes.stores[lane];
        store.batches = store.batches.split_off(&up_to);
    }

    fn read_stores(&mut self) {
        for lane in Lane::ALL {
            while let Some(after) = self.reading[lane]
                && self.machine.wants_more(lane)
                && let Some((&last, &span)) = self.lanes.stores[lane].batches.range(after + 1..).next()
            {
                let parcel =
                    Parcel { after, last, bytes: body(span), digest: digest(span), kid: Digest([1; 32]) };
                self.machine.offer(lane, parcel);
                self.reading[lane] = Some(last);
            }
        }
    }
}
