//! The lanes of this level: which event goes in which, and what may leave their streams.

pub mod keeper;
mod rules;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hierarchy::{ByLane, Lane, Level, subject};
use nats_config::streams::{HIERARCHY, lane_stream};
pub use rules::LaneRules;

/// The stream in which batches of a lane are kept at a level.
pub fn stream_of(level: Level, lane: Lane) -> &'static str {
    match level {
        Level::Global => HIERARCHY,
        _ => lane_stream(lane),
    }
}

/// Where a batch from below with this subject is kept at a level.
pub fn kept_at(level: Level, lane: Lane, subject: &str) -> Option<String> {
    match level {
        Level::Global => Some(subject.to_owned()),
        _ => subject::lane_below(lane, subject),
    }
}

/// Places up to which each lane may be trimmed, as far as one task is concerned. Unlike a watermark they
/// may go down.
#[derive(Debug)]
pub struct Guards(ByLane<AtomicU64>);

impl Guards {
    /// Nothing is held.
    pub fn open() -> Guards {
        Guards(ByLane::new(|_| AtomicU64::new(u64::MAX)))
    }

    /// Nothing may leave yet.
    pub fn closed() -> Guards {
        Guards(ByLane::new(|_| AtomicU64::new(0)))
    }

    /// Batches behind this place must stay.
    pub fn set(&self, lane: Lane, place: u64) {
        self.0[lane].store(place, Ordering::Release);
    }

    /// The last place that may leave.
    pub fn get(&self, lane: Lane) -> u64 {
        self.0[lane].load(Ordering::Acquire)
    }
}

/// Which lanes hold as much as they may.
#[derive(Debug)]
pub struct Fill(ByLane<AtomicBool>);

impl Default for Fill {
    fn default() -> Fill {
        Fill(ByLane::new(|_| AtomicBool::new(false)))
    }
}

impl Fill {
    /// Notes what was found.
    pub fn set(&self, lane: Lane, full: bool) {
        self.0[lane].store(full, Ordering::Release);
    }

    /// Whether nothing more fits in.
    pub fn is_full(&self, lane: Lane) -> bool {
        self.0[lane].load(Ordering::Acquire)
    }
}
