//! How far a child's clock is from its parent's, measured on the link, and what time the child goes by.
//!
//! The child asks for the time and holds the answer against its monotonic clock, not its wall clock: a step
//! of the wall clock between question and answer spoils nothing, and shows at once. Of the last readings the
//! one with the shortest round trip counts, since it can be wrong by half of that at most.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::Tick;
use crate::Millis;

/// Clocks that are further apart than this are reported, and the child goes by its parent's.
pub const TOLERATED: Duration = Duration::from_secs(2);
/// How far a clock may be outside its own certificate's time and still be taken to be wrong, while nobody has
/// told the time: beyond, it is the certificate that is.
pub const DOUBT: Duration = Duration::from_secs(24 * 3600);

/// Readings that are kept.
const READINGS: usize = 8;
/// How often the time is asked for.
const EVERY: Duration = Duration::from_secs(5);
/// And how often at first, until half of the readings are there.
const AT_FIRST: Duration = Duration::from_secs(1);
/// Questions in a row that stay unanswered before no more are asked in this session: the parent is older than
/// they are.
const UNANSWERED: u32 = 5;
/// A monotonic clock loses or gains a part in so many: 200 millionths.
const DRIFT: u32 = 5_000;
/// Millisecond clocks agree to a millisecond each.
const RESOLUTION: Duration = Duration::from_millis(2);

/// How far the child's wall clock is ahead of the parent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Skew {
    /// In milliseconds; negative where it is behind.
    pub ahead_ms: i64,
    /// By how many milliseconds this may be wrong.
    pub within_ms: u64,
}

impl Skew {
    /// Whether the clocks are certainly further apart than is tolerated.
    pub fn is_apart(&self) -> bool {
        let tolerated = TOLERATED.as_millis() as u64;
        self.ahead_ms.unsigned_abs() > tolerated.saturating_add(self.within_ms)
    }

    /// In seconds.
    pub fn ahead_seconds(&self) -> f64 {
        self.ahead_ms as f64 / 1000.0
    }
}

/// What time it was at the parent at a moment of the child's monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    at: Tick,
    time: Millis,
    /// How far from the truth it may be.
    within: Duration,
}

impl Reading {
    /// The parent's time at `now`.
    pub fn time(&self, now: Tick) -> Millis {
        match now.checked_sub(self.at) {
            Some(since) => self.time.plus(since),
            None => Millis(self.time.0.saturating_sub((self.at - now).as_millis() as u64)),
        }
    }

    /// How far the wall clock that reads `wall` at `now` is ahead of the parent's.
    pub fn skew(&self, now: Tick, wall: Millis) -> Skew {
        let ahead = i128::from(wall.0) - i128::from(self.time(now).0);
        let ahead_ms = ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        Skew { ahead_ms, within_ms: self.within(now).as_millis() as u64 }
    }

    /// A reading grows old: nobody knows how the clocks have run since.
    fn within(&self, now: Tick) -> Duration {
        self.within + now.saturating_sub(self.at) / DRIFT
    }

    fn contradicts(&self, other: &Reading, now: Tick) -> bool {
        let (ours, theirs) = (self.time(now), other.time(now));
        let apart = ours.since(theirs).max(theirs.since(ours));
        apart > self.within(now) + other.within(now)
    }
}

/// The parent's clock as the child knows it.
#[derive(Debug, Default)]
pub struct ParentClock {
    /// The question that waits for its answer.
    asked: Option<(u64, Tick)>,
    number: u64,
    next: Tick,
    unanswered: u32,
    readings: VecDeque<Reading>,
}

impl ParentClock {
    /// Nothing is known. Questions are numbered from behind `number`, which is fresh for each run, so that no
    /// answer of an earlier one can pass for one to these.
    pub fn new(number: u64) -> ParentClock {
        ParentClock { number, ..ParentClock::default() }
    }

    /// A session was opened: questions may be asked, at once.
    pub fn opened(&mut self, now: Tick) {
        (self.asked, self.next, self.unanswered) = (None, now, 0);
    }

    /// When the next question is due; none while nobody answers.
    pub fn next(&self) -> Option<Tick> {
        (self.unanswered < UNANSWERED).then_some(self.next)
    }

    /// The number of a question that is to be asked now.
    pub fn ask(&mut self, now: Tick) -> Option<u64> {
        self.next().filter(|next| *next <= now)?;
        self.number += 1;
        self.unanswered += 1;
        self.asked = Some((self.number, now));
        self.next = now + if self.readings.len() < READINGS / 2 { AT_FIRST } else { EVERY };
        Some(self.number)
    }

    /// The parent's answer: by its clock the question came at `received`, and the answer went at `sent`. Only
    /// the answer to the last question counts, once.
    pub fn answered(&mut self, number: u64, received: Millis, sent: Millis, now: Tick) {
        let Some((_, asked)) = self.asked.take_if(|(asked, _)| *asked == number) else { return };
        self.unanswered = 0;
        let there = sent.since(received);
        let round_trip = now.saturating_sub(asked).saturating_sub(there);
        let half = round_trip / 2;
        let reading = Reading { at: now, time: sent.plus(half), within: half + RESOLUTION };
        // The parent's clock was set, or this machine has slept: what is older means nothing.
        if self.best(now).is_some_and(|best| reading.contradicts(&best, now)) {
            self.readings.clear();
        }
        if self.readings.len() == READINGS {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
    }

    /// The reading to go by.
    pub fn best(&self, now: Tick) -> Option<Reading> {
        self.readings.iter().min_by_key(|reading| reading.within(now)).copied()
    }
}

/// What time it is: the wall clock's, unless it is apart from the parent's.
pub fn time(wall: Millis, told: Option<Reading>, now: Tick) -> Millis {
    match told {
        Some(told) if told.skew(now, wall).is_apart() => told.time(now),
        _ => wall,
    }
}

/// The time to put on what is signed under a key that may sign from the first to the second time of `window`.
///
/// A signature outside it would be refused everywhere. So the parent's word counts only as long as it leads
/// into the window, else the own clock's; and while nobody has told the time, a clock that is less than
/// [`DOUBT`] outside is taken to be wrong, and what is signed is dated at the window's nearest end.
pub fn stamp(wall: Millis, told: Option<Reading>, now: Tick, window: [Millis; 2]) -> Millis {
    let holds = |time: &Millis| (window[0]..=window[1]).contains(time);
    let nearest = wall.clamp(window[0], window[1].max(window[0]));
    let doubtful = told.is_none() && wall.since(nearest).max(nearest.since(wall)) <= DOUBT;
    [time(wall, told, now), wall].into_iter().find(holds).unwrap_or(if doubtful { nearest } else { wall })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Millis = Millis(1_756_809_000_000);
    const HOUR: u64 = 3_600_000;

    fn at(millis: u64) -> Tick {
        Duration::from_millis(millis)
    }

    /// A parent whose clock reads noon at tick 0, and its child's questions.
    struct Link {
        clock: ParentClock,
        parent: Millis,
    }

    impl Link {
        fn new() -> Link {
            Link { clock: ParentClock::new(7), parent: NOON }
        }

        /// A question at `tick` that takes `up` there and `down` back, in milliseconds.
        fn ask(&mut self, tick: u64, up: u64, down: u64) {
            self.clock.next = at(tick);
            let number = self.clock.ask(at(tick)).unwrap();
            let time = |tick: u64| Millis(self.parent.0 + tick);
            self.clock.answered(number, time(tick + up), time(tick + up + 3), at(tick + up + 3 + down));
        }

        fn skew(&self, tick: u64, wall: Millis) -> Skew {
            self.clock.best(at(tick)).unwrap().skew(at(tick), wall)
        }
    }

    #[test]
    fn a_clock_three_hours_off_is_measured_to_half_a_round_trip() {
        for hours in [-3, 3] {
            let mut link = Link::new();
            link.ask(1000, 40, 60);
            let wall = Millis(NOON.0.checked_add_signed(hours * HOUR as i64).unwrap() + 2000);
            let skew = link.skew(2000, wall);
            assert!((skew.ahead_ms - hours * HOUR as i64).abs() <= 52, "{skew:?}");
            assert!(skew.within_ms <= 53 && skew.is_apart(), "{skew:?}");
        }
    }

    #[test]
    fn the_shortest_round_trip_of_the_last_eight_counts() {
        let mut link = Link::new();
        link.ask(1000, 900, 0);
        assert_eq!(link.skew(2000, Millis(NOON.0 + 2000)).ahead_ms, -450);
        link.ask(3000, 1, 1);
        for later in 1..=7 {
            link.ask(3000 + later * 1000, 300, 500);
            assert_eq!(link.skew(12_000, Millis(NOON.0 + 12_000)).ahead_ms, 0, "after {later} more");
        }
        link.ask(20_000, 300, 500);
        assert_eq!(link.skew(21_000, Millis(NOON.0 + 21_000)).ahead_ms, 100);
    }

    #[test]
    fn what_a_long_way_explains_is_not_reported() {
        let mut link = Link::new();
        // All of the five seconds may lie in the way up: the clocks may agree, or differ by 2.5 s.
        link.ask(1000, 5000, 0);
        let skew = link.skew(7000, Millis(NOON.0 + 7000));
        assert!(skew.ahead_ms == -2500 && !skew.is_apart(), "{skew:?}");
    }

    #[test]
    fn a_step_of_the_own_clock_shows_at_once_and_of_the_parents_with_its_next_answer() {
        let mut link = Link::new();
        (0..8).for_each(|n| link.ask(1000 + n * 1000, 5, 5));
        assert!(!link.skew(10_000, Millis(NOON.0 + 10_000)).is_apart());
        assert_eq!(link.skew(10_001, Millis(NOON.0 + 10_001 + HOUR)).ahead_ms, HOUR as i64);
        link.parent = Millis(NOON.0 + HOUR);
        link.ask(11_000, 50, 50);
        assert_eq!(link.skew(12_000, Millis(NOON.0 + 12_000)).ahead_ms, -(HOUR as i64));
    }

    #[test]
    fn an_old_reading_says_less() {
        let mut link = Link::new();
        link.ask(1000, 5, 5);
        let day = 24 * HOUR;
        // A monotonic clock may be 17 s off after a day alone.
        let skew = link.skew(day, Millis(NOON.0 + day + 15_000));
        assert!(skew.within_ms > 17_000 && !skew.is_apart(), "{skew:?}");
        assert!(link.skew(day, Millis(NOON.0 + day + HOUR)).is_apart());
    }

    #[test]
    fn only_the_answer_to_the_last_question_counts_and_only_once() {
        let mut clock = ParentClock::new(7);
        let number = clock.ask(at(0)).unwrap();
        clock.answered(number - 1, NOON, NOON, at(2));
        assert_eq!(clock.best(at(2)), None);
        clock.answered(number, NOON, NOON, at(10));
        let best = clock.best(at(10));
        clock.answered(number, Millis(1), Millis(1), at(11));
        assert_eq!(clock.best(at(10)), best);
    }

    #[test]
    fn a_parent_that_does_not_know_the_question_is_not_asked_for_ever() {
        let mut clock = ParentClock::new(7);
        let asked = (0..100).filter(|second| clock.ask(at(second * 1000)).is_some()).count();
        assert_eq!(asked, UNANSWERED as usize);
        clock.opened(at(200_000));
        assert!(clock.ask(at(200_000)).is_some());
    }

    /// A reading that is exact.
    fn told(time: Millis) -> Option<Reading> {
        Some(Reading { at: at(0), time, within: RESOLUTION })
    }

    fn off(time: Millis, by: i64) -> Millis {
        Millis(time.0.checked_add_signed(by).unwrap())
    }

    #[test]
    fn the_parents_time_counts_where_the_clocks_are_apart() {
        let hour = HOUR as i64;
        assert_eq!(time(off(NOON, 3 * hour), told(NOON), at(0)), NOON);
        assert_eq!(time(off(NOON, 1500), told(NOON), at(0)), off(NOON, 1500));
        assert_eq!(time(off(NOON, 3 * hour), None, at(0)), off(NOON, 3 * hour));
    }

    #[test]
    fn nothing_is_dated_outside_its_certificates_time_for_a_clocks_sake() {
        let hour = HOUR as i64;
        let window = [off(NOON, -hour), off(NOON, hour)];
        let (ahead, behind) = (off(NOON, 3 * hour), off(NOON, -3 * hour));
        for wall in [ahead, behind] {
            assert_eq!(stamp(wall, told(NOON), at(0), window), NOON, "as the parent says");
            assert_eq!(stamp(NOON, told(wall), at(0), window), NOON, "a parent that is wrong is not obeyed");
        }
        assert_eq!(stamp(ahead, None, at(0), window), window[1]);
        assert_eq!(stamp(behind, None, at(0), window), window[0]);
    }

    #[test]
    fn an_expired_certificate_is_not_dated_back() {
        let window = [off(NOON, -50 * HOUR as i64), off(NOON, -(HOUR as i64))];
        assert_eq!(stamp(NOON, told(NOON), at(0), window), NOON, "the parent agrees that it is over");
        let long_ago = [off(NOON, -50 * HOUR as i64), off(NOON, -25 * HOUR as i64)];
        assert_eq!(stamp(NOON, None, at(0), long_ago), NOON, "no clock is taken to be so wrong");
    }
}
