//! Which of several replicas of one coordinator acts: a lease on a record that all of them see.
//!
//! The holder replaces the record again and again, each time under the condition that it is still the one that
//! it wrote last. The others watch it. Nobody compares clocks of two machines: a record that has not changed
//! for [`Limits::take_over`] of a watcher's own time is taken over, under the same condition; a holder that
//! could not renew for the shorter [`Limits::give_up`] of its own time steps down.
//!
//! That keeps two from *meaning* to act at once. It cannot keep what a stopped holder had sent from arriving
//! late: for that the store has to know the new holder, and the agent raises fences in it.

use std::time::Duration;

use hierarchy::link::Tick;
use serde::{Deserialize, Serialize};

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Drawn anew by each process: a replica that was restarted is another one.
    pub id: String,
    /// Its name, for people.
    pub instance: String,
}

/// What lies in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How often the lease has changed hands.
    pub epoch: u64,
    /// Who holds it; `None` where it was released.
    pub holder: Option<Replica>,
}

/// The times that a lease is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How often the holder renews.
    pub renew: Duration,
    /// Without a renewal for so long the holder steps down.
    pub give_up: Duration,
    /// A record that has not changed for so long is taken over.
    pub take_over: Duration,
}

impl Limits {
    /// A holder renews five times before it is taken for dead, and steps down at three fifths of the time:
    /// the rest is for clocks that differ in speed and for stopping.
    pub fn of(take_over: Duration) -> Limits {
        Limits { renew: take_over / 5, give_up: take_over * 3 / 5, take_over }
    }
}

/// What the store is asked. One thing at a time: nothing more is asked before the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Read the record.
    Read,
    /// Write this record if the present one has this revision; 0 stands for none.
    Write {
        /// The new record.
        record: Record,
        /// The condition.
        after: u64,
    },
}

/// What the store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The record and its revision, or none.
    Found(Option<(u64, Record)>),
    /// Written, under this revision.
    Written(u64),
    /// Not written, or not known.
    Failed,
}

/// How a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It watches.
    Standby,
    /// It acts.
    Holder {
        /// How often the lease has changed hands.
        epoch: u64,
        /// Until when, if it is not renewed.
        until: Tick,
    },
}

#[derive(Debug)]
enum State {
    Standby {
        /// The newest revision that was seen, and since when.
        seen: Option<(u64, Tick)>,
        /// The record is free, or stale: it is to be written next.
        take: Option<(u64, u64)>,
    },
    Holder {
        epoch: u64,
        revision: u64,
        until: Tick,
        /// The last write is in doubt: the record is to be read.
        doubt: bool,
    },
}

/// One replica's end of the lease.
#[derive(Debug)]
pub struct Lease {
    me: Replica,
    limits: Limits,
    state: State,
    /// Whether it may take the lease: not before it is ready, nor while it steps down.
    may_take: bool,
    /// When the store is to be asked next.
    next: Tick,
    /// When the question was asked that has no answer yet.
    asked: Option<Tick>,
    /// Who held it when the record was last seen.
    known: Record,
}

impl Lease {
    /// A standby that only watches until [`Lease::stand`].
    pub fn new(me: Replica, limits: Limits, now: Tick) -> Lease {
        let state = State::Standby { seen: None, take: None };
        Lease { me, limits, state, may_take: false, next: now, asked: None, known: Record::default() }
    }

    /// From now on it may take the lease.
    pub fn stand(&mut self) {
        self.may_take = true;
    }

    /// How it stands. A holder whose time has passed is none, whether it was told yet or not.
    pub fn standing(&self, now: Tick) -> Standing {
        match self.state {
            State::Holder { epoch, until, .. } if now < until => Standing::Holder { epoch, until },
            _ => Standing::Standby,
        }
    }

    /// The record as it was last seen.
    pub fn known(&self) -> &Record {
        &self.known
    }

    /// When [`Lease::poll`] is to be called at the latest.
    pub fn timeout(&self) -> Tick {
        let until = match self.state {
            State::Holder { until, .. } => Some(until),
            State::Standby { .. } => None,
        };
        let next = self.asked.is_none().then_some(self.next);
        // While an answer is awaited a standby waits for nothing else.
        until.into_iter().chain(next).min().unwrap_or(Tick::MAX)
    }

    /// What to ask of the store now, if anything.
    pub fn poll(&mut self, now: Tick) -> Option<Request> {
        if let State::Holder { until, .. } = self.state
            && now >= until
        {
            self.step_down(now);
        }
        if self.asked.is_some() || now < self.next {
            return None;
        }
        self.asked = Some(now);
        Some(match &self.state {
            State::Standby { take: Some((after, epoch)), .. } if self.may_take => {
                Request::Write { record: self.record(epoch + 1), after: *after }
            }
            State::Holder { doubt: false, epoch, revision, .. } => {
                Request::Write { record: self.record(*epoch), after: *revision }
            }
            _ => Request::Read,
        })
    }

    /// The store's answer to the last request.
    pub fn on_answer(&mut self, answer: Answer, now: Tick) {
        let asked = self.asked.take().unwrap_or(now);
        match (answer, &mut self.state) {
            (Answer::Written(written), State::Holder { revision, until, .. }) => {
                (*revision, *until) = (written, asked + self.limits.give_up);
                self.next = asked + self.limits.renew;
            }
            (Answer::Written(revision), State::Standby { take, .. }) => {
                let Some((_, epoch)) = *take else { return };
                // What was written while it stepped down is nobody's: it is seen as any other.
                if self.may_take {
                    self.hold(epoch + 1, revision, asked);
                }
            }
            (Answer::Found(found), _) => self.on_found(found, now),
            (Answer::Failed, State::Holder { doubt, .. }) => {
                *doubt = true;
                self.next = now + self.limits.renew / 5;
            }
            (Answer::Failed, State::Standby { take, .. }) => {
                *take = None;
                self.next = now + self.limits.renew / 2;
            }
        }
    }

    /// What a holder writes that goes, if it still holds. It is a standby then, and takes nothing until it
    /// stands again.
    pub fn release(&mut self, now: Tick) -> Option<Request> {
        let held = match (self.standing(now), &self.state) {
            (Standing::Holder { epoch, .. }, State::Holder { revision, .. }) => Some((epoch, *revision)),
            _ => None,
        };
        self.step_down(now);
        let (epoch, after) = held?;
        Some(Request::Write { record: Record { epoch, holder: None }, after })
    }

    fn on_found(&mut self, found: Option<(u64, Record)>, now: Tick) {
        let (found_at, record) = found.unwrap_or_default();
        let mine = record.holder.as_ref().is_some_and(|holder| holder.id == self.me.id);
        match &mut self.state {
            State::Holder { epoch, revision, doubt, .. } => {
                self.next = now + self.limits.renew / 5;
                // A server of a cluster that lags behind may answer with an old record.
                if found_at < *revision {
                    return;
                }
                if mine && record.epoch == *epoch {
                    (*revision, *doubt) = (found_at, false);
                    self.next = now;
                } else {
                    self.known = record;
                    self.step_down(now);
                }
            }
            State::Standby { seen, take } => {
                self.next = now + self.limits.renew / 2;
                let since = match *seen {
                    Some((last, _)) if found_at < last => return,
                    Some((last, since)) if found_at == last => since,
                    _ => now,
                };
                *seen = Some((found_at, since));
                let free = record.holder.is_none() || mine;
                let stale = now.saturating_sub(since) >= self.limits.take_over;
                *take = (free || stale).then_some((found_at, record.epoch));
                if take.is_some() && self.may_take {
                    self.next = now;
                }
                self.known = record;
            }
        }
    }

    fn hold(&mut self, epoch: u64, revision: u64, asked: Tick) {
        self.known = self.record(epoch);
        self.state = State::Holder { epoch, revision, until: asked + self.limits.give_up, doubt: false };
        self.next = asked + self.limits.renew;
    }

    fn step_down(&mut self, now: Tick) {
        self.state = State::Standby { seen: None, take: None };
        self.may_take = false;
        self.next = now + self.limits.renew / 2;
    }

    fn record(&self, epoch: u64) -> Record {
        Record { epoch, holder: Some(self.me.clone()) }
    }
}
