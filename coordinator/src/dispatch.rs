//! Which child gets which task: a matcher without I/O or clock.
//!
//! Children offer room in credits that expire; a task is handed only to a child whose live credit
//! covers it, and the credit is debited at once. So stale knowledge costs quality, never overcommit. A
//! task leaves this level's queue when the child has confirmed custody, not before.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use hierarchy::{
    Path,
    link::{Tick, message::Offer},
    task::TaskSpec,
};

/// Tasks held in memory; the rest wait in the stream.
pub const MAX_HELD: usize = 1000;
/// A hand-off that nobody answered is repeated after this.
const REPEAT_AFTER: Duration = Duration::from_secs(2);

/// Names one try of one task.
pub type Attempt = (String, u32);

/// What the shell is to do.
#[derive(Debug)]
pub enum DispatchOutput {
    /// Hand the task to the child.
    Handoff {
        /// To whom.
        child: Path,
        /// What.
        task: TaskSpec,
    },
    /// The child has it: it leaves this level's queue.
    Release(Attempt),
}

#[derive(Debug)]
struct Credit {
    number: u64,
    offers: Vec<Offer>,
    expires: Tick,
}

#[derive(Debug)]
struct Handed {
    task: TaskSpec,
    child: Path,
    repeat_at: Tick,
}

/// The matcher.
#[derive(Debug, Default)]
pub struct Dispatcher {
    credits: HashMap<Path, Credit>,
    /// By urgency, then arrival.
    queue: BTreeMap<(u8, u64), TaskSpec>,
    arrivals: u64,
    handed: HashMap<Attempt, Handed>,
}

impl Dispatcher {
    /// How many more tasks may be given to it.
    pub fn room(&self) -> usize {
        MAX_HELD.saturating_sub(self.queue.len() + self.handed.len())
    }

    /// Tasks that wait for a child with room.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// A task of this level's queue. One that is held already (the stream delivered it again) changes
    /// nothing.
    pub fn submit(&mut self, task: TaskSpec) {
        let attempt = (task.id.clone(), task.attempt);
        let waiting =
            self.queue.values().any(|queued| queued.id == task.id && queued.attempt == task.attempt);
        if waiting || self.handed.contains_key(&attempt) {
            return;
        }
        self.enqueue(task);
    }

    /// A task that was handed to this child before this agent was restarted: it can only go there.
    pub fn resume(&mut self, task: TaskSpec, child: Path, now: Tick) {
        let attempt = (task.id.clone(), task.attempt);
        self.handed.entry(attempt).or_insert(Handed { task, child, repeat_at: now });
    }

    /// A child's newest offer.
    pub fn on_credit(
        &mut self,
        child: Path,
        number: u64,
        offers: Vec<Offer>,
        valid_for: Duration,
        now: Tick,
    ) {
        let under_way = self.handed.values().filter(|handed| handed.child == child);
        let mut offers = offers;
        // What is on its way to the child was not known to it when it made the offer.
        for handed in under_way {
            debit(&mut offers, &handed.task);
        }
        self.credits.insert(child, Credit { number, offers, expires: now + valid_for });
    }

    /// The try was handed to this child by somebody else: it can only go there.
    pub fn goes_to(&mut self, attempt: &Attempt, child: Path, now: Tick) {
        if let Some(handed) = self.handed.get_mut(attempt) {
            (handed.child, handed.repeat_at) = (child, now);
        }
    }

    /// The child answers a hand-off.
    pub fn on_reply(&mut self, child: &Path, attempt: Attempt, refused: bool) -> Option<DispatchOutput> {
        if self.handed.get(&attempt)?.child != *child {
            return None;
        }
        let handed = self.handed.remove(&attempt)?;
        if !refused {
            return Some(DispatchOutput::Release(attempt));
        }
        // Its offer was wrong; the next one will know better.
        self.credits.remove(child);
        self.enqueue(handed.task);
        None
    }

    /// When [`Dispatcher::poll`] may have something new without being told anything.
    pub fn timeout(&self) -> Option<Tick> {
        self.handed.values().map(|handed| handed.repeat_at).min()
    }

    /// What to do next; call until it returns `None`.
    pub fn poll(&mut self, now: Tick) -> Option<DispatchOutput> {
        if let Some(handed) = self.handed.values_mut().find(|handed| handed.repeat_at <= now) {
            handed.repeat_at = now + REPEAT_AFTER;
            return Some(DispatchOutput::Handoff { child: handed.child.clone(), task: handed.task.clone() });
        }
        self.credits.retain(|_, credit| credit.expires > now);
        let (key, child) = self.queue.iter().find_map(|(key, task)| Some((*key, self.best_child(task)?)))?;
        let task = self.queue.remove(&key)?;
        if let Some(credit) = self.credits.get_mut(&child) {
            debit(&mut credit.offers, &task);
        }
        let attempt = (task.id.clone(), task.attempt);
        let handed = Handed { task: task.clone(), child: child.clone(), repeat_at: now + REPEAT_AFTER };
        self.handed.insert(attempt, handed);
        Some(DispatchOutput::Handoff { child, task })
    }

    /// What this level may offer its parent: the sum of what its children offer and it has not used.
    pub fn offers(&self, now: Tick) -> Vec<Offer> {
        let mut sum: BTreeMap<(String, String), u32> = BTreeMap::new();
        for credit in self.credits.values().filter(|credit| credit.expires > now) {
            for offer in &credit.offers {
                *sum.entry((offer.agent_type.clone(), offer.task.clone())).or_default() += offer.slots;
            }
        }
        let mut offers: Vec<Offer> =
            sum.into_iter().map(|((agent_type, task), slots)| Offer { agent_type, task, slots }).collect();
        for task in self.queue.values() {
            debit(&mut offers, task);
        }
        offers
    }

    /// The child with the most room for the task; among equals the one whose offer is newest.
    fn best_child(&self, task: &TaskSpec) -> Option<Path> {
        let room = |credit: &Credit| credit.offers.iter().filter(|o| fits(o, task)).map(|o| o.slots).max();
        self.credits
            .iter()
            .filter_map(|(child, credit)| {
                Some((room(credit).filter(|slots| *slots > 0)?, credit.number, child))
            })
            .max()
            .map(|(_, _, child)| child.clone())
    }

    fn enqueue(&mut self, task: TaskSpec) {
        self.arrivals += 1;
        self.queue.insert((9 - task.priority.min(9), self.arrivals), task);
    }
}

fn fits(offer: &Offer, task: &TaskSpec) -> bool {
    let covers = |offered: &str, wanted: &str| offered == "*" || offered == wanted;
    covers(&offer.agent_type, &task.agent_type) && covers(&offer.task, &task.task)
}

/// Takes one slot for the task from the offer that fits it.
fn debit(offers: &mut [Offer], task: &TaskSpec) {
    if let Some(offer) = offers.iter_mut().find(|offer| offer.slots > 0 && fits(offer, task)) {
        offer.slots -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, priority: u8) -> TaskSpec {
        let body = format!(r#"{{"messageId":"{id}","payload":1,"metadata":{{"priority":{priority}}}}}"#);
        TaskSpec::from_submission(
            "lucent.agents.yield.analysis",
            body.as_bytes(),
            Path::global(),
            String::new(),
        )
        .unwrap()
    }

    fn offer(slots: u32) -> Vec<Offer> {
        vec![Offer { agent_type: "yield".into(), task: "*".into(), slots }]
    }

    fn child(name: &str) -> Path {
        name.parse().unwrap()
    }

    fn handed(dispatcher: &mut Dispatcher, now: Tick) -> Vec<(String, String)> {
        std::iter::from_fn(|| match dispatcher.poll(now)? {
            DispatchOutput::Handoff { child, task } => Some((child.to_string(), task.id)),
            DispatchOutput::Release(_) => None,
        })
        .collect()
    }

    #[test]
    fn no_more_is_handed_out_than_a_live_credit_covers() {
        let mut dispatcher = Dispatcher::default();
        for n in 0..5 {
            dispatcher.submit(task(&format!("t{n}"), 5));
        }
        dispatcher.on_credit(child("s1"), 1, offer(2), Duration::from_secs(3), Tick::ZERO);
        assert_eq!(handed(&mut dispatcher, Tick::ZERO).len(), 2);
        // The same room offered again, by a child that has not seen the hand-offs yet.
        dispatcher.on_credit(child("s1"), 2, offer(2), Duration::from_secs(3), Tick::ZERO);
        assert_eq!(handed(&mut dispatcher, Tick::ZERO).len(), 0);
        assert_eq!(dispatcher.waiting(), 3);
    }

    #[test]
    fn an_offer_for_any_type_and_task_takes_each() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.submit(task("t", 5));
        let any = vec![Offer { agent_type: "*".into(), task: "*".into(), slots: 1 }];
        dispatcher.on_credit(child("s1"), 1, any, Duration::from_secs(3), Tick::ZERO);
        assert_eq!(handed(&mut dispatcher, Tick::ZERO).len(), 1);
    }

    #[test]
    fn an_expired_credit_is_worth_nothing() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.on_credit(child("s1"), 1, offer(2), Duration::from_secs(3), Tick::ZERO);
        dispatcher.submit(task("t", 5));
        assert!(handed(&mut dispatcher, Duration::from_secs(4)).is_empty());
    }

    #[test]
    fn urgent_tasks_go_first_to_the_child_with_most_room() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.submit(task("later", 2));
        dispatcher.submit(task("now", 9));
        dispatcher.on_credit(child("s1"), 1, offer(1), Duration::from_secs(3), Tick::ZERO);
        dispatcher.on_credit(child("s2"), 1, offer(4), Duration::from_secs(3), Tick::ZERO);
        let order = handed(&mut dispatcher, Tick::ZERO);
        assert_eq!(order[0], ("s2".into(), "now".into()));
    }

    #[test]
    fn custody_passes_only_with_the_childs_word() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.submit(task("t", 5));
        dispatcher.on_credit(child("s1"), 1, offer(1), Duration::from_secs(60), Tick::ZERO);
        assert_eq!(handed(&mut dispatcher, Tick::ZERO).len(), 1);
        // No answer: the same child is asked again, and nobody else.
        dispatcher.on_credit(child("s2"), 1, offer(9), Duration::from_secs(60), Tick::ZERO);
        let again = handed(&mut dispatcher, Duration::from_secs(2));
        assert_eq!(again, [("s1".to_owned(), "t".to_owned())]);
        // The stream delivers it again meanwhile: nothing happens.
        dispatcher.submit(task("t", 5));
        assert!(handed(&mut dispatcher, Duration::from_secs(2)).is_empty());
        assert!(dispatcher.on_reply(&child("s2"), ("t".into(), 1), false).is_none(), "not s2's to confirm");
        let released = dispatcher.on_reply(&child("s1"), ("t".into(), 1), false);
        assert!(matches!(released, Some(DispatchOutput::Release(attempt)) if attempt == ("t".into(), 1)));
    }

    #[test]
    fn a_refused_task_goes_to_another_child() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.submit(task("t", 5));
        dispatcher.on_credit(child("s1"), 2, offer(2), Duration::from_secs(60), Tick::ZERO);
        dispatcher.on_credit(child("s2"), 1, offer(1), Duration::from_secs(60), Tick::ZERO);
        assert_eq!(handed(&mut dispatcher, Tick::ZERO)[0].0, "s1");
        assert!(dispatcher.on_reply(&child("s1"), ("t".into(), 1), true).is_none());
        assert_eq!(handed(&mut dispatcher, Tick::ZERO), [("s2".to_owned(), "t".to_owned())]);
    }

    #[test]
    fn a_task_that_somebody_else_has_handed_down_goes_to_the_same_child() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.submit(task("t", 5));
        dispatcher.on_credit(child("s1"), 1, offer(1), Duration::from_secs(60), Tick::ZERO);
        assert_eq!(handed(&mut dispatcher, Tick::ZERO), [("s1".to_owned(), "t".to_owned())]);
        dispatcher.goes_to(&("t".into(), 1), child("s2"), Tick::ZERO);
        assert_eq!(handed(&mut dispatcher, Tick::ZERO), [("s2".to_owned(), "t".to_owned())]);
        assert!(dispatcher.on_reply(&child("s1"), ("t".into(), 1), false).is_none());
        assert!(dispatcher.on_reply(&child("s2"), ("t".into(), 1), false).is_some());
    }

    #[test]
    fn what_is_offered_upward_is_what_is_left_below() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.on_credit(child("s1"), 1, offer(2), Duration::from_secs(3), Tick::ZERO);
        dispatcher.on_credit(child("s2"), 1, offer(3), Duration::from_secs(3), Tick::ZERO);
        assert_eq!(dispatcher.offers(Tick::ZERO), offer(5));
        dispatcher.submit(task("t", 5));
        assert_eq!(dispatcher.offers(Tick::ZERO), offer(4));
        assert!(dispatcher.offers(Duration::from_secs(3)).is_empty());
    }
}
