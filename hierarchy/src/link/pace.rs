//! How much a child keeps under way, and how long it waits for an answer: told by how long answers take.
//!
//! What is under way waits in queues that nobody else sees: in the own nats-server, in the kernel, in a modem.
//! On a slow line whatever is behind it, an alert or the servers' own pings, comes that much later; so no more is
//! under way than the line carries in a second or two. While answers are quick the measure doubles from round to
//! round, and so is soon out of the way on a line that is not slow.

use std::time::Duration;

use super::{ChildLimits, Tick};

/// Answers that take so many times [`ChildLimits::quick`] are slow.
const SLOW: u32 = 2;
/// A measure that was not needed for so many times [`ChildLimits::quick`] is reduced to twice what was: for more
/// there is no proof by now.
const UNPROVEN: u32 = 10;
/// A pause shorter than this is none: timers are not so exact, and answers come before it is over.
const LEAST_PAUSE: Duration = Duration::from_millis(5);
/// The longest wait for an answer, before it is doubled.
const PATIENCE: Duration = Duration::from_secs(5);

/// The measure of one session.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    limits: ChildLimits,
    budget: usize,
    /// How long answers take, and by how much they differ, smoothed as TCP does.
    answers: Option<(Duration, Duration)>,
    /// What was sent before says nothing about a measure that was reduced since.
    reduced: Tick,
    /// When the measure was last the limit, and the most that was under way since.
    needed: Tick,
    peak: usize,
}

impl Pace {
    pub(super) fn new(limits: ChildLimits, now: Tick) -> Pace {
        Pace { limits, budget: limits.least, answers: None, reduced: now, needed: now, peak: 0 }
    }

    pub(super) fn limits(&self) -> &ChildLimits {
        &self.limits
    }

    /// Bytes that may be under way.
    pub(super) fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes of the next frame: two of them are within the budget, so that the line is not idle between them.
    pub(super) fn frame_bytes(&self) -> usize {
        (self.budget / 2).clamp(1, self.limits.frame_bytes)
    }

    /// How long to wait for an answer before what was sent is sent again.
    pub(super) fn patience(&self) -> Duration {
        let usual = match self.answers {
            Some((usual, spread)) => usual + spread * 4,
            // A greeting is short: what follows it may well take longer.
            None => self.limits.retry * 3,
        };
        usual.clamp(self.limits.retry, PATIENCE.max(self.limits.retry))
    }

    /// How long to wait for the answer to something, once what was sent before it is answered.
    pub(super) fn behind(&self) -> Duration {
        self.answers.map_or(self.limits.retry, |(usual, _)| usual).clamp(self.limits.retry / 4, PATIENCE)
    }

    /// Something is about to be sent, after which so much is under way. Whether that is up to the limit.
    pub(super) fn sending(&mut self, under_way: usize, now: Tick) -> bool {
        let full = under_way * 2 >= self.budget;
        if full {
            (self.needed, self.peak) = (now, 0);
        }
        self.peak = self.peak.max(under_way);
        full
    }

    /// Reduces a measure that has not been needed for long.
    pub(super) fn look(&mut self, now: Tick) {
        if now > self.needed + self.limits.quick * UNPROVEN {
            self.budget = self.budget.min(self.peak * 2).max(self.limits.least);
            (self.needed, self.peak) = (now, 0);
        }
    }

    /// The pause between two frames of a lane that are not full: so that they do not use up all that may be
    /// under way at once, and what comes meanwhile goes in one.
    pub(super) fn pause(&self) -> Duration {
        let pause =
            self.answers.map_or(Duration::ZERO, |(usual, _)| usual / self.limits.frames.max(1) as u32);
        if pause < LEAST_PAUSE { Duration::ZERO } else { pause }
    }

    /// What was sent then, once, was answered; `full` as [`Pace::sending`] said.
    pub(super) fn answered(&mut self, sent: Tick, now: Tick, bytes: usize, full: bool) {
        let took = now.saturating_sub(sent);
        self.answers = Some(match self.answers {
            None => (took, took / 2),
            Some((usual, spread)) => ((usual * 7 + took) / 8, (spread * 3 + usual.abs_diff(took)) / 4),
        });
        if took < self.limits.quick {
            if full {
                let most = 3 * self.limits.frames * self.limits.frame_bytes;
                self.budget = (self.budget + bytes).min(most.max(self.limits.least));
            }
        } else if took > self.limits.quick * SLOW && sent >= self.reduced {
            let fitting = self.limits.quick.as_secs_f64() * f64::from(SLOW) / took.as_secs_f64();
            self.reduce((self.budget as f64 * fitting) as usize, now);
        }
    }

    /// No answer came in time.
    pub(super) fn overdue(&mut self, now: Tick) {
        self.reduce(self.budget / 2, now);
    }

    fn reduce(&mut self, budget: usize, now: Tick) {
        self.budget = budget.max(self.limits.least);
        self.reduced = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of so many bytes a second that takes `way` there and back, and is never left idle.
    fn settles_at(bytes_a_second: f64, way: Duration) -> (Pace, Duration) {
        let mut pace = Pace::new(ChildLimits::default(), Tick::ZERO);
        let (mut now, mut took) = (Tick::ZERO, Duration::ZERO);
        for _ in 0..200 {
            let sent = now;
            let bytes = pace.budget();
            let full = pace.sending(bytes, now);
            took = way + Duration::from_secs_f64(bytes as f64 / bytes_a_second);
            now += took;
            pace.answered(sent, now, bytes, full);
        }
        (pace, took)
    }

    #[test]
    fn a_slow_line_holds_no_more_than_it_carries_in_two_seconds() {
        let (pace, took) = settles_at(6_250.0, Duration::from_millis(100));
        assert!(took <= Duration::from_millis(2_700), "{took:?} with {} bytes", pace.budget());
        assert!(pace.patience() >= took, "{:?} for answers that take {took:?}", pace.patience());
    }

    #[test]
    fn a_fast_line_and_a_long_one_are_filled() {
        assert!(settles_at(100e6, Duration::from_millis(1)).0.budget() >= 6 << 20);
        let (pace, took) = settles_at(1e6, Duration::from_millis(600));
        assert!(pace.budget() >= 400 << 10 && took < Duration::from_secs(2), "{} in {took:?}", pace.budget());
    }

    #[test]
    fn small_frames_now_and_then_prove_nothing_about_the_line_and_a_measure_of_long_ago_shrinks() {
        let mut pace = Pace::new(ChildLimits::default(), Tick::ZERO);
        for second in 1..100 {
            let full = pace.sending(500, Tick::from_secs(second));
            pace.answered(Tick::from_secs(second), Tick::from_millis(second * 1000 + 5), 500, full);
        }
        assert_eq!(pace.budget(), ChildLimits::default().least);
        let (mut pace, _) = settles_at(100e6, Duration::from_millis(1));
        let filled = pace.budget();
        pace.look(Tick::from_secs(3));
        assert_eq!(pace.budget(), filled);
        pace.sending(100_000, Tick::from_secs(3));
        pace.look(Tick::from_secs(60));
        assert_eq!(pace.budget(), filled, "it was needed until then");
        pace.sending(100_000, Tick::from_secs(61));
        pace.look(Tick::from_secs(71));
        assert_eq!(pace.budget(), 200_000);
        pace.look(Tick::from_secs(82));
        assert_eq!(pace.budget(), ChildLimits::default().least);
    }

    #[test]
    fn without_answers_the_measure_is_halved_down_to_the_least() {
        let (mut pace, _) = settles_at(100e6, Duration::from_millis(1));
        let before = pace.budget();
        pace.overdue(Tick::from_secs(1));
        assert_eq!(pace.budget(), before / 2);
        for second in 2..30 {
            pace.overdue(Tick::from_secs(second));
        }
        assert_eq!(pace.budget(), ChildLimits::default().least);
    }
}
