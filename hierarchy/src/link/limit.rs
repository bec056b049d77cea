//! How fast a child may send: bytes and events a second, held by the credit it is given and never by
//! dropping.
//!
//! Each lane has a bucket that fills at the full rate. What is taken counts in the bucket of its lane and of
//! the less urgent ones: so bulk waits for all that the child sends, normal for critical and normal, critical
//! for nothing but critical.

use super::{Tick, WHOLE_BATCH};
use crate::{ByLane, Lane};

/// The most that a child may send in a second, over time; `None` for as much as it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimit {
    /// Bytes of batches.
    pub bytes_per_s: Option<u64>,
    /// Events.
    pub events_per_s: Option<u64>,
}

/// What is left in a lane's bucket, below zero where more was taken than it held.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    bytes: f64,
    events: f64,
    /// It ran empty, and must fill a little before anything is taken again.
    held: bool,
}

/// Holds one child to its limit.
#[derive(Debug)]
pub struct Limiter {
    limit: RateLimit,
    buckets: ByLane<Bucket>,
    /// What an event of this child weighs, lately.
    event_bytes: f64,
    at: Tick,
}

impl Limiter {
    /// A bucket holds what comes in a second, and is full to begin with.
    pub fn new(limit: RateLimit, now: Tick) -> Limiter {
        let full = |rate: Option<u64>| rate.unwrap_or(0) as f64;
        let bucket = Bucket { bytes: full(limit.bytes_per_s), events: full(limit.events_per_s), held: false };
        Limiter { limit, buckets: ByLane::new(|_| bucket), event_bytes: 512.0, at: now }
    }

    /// So much was taken of a lane.
    pub fn take(&mut self, lane: Lane, bytes: u64, events: u64, now: Tick) {
        self.fill(now);
        if events > 0 {
            self.event_bytes = (self.event_bytes * 0.8 + bytes as f64 / events as f64 * 0.2).max(1.0);
        }
        for (other, bucket) in self.buckets.iter_mut() {
            if other >= lane {
                bucket.bytes -= bytes as f64;
                bucket.events -= events as f64;
            }
        }
    }

    /// How many bytes of a lane may come now, enough for a batch of any size; 0 holds it back until the bucket
    /// is a tenth full again.
    pub fn room(&mut self, lane: Lane, now: Tick) -> u64 {
        self.fill(now);
        let (limit, event_bytes) = (self.limit, self.event_bytes);
        let bucket = &mut self.buckets[lane];
        let part = |rate: Option<u64>, left: f64| rate.map(|rate| left / rate.max(1) as f64);
        let parts = [part(limit.bytes_per_s, bucket.bytes), part(limit.events_per_s, bucket.events)];
        let Some(full) = parts.into_iter().flatten().reduce(f64::min) else { return u64::MAX };
        bucket.held = if bucket.held { full < 0.1 } else { full <= 0.0 };
        if bucket.held {
            return 0;
        }
        let bytes = limit.bytes_per_s.map_or(f64::INFINITY, |_| bucket.bytes);
        let events = limit.events_per_s.map_or(f64::INFINITY, |_| bucket.events * event_bytes);
        (bytes.min(events) as u64).max(WHOLE_BATCH)
    }

    fn fill(&mut self, now: Tick) {
        let seconds = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let full = |rate: Option<u64>, left: f64| {
            rate.map_or(0.0, |rate| (left + rate as f64 * seconds).min(rate as f64))
        };
        for (_, bucket) in self.buckets.iter_mut() {
            bucket.bytes = full(self.limit.bytes_per_s, bucket.bytes);
            bucket.events = full(self.limit.events_per_s, bucket.events);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1_000_000;

    fn limiter(bytes_per_s: Option<u64>, events_per_s: Option<u64>) -> Limiter {
        Limiter::new(RateLimit { bytes_per_s, events_per_s }, Tick::ZERO)
    }

    #[test]
    fn without_a_limit_there_is_always_room() {
        let mut limiter = limiter(None, None);
        limiter.take(Lane::Bulk, 1_000 * MB, 1_000_000, Tick::ZERO);
        assert_eq!(limiter.room(Lane::Bulk, Tick::ZERO), u64::MAX);
    }

    #[test]
    fn bulk_is_held_before_normal_before_critical() {
        let mut limiter = limiter(Some(MB), None);
        let mut held = |now: u64| Lane::ALL.map(|lane| limiter.room(lane, Tick::from_secs(now)) == 0);
        assert_eq!(held(0), [false, false, false]);
        limiter.take(Lane::Bulk, MB, 1, Tick::ZERO);
        let mut held = |now: u64| Lane::ALL.map(|lane| limiter.room(lane, Tick::from_secs(now)) == 0);
        assert_eq!(held(0), [false, false, true]);
        limiter.take(Lane::Normal, 2 * MB, 1, Tick::ZERO);
        let mut held = |now: u64| Lane::ALL.map(|lane| limiter.room(lane, Tick::from_secs(now)) == 0);
        assert_eq!(held(0), [false, true, true]);
        assert_eq!(held(2), [false, false, true], "bulk pays for what normal took, too");
        assert_eq!(held(4), [false, false, false]);
        limiter.take(Lane::Critical, 2 * MB, 1, Tick::from_secs(4));
        let mut held = |now: u64| Lane::ALL.map(|lane| limiter.room(lane, Tick::from_secs(now)) == 0);
        assert_eq!(held(4), [true, true, true]);
    }

    proptest! {
        #[test]
        fn what_is_taken_over_time_is_the_limit_and_a_batch(
            bytes_per_s in 1_000u64..100_000,
            events_per_s in 10u64..1_000,
            batches in prop::collection::vec((0usize..3, 1u64..20_000, 1u64..100, 0u64..50), 1..500),
        ) {
            let mut limiter = limiter(Some(bytes_per_s), Some(events_per_s));
            let mut now = Tick::ZERO;
            let (mut bytes_taken, mut events_taken) = (ByLane::<u64>::default(), ByLane::<u64>::default());
            for (lane, bytes, events, pause) in batches {
                now += Duration::from_millis(pause);
                let lane = Lane::ALL[lane];
                if limiter.room(lane, now) > 0 {
                    limiter.take(lane, bytes, events, now);
                    bytes_taken[lane] += bytes;
                    events_taken[lane] += events;
                }
            }
            // A lane alone keeps to the limit, whatever the less urgent ones do: the bucket, the time, one batch.
            for lane in Lane::ALL {
                let most = |rate: u64, batch: u64| rate as f64 * (1.0 + now.as_secs_f64()) + batch as f64;
                prop_assert!(bytes_taken[lane] as f64 <= most(bytes_per_s, 20_000));
                prop_assert!(events_taken[lane] as f64 <= most(events_per_s, 100));
            }
        }

        #[test]
        fn whoever_is_held_goes_on_with_time(bytes_per_s in 1u64..1_000_000, debt in 0u64..10_000_000) {
            let mut limiter = limiter(Some(bytes_per_s), None);
            limiter.take(Lane::Bulk, debt + bytes_per_s, 1, Tick::ZERO);
            prop_assert_eq!(limiter.room(Lane::Bulk, Tick::ZERO), 0);
            let later = Duration::from_secs_f64(debt as f64 / bytes_per_s as f64 + 0.2);
            prop_assert!(limiter.room(Lane::Bulk, later) > 0);
            prop_assert!(limiter.room(Lane::Critical, Tick::ZERO) > 0);
        }
    }
}
