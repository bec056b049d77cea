//! The newest of a lane, handed from those who store to the one who sends, without another reading.
//!
//! It also says how far the lane is sound: a batch that was stored behind one that failed is an orphan,
//! which is removed and comes again. Were it sent up meanwhile, the level above would take the one
//! before it for old.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hierarchy::link::Parcel;
use tokio::sync::Notify;

use crate::link::contents::Contents;

/// Bytes that a tail holds; the oldest go, and are read from the stream.
const MAX_BYTES: usize = 2 << 20;

/// A batch that is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its place.
    pub place: u64,
    /// Its subject, where it is from below.
    pub below: Option<String>,
    /// What to send; `after` is for the sender to fill in.
    pub parcel: Parcel,
    /// Whose events it holds.
    pub contents: Contents,
}

/// One lane's tail.
#[derive(Debug)]
pub struct Tail {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Batches behind this place may be orphans.
    sound: u64,
    /// How often orphans were looked for, and removed.
    heals: u64,
    /// Whether somebody takes from it.
    wanted: bool,
    batches: BTreeMap<u64, Stored>,
    bytes: usize,
    /// The last place that was heard of.
    end: u64,
}

/// What the tail has behind a place.
#[derive(Debug)]
pub enum Next {
    /// The batch that follows.
    Batch(Stored),
    /// Something further: what is between has to be read from the stream, if it is there.
    Further,
    /// Nothing yet.
    Nothing,
}

impl Tail {
    /// A lane in which nothing is known to be sound yet.
    pub fn closed() -> Tail {
        Tail::up_to(0)
    }

    /// A lane into which nothing can fail out of order.
    pub fn open() -> Tail {
        Tail::up_to(u64::MAX)
    }

    fn up_to(sound: u64) -> Tail {
        let state = State { sound, heals: 0, wanted: false, batches: BTreeMap::new(), bytes: 0, end: 0 };
        Tail { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Batches behind this place may be orphans; `u64::MAX` where none can be.
    pub fn set_sound(&self, place: u64) {
        self.lock().sound = place;
        self.changed.notify_one();
    }

    /// Orphans were removed: whatever was read and not yet found sound must be read again.
    pub fn healed(&self) {
        let mut state = self.lock();
        state.heals += 1;
        state.sound = u64::MAX;
        state.clear();
        drop(state);
        self.changed.notify_one();
    }

    /// A batch was stored.
    pub fn push(&self, stored: Stored) {
        let mut state = self.lock();
        state.end = state.end.max(stored.place);
        if state.wanted {
            state.bytes += stored.parcel.bytes.len();
            state.batches.insert(stored.place, stored);
            while state.bytes > MAX_BYTES
                && let Some((_, oldest)) = state.batches.pop_first()
            {
                state.bytes -= oldest.parcel.bytes.len();
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Whether batches are to be held for a taker.
    pub fn want(&self, wanted: bool) {
        let mut state = self.lock();
        state.wanted = wanted;
        if !wanted {
            state.clear();
        }
    }

    /// Takes what follows a place, if it is sound.
    pub fn next_after(&self, place: u64) -> Next {
        let mut state = self.lock();
        state.forget_up_to(place);
        match state.batches.first_key_value().map(|(place, _)| *place) {
            Some(first) if first == place + 1 && first <= state.sound => match state.batches.pop_first() {
                Some((_, stored)) => {
                    state.bytes -= stored.parcel.bytes.len();
                    Next::Batch(stored)
                }
                None => Next::Nothing,
            },
            Some(first) if first > place + 1 => Next::Further,
            _ => Next::Nothing,
        }
    }

    /// Whether the batch at this place is no orphan.
    pub fn is_sound(&self, place: u64) -> bool {
        place <= self.lock().sound
    }

    /// How often orphans were removed.
    pub fn heals(&self) -> u64 {
        self.lock().heals
    }

    /// The last place that was heard of.
    pub fn end(&self) -> u64 {
        self.lock().end
    }

    /// Waits for a change since the last time. For one taker.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }

    fn forget_up_to(&mut self, place: u64) {
        while let Some(entry) = self.batches.first_entry()
            && *entry.key() <= place
        {
            self.bytes -= entry.remove().parcel.bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hierarchy::{Digest, link::Span};

    use super::*;

    fn stored(place: u64, bytes: usize) -> Stored {
        let digest = Digest([0; 32]);
        let parcel =
            Parcel { after: 0, last: place, bytes: Bytes::from(vec![0; bytes]), digest, kid: digest };
        let span = Span { incarnation: 1, first: place, last: place };
        Stored { place, below: None, parcel, contents: Contents { origin: None, span, count: 1 } }
    }

    fn place(next: Next) -> Option<u64> {
        match next {
            Next::Batch(stored) => Some(stored.place),
            Next::Further | Next::Nothing => None,
        }
    }

    #[test]
    fn what_follows_is_handed_over_once_it_is_sound() {
        let tail = Tail::closed();
        tail.want(true);
        tail.push(stored(2, 10));
        tail.push(stored(1, 10));
        assert!(matches!(tail.next_after(0), Next::Nothing), "nobody says that it is sound");
        tail.set_sound(1);
        assert_eq!(place(tail.next_after(0)), Some(1));
        assert!(matches!(tail.next_after(1), Next::Nothing));
        tail.set_sound(u64::MAX);
        assert_eq!(place(tail.next_after(1)), Some(2));
        tail.push(stored(4, 10));
        assert!(matches!(tail.next_after(2), Next::Further));
        tail.healed();
        assert!(matches!(tail.next_after(2), Next::Nothing));
        assert_eq!((tail.heals(), tail.end()), (1, 4));
    }

    #[test]
    fn a_tail_holds_so_much_and_only_for_a_taker() {
        let tail = Tail::open();
        tail.push(stored(1, 10));
        assert!(matches!(tail.next_after(0), Next::Nothing));
        tail.want(true);
        for place in 2..10 {
            tail.push(stored(place, MAX_BYTES / 4));
        }
        assert!(matches!(tail.next_after(1), Next::Further));
        assert_eq!(place(tail.next_after(5)), Some(6));
    }
}
