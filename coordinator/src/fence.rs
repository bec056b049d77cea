//! Fences: how a stream itself refuses what an earlier holder of the lease still has under way.
//!
//! A fence is a message on one of a few subjects, the posts, and each write of the holder names a post and the
//! place of the holder's own fence there; the server stores it only if that is still the last message of that
//! subject. (`Nats-Expected-Last-Subject-Sequence` with a subject of its own.) Who takes over
//!
//! 1. stores a message on the gate, whatever lies there,
//! 2. stores a fence at each post, one after the other from the first post on, each under the condition that
//!    its own message is still the last on the gate.
//!
//! Where a fence is refused somebody else was at the gate, and all begins again. So rounds that succeed do not
//! overlap, all fences of the later one lie behind those of the earlier one, and no fence of a round that failed
//! can come late. From then on the earlier fences admit nothing. No clock takes part in this.
//!
//! There are several posts because a server that is one of a cluster takes one conditional write at a time for
//! each subject named. Writes under way at the same time use ever earlier posts, and fences are raised from the
//! first post on: of what an earlier holder has under way a beginning is stored, or nothing, never with a hole.

/// The holder's fences in one stream.
#[derive(Debug, Clone)]
pub struct Fences {
    /// The place of each post's fence.
    places: Vec<u64>,
    /// Posts from here on have been used since nothing was under way.
    used: usize,
}

impl Fences {
    /// Fences at these places, the first post's first.
    pub fn new(places: Vec<u64>) -> Fences {
        Fences { used: places.len(), places }
    }

    /// The post that the next write names, and the place of the fence there. `None` where the writes under way
    /// have to end first.
    pub fn next(&mut self, idle: bool) -> Option<(usize, u64)> {
        if self.used == 0 && idle {
            self.used = self.places.len();
        }
        self.used = self.used.checked_sub(1)?;
        Some((self.used, self.places[self.used]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_under_way_together_use_ever_earlier_posts() {
        let mut fences = Fences::new(vec![11, 12, 13]);
        assert_eq!(fences.next(true), Some((2, 13)));
        // Even with nothing under way the next one is another: the server may not be quite done with the last.
        assert_eq!(fences.next(true), Some((1, 12)));
        assert_eq!(fences.next(false), Some((0, 11)));
        assert_eq!(fences.next(false), None);
        assert_eq!(fences.next(true), Some((2, 13)));
    }
}
