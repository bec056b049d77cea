mod properties;

use std::ops::Range;

use hierarchy::loss::LossReason;

use super::*;

const N: Lane = Lane::Normal;
const GRACE: Duration = Duration::from_secs(60);

fn path(text: &str) -> Path {
    text.parse().unwrap()
}

fn span(incarnation: u64, first: u64, last: u64) -> Span {
    Span { incarnation, first, last }
}

fn at(seconds: u64) -> Tick {
    Duration::from_secs(seconds)
}

fn n1() -> Path {
    path("s1/c1/n1")
}

fn loss(incarnation: u64, first: u64, last: u64) -> Loss {
    let (lane, reason, count) = (N, LossReason::Overflow, last - first + 1);
    Loss { origin: n1(), lane, incarnation, reason, first, last, count }
}

/// A ledger that is told of `s1/c1/n1` and its lane `normal`.
#[derive(Default)]
struct Told(Ledger);

impl Told {
    fn arrived(&mut self, incarnation: u64, first: u64, last: u64) -> &mut Told {
        self.0.arrived(&n1(), N, span(incarnation, first, last), last - first + 1).unwrap();
        self
    }

    fn lost(&mut self, loss: &Loss) -> &mut Told {
        self.0.lost(&path("s1/c1"), loss).unwrap();
        self
    }

    fn published(&mut self, incarnation: u64, last: u64) -> &mut Told {
        let lanes = ByLane { normal: last, ..ByLane::default() };
        self.0.published(&n1(), &Published { incarnation, lanes }).unwrap();
        self
    }

    fn tick(&mut self, seconds: u64) -> &mut Told {
        self.0.tick(at(seconds), GRACE, |_| Some(at(0)..at(seconds)));
        self
    }

    /// Somebody on the way was only heard from then to then, or not at all.
    fn tick_heard(&mut self, seconds: u64, heard: Option<Range<u64>>) -> &mut Told {
        self.0.tick(at(seconds), GRACE, |_| heard.clone().map(|heard| at(heard.start)..at(heard.end)));
        self
    }

    fn totals(&self) -> Totals {
        let totals = self.0.totals()[N].clone();
        assert_conserved(&totals);
        totals
    }

    /// In flight, missing, unaccounted.
    fn unknown(&self) -> [u64; 3] {
        let Totals { in_flight, missing, unaccounted, .. } = self.totals();
        [in_flight, missing, unaccounted]
    }
}

#[track_caller]
fn assert_conserved(totals: &Totals) {
    let Totals { published, arrived, policy, in_flight, missing, unaccounted, .. } = totals;
    assert_eq!(*published, arrived + policy + totals.lost_events() + in_flight + missing, "{totals:?}");
    assert!(unaccounted <= missing, "{totals:?}");
}

#[test]
fn what_is_published_and_not_overtaken_is_in_flight() {
    let mut told = Told::default();
    assert_eq!(told.published(1, 100).unknown(), [100, 0, 0]);
    assert_eq!(told.arrived(1, 1, 30).unknown(), [70, 0, 0]);
    // The receipt has overtaken the batches before the loss.
    assert_eq!(told.lost(&loss(1, 51, 60)).tick(0).tick(1000).unknown(), [60, 0, 0]);
    assert_eq!(told.arrived(1, 61, 61).unknown(), [39, 20, 0]);
    let totals = told.totals();
    assert_eq!((totals.published, totals.arrived), (100, 31));
    assert_eq!(totals.lost, [(LossReason::Overflow, 10)].into());
}

#[test]
fn a_hole_does_not_age_while_those_who_might_explain_it_are_cut_off() {
    let mut told = Told::default();
    told.arrived(1, 1, 10).arrived(1, 21, 30).tick(100);
    assert_eq!(told.tick_heard(130, Some(0..130)).unknown(), [0, 10, 0]);
    assert_eq!(told.tick_heard(1000, Some(0..130)).unknown(), [0, 10, 0], "a cut");
    assert_eq!(told.tick_heard(1000, None).unknown(), [0, 10, 0]);
    assert_eq!(
        told.tick_heard(1010, Some(1000..1010)).unknown(),
        [0, 10, 0],
        "their receipts are on the way"
    );
    assert_eq!(told.tick_heard(1061, Some(1000..1061)).unknown(), [0, 10, 10]);

    let mut cut_off = Told::default();
    cut_off.arrived(1, 1, 10).arrived(1, 21, 30).tick(100);
    assert_eq!(cut_off.tick_heard(100 + 3_601, None).unknown(), [0, 10, 10], "not for ever");
}

#[test]
fn a_hole_is_unaccounted_once_its_grace_is_over_and_until_it_is_explained() {
    let mut told = Told::default();
    told.arrived(1, 1, 10).arrived(1, 21, 30);
    assert_eq!(told.unknown(), [0, 10, 0]);
    assert_eq!(told.tick(100).tick(160).unknown(), [0, 10, 0]);
    told.arrived(1, 36, 40);
    assert_eq!(told.tick(161).unknown(), [0, 15, 10], "the second hole is younger");
    assert_eq!(told.lost(&loss(1, 11, 15)).unknown(), [0, 10, 5]);
    assert_eq!(told.arrived(1, 16, 20).unknown(), [0, 5, 0]);
    assert_eq!(told.tick(222).unknown(), [0, 5, 5]);
    assert_eq!(told.lost(&loss(1, 31, 35)).unknown(), [0, 0, 0]);
}

#[test]
fn a_receipt_within_the_grace_leaves_nothing_unaccounted() {
    let mut told = Told::default();
    told.arrived(1, 5, 9).tick(0).tick(59).lost(&loss(1, 1, 4)).tick(1000);
    assert_eq!(told.unknown(), [0, 0, 0]);
}

#[test]
fn what_an_incarnation_did_not_send_is_missing_once_a_newer_one_arrives() {
    let mut told = Told::default();
    told.published(1, 20).arrived(1, 1, 15);
    // That a newer one began says nothing of what still waits in this lane.
    assert_eq!(told.published(2, 5).lost(&loss(2, 1, 1)).unknown(), [9, 0, 0]);
    assert_eq!(told.arrived(2, 2, 3).unknown(), [2, 5, 0]);
    assert_eq!(told.tick(0).tick(61).unknown(), [2, 5, 5]);
    assert_eq!(told.arrived(1, 16, 18).unknown(), [2, 2, 2]);
    assert_eq!(told.lost(&loss(1, 19, 20)).unknown(), [2, 0, 0]);
}

#[test]
fn arrived_wins_over_lost_in_either_order() {
    for arrives_first in [true, false] {
        let mut told = Told::default();
        if arrives_first {
            told.arrived(1, 3, 6).lost(&loss(1, 1, 10));
        } else {
            told.lost(&loss(1, 1, 10)).arrived(1, 3, 6);
        }
        let totals = told.arrived(1, 11, 11).totals();
        assert_eq!((totals.arrived, totals.lost_events(), totals.missing), (5, 6, 0));
    }
}

#[test]
fn what_the_origin_dropped_itself_is_policy_whether_it_arrives_or_is_lost() {
    let mut told = Told::default();
    told.0.arrived(&n1(), N, span(1, 1, 10), 4).unwrap();
    told.lost(&Loss { count: 7, ..loss(1, 11, 20) });
    // An origin states what none of its batches answers for.
    let own = Loss { count: 0, reason: LossReason::Policy, ..loss(1, 21, 25) };
    told.0.lost(&n1(), &own).unwrap();
    let totals = told.totals();
    assert_eq!((totals.arrived, totals.policy, totals.missing), (4, 14, 0));
    assert_eq!(totals.lost, [(LossReason::Overflow, 7)].into());
}

#[test]
fn statements_that_cannot_be_true_are_refused_and_counted() {
    let mut ledger = Ledger::new();
    let of_n1 = loss(1, 1, 4);
    for hop in ["s1/c1/n2", "s1/c2", "s2"] {
        let refused = ledger.lost(&path(hop), &of_n1);
        assert!(matches!(refused, Err(NotTaken::NotOnTheWay { .. })), "{hop}");
    }
    for hop in ["s1/c1/n1", "s1", "global"] {
        assert_eq!(ledger.lost(&path(hop), &of_n1), Ok(()), "{hop}");
    }
    let unsound = Err(NotTaken::Unsound { origin: n1() });
    assert_eq!(ledger.lost(&path("s1"), &Loss { count: 5, ..of_n1 }), unsound);
    for (first, last, count) in [(0, 4, 1), (5, 4, 0), (1, 4, 5), (1, MAX_NUMBER + 1, 1), (1, u64::MAX, 1)] {
        assert_eq!(ledger.arrived(&n1(), N, span(1, first, last), count), unsound);
    }
    let lanes = ByLane { bulk: u64::MAX, normal: 9, ..ByLane::default() };
    assert_eq!(ledger.published(&n1(), &Published { incarnation: 1, lanes }), unsound);
    assert_eq!(ledger.report(10).refused, 10);
    assert_eq!(ledger.totals()[N].published, 9, "the lanes that are sound count");
}

#[test]
fn the_lowest_holes_are_unaccounted_for_good_where_there_are_too_many_runs() {
    let mut told = Told::default();
    // Each second number is a hole: 2 runs for each batch.
    let batches = runs::MAX_RUNS as u64;
    (1..=batches).for_each(|i| {
        told.arrived(1, 2 * i, 2 * i);
    });
    let [in_flight, missing, unaccounted] = told.unknown();
    assert_eq!((in_flight, missing), (0, batches));
    assert_eq!(unaccounted, batches - runs::MAX_RUNS as u64 / 2);
    told.arrived(1, 1, 2 * batches);
    assert_eq!(told.unknown(), [0, unaccounted, unaccounted]);
    assert_eq!(told.totals().published, 2 * batches);
}

#[test]
fn the_oldest_incarnations_are_folded_and_not_taken_again() {
    let mut told = Told::default();
    let most = account::MAX_INCARNATIONS as u64;
    told.published(1, 10).arrived(1, 1, 8);
    (2..=most).for_each(|incarnation| {
        told.arrived(incarnation, 1, 10);
    });
    // Incarnation 2 is complete; of 1 there may still be something on its way.
    told.published(most + 1, 10);
    assert!(told.0.arrived(&n1(), N, span(2, 1, 10), 10).is_err());
    assert_eq!(told.unknown(), [10, 2, 0]);
    assert_eq!(told.arrived(1, 9, 10).unknown(), [10, 0, 0]);

    let published = told.totals().published;
    (most + 2..=100).for_each(|incarnation| {
        told.published(incarnation, 3);
    });
    // Nothing of these has arrived; the oldest are given up.
    let given_up = 3 * (100 - most - 1 - most) + 3 + 7;
    assert_eq!(told.totals().published, published + 3 * (100 - most - 1));
    assert_eq!(told.totals().unaccounted, given_up);
    assert_eq!(
        told.0.arrived(&n1(), N, span(17, 1, 10), 10),
        Err(NotTaken::Settled { origin: n1(), incarnation: 17 })
    );
}

#[test]
fn what_was_overtaken_stays_so_when_what_overtook_it_is_folded() {
    let mut told = Told::default();
    told.published(1, 10).arrived(2, 1, 4);
    (3..=account::MAX_INCARNATIONS as u64 + 1).for_each(|incarnation| {
        told.published(incarnation, 1);
    });
    assert!(told.0.arrived(&n1(), N, span(2, 1, 4), 4).is_err(), "2 is folded");
    assert_eq!(told.unknown(), [account::MAX_INCARNATIONS as u64 - 1, 10, 0]);
}

#[test]
fn there_are_no_more_origins_than_the_limit() {
    let mut ledger = Ledger::new();
    let mut arrives = |node: usize| ledger.arrived(&path(&format!("s1/c1/n{node}")), N, span(1, 1, 2), 2);
    for node in 0..MAX_ORIGINS {
        arrives(node).unwrap();
    }
    let stranger = path(&format!("s1/c1/n{MAX_ORIGINS}"));
    assert_eq!(arrives(MAX_ORIGINS), Err(NotTaken::TooManyOrigins(stranger)));
    assert_eq!(arrives(7), Ok(()));
    let report = ledger.report(100);
    assert_eq!((report.origins, report.refused), (MAX_ORIGINS, 1));
    assert_eq!((report.rows.len(), report.left_out), (100, MAX_ORIGINS - 100));
    assert_eq!(report.totals[N].arrived, 2 * MAX_ORIGINS as u64);
}

#[test]
fn a_report_keeps_the_rows_that_need_looking_after_in_order_of_their_paths() {
    let mut ledger = Ledger::new();
    for node in ["n1", "n2", "n3", "n4"] {
        ledger.arrived(&path(&format!("s1/c1/{node}")), Lane::Bulk, span(1, 1, 4), 4).unwrap();
    }
    ledger.arrived(&path("s1/c1/n4"), Lane::Bulk, span(1, 6, 6), 1).unwrap();
    ledger.arrived(&path("s1/c1/n2"), N, span(1, 3, 3), 1).unwrap();
    let lost = Loss { origin: path("s1/c1/n3"), lane: Lane::Bulk, ..loss(1, 5, 7) };
    ledger.lost(&path("s1/c1"), &lost).unwrap();
    let shown = |ledger: &Ledger, rows| {
        let report = ledger.report(rows);
        let row = |row: &Row| format!("{} {}", row.origin, row.lane);
        (report.rows.iter().map(row).collect::<Vec<_>>(), report.left_out)
    };
    let worst = ["s1/c1/n2 normal", "s1/c1/n3 bulk", "s1/c1/n4 bulk"].map(String::from).to_vec();
    assert_eq!(shown(&ledger, 3), (worst, 2));
    let all = ["n1 bulk", "n2 normal", "n2 bulk", "n3 bulk", "n4 bulk"].map(|row| format!("s1/c1/{row}"));
    assert_eq!(shown(&ledger, 100), (all.to_vec(), 0));

    let row = serde_json::to_value(&ledger.report(100).rows[3]).unwrap();
    let expected = serde_json::json!({
        "origin": "s1/c1/n3", "lane": "bulk", "published": 7, "arrived": 4, "policy": 0,
        "lost": {"overflow": 3}, "inFlight": 0, "missing": 0, "unaccounted": 0,
    });
    assert_eq!(row, expected);
    let report = ledger.report(100);
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}

#[test]
fn a_checkpoint_holds_everything_but_how_long_a_hole_has_stood() {
    let mut told = Told::default();
    told.arrived(1, 1, 5).arrived(1, 8, 9).tick(0).tick(61).arrived(1, 12, 13).tick(100);
    told.published(2, 4).lost(&loss(2, 2, 3));
    let json = serde_json::to_string(&told.0).unwrap();
    let mut again = Told(serde_json::from_str(&json).unwrap());
    assert_eq!(again.totals(), told.totals());
    assert_eq!(again.unknown(), [2, 4, 2]);
    // The clock began anew.
    assert_eq!(again.tick(5).tick(60).unknown(), [2, 4, 2]);
    assert_eq!(again.tick(66).unknown(), [2, 4, 4]);
}
