//! The parent: one log of stored batches for all lanes, as at global, a checkpoint, and writes under way.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use hierarchy::{
    ByLane, Digest, Lane, Millis, Path, Refusal,
    link::{
        Budget, BudgetLimits, ChildMessage, Cursor, Need, Origins, ParcelHead, Parent, ParentMessage,
        ParentOutput, Record, Span, Tick, Verdict,
    },
};

use crate::{
    Event,
    child::{FromChild, ORIGIN, read_body},
    random::Random,
};

/// A batch in the parent's durable store.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stored {
    lane: Lane,
    record: Record,
    span: Span,
    digest: Digest,
}

/// What a restarted parent begins with: all before `log` is counted in.
#[derive(Debug, Clone, Default)]
struct Checkpoint {
    log: usize,
    cursors: ByLane<Cursor>,
    origins: Origins,
}

pub(crate) struct ParentSide {
    machine: Parent,
    origins: Origins,
    log: Vec<Stored>,
    checkpoint: Checkpoint,
    writing: VecDeque<(Stored, bool)>,
    /// Lanes that take nothing just now.
    full: ByLane<bool>,
    /// Shared with other children.
    budget: Budget<u8>,
    /// Whether something of a lane waits at the child.
    waiting: ByLane<Option<bool>>,
    others: Others,
    /// Refused by name.
    pub(crate) buried: BTreeSet<Event>,
    /// How many batches came in pieces, and became whole.
    pub(crate) pieced: u64,
    /// Missing for ever, as the machine says.
    pub(crate) gaps: BTreeSet<Event>,
}

/// What other children of the same parent have under way.
type Others = BTreeMap<u8, ByLane<(u64, u64)>>;

/// The child of this world, in the budget.
const CHILD: u8 = 0;
/// What is promised for good is less than the largest batch, so that a child must ask now and then.
const BUDGET: BudgetLimits =
    BudgetLimits { total: 3_000, lane: 1_500, share: 300, children: 6, quiet: Duration::from_millis(600) };
/// An event with this number is not liked.
const POISON: u64 = 13;

fn origin() -> Path {
    ORIGIN.parse().unwrap()
}

fn events(lane: Lane, span: Span) -> impl Iterator<Item = Event> {
    (span.first..=span.last).map(move |number| (lane, span.incarnation, number))
}

impl ParentSide {
    pub(crate) fn new() -> ParentSide {
        ParentSide {
            machine: Parent::new(&ByLane::default()),
            origins: Origins::new(),
            log: Vec::new(),
            checkpoint: Checkpoint::default(),
            writing: VecDeque::new(),
            full: ByLane::default(),
            budget: Budget::new(BUDGET),
            waiting: ByLane::default(),
            others: Others::new(),
            buried: BTreeSet::new(),
            pieced: 0,
            gaps: BTreeSet::new(),
        }
    }

    pub(crate) fn events(&self) -> BTreeSet<Event> {
        self.log.iter().flat_map(|stored| events(stored.lane, stored.span)).collect()
    }

    /// The events that a recovery would find, and not take for orphans.
    pub(crate) fn safe_events(&self) -> BTreeSet<Event> {
        let Checkpoint { log, mut cursors, .. } = self.checkpoint.clone();
        let chained = self.log.iter().enumerate().filter(|(place, stored)| {
            let next = cursors[stored.lane].follow(stored.record, stored.digest);
            cursors[stored.lane] = next.filter(|_| *place >= log).unwrap_or(cursors[stored.lane]);
            *place < log || next.is_some()
        });
        chained.flat_map(|(_, stored)| events(stored.lane, stored.span)).collect()
    }

    /// The events that have arrived; each once, and in order within lane and incarnation.
    pub(crate) fn check_order(&self) -> BTreeSet<Event> {
        let mut newest: BTreeMap<(Lane, u64), u64> = BTreeMap::new();
        for Stored { lane, span, .. } in &self.log {
            let last = newest.entry((*lane, span.incarnation)).or_default();
            assert!(span.first > *last, "doubled or out of order: {lane} {span} behind {last}");
            *last = span.last;
        }
        self.events()
    }

    pub(crate) fn on_message(
        &mut self,
        (message, bodies): FromChild,
        random: &mut Random,
    ) -> Vec<ParentMessage> {
        match message {
            ChildMessage::Hello { session, lanes, .. } => {
                self.machine.on_hello(session, lanes);
                self.waiting = ByLane::new(|lane| self.machine.greets_with_more(lane));
                Vec::new()
            }
            ChildMessage::Frame { session, lane, parcels, last, .. } => {
                self.waiting[lane] = Some(parcels.last().is_none_or(|parcel| parcel.last < last));
                let spans: Vec<Span> = bodies.iter().map(read_body).collect();
                self.on_frame(session, lane, &parcels, &spans, random)
            }
            ChildMessage::Piece { session, lane, parcel, offset, .. } => {
                // Now and then what has come in part is forgotten, or there is no room for it.
                if random.chance(2) {
                    self.machine.forget_begun();
                }
                let room = !random.chance(2);
                match self.machine.on_piece(session, lane, &parcel, offset, &bodies[0], room) {
                    Ok(Some(whole)) => {
                        self.pieced += 1;
                        assert_eq!(Digest::sha256(read_body(&whole).to_string().as_bytes()), parcel.digest);
                        self.on_frame(session, lane, &[parcel], &[read_body(&whole)], random)
                    }
                    Ok(None) => Vec::new(),
                    Err(ParentOutput::Reset { session }) => vec![ParentMessage::Reset { session }],
                    Err(other) => unreachable!("{other:?}"),
                }
            }
            other => unreachable!("the simulation does not send {other:?}"),
        }
    }

    fn on_frame(
        &mut self,
        session: u64,
        lane: Lane,
        parcels: &[ParcelHead],
        spans: &[Span],
        random: &mut Random,
    ) -> Vec<ParentMessage> {
        let poisoned = |span: &Span| span.first <= POISON && POISON <= span.last;
        let verdict = |span: &Span| match poisoned(span) {
            true => Verdict::Refused(Refusal::BadPayload),
            false => Verdict::Sound { origin: origin(), span: *span },
        };
        let verdicts: Vec<_> = spans.iter().map(verdict).collect();
        let mut answers = Vec::new();
        for output in self.machine.on_frame(session, lane, parcels, &verdicts, &mut self.origins) {
            match output {
                ParentOutput::Store { index, record } => {
                    assert!(!self.full[lane], "lane {lane} is full and took a batch");
                    let stored = Stored { lane, record, span: spans[index], digest: parcels[index].digest };
                    self.writing.push_back((stored, random.chance(2)));
                }
                ParentOutput::Bury { index, .. } => self.buried.extend(events(lane, spans[index])),
                ParentOutput::Gap { span, .. } => self.gaps.extend(events(lane, span)),
                ParentOutput::Reset { session } => answers.push(ParentMessage::Reset { session }),
            }
        }
        answers
    }

    /// One write ends, now and then a checkpoint is kept, and what is owed is said.
    pub(crate) fn run(&mut self, random: &mut Random, now: Tick) -> Vec<ParentMessage> {
        if let Some((stored, fails)) = self.writing.pop_front() {
            if fails {
                self.machine.on_store_failed(stored.lane, stored.record.last);
            } else {
                self.log.push(stored);
                self.origins.settled(&origin(), stored.lane, stored.span);
                self.machine.on_stored(stored.lane, stored.record.last);
            }
        }
        if self.machine.is_broken() && self.writing.is_empty() {
            let cursors = self.recover();
            self.machine.on_recovered(&cursors);
        }
        // Now and then a lane is full for a while.
        let lane = Lane::ALL[random.below(3) as usize];
        match random.below(100) {
            0 => self.full[lane] = true,
            1..=20 => self.full[lane] = false,
            _ => {}
        }
        self.share_out(random, now);
        if random.chance(5) && !self.machine.is_broken() {
            self.checkpoint = Checkpoint {
                log: self.log.len(),
                cursors: self.machine.cursors(),
                // As it is kept: what is only taken is not in it.
                origins: serde_json::from_str(&serde_json::to_string(&self.origins).unwrap()).unwrap(),
            };
        }
        self.machine.take_replies(Millis(0), "")
    }

    /// Other children come and go; this one gets what is left, and is told.
    fn share_out(&mut self, random: &mut Random, now: Tick) {
        let (other, lane) = (1 + random.below(5) as u8, Lane::ALL[random.below(3) as usize]);
        let (held, settled) = &mut self.others.entry(other).or_default()[lane];
        let credit = self.budget.credit(&other, lane);
        if random.chance(40) {
            *held += random.below(credit.saturating_sub(*held) + 1);
        } else {
            *settled += std::mem::take(held);
        }
        let waiting = random.chance(70).then(|| random.chance(80));
        let need = Need { held: *held, settled: *settled, waiting, room: u64::MAX };
        self.budget.update(&other, lane, need, now);
        if random.chance(10) {
            self.budget.take_back(now);
        }
        for lane in Lane::ALL {
            let (held, settled) = self.machine.held_and_settled(lane);
            let room = if self.full[lane] { 0 } else { u64::MAX };
            let need = Need { held, settled, waiting: std::mem::take(&mut self.waiting[lane]), room };
            self.budget.update(&CHILD, lane, need, now);
        }
        self.budget.take_changed();
        for lane in Lane::ALL {
            self.machine.set_credit(lane, self.budget.credit(&CHILD, lane));
        }
        // What was on its way when a promise was taken back is taken all the same.
        let promised = self.budget.promised();
        assert!(promised <= BUDGET.total + BUDGET.lane, "{promised} bytes are promised");
    }

    /// What the store says behind the checkpoint; orphans leave it.
    fn recover(&mut self) -> ByLane<Cursor> {
        let Checkpoint { log, mut cursors, mut origins } = self.checkpoint.clone();
        for stored in self.log.split_off(log.min(self.log.len())) {
            if let Some(next) = cursors[stored.lane].follow(stored.record, stored.digest) {
                cursors[stored.lane] = next;
                origins.settled(&origin(), stored.lane, stored.span);
                self.log.push(stored);
            }
        }
        self.origins = origins;
        cursors
    }

    /// The agent dies; its server lives and finishes what it was given, or dies and forgets it.
    pub(crate) fn restart(&mut self, random: &mut Random) {
        let server_dies = random.chance(50);
        for (stored, fails) in std::mem::take(&mut self.writing) {
            if server_dies {
                break;
            }
            if !fails {
                self.log.push(stored);
            }
        }
        let cursors = self.recover();
        self.machine = Parent::new(&cursors);
        (self.budget, self.others) = (Budget::new(BUDGET), Others::new());
        self.full = ByLane::default();
    }

    /// The store, with its checkpoint, loses the newest that it held. Returns what is gone.
    pub(crate) fn go_back(&mut self, random: &mut Random) -> BTreeSet<Event> {
        let before = self.events();
        self.writing.clear();
        let keep = self.log.len().saturating_sub(random.below(12) as usize).max(self.checkpoint.log);
        self.log.truncate(keep);
        self.restart(random);
        before.difference(&self.events()).copied().collect()
    }
}
