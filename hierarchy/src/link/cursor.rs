//! How far a child has come in one lane: the cursor, and the records from which it can be recovered.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// How far a child has come in one lane of its store.
///
/// An incarnation is a stretch of numbering in which a place is given once. A store that was lost,
/// restored or rolled back gives places again, and so begins a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The incarnation of the child's store.
    pub incarnation: u64,
    /// The place after which it begins.
    pub start: u64,
    /// Everything up to this place is durable here, was known before, or was refused.
    pub last: u64,
    /// The last place whose batch is durable here under this cursor.
    pub stored: u64,
    /// What the batch at `last` was signed over, so that the child can see whether it still has that
    /// batch there; `None` where nothing of the incarnation has arrived.
    pub digest: Option<Digest>,
}

/// What is stored beside a batch, so that the cursor can be recovered from the store alone.
///
/// Records of a child and lane form a chain: each names the one before it. A record whose
/// predecessor is missing is an orphan of a store that failed half-way, and is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The incarnation of the child's store.
    pub incarnation: u64,
    /// The place after which it begins.
    pub start: u64,
    /// `last` of the record before, or `start`.
    pub previous: u64,
    /// The batch's place.
    pub last: u64,
}

impl Cursor {
    /// The cursor at the beginning of an incarnation.
    pub fn at_start(incarnation: u64, start: u64) -> Cursor {
        Cursor { incarnation, start, last: start, stored: start, digest: None }
    }

    /// The cursor that this record follows.
    pub fn before(record: Record) -> Cursor {
        let Record { incarnation, start, previous, .. } = record;
        Cursor { incarnation, start, last: previous, stored: previous, digest: None }
    }

    /// Follows a record found in the store behind this cursor: the cursor after it, `None` for an
    /// orphan. `digest` is that of the batch beside the record.
    pub fn follow(self, record: Record, digest: Digest) -> Option<Cursor> {
        let Record { incarnation, start, previous, last } = record;
        let same = incarnation == self.incarnation;
        if same && last <= self.stored {
            return Some(self);
        }
        let expected = if same { self.stored } else { start };
        if previous != expected {
            return None;
        }
        // What lies between was refused or known, and only the checkpoint remembers it.
        let further = same && self.last > last;
        let (last, digest) = if further { (self.last, self.digest) } else { (last, Some(digest)) };
        Some(Cursor { incarnation, start, last, stored: record.last, digest })
    }
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {}", self.incarnation, self.start, self.previous, self.last)
    }
}

impl std::str::FromStr for Record {
    type Err = BadRecord;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let [incarnation, start, previous, last] = numbers(s).ok_or(BadRecord)?;
        Ok(Record { incarnation, start, previous, last })
    }
}

/// So many numbers with one space between each two.
pub(super) fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let mut parts = text.split(' ').map(|part| part.parse().ok());
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = parts.next()??;
    }
    parts.next().is_none().then_some(numbers)
}

/// A text that is no [`Record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a link record is four numbers")]
pub struct BadRecord;

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(place: u64) -> Digest {
        Digest([place as u8; 32])
    }

    fn record(incarnation: u64, start: u64, previous: u64, last: u64) -> Record {
        Record { incarnation, start, previous, last }
    }

    fn cursor(last: u64, stored: u64) -> Cursor {
        Cursor { incarnation: 7, start: 0, last, stored, digest: Some(digest(last)) }
    }

    #[test]
    fn a_chain_of_records_leads_to_the_batch_of_the_last() {
        let chain = [record(7, 0, 0, 3), record(7, 0, 3, 4), record(7, 0, 4, 9)];
        let end = chain
            .iter()
            .try_fold(Cursor::at_start(7, 0), |cursor, record| cursor.follow(*record, digest(record.last)));
        assert_eq!(end, Some(cursor(9, 9)));
    }

    #[test]
    fn a_record_without_its_predecessor_is_an_orphan() {
        assert_eq!(cursor(4, 4).follow(record(7, 0, 5, 9), digest(9)), None);
        assert_eq!(Cursor::at_start(7, 2).follow(record(7, 2, 3, 9), digest(9)), None);
    }

    #[test]
    fn a_record_that_is_counted_in_changes_nothing() {
        for last in [3, 4] {
            assert_eq!(cursor(4, 4).follow(record(7, 0, 2, last), digest(99)), Some(cursor(4, 4)));
        }
    }

    /// Of what was refused or known there is no record; a checkpoint remembers that it was settled.
    #[test]
    fn a_record_follows_the_last_that_was_stored_and_not_what_was_refused_behind_it() {
        assert_eq!(cursor(6, 3).follow(record(7, 0, 3, 9), digest(9)), Some(cursor(9, 9)));
        assert_eq!(cursor(6, 3).follow(record(7, 0, 3, 5), digest(5)), Some(cursor(6, 5)), "6 was settled");
        assert_eq!(cursor(6, 3).follow(record(7, 0, 6, 9), digest(9)), None);
    }

    #[test]
    fn a_new_incarnation_begins_at_its_start_wherever_the_old_one_was() {
        for start in [0, 2, 60] {
            let (first, found) = (record(8, start, start, start + 1), digest(start + 1));
            let (last, stored, digest) = (start + 1, start + 1, Some(found));
            let begun = Cursor { incarnation: 8, start, last, stored, digest };
            assert_eq!(cursor(50, 50).follow(first, found), Some(begun));
            let second = record(8, start, start + 1, start + 2);
            assert_eq!(cursor(50, 50).follow(second, found), None, "the first is missing");
        }
    }

    #[test]
    fn a_record_follows_the_cursor_before_it() {
        let found = record(7, 0, 4, 9);
        assert_eq!(Cursor::before(found).digest, None, "that batch was not seen");
        assert_eq!(Cursor::before(found).follow(found, digest(9)), Some(cursor(9, 9)));
    }

    #[test]
    fn records_build_what_they_parse() {
        assert_eq!("7 0 4 9".parse(), Ok(record(7, 0, 4, 9)));
        assert_eq!(record(7, 0, 4, 9).to_string(), "7 0 4 9");
        for bad in ["", "7 0 4", "7 0 4 9 1", "7 0 4 -9", "7  0 4 9", "a b c d"] {
            assert_eq!(bad.parse::<Record>(), Err(BadRecord), "{bad}");
        }
    }
}
