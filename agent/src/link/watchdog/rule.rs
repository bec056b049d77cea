//! When a link counts as stuck, and what is done about it. No clock and no chance of its own.
//!
//! ```text
//!              closed, parent greets            for long enough, and no sooner than the last step allows
//!   Quiet ------------------------------> Waiting ------------------> redial, then restart, and again
//!     ^                                      |
//!     +------ open, or no parent greets -----+
//! ```

use std::time::Duration;

use hierarchy::link::Tick;
use serde::{Deserialize, Serialize};

/// The longest pause between two steps, but for chance.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// A link that has been open for so long was healed: the next trouble begins with the first step.
const HEALED_AFTER: Duration = Duration::from_secs(600);
/// A leaf connection without a session waits so many times longer: mostly the parent's agent is away while its
/// server is there.
const PATIENCE_WITH_LEAF: u32 = 4;

/// What was seen of a link that is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// The session is open, or the link is cut on purpose.
    Well,
    /// No address of the parent greets, or the own server does not answer: others see to that.
    NoParent,
    /// A parent greets. Whether the own server has a leaf connection to it.
    Greets {
        /// It has.
        leaf: bool,
    },
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// The own server reads its configuration and certificates again and dials anew.
    Redial,
    /// The own server is started again.
    Restart,
}

impl Step {
    /// Its name, in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Step::Redial => "redial",
            Step::Restart => "restart",
        }
    }
}

/// Watches one link.
#[derive(Debug)]
pub(super) struct Rule {
    patience: Duration,
    /// Since when it is closed while a parent greets, without a break; and with a leaf connection or not.
    stuck: Option<(Tick, bool)>,
    open_since: Option<Tick>,
    steps: u32,
    /// No step before this.
    not_before: Tick,
}

impl Rule {
    /// A link is stuck once it is closed for `patience` while a parent greets.
    pub(super) fn new(patience: Duration) -> Rule {
        Rule { patience, stuck: None, open_since: None, steps: 0, not_before: Tick::ZERO }
    }

    /// How long it has been closed while a parent greets, and why that counts as stuck, once it does.
    pub(super) fn stuck(&self, now: Tick) -> Option<(Duration, &'static str)> {
        let (since, leaf) = self.stuck?;
        let reason = match leaf {
            true => "the server is connected to the parent's, and the parent's agent does not answer",
            false => "the parent's server greets, and the own server makes no connection to it",
        };
        let long = now.saturating_sub(since);
        (long >= self.patience_for(leaf)).then_some((long, reason))
    }

    /// Takes what was seen; what is to be done. `chance` is any number.
    pub(super) fn look(&mut self, sight: Sight, now: Tick, chance: u64) -> Option<Step> {
        let leaf = match sight {
            Sight::Well => {
                let since = *self.open_since.get_or_insert(now);
                if now.saturating_sub(since) >= HEALED_AFTER {
                    self.steps = 0;
                }
                self.stuck = None;
                return None;
            }
            Sight::NoParent => {
                (self.open_since, self.stuck) = (None, None);
                return None;
            }
            Sight::Greets { leaf } => leaf,
        };
        self.open_since = None;
        let since = match self.stuck {
            // A connection that comes and goes is no progress: only that it is there for long counts otherwise.
            Some((since, _)) => since,
            None => now,
        };
        self.stuck = Some((since, leaf));
        if now < since + self.patience_for(leaf) || now < self.not_before {
            return None;
        }
        // A server with a connection is not what is stuck; its connection may be.
        let step = if self.steps == 0 || leaf { Step::Redial } else { Step::Restart };
        let pause = (self.patience * 2 * 2u32.pow(self.steps.min(16))).min(LONGEST_PAUSE);
        // One to one and a half times as long: a thousand children do not restart in step.
        self.not_before = now + pause + pause.mul_f64((chance % 1024) as f64 / 2048.0);
        self.steps += 1;
        Some(step)
    }

    fn patience_for(&self, leaf: bool) -> Duration {
        if leaf { self.patience * PATIENCE_WITH_LEAF } else { self.patience }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const STUCK: Sight = Sight::Greets { leaf: false };

    /// The steps of these seconds, each with its second.
    fn steps(
        rule: &mut Rule,
        seconds: std::ops::Range<u64>,
        sight: impl Fn(u64) -> Sight,
    ) -> Vec<(u64, Step)> {
        let look = |second| rule.look(sight(second), Tick::from_secs(second), second * 77);
        let mut look = look;
        seconds.filter_map(|second| look(second).map(|step| (second, step))).collect()
    }

    #[test]
    fn a_parent_that_cannot_be_reached_is_nobodys_fault_however_long_it_lasts() {
        let mut rule = Rule::new(PATIENCE);
        assert_eq!(steps(&mut rule, 0..100_000, |_| Sight::NoParent), []);
        assert_eq!(rule.stuck(Tick::from_secs(100_000)), None);
        // Nor one that greets now and then.
        let now_and_then = |second| if second % 29 == 0 { Sight::NoParent } else { STUCK };
        assert_eq!(steps(&mut rule, 0..100_000, now_and_then), []);
    }

    #[test]
    fn a_stuck_link_is_redialled_then_the_server_restarted_in_growing_pauses_up_to_an_hour() {
        let mut rule = Rule::new(PATIENCE);
        let taken = steps(&mut rule, 0..86_400, |_| STUCK);
        assert_eq!(taken[0], (30, Step::Redial));
        assert!(taken[1..].iter().all(|(_, step)| *step == Step::Restart));
        let pauses: Vec<u64> = taken.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        let mut pause = 60;
        for found in pauses {
            assert!((pause..=pause * 3 / 2 + 1).contains(&found), "{found} s where {pause} s is the pause");
            pause = (pause * 2).min(3600);
        }
        assert!(taken.len() < 30, "{} steps in a day", taken.len());
    }

    #[test]
    fn a_server_that_is_connected_is_given_more_time_and_never_restarted() {
        let mut rule = Rule::new(PATIENCE);
        let taken = steps(&mut rule, 0..10_000, |_| Sight::Greets { leaf: true });
        assert_eq!(taken[0].0, 120);
        assert!(taken.iter().all(|(_, step)| *step == Step::Redial));
    }

    #[test]
    fn a_link_that_opens_for_a_moment_does_not_shorten_the_pauses_and_one_that_stays_open_does() {
        let mut rule = Rule::new(PATIENCE);
        let flaps = |second| if second % 100 < 5 { Sight::Well } else { STUCK };
        let flapping = steps(&mut rule, 0..3_000, flaps);
        assert!(flapping.len() <= 6, "{flapping:?}");
        assert_eq!(steps(&mut rule, 3_000..9_000, |_| Sight::Well), []);
        assert_eq!(steps(&mut rule, 9_000..9_031, |_| STUCK), [(9_030, Step::Redial)]);
    }
}
