//! One replica: the lease, and a holder that raises fences, reads what there is and goes on behind it.

use std::collections::BTreeSet;

use coordinator::{
    Fences, Lease,
    lease::{Answer, Limits, Replica, Standing},
};
use hierarchy::link::Tick;

use crate::{
    Fencing,
    random::Random,
    store::{Asked, POSTS, Store, Subject, Told, What, Work},
    tick,
};

/// A request without an answer is given up after this, by the replica's own clock.
const ANSWERED_WITHIN: u64 = 1_000;
/// Most writes under way.
const UNDER_WAY: usize = 3;

const NOT_READ: u64 = u64::MAX;

enum Role {
    Idle,
    /// Raising fences: what is awaited, and what has come.
    Gate {
        number: u64,
        since: u64,
    },
    /// The number of the fence that is under way, and the places of those before it.
    Posts {
        gate: u64,
        number: Option<u64>,
        places: Vec<u64>,
        since: u64,
    },
    Writing {
        fences: Option<Fences>,
        follows: u64,
        under_way: BTreeSet<u64>,
        since: u64,
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
        request.into_iter().map(|request| self.asked(What::Lease(request))).collect()
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
            Told::Lease(answer) => {
                if self.asked_at.take().is_some() {
                    self.lease.on_answer(answer, self.clock(now));
                }
            }
            Told::Published { number, place } => self.on_published(number, place, now),
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
            asked.push(self.asked(What::Lease(request)));
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
        match &mut self.role {
            Role::Idle => {
                if self.fencing == Fencing::Off {
                    let follows = store.work_of_all();
                    self.role =
                        Role::Writing { fences: None, follows, under_way: BTreeSet::new(), since: now };
                    return;
                }
                let number = self.publish(Subject::Gate, None, None, asked);
                self.role = Role::Gate { number, since: now };
            }
            Role::Gate { since, .. } | Role::Posts { since, .. } => {
                if given_up(*since) {
                    self.role = Role::Idle;
                }
            }
            Role::Writing { fences, follows, under_way, since } => {
                if !under_way.is_empty() && given_up(*since) {
                    self.role = Role::Idle;
                    return;
                }
                if under_way.len() >= UNDER_WAY {
                    return;
                }
                let only_if = match fences {
                    None => None,
                    Some(fences) => match fences.next(under_way.is_empty()) {
                        None => return,
                        Some((post, place)) => Some((Subject::Post(post), place)),
                    },
                };
                let work = Work { follows: *follows };
                *follows += 1;
                *since = now;
                let number = self.publish(Subject::Work, only_if, Some(work), asked);
                if let Role::Writing { under_way, .. } = &mut self.role {
                    under_way.insert(number);
                }
            }
        }
        if let Role::Posts { gate, number: number @ None, places, .. } = &mut self.role {
            let (post, only_if) = (Subject::Post(places.len()), Some((Subject::Gate, *gate)));
            self.numbers += 1;
            *number = Some(self.numbers);
            let what = What::Publish { number: self.numbers, subject: post, only_if, work: None };
            asked.push(self.asked(what));
        }
    }

    fn on_published(&mut self, published: u64, place: Option<u64>, now: u64) {
        match &mut self.role {
            Role::Gate { number, .. } if *number == published => {
                self.role = match place {
                    Some(gate) => Role::Posts { gate, number: None, places: Vec::new(), since: now },
                    None => Role::Idle,
                };
            }
            Role::Posts { number, places, since, .. } if *number == Some(published) => {
                let Some(place) = place else {
                    self.role = Role::Idle;
                    return;
                };
                places.push(place);
                (*number, *since) = (None, now);
                if places.len() == POSTS {
                    let fences = Some(Fences::new(std::mem::take(places)));
                    let under_way = BTreeSet::new();
                    self.role = Role::Writing { fences, follows: NOT_READ, under_way, since: now };
                }
            }
            Role::Writing { under_way, .. } => {
                if under_way.remove(&published) && place.is_none() {
                    self.role = Role::Idle;
                }
            }
            _ => {}
        }
    }

    fn publish(
        &mut self,
        subject: Subject,
        only_if: Option<(Subject, u64)>,
        work: Option<Work>,
        asked: &mut Vec<Asked>,
    ) -> u64 {
        self.numbers += 1;
        let number = self.numbers;
        asked.push(self.asked(What::Publish { number, subject, only_if, work }));
        number
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
