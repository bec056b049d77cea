//! One replica: the lease, and a holder that raises a fence, reads what there is and goes on behind it.

use coordinator::{
    Lease,
    lease::{Answer, Limits, Replica, Standing},
};
use hierarchy::link::Tick;

use crate::{
    Fencing,
    random::Random,
    store::{Asked, Store, Told, What, Work},
    tick,
};

/// A request without an answer is given up after this, by the replica's own clock.
const ANSWERED_WITHIN: u64 = 1_000;
/// Most pieces of work in a group.
const GROUP: u64 = 4;
const NOT_READ: u64 = u64::MAX;

enum Role {
    Idle,
    /// The answer to a fence is awaited.
    Fencing {
        number: u64,
        since: u64,
    },
    /// One group is under way at a time.
    Writing {
        fence: Option<u64>,
        follows: u64,
        under_way: Option<(u64, u64)>,
    },
}

pub(crate) struct Side {
    name: usize,
    limits: Limits,
    fencing: Fencing,
    lease: Lease,
    role: Role,
    /// The clock: where it began and how fast it runs, in thousandths.
    began: u64,
    speed: u64,
    asked_at: Option<u64>,
    numbers: u64,
    question: u64,
    life: u64,
    pub(crate) stopped_until: u64,
    pub(crate) cut_until: u64,
}

impl Side {
    pub(crate) fn new(name: usize, limits: Limits, fencing: Fencing, random: &mut Random) -> Side {
        let mut side = Side {
            name,
            limits,
            fencing,
            lease: Lease::new(replica(name, 0), limits, Tick::ZERO),
            role: Role::Idle,
            began: random.below(1_000_000),
            speed: 950 + random.below(101),
            asked_at: None,
            numbers: 0,
            question: 0,
            life: 0,
            stopped_until: 0,
            cut_until: 0,
        };
        side.restart(0, random);
        side
    }

    /// Killed, and started again.
    pub(crate) fn restart(&mut self, now: u64, random: &mut Random) {
        self.life += 1;
        self.role = Role::Idle;
        self.asked_at = None;
        self.lease = Lease::new(replica(self.name, self.life), self.limits, self.clock(now));
        self.lease.stand();
        self.stopped_until = now + random.below(500);
    }

    /// Ends in order.
    pub(crate) fn leave(&mut self, now: u64) -> Vec<Asked> {
        if self.stopped_until > now || self.asked_at.is_some() {
            return Vec::new();
        }
        self.role = Role::Idle;
        let request = self.lease.release(self.clock(now));
        self.lease.stand();
        request.into_iter().map(|request| self.asked(What::Lease(0, request))).collect()
    }

    pub(crate) fn acts(&self, now: u64) -> bool {
        matches!(self.lease.standing(self.clock(now)), Standing::Holder { .. })
    }

    pub(crate) fn hear(&mut self, life: u64, told: Told, now: u64) {
        if life != self.life {
            return;
        }
        match told {
            // What answers a question that was given up is passed over.
            Told::Lease(question, answer) => {
                if question == self.question && self.asked_at.take().is_some() {
                    self.lease.on_answer(answer, self.clock(now));
                }
            }
            Told::Published { number, place } => self.on_published(number, place),
        }
    }

    pub(crate) fn act(&mut self, now: u64, store: &Store) -> Vec<Asked> {
        let clock = self.clock(now);
        if self.asked_at.is_some_and(|at| now > at + ANSWERED_WITHIN) {
            self.asked_at = None;
            self.lease.on_answer(Answer::Failed, clock);
        }
        let mut asked = Vec::new();
        if let Some(request) = self.lease.poll(clock) {
            self.asked_at = Some(now);
            self.question += 1;
            asked.push(self.asked(What::Lease(self.question, request)));
        }
        if !self.acts(now) {
            if !matches!(self.role, Role::Idle) {
                self.role = Role::Idle;
            }
            self.lease.stand();
            return asked;
        }
        self.work(now, store, &mut asked);
        asked
    }

    fn work(&mut self, now: u64, store: &Store, asked: &mut Vec<Asked>) {
        // Only what is read behind the fences counts.
        if let Role::Writing { follows, .. } = &mut self.role
            && *follows == NOT_READ
        {
            *follows = store.work_of_all();
        }
        let given_up = |since: u64| now > since + ANSWERED_WITHIN;
        let number = self.numbers + 1;
        match &mut self.role {
            Role::Idle if self.fencing == Fencing::Off => {
                self.role = Role::Writing { fence: None, follows: NOT_READ, under_way: None };
            }
            Role::Idle => {
                self.role = Role::Fencing { number, since: now };
                self.numbers = number;
                asked.push(self.asked(What::Fence { number }));
            }
            Role::Fencing { since, .. } | Role::Writing { under_way: Some((_, since)), .. } => {
                if given_up(*since) {
                    self.role = Role::Idle;
                }
            }
            Role::Writing { fence, follows, under_way } => {
                let group: Vec<Work> =
                    (0..1 + number % GROUP).map(|more| Work { follows: *follows + more }).collect();
                *follows += group.len() as u64;
                *under_way = Some((number, now));
                let behind = *fence;
                self.numbers = number;
                asked.push(self.asked(What::Write { number, behind, group }));
            }
        }
    }

    fn on_published(&mut self, published: u64, place: Option<u64>) {
        match &mut self.role {
            Role::Fencing { number, .. } if *number == published => {
                self.role = Role::Writing { fence: place, follows: NOT_READ, under_way: None };
            }
            Role::Writing { under_way, .. } if under_way.is_some_and(|(number, _)| number == published) => {
                *under_way = None;
                if place.is_none() {
                    self.role = Role::Idle;
                }
            }
            _ => {}
        }
    }

    fn asked(&self, what: What) -> Asked {
        Asked { life: self.life, what }
    }

    fn clock(&self, now: u64) -> Tick {
        tick(self.began + now * self.speed / 1_000)
    }
}

fn replica(name: usize, life: u64) -> Replica {
    Replica { id: format!("{name}/{life}"), instance: name.to_string() }
}
