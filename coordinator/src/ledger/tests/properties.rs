//! Conservation, whatever is heard in whatever order.

use std::collections::BTreeMap;

use hierarchy::loss::LossLog;
use proptest::{collection::vec, prelude::*};

use super::*;

/// One number, as the simplest possible ledger knows it.
#[derive(Clone, Copy, Default)]
struct Number {
    arrived: bool,
    lost: Option<LossReason>,
    since: Option<Tick>,
}

/// A ledger of one origin's lane that knows each number by itself.
#[derive(Default)]
struct Naive(BTreeMap<u64, Vec<Number>>);

impl Naive {
    fn numbers(&mut self, span: Span) -> &mut [Number] {
        let numbers = self.0.entry(span.incarnation).or_default();
        numbers.resize(numbers.len().max(span.last as usize), Number::default());
        &mut numbers[span.first as usize - 1..span.last as usize]
    }

    /// The numbers that nothing is known of, each with whether it is missing.
    fn unknown(&mut self) -> impl Iterator<Item = (&mut Number, bool)> {
        let arrived_to = |numbers: &[Number]| numbers.iter().rposition(|number| number.arrived);
        let newest = self.0.iter().rev().find(|(_, numbers)| arrived_to(numbers).is_some());
        let newest = newest.map_or(0, |(incarnation, _)| *incarnation);
        self.0.iter_mut().flat_map(move |(incarnation, numbers)| {
            let overtaken = if *incarnation < newest { Some(usize::MAX) } else { arrived_to(numbers) };
            let numbers = numbers.iter_mut().enumerate();
            let unknown = numbers.filter(|(_, number)| !number.arrived && number.lost.is_none());
            unknown.map(move |(index, number)| (number, Some(index) < overtaken))
        })
    }

    fn tick(&mut self, now: Tick) {
        for (number, missing) in self.unknown() {
            number.since = number.since.or(missing.then_some(now));
        }
    }

    fn totals(&mut self, ticked: Tick) -> Totals {
        let mut totals = Totals::default();
        for number in self.0.values().flatten() {
            totals.published += 1;
            match number {
                Number { arrived: true, .. } => totals.arrived += 1,
                Number { lost: Some(reason), .. } => *totals.lost.entry(*reason).or_default() += 1,
                _ => {}
            }
        }
        for (number, missing) in self.unknown() {
            let overdue = number.since.is_some_and(|since| ticked - since > GRACE);
            totals.in_flight += u64::from(!missing);
            totals.missing += u64::from(missing);
            totals.unaccounted += u64::from(missing && overdue);
        }
        totals
    }
}

#[derive(Debug, Clone)]
enum Word {
    Arrived(Span),
    Lost(Span, LossReason),
    Published(Span),
    Tick(u64),
}

fn word() -> impl Strategy<Value = Word> {
    let span = (1..4_u64, 1..60_u64, 0..12_u64).prop_map(|(incarnation, first, more)| Span {
        incarnation,
        first,
        last: first + more,
    });
    prop_oneof![
        4 => span.clone().prop_map(Word::Arrived),
        3 => (span.clone(), 0..6_usize).prop_map(|(span, i)| Word::Lost(span, LossReason::ALL[i])),
        1 => span.prop_map(|span| Word::Published(Span { first: 1, ..span })),
        2 => (0..40_u64).prop_map(Word::Tick),
    ]
}

/// What becomes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    Lost(LossReason),
    LostYetArrives(LossReason),
    LostSilently,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    span: Span,
    events: u64,
    fate: Fate,
}

#[derive(Debug, Clone)]
enum Heard {
    Batch(Span, u64),
    Loss(Loss),
    Published(u64, u64),
    Tick,
}

fn fate(silent: bool) -> impl Strategy<Value = Fate> {
    let reason = prop_oneof![Just(LossReason::Overflow), Just(LossReason::Quarantine)];
    prop_oneof![
        6 => Just(Fate::Arrives),
        3 => reason.clone().prop_map(Fate::Lost),
        1 => reason.prop_map(Fate::LostYetArrives),
        u32::from(silent) => Just(Fate::LostSilently),
    ]
}

/// The batches of one to three incarnations.
fn history(silent: bool) -> impl Strategy<Value = Vec<Sent>> {
    let batch = (1..9_u64, 0..9_u64, fate(silent));
    vec(vec(batch, 0..25), 1..4).prop_map(|incarnations| {
        let mut history = Vec::new();
        for (incarnation, batches) in (1..).zip(incarnations) {
            let mut last = 0;
            for (len, dropped, fate) in batches {
                let span = Span { incarnation, first: last + 1, last: last + len };
                let events = len.saturating_sub(dropped).max(1);
                history.push(Sent { span, events, fate });
                last += len;
            }
        }
        history
    })
}

/// All that is heard of a history, some of it twice, in an order that the seeds choose.
fn heard(history: &[Sent], seeds: &[u32]) -> Vec<Heard> {
    let mut log = LossLog::new();
    let mut words = Vec::new();
    let mut published = BTreeMap::new();
    for Sent { span, events, fate } in history {
        published.insert(span.incarnation, span.last);
        if matches!(fate, Fate::Arrives | Fate::LostYetArrives(_)) {
            words.push(Heard::Batch(*span, *events));
        }
        if let Fate::Lost(reason) | Fate::LostYetArrives(reason) = *fate {
            let base = loss(span.incarnation, span.first, span.last);
            log.note(Loss { reason, count: *events, ..base }).unwrap();
        }
    }
    words.extend(std::iter::from_fn(|| log.take()).flat_map(|receipt| receipt.losses).map(Heard::Loss));
    for (incarnation, last) in published {
        words.extend([last / 2, last].map(|last| Heard::Published(incarnation, last)));
    }
    let seed = |index: usize| seeds[index % seeds.len()].wrapping_mul(index as u32 + 1);
    let again = words.iter().enumerate().filter(|(i, _)| seed(*i) % 5 == 0).map(|(_, word)| word.clone());
    words.extend(again.collect::<Vec<_>>());
    words.extend(vec![Heard::Tick; 5]);
    let mut order: Vec<_> = words.into_iter().enumerate().collect();
    order.sort_by_key(|(index, _)| seed(*index));
    order.into_iter().map(|(_, word)| word).collect()
}

/// Tells it all, and looks at the books after each word.
fn tell(words: Vec<Heard>) -> Told {
    let mut told = Told::default();
    let mut now = 0;
    for word in words {
        match word {
            Heard::Batch(span, events) => told.0.arrived(&n1(), N, span, events).unwrap(),
            Heard::Loss(loss) => _ = told.lost(&loss),
            Heard::Published(incarnation, last) => _ = told.published(incarnation, last),
            Heard::Tick => {
                now += 25;
                told.tick(now);
            }
        }
        told.totals();
    }
    told
}

fn sum(history: &[Sent], of: impl Fn(&Sent) -> u64) -> u64 {
    history.iter().map(of).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn runs_say_what_a_ledger_of_single_numbers_says(words in vec(word(), 1..80)) {
        let (mut told, mut naive, mut now) = (Told::default(), Naive::default(), 0);
        for word in words {
            match word {
                Word::Arrived(span) => {
                    told.arrived(span.incarnation, span.first, span.last);
                    naive.numbers(span).iter_mut().for_each(|number| number.arrived = true);
                }
                Word::Lost(span, reason) => {
                    let base = loss(span.incarnation, span.first, span.last);
                    told.lost(&Loss { reason, ..base });
                    for number in naive.numbers(span) {
                        number.lost = number.lost.or(Some(reason));
                    }
                }
                Word::Published(span) => {
                    told.published(span.incarnation, span.last);
                    naive.numbers(span);
                }
                Word::Tick(seconds) => {
                    now += seconds;
                    told.tick(now);
                    naive.tick(at(now));
                }
            }
            // What was overdue at the last tick stays so; what is overdue only now is not known yet.
            prop_assert_eq!(told.totals(), naive.totals(at(now)));
        }
    }

    #[test]
    fn a_history_with_all_its_receipts_leaves_nothing_missing(
        history in history(false),
        seeds in vec(any::<u32>(), 1..50),
    ) {
        let totals = tell(heard(&history, &seeds)).totals();
        prop_assert_eq!((totals.in_flight, totals.missing), (0, 0));
        prop_assert_eq!(totals.published, sum(&history, |sent| sent.span.len()));
        let arrives = |sent: &Sent| !matches!(sent.fate, Fate::Lost(_));
        prop_assert_eq!(totals.arrived, sum(&history, |sent| if arrives(sent) { sent.events } else { 0 }));
        // Of a stated range that arrives in part it is not known which events of it were lost.
        if !history.iter().any(|sent| matches!(sent.fate, Fate::LostYetArrives(_))) {
            let lost = |reason| sum(&history, |s| if s.fate == Fate::Lost(reason) { s.events } else { 0 });
            for reason in [LossReason::Overflow, LossReason::Quarantine] {
                prop_assert_eq!(totals.lost.get(&reason).copied().unwrap_or(0), lost(reason));
            }
            prop_assert_eq!(totals.policy, sum(&history, |sent| sent.span.len() - sent.events));
        }
    }

    #[test]
    fn a_drop_without_a_receipt_is_found_as_unaccounted(
        history in history(true),
        seeds in vec(any::<u32>(), 1..50),
    ) {
        let mut told = tell(heard(&history, &seeds));
        let totals = told.tick(10_000).tick(10_061).totals();
        let arrives = |sent: &Sent| matches!(sent.fate, Fate::Arrives | Fate::LostYetArrives(_));
        let last_arrival = history.iter().rposition(arrives).unwrap_or(0);
        let silent = |sent: &[Sent]| {
            sum(sent, |sent| if sent.fate == Fate::LostSilently { sent.span.len() } else { 0 })
        };
        prop_assert_eq!(totals.unaccounted, silent(&history[..last_arrival]));
        prop_assert_eq!(totals.missing, totals.unaccounted);
        prop_assert_eq!(totals.in_flight, silent(history.get(last_arrival..).unwrap_or_default()));
    }
}
