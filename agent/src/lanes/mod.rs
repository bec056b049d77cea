//! The lanes of this level: which event goes in which, and what may leave their streams.

pub mod gate;
pub mod in_order;
pub mod keeper;
mod rules;
pub mod tail;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

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

/// The newest of all lanes.
pub type Tails = std::sync::Arc<ByLane<tail::Tail>>;

/// How full the lanes are, in per cent of what they may hold, and whether the store takes anything at all.
#[derive(Debug)]
pub struct Fill {
    lanes: ByLane<AtomicU8>,
    no_room: AtomicBool,
}

impl Default for Fill {
    fn default() -> Fill {
        Fill { lanes: ByLane::new(|_| AtomicU8::new(0)), no_room: AtomicBool::new(false) }
    }
}

impl Fill {
    /// From here on children are held back: they have lanes of their own to wait in.
    const HOLD_BACK: u8 = 90;

    /// Notes what was found.
    pub fn set(&self, lane: Lane, percent: u8) {
        self.lanes[lane].store(percent, Ordering::Release);
    }

    /// Notes that the disk takes nothing, or takes something again.
    pub fn set_no_room(&self, no_room: bool) {
        self.no_room.store(no_room, Ordering::Release);
    }

    /// Whether nothing more fits in.
    pub fn is_full(&self, lane: Lane) -> bool {
        self.lanes[lane].load(Ordering::Acquire) >= 100
    }

    /// Whether nothing more should come from below.
    pub fn holds_back(&self, lane: Lane) -> bool {
        let full = self.lanes[lane].load(Ordering::Acquire) >= Fill::HOLD_BACK;
        full || self.no_room.load(Ordering::Acquire)
    }
}
