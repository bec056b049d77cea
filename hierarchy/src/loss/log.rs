//! What a hop has dropped and not yet told.

use std::collections::BTreeSet;

use super::{Loss, LossReceipt, MAX_LOSSES, MAX_NUMBER, is_sound};

/// Most ranges that a log holds.
pub const MAX_HELD: usize = 4096;

/// Collects what one hop drops until it is told in a receipt. It loses no range: what it does not take it
/// hands back.
#[derive(Debug, Clone, Default)]
pub struct LossLog {
    held: BTreeSet<Loss>,
}

/// A loss that was not noted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNoted {
    /// The log is full.
    #[error("the loss log holds {MAX_HELD} ranges already: publish a receipt, then note this one again")]
    Full(Loss),
    /// No receipt could state it.
    #[error(
        "a loss from {} to {} of {} events cannot be stated: numbers run from 1 to {MAX_NUMBER}, and each has \
         at most one event", .0.first, .0.last, .0.count
    )]
    Unsound(Loss),
}

impl LossLog {
    /// Nothing was dropped.
    pub fn new() -> LossLog {
        LossLog::default()
    }

    /// Notes a loss; joins it to ranges that it touches and that are of the same origin, lane,
    /// incarnation and reason.
    pub fn note(&mut self, loss: Loss) -> Result<(), NotNoted> {
        if !is_sound(loss.span(), loss.count) {
            return Err(NotNoted::Unsound(loss));
        }
        if self.held.contains(&loss) {
            return Ok(());
        }
        let before = self.held.range(..&loss).next_back().filter(|held| held.touches(&loss)).cloned();
        let after = self.held.range(&loss..).next().filter(|held| loss.touches(held)).cloned();
        if before.is_none() && after.is_none() && self.is_full() {
            return Err(NotNoted::Full(loss));
        }
        let mut whole = loss;
        for part in [before, after].into_iter().flatten() {
            self.held.remove(&part);
            whole.first = whole.first.min(part.first);
            whole.last = whole.last.max(part.last);
            whole.count += part.count;
        }
        self.held.insert(whole);
        Ok(())
    }

    /// What is to be told next; `None` when everything was. The caller must publish it, and put it back
    /// with [`LossLog::note`] or keep it where that fails.
    pub fn take(&mut self) -> Option<LossReceipt> {
        let due = std::iter::from_fn(|| self.held.pop_first());
        let losses: Vec<Loss> = due.take(MAX_LOSSES).collect();
        (!losses.is_empty()).then_some(LossReceipt { losses, published: None })
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether a receipt must be taken before another range fits in.
    pub fn is_full(&self) -> bool {
        self.held.len() >= MAX_HELD
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{Lane, loss::LossReason};

    fn loss(first: u64, last: u64) -> Loss {
        let (lane, reason) = (Lane::Normal, LossReason::Overflow);
        let origin = "s1/c1/n1".parse().unwrap();
        Loss { origin, lane, incarnation: 1, reason, first, last, count: last - first + 1 }
    }

    fn told(log: &mut LossLog) -> Vec<Loss> {
        log.take().map(|receipt| receipt.losses).unwrap_or_default()
    }

    #[test]
    fn ranges_that_touch_become_one_and_others_stay_apart() {
        let mut log = LossLog::new();
        for (first, last) in [(1, 3), (7, 9), (4, 6), (11, 12), (1, 9)] {
            log.note(loss(first, last)).unwrap();
        }
        assert_eq!(told(&mut log), [loss(1, 9), loss(11, 12)]);
        assert_eq!(log.take(), None);

        let others: [Loss; 5] = [
            loss(1, 3),
            Loss { reason: LossReason::Age, ..loss(4, 6) },
            Loss { lane: Lane::Bulk, ..loss(4, 6) },
            Loss { incarnation: 2, ..loss(4, 6) },
            Loss { origin: "s1/c1/n2".parse().unwrap(), ..loss(4, 6) },
        ];
        for other in &others {
            log.note(other.clone()).unwrap();
        }
        assert_eq!(told(&mut log).len(), others.len());
    }

    #[test]
    fn a_full_log_hands_a_range_back_until_a_receipt_was_taken() {
        let mut log = LossLog::new();
        for i in 0..MAX_HELD as u64 {
            assert!(!log.is_full());
            log.note(loss(3 * i + 1, 3 * i + 1)).unwrap();
        }
        assert!(log.is_full());
        let end = 3 * MAX_HELD as u64;
        assert_eq!(log.note(loss(end + 1, end + 4)), Err(NotNoted::Full(loss(end + 1, end + 4))));
        assert_eq!(log.note(loss(end - 1, end)), Ok(()), "what touches still fits in");
        assert_eq!(told(&mut log).len(), MAX_LOSSES);
        assert_eq!(log.note(loss(end + 2, end + 4)), Ok(()));
        let receipts: Vec<_> = std::iter::from_fn(|| log.take()).collect();
        assert!(receipts.iter().all(|receipt| receipt.losses.len() <= MAX_LOSSES));
        assert_eq!(
            receipts.iter().map(|receipt| receipt.losses.len()).sum::<usize>(),
            MAX_HELD - MAX_LOSSES + 1
        );
    }

    #[test]
    fn a_loss_that_no_receipt_could_state_is_handed_back() {
        let mut log = LossLog::new();
        for bad in [
            loss(0, 4),
            loss(u64::MAX, u64::MAX),
            Loss { count: 5, ..loss(1, 4) },
            Loss { last: 2, ..loss(3, 4) },
        ] {
            assert_eq!(log.note(bad.clone()), Err(NotNoted::Unsound(bad)));
        }
    }

    proptest! {
        #[test]
        fn whatever_was_noted_is_told(
            ranges in vec((1..60_u64, 1..6_u64, 0..2_usize), 1..60),
            take_after in 1..60_usize,
        ) {
            let mut log = LossLog::new();
            let (mut noted, mut stated) = (BTreeSet::new(), BTreeSet::new());
            let mut receipts = Vec::new();
            for (i, (first, len, reason)) in ranges.into_iter().enumerate() {
                let loss = Loss { reason: LossReason::ALL[reason], ..loss(first, first + len - 1) };
                (loss.first..=loss.last).for_each(|number| {
                    noted.insert((loss.reason, number));
                });
                log.note(loss).unwrap();
                if i == take_after {
                    receipts.extend(log.take());
                }
            }
            receipts.extend(std::iter::from_fn(|| log.take()));
            for loss in receipts.iter().flat_map(|receipt| &receipt.losses) {
                prop_assert!(is_sound(loss.span(), loss.count));
                (loss.first..=loss.last).for_each(|number| {
                    stated.insert((loss.reason, number));
                });
            }
            prop_assert_eq!(noted, stated);
        }
    }
}
