//! Which orders wait here, for whom and until when: an index over the ORDERS stream.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hierarchy::{ByLane, Lane, Millis, Path};
use uuid::Uuid;

/// An order that lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// The order.
    pub(super) id: Uuid,
    /// Who says it.
    pub(super) author: Path,
    /// What it is said on.
    pub(super) subject: String,
    /// The lane that it goes down in.
    pub(super) lane: Lane,
    /// When its time is up.
    pub(super) expires: Millis,
    /// For whom.
    pub(super) waits: Waits,
}

/// For whom an order lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Waits {
    /// For applications of this level, that may read it again as long as it is good for.
    Here,
    /// For this child.
    For(Path),
    /// For all children.
    ForAll,
}

/// The orders in the store, by place.
#[derive(Debug, Default)]
pub(super) struct Book {
    kept: BTreeMap<u64, Kept>,
    waiting: HashMap<Path, ByLane<BTreeSet<u64>>>,
    for_all: ByLane<BTreeSet<u64>>,
    due: BTreeSet<(Millis, u64)>,
    /// How far each child has come.
    arrived: HashMap<Path, ByLane<u64>>,
    /// How far orders were sent to each child: it decides itself whether they come in time.
    offered: HashMap<Path, ByLane<u64>>,
    /// The newest that each child has, which stays: the next session asks for it.
    newest: HashMap<Path, ByLane<Option<u64>>>,
}

impl Book {
    pub(super) fn add(&mut self, place: u64, kept: Kept) {
        match &kept.waits {
            Waits::Here => {}
            Waits::For(child) => {
                self.waiting.entry(child.clone()).or_default()[kept.lane].insert(place);
            }
            Waits::ForAll => {
                self.for_all[kept.lane].insert(place);
            }
        }
        self.due.insert((kept.expires, place));
        self.kept.insert(place, kept);
    }

    /// The next order for the child behind this place.
    pub(super) fn next(&self, child: &Path, lane: Lane, after: u64) -> Option<u64> {
        let behind = |places: &BTreeSet<u64>| places.range(after + 1..).next().copied();
        let own = self.waiting.get(child).and_then(|lanes| behind(&lanes[lane]));
        [own, behind(&self.for_all[lane])].into_iter().flatten().min()
    }

    /// Whether the child may lack an order.
    pub(super) fn waits_for(&self, child: &Path) -> bool {
        let arrived = self.arrived.get(child).copied().unwrap_or_default();
        Lane::ALL.into_iter().any(|lane| self.next(child, lane, arrived[lane]).is_some())
    }

    /// It is not in the store any more.
    pub(super) fn forget(&mut self, place: u64) {
        let Some(kept) = self.kept.remove(&place) else { return };
        self.due.remove(&(kept.expires, place));
        self.for_all[kept.lane].remove(&place);
        if let Waits::For(child) = &kept.waits
            && let Some(lanes) = self.waiting.get_mut(child)
        {
            lanes[kept.lane].remove(&place);
        }
    }

    /// How many orders wait for children.
    pub(super) fn waiting(&self) -> usize {
        self.kept.values().filter(|kept| kept.waits != Waits::Here).count()
    }

    /// The child has everything of the lane up to here. What may leave the store for it: all but the newest.
    pub(super) fn arrived(&mut self, child: &Path, lane: Lane, up_to: u64) -> Vec<u64> {
        self.arrived.entry(child.clone()).or_default()[lane] = up_to;
        let Some(lanes) = self.waiting.get_mut(child) else { return Vec::new() };
        let behind = lanes[lane].split_off(&(up_to + 1));
        let done = std::mem::replace(&mut lanes[lane], behind);
        for place in &done {
            if let Some(kept) = self.kept.remove(place) {
                self.due.remove(&(kept.expires, *place));
            }
        }
        let Some(last) = done.last().copied() else { return Vec::new() };
        let newest = self.newest.entry(child.clone()).or_default();
        let before = newest[lane].replace(last);
        before.into_iter().chain(done.into_iter().filter(|place| *place != last)).collect()
    }

    /// The order was handed to the child's link.
    pub(super) fn offered(&mut self, child: &Path, lane: Lane, place: u64) {
        let offered = &mut self.offered.entry(child.clone()).or_default()[lane];
        *offered = place.max(*offered);
    }

    fn is_under_way(&self, child: &Path, lane: Lane, place: u64) -> bool {
        self.offered.get(child).is_some_and(|offered| offered[lane] >= place)
            && self.lacks(child, lane, place)
    }

    fn lacks(&self, child: &Path, lane: Lane, place: u64) -> bool {
        self.arrived.get(child).is_none_or(|arrived| arrived[lane] < place)
    }

    /// When the next order's time is up.
    pub(super) fn due(&self) -> Option<Millis> {
        self.due.first().map(|(when, _)| *when)
    }

    /// An order whose time is up: its place, what it was, and the children that lack it, of those given. It is
    /// not waited for any more, unless it is under way: then the child decides.
    pub(super) fn take_expired(&mut self, now: Millis, children: &[Path]) -> Option<(u64, Kept, Vec<Path>)> {
        while let Some((when, place)) = self.due.first().copied().filter(|(when, _)| *when < now) {
            self.due.remove(&(when, place));
            let Some(kept) = self.kept.get(&place) else { continue };
            let (lane, concerned) = match &kept.waits {
                Waits::Here => (kept.lane, Vec::new()),
                Waits::For(child) => (kept.lane, vec![child.clone()]),
                Waits::ForAll => (kept.lane, children.to_vec()),
            };
            if concerned.iter().any(|child| self.is_under_way(child, lane, place)) {
                continue;
            }
            let kept = kept.clone();
            self.forget(place);
            let lacking = concerned.into_iter().filter(|child| self.lacks(child, lane, place)).collect();
            return Some((place, kept, lacking));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: Lane = Lane::Normal;

    fn path(text: &str) -> Path {
        text.parse().unwrap()
    }

    fn kept(waits: Waits, expires: u64) -> Kept {
        let subject = "lucent.commands.a".to_owned();
        Kept { id: Uuid::nil(), author: Path::global(), subject, lane: N, expires: Millis(expires), waits }
    }

    fn book() -> (Book, Path, Path) {
        let (c1, c2) = (path("s1/c1"), path("s1/c2"));
        let mut book = Book::default();
        for (place, waits) in
            [(1, Waits::For(c1.clone())), (2, Waits::ForAll), (3, Waits::Here), (4, Waits::For(c1.clone()))]
        {
            book.add(place, kept(waits, 100 + place));
        }
        (book, c1, c2)
    }

    #[test]
    fn a_child_is_given_its_own_orders_and_those_for_all_in_the_order_of_the_store() {
        let (book, c1, c2) = book();
        let all = |child: &Path| {
            std::iter::successors(book.next(child, N, 0), |at| book.next(child, N, *at)).collect::<Vec<_>>()
        };
        assert_eq!((all(&c1), all(&c2)), (vec![1, 2, 4], vec![2]));
        assert_eq!(book.next(&c1, Lane::Critical, 0), None);
        assert_eq!(book.waiting(), 3);
    }

    #[test]
    fn what_a_child_has_may_leave_the_store_but_for_the_newest_and_what_others_lack() {
        let (mut book, c1, c2) = book();
        assert_eq!(book.arrived(&c1, N, 2), Vec::<u64>::new(), "1 is the newest of its own");
        assert!(book.waits_for(&c1) && book.waits_for(&c2));
        assert_eq!(book.arrived(&c1, N, 4), [1]);
        assert!(!book.waits_for(&c1) && book.waits_for(&c2));
        assert_eq!(book.arrived(&c2, N, 2), Vec::<u64>::new());
        assert!(!book.waits_for(&c2));
    }

    #[test]
    fn an_order_whose_time_is_up_is_missed_by_those_who_lack_it() {
        let (mut book, c1, c2) = book();
        assert_eq!(book.due(), Some(Millis(101)));
        assert_eq!(book.take_expired(Millis(101), &[]), None, "its last millisecond");
        let children = [c1.clone(), c2.clone()];
        let expired = |book: &mut Book| {
            let (place, _, lacking) = book.take_expired(Millis(104), &children).unwrap();
            (place, lacking)
        };
        assert_eq!(expired(&mut book), (1, vec![c1.clone()]));
        book.arrived(&c1, N, 2);
        assert_eq!(expired(&mut book), (2, vec![c2]));
        assert_eq!(expired(&mut book), (3, vec![]), "it was said");
        assert_eq!(book.next(&c1, N, 2), Some(4));
    }

    #[test]
    fn an_order_that_is_under_way_when_its_time_is_up_is_the_childs_to_judge() {
        let (mut book, c1, _) = book();
        book.offered(&c1, N, 1);
        let (place, ..) = book.take_expired(Millis(103), std::slice::from_ref(&c1)).unwrap();
        assert_eq!(place, 2, "1 is under way");
        assert_eq!(book.next(&c1, N, 0), Some(1), "and is sent again if need be");
    }
}
