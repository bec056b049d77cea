//! Roll-ups: what a level says about everything below it, in a size that does not grow with it.
//!
//! An agent measures a [`Sample`]; a coordinator merges the samples or roll-ups of its children into one
//! [`Rollup`] for each window of time. Merging is exactly associative and commutative, so it does not
//! matter which level merged what, or in which order things arrived.
//!
//! A roll-up in JSON has at most [`MAX_BYTES`], however many machines it speaks for: metrics and levels
//! are fixed, versions are bounded, and a distribution has a fixed number of buckets. Four machines
//! make about 1.5 KiB.

mod census;
mod metric;
mod micros;
mod sample;
mod sketch;
mod summary;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use census::{Census, MAX_VERSIONS, Presence, Versions};
pub use metric::Metric;
pub use micros::{BadDecimal, Micros};
pub use sample::{BadVersion, Health, Load, NotAReading, Reading, Sample, Traffic, Usage, Version};
pub use summary::Summary;

use crate::{Level, Millis};

/// No roll-up is larger than this in JSON, and no larger one is read.
pub const MAX_BYTES: usize = 16 * 1024;

/// What was measured in a subtree during a window of time, and who was there at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollup {
    /// When the window began, on the clock of the agent that made the roll-up.
    pub start: Millis,
    /// When it ended.
    pub end: Millis,
    /// The worst health that any sample told.
    pub health: Health,
    /// How many samples it was made of, by the level of the machine.
    #[serde(default)]
    pub samples: BTreeMap<Level, u64>,
    /// What they measured.
    #[serde(default, deserialize_with = "summary::read_map")]
    pub metrics: BTreeMap<Metric, Summary>,
    /// Who was there.
    #[serde(default)]
    pub census: Census,
}

/// Bytes that are not a roll-up.
#[derive(Debug, thiserror::Error)]
pub enum BadRollup {
    /// Larger than any roll-up is.
    #[error("a roll-up of {0} bytes is refused: none has more than {MAX_BYTES}")]
    TooLarge(usize),
    /// Not the JSON of a roll-up.
    #[error("not a roll-up: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Rollup {
    /// The roll-up of a window in which nothing was measured.
    pub fn new(start: Millis, end: Millis) -> Rollup {
        Rollup {
            start,
            end,
            health: Health::Ok,
            samples: BTreeMap::new(),
            metrics: BTreeMap::new(),
            census: Census::default(),
        }
    }

    /// Reads a roll-up from its JSON.
    pub fn parse(json: &[u8]) -> Result<Rollup, BadRollup> {
        if json.len() > MAX_BYTES {
            return Err(BadRollup::TooLarge(json.len()));
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// Counts a sample of a machine at `level`. The census is the caller's: a machine that sends two
    /// samples in a window is still one.
    pub fn add(&mut self, level: Level, sample: &Sample) {
        self.health = self.health.max(sample.health);
        self.count(level, 1);
        for (metric, value) in sample.values() {
            self.summarize(metric, &Summary::of(metric, value));
        }
    }

    /// Takes in the roll-up of other samples and other agents: of another subtree. The window becomes
    /// the least that covers both. Associative and commutative.
    pub fn merge(&mut self, other: &Rollup) {
        self.start = self.start.min(other.start);
        self.end = self.end.max(other.end);
        self.merge_measurements(other);
        self.census.merge(&other.census);
    }

    /// Takes in what another roll-up measured, but neither its window nor its census: for roll-ups that
    /// follow each other and speak of the same agents.
    pub fn merge_measurements(&mut self, other: &Rollup) {
        self.health = self.health.max(other.health);
        for (&level, &samples) in &other.samples {
            self.count(level, samples);
        }
        for (&metric, summary) in &other.metrics {
            self.summarize(metric, summary);
        }
    }

    fn count(&mut self, level: Level, samples: u64) {
        let count = self.samples.entry(level).or_default();
        *count = count.saturating_add(samples);
    }

    fn summarize(&mut self, metric: Metric, more: &Summary) {
        self.metrics.entry(metric).and_modify(|summary| summary.merge(more)).or_insert_with(|| more.clone());
    }
}

#[cfg(test)]
mod tests;
