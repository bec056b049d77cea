//! Random moments that can be repeated: `LUCENT_TEST_SEED` sets the seed that a failed test has printed.

use std::{ops::Range, time::Duration};

/// A small generator (SplitMix64): for faults at random moments, not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Seeded from the environment or else from the clock; prints the seed.
    pub fn seeded() -> Random {
        Random::seeded_by("LUCENT_TEST_SEED")
    }

    /// As [`Random::seeded`], by another variable.
    pub fn seeded_by(variable: &str) -> Random {
        let given = std::env::var(variable).ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| agent::clock::wall().0);
        println!("{variable}={seed} repeats these moments");
        Random(seed)
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, these: &'a [T]) -> &'a T {
        &these[(self.number() % these.len() as u64) as usize]
    }

    /// Seeded by this number, for a part of what another one drives.
    pub fn of(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A duration in the range, to the millisecond.
    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.number() % (range.end - range.start))
    }
}
