//! Where a child goes on in a lane once the parent has told its cursor.

use crate::Digest;

/// What the child's store holds of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The first place that is there; behind `last` where the store is empty.
    pub first: u64,
    /// The last place that was given.
    pub last: u64,
    /// The batch at the parent's cursor, where there is one.
    pub at_cursor: Option<Digest>,
}

/// Where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Behind the parent's cursor.
    After,
    /// The store is not the one that the parent's cursor speaks of. All that it holds is offered in a
    /// new incarnation that begins after this place; the origins' numbers tell the parent what it has.
    Anew {
        /// The place after which the new incarnation begins.
        start: u64,
    },
}

/// Decides by the batch at the parent's cursor: a child keeps it until the next one has arrived, so
/// where it is missing or another one, the store went back in time.
///
/// In doubt the answer is [`Resume::Anew`], which costs a repetition and never an event.
pub fn decide(held: Held, cursor: u64, theirs: Option<Digest>) -> Resume {
    let same = match theirs {
        // Nothing of this incarnation has arrived. It began with the first batch of the store, so
        // what lies before its beginning now was not there then.
        None => cursor < held.first && cursor <= held.last,
        Some(theirs) => held.at_cursor == Some(theirs),
    };
    if same { Resume::After } else { Resume::Anew { start: held.first.saturating_sub(1) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Digest = Digest([1; 32]);
    const ANOTHER: Digest = Digest([2; 32]);

    fn held(first: u64, last: u64, at_cursor: Option<Digest>) -> Held {
        Held { first, last, at_cursor }
    }

    #[test]
    fn a_child_that_still_has_the_batch_at_the_cursor_goes_on_behind_it() {
        assert_eq!(decide(held(5, 9, Some(OURS)), 5, Some(OURS)), Resume::After);
        assert_eq!(decide(held(5, 5, Some(OURS)), 5, Some(OURS)), Resume::After, "nothing waits");
        assert_eq!(decide(held(2, 9, Some(OURS)), 5, Some(OURS)), Resume::After, "receipts were lost");
    }

    #[test]
    fn another_batch_or_none_at_the_cursor_means_that_the_store_went_back() {
        for (name, held, start) in [
            ("other batches were given the same places", held(3, 9, Some(ANOTHER)), 2),
            ("it ends before the cursor", held(3, 4, None), 2),
            ("it begins behind the cursor", held(7, 9, None), 6),
            ("it is empty", held(10, 9, None), 9),
            ("it is new", held(1, 0, None), 0),
        ] {
            assert_eq!(decide(held, 5, Some(OURS)), Resume::Anew { start }, "{name}");
        }
    }

    #[test]
    fn where_nothing_has_arrived_a_child_goes_on_unless_its_store_begins_or_ends_before_the_incarnation() {
        for (name, held, cursor) in [
            ("it is new", held(1, 0, None), 0),
            ("all of the incarnation is there", held(6, 9, None), 5),
            ("the oldest were dropped", held(8, 9, None), 5),
            ("all were dropped", held(10, 9, None), 5),
        ] {
            assert_eq!(decide(held, cursor, None), Resume::After, "{name}");
        }
        for (name, held, start) in [
            ("it holds what was before", held(3, 9, None), 2),
            ("it holds the batch at the cursor", held(5, 9, Some(OURS)), 4),
            ("it ends before", held(4, 3, None), 3),
        ] {
            assert_eq!(decide(held, 5, None), Resume::Anew { start }, "{name}");
        }
    }

    /// Whatever the store holds, nothing of it is passed over.
    #[test]
    fn a_new_incarnation_begins_before_all_that_is_held() {
        let stores = (1..6).flat_map(|first| (first - 1..7).map(move |last| (first, last)));
        for ((first, last), cursor) in stores.flat_map(|store| (0..9).map(move |cursor| (store, cursor))) {
            for (here, theirs) in [(None, None), (None, Some(OURS)), (Some(ANOTHER), Some(OURS))] {
                match decide(held(first, last, here), cursor, theirs) {
                    Resume::After => assert!(cursor < first, "{first}..={last} behind {cursor}"),
                    Resume::Anew { start } => assert_eq!(start + 1, first),
                }
            }
        }
    }
}
