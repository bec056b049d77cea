//! How far a child has said that it numbered: what it published and lost with its store is known by that.

use std::collections::VecDeque;

use hierarchy::{
    Lane, Path,
    loss::{Loss, LossReason, Published},
};

/// Incarnations that are remembered.
const MAX: usize = 4;

/// The words of one child. Only in memory: global's ledger remembers them for good.
#[derive(Debug, Default)]
pub(super) struct Words(VecDeque<Published>);

impl Words {
    /// The child said so.
    pub(super) fn heard(&mut self, published: Published) {
        match self.0.iter_mut().find(|known| known.incarnation == published.incarnation) {
            Some(known) => *known = published,
            None => {
                if self.0.len() >= MAX {
                    self.0.pop_front();
                }
                self.0.push_back(published);
            }
        }
    }

    /// What can never come of an incarnation that was followed by a newer one, given how far it has
    /// arrived: lanes keep their order, so the rest went with the child's store.
    pub(super) fn lost_with_store(&self, child: &Path, lane: Lane, arrived: (u64, u64)) -> Option<Loss> {
        let (incarnation, last) = arrived;
        let said = self.0.iter().find(|known| known.incarnation == incarnation)?.lanes[lane];
        (said > last).then(|| Loss {
            origin: child.clone(),
            lane,
            incarnation,
            reason: LossReason::StoreLost,
            first: last + 1,
            last: said,
            count: said - last,
        })
    }
}

#[cfg(test)]
mod tests {
    use hierarchy::ByLane;

    use super::*;

    #[test]
    fn what_was_numbered_and_never_came_went_with_the_store() {
        let child: Path = "s1/c1/n1".parse().unwrap();
        let mut words = Words::default();
        words.heard(Published { incarnation: 7, lanes: ByLane { critical: 1, normal: 90, bulk: 0 } });
        words.heard(Published { incarnation: 7, lanes: ByLane { critical: 1, normal: 100, bulk: 0 } });
        let lost = words.lost_with_store(&child, Lane::Normal, (7, 60)).unwrap();
        assert_eq!((lost.first, lost.last, lost.count), (61, 100, 40));
        assert_eq!(words.lost_with_store(&child, Lane::Normal, (7, 100)), None);
        assert_eq!(words.lost_with_store(&child, Lane::Normal, (6, 1)), None, "of that nothing was said");
    }
}
