//! What this level has dropped, or is about to: noted here, told in a receipt, and only then let go of.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hierarchy::{
    ByLane, Lane,
    loss::{Loss, LossLog, LossReceipt, NotNoted},
};
use tokio::sync::watch;

use crate::lanes::Guards;

/// Takes notes from any task of the agent.
#[derive(Debug, Clone)]
pub struct LossNotes {
    noted: Arc<Mutex<Noted>>,
    guards: Arc<Guards>,
    told: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Noted {
    log: LossLog,
    /// The first place of each lane whose loss is in the log.
    waiting: ByLane<Option<u64>>,
    /// The first place of each lane whose loss is being told.
    telling: ByLane<Option<u64>>,
    /// Counts the notes, so that whoever took one can wait until it was told.
    notes: u64,
}

impl LossNotes {
    /// Nothing was dropped. `guards` are told what must stay in the lanes until it was told.
    pub fn new(guards: Arc<Guards>) -> LossNotes {
        LossNotes { noted: Arc::default(), guards, told: watch::Sender::new(0) }
    }

    /// Notes that the batch at this place of a lane goes no further.
    pub fn note_at(&self, lane: Lane, place: u64, loss: Loss) -> Result<(), NotNoted> {
        let mut noted = self.lock();
        noted.log.note(loss)?;
        noted.notes += 1;
        let first = noted.waiting[lane].map_or(place, |first| first.min(place));
        noted.waiting[lane] = Some(first);
        self.guard(&noted, lane);
        Ok(())
    }

    /// Notes a loss of something that is in no lane.
    pub fn note(&self, loss: Loss) -> Result<(), NotNoted> {
        let mut noted = self.lock();
        noted.log.note(loss)?;
        noted.notes += 1;
        Ok(())
    }

    /// Waits until everything noted so far was told.
    pub async fn told(&self) {
        let notes = self.lock().notes;
        let mut told = self.told.subscribe();
        // The sender lives as long as this value.
        let _ = told.wait_for(|told| *told >= notes).await;
    }

    /// What is to be told now, in receipts of bounded size.
    pub(super) fn take(&self) -> Taken {
        let mut noted = self.lock();
        let receipts = std::iter::from_fn(|| noted.log.take()).collect();
        let Noted { waiting, telling, notes, .. } = &mut *noted;
        for (lane, first) in waiting.iter_mut() {
            telling[lane] = [telling[lane], first.take()].into_iter().flatten().min();
        }
        Taken { receipts, notes: *notes }
    }

    /// What was taken is durable now.
    pub(super) fn tell(&self, notes: u64) {
        let mut noted = self.lock();
        for lane in Lane::ALL {
            noted.telling[lane] = None;
            self.guard(&noted, lane);
        }
        drop(noted);
        self.told.send_replace(notes);
    }

    fn guard(&self, noted: &Noted, lane: Lane) {
        let first = [noted.waiting[lane], noted.telling[lane]].into_iter().flatten().min();
        self.guards.set(lane, first.map_or(u64::MAX, |first| first.saturating_sub(1)));
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receipts to be told, and how many notes they cover.
pub(super) struct Taken {
    pub(super) receipts: Vec<LossReceipt>,
    pub(super) notes: u64,
}

#[cfg(test)]
mod tests {
    use hierarchy::loss::LossReason;

    use super::*;

    fn loss(first: u64) -> Loss {
        Loss {
            origin: "s1/c1/n1".parse().unwrap(),
            lane: Lane::Bulk,
            incarnation: 1,
            reason: LossReason::Policy,
            first,
            last: first,
            count: 1,
        }
    }

    #[test]
    fn what_was_noted_stays_in_its_lane_until_it_was_told() {
        let guards = Arc::new(Guards::open());
        let notes = LossNotes::new(guards.clone());
        notes.note_at(Lane::Bulk, 7, loss(1)).unwrap();
        notes.note_at(Lane::Bulk, 9, loss(5)).unwrap();
        assert_eq!((guards.get(Lane::Bulk), guards.get(Lane::Normal)), (6, u64::MAX));
        let taken = notes.take();
        notes.note_at(Lane::Bulk, 12, loss(9)).unwrap();
        assert_eq!(guards.get(Lane::Bulk), 6, "it was taken, but nobody knows of it yet");
        notes.tell(taken.notes);
        assert_eq!((taken.receipts.len(), guards.get(Lane::Bulk)), (1, 11));
        let taken = notes.take();
        notes.tell(taken.notes);
        assert_eq!(guards.get(Lane::Bulk), u64::MAX);
    }
}
