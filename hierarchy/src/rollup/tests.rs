use proptest::{collection::vec, option, prelude::*};

use super::*;

fn reading(range: std::ops::Range<f64>) -> impl Strategy<Value = Reading> {
    range.prop_map(|value| Reading::try_from(value).unwrap())
}

fn usage() -> impl Strategy<Value = Usage> {
    (any::<u64>(), any::<u64>()).prop_map(|(used_bytes, total_bytes)| Usage { used_bytes, total_bytes })
}

fn traffic() -> impl Strategy<Value = Traffic> {
    (any::<u64>(), 0_u64..2_000_000)
        .prop_map(|(rx, tx)| Traffic { receive_bytes_per_second: rx, transmit_bytes_per_second: tx })
}

fn load() -> impl Strategy<Value = Load> {
    [reading(0.0..300.0), reading(0.0..300.0), reading(-1e12..1e12)].prop_map(|[one, five, fifteen]| Load {
        one,
        five,
        fifteen,
    })
}

fn health() -> impl Strategy<Value = Health> {
    prop_oneof![Just(Health::Ok), Just(Health::Degraded), Just(Health::Failing)]
}

fn version() -> impl Strategy<Value = Version> {
    (0..40_u8).prop_map(|minor| format!("0.{minor}.0").parse().unwrap())
}

fn level() -> impl Strategy<Value = Level> {
    (0..4_usize).prop_map(|i| Level::ALL[i])
}

prop_compose! {
    fn sample()(
        (version, health) in (version(), health()),
        cpu_percent in option::of(reading(0.0..100.0)),
        (memory, swap, disk) in (usage(), usage(), option::of(usage())),
        (network, load) in (option::of(traffic()), option::of(load())),
        temperature_celsius in option::of(reading(-200.0..200.0)),
        (taken_at, uptime_seconds) in (any::<u64>().prop_map(Millis), any::<u64>()),
    ) -> Sample {
        Sample {
            taken_at, version, health, cpu_percent, memory, swap, disk, network, load,
            temperature_celsius, uptime_seconds,
        }
    }
}

prop_compose! {
    fn rollup()(
        samples in vec((level(), sample()), 0..6),
        presence in vec((level(), any::<[u32; 3]>()), 0..6),
        versions in vec((version(), 1..1000_u64), 0..30),
        (start, length) in (0..1_000_000_u64, 0..100_000_u64),
    ) -> Rollup {
        let mut rollup = Rollup::new(Millis(start), Millis(start + length));
        for (level, sample) in &samples {
            rollup.add(*level, sample);
        }
        for (level, [present, absent, never_seen]) in presence {
            let presence = Presence {
                present: present.into(), absent: absent.into(), never_seen: never_seen.into(),
            };
            rollup.census.presence.entry(level).or_default().merge(presence);
        }
        for (version, agents) in versions {
            rollup.census.versions.add(version, agents);
        }
        rollup
    }
}

fn merged(a: &Rollup, b: &Rollup) -> Rollup {
    let mut sum = a.clone();
    sum.merge(b);
    sum
}

proptest! {
    #[test]
    fn merging_is_associative_and_commutative(a in rollup(), b in rollup(), c in rollup()) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
    }

    #[test]
    fn it_does_not_matter_which_level_merged_what(samples in vec(sample(), 2..12), cut in 1..11_usize) {
        let of = |samples: &[Sample]| {
            let mut rollup = Rollup::new(Millis(0), Millis(10));
            samples.iter().for_each(|sample| rollup.add(Level::Node, sample));
            rollup
        };
        let (left, right) = samples.split_at(cut.min(samples.len()));
        prop_assert_eq!(merged(&of(left), &of(right)), of(&samples));
    }

    #[test]
    fn a_rollup_survives_the_wire_and_stays_small(a in rollup()) {
        let json = serde_json::to_vec(&a).unwrap();
        prop_assert!(json.len() <= MAX_BYTES, "{} bytes", json.len());
        prop_assert_eq!(Rollup::parse(&json).unwrap(), a);
    }

    #[test]
    fn quantiles_are_within_one_percent_of_the_exact_ones(
        // Spread over the magnitudes, not over the values.
        exponents in vec(4.0..10.0_f64, 1..300),
        q in 0.0..=1.0_f64,
    ) {
        let mut exact: Vec<u64> = exponents.iter().map(|e| 10_f64.powf(*e) as u64).collect();
        let metric = Metric::ReceiveBytesPerSecond;
        let mut summary = Summary::of(metric, exact[0].into());
        exact[1..].iter().for_each(|&value| summary.merge(&Summary::of(metric, value.into())));

        exact.sort_unstable();
        let rank = ((q * exact.len() as f64).ceil() as usize).clamp(1, exact.len());
        let expected = exact[rank - 1] as f64;
        let told = summary.quantile(q).unwrap();
        prop_assert!((told - expected).abs() <= 0.01 * expected, "{told} instead of {expected}");

        let sum: u64 = exact.iter().sum();
        prop_assert_eq!(summary.sum(), Micros::from(sum));
        prop_assert_eq!((summary.min(), summary.max()), (exact[0] as f64, exact[exact.len() - 1] as f64));
    }

    #[test]
    fn quantiles_of_temperatures_hold_below_nought_too(mut exact in vec(-128.0..128.0_f64, 1..200), q in 0.0..=1.0_f64) {
        let metric = Metric::TemperatureCelsius;
        let of = |value: f64| Summary::of(metric, Reading::try_from(value).unwrap().into());
        let mut summary = of(exact[0]);
        exact[1..].iter().for_each(|&value| summary.merge(&of(value)));

        exact.sort_by(f64::total_cmp);
        let rank = ((q * exact.len() as f64).ceil() as usize).clamp(1, exact.len());
        let (expected, told) = (exact[rank - 1], summary.quantile(q).unwrap());
        // Below one degree the sketch says nought.
        let allowed = if expected.abs() <= 1.0 { 1.0 } else { 0.01 * expected.abs() + 1e-6 };
        prop_assert!((told - expected).abs() <= allowed, "{told} instead of {expected}");
    }

    #[test]
    fn no_text_makes_reading_or_merging_panic(text in r#"\{"count":[0-9]{1,20},"min":"-?[0-9]{1,39}","max":"[0-9]{1,39}","sum":"[0-9]{1,39}","buckets":"[A-Za-z0-9_-]{0,40}"\}"#) {
        let json = format!(
            r#"{{"start":0,"end":1,"health":"ok","metrics":{{"cpuPercent":{text},"load5":{text}}}}}"#
        );
        if let Ok(rollup) = Rollup::parse(json.as_bytes()) {
            let twice = merged(&rollup, &rollup);
            prop_assert!(twice.metrics[&Metric::CpuPercent].mean().is_finite());
            let _ = twice.metrics[&Metric::CpuPercent].quantile(0.5);
        }
    }
}

#[test]
fn the_largest_rollup_there_can_be_is_below_the_bound() {
    let mut largest = Rollup::new(Millis(u64::MAX), Millis(u64::MAX));
    largest.health = Health::Degraded;
    largest.metrics = Metric::ALL.into_iter().map(|metric| (metric, Summary::largest(metric))).collect();
    for level in Level::ALL {
        largest.samples.insert(level, u64::MAX);
        let all = Presence { present: u64::MAX, absent: u64::MAX, never_seen: u64::MAX };
        largest.census.presence.insert(level, all);
    }
    for i in 0..40 {
        largest.census.versions.add(format!("{i:032}").parse().unwrap(), u64::MAX);
    }
    let size = serde_json::to_vec(&largest).unwrap().len();
    assert!((MAX_BYTES - 1024..=MAX_BYTES).contains(&size), "{size} bytes");
}

#[test]
fn a_rollup_in_json_reads_well() {
    let sample: Sample = serde_json::from_str(
        r#"{"takenAt":1,"version":"0.1.0","health":"degraded","cpuPercent":12.5,"memory":{"usedBytes":1,"totalBytes":4},
            "swap":{"usedBytes":0,"totalBytes":0},"uptimeSeconds":60,"colour":"unknown to this version"}"#,
    )
    .unwrap();
    let mut rollup = Rollup::new(Millis(0), Millis(10_000));
    rollup.add(Level::Node, &sample);
    rollup.add(Level::Node, &sample);
    rollup.census.presence.insert(Level::Node, Presence { present: 1, absent: 0, never_seen: 2 });
    rollup.census.versions.add(sample.version, 1);
    let json = serde_json::to_value(&rollup).unwrap();
    assert_eq!(json["health"], "degraded");
    assert_eq!(json["samples"], serde_json::json!({"node": 2}));
    assert_eq!(json["metrics"]["cpuPercent"]["sum"], "25");
    assert_eq!(
        json["metrics"]["uptimeSeconds"],
        serde_json::json!({"count": 2, "min": "60", "max": "60", "sum": "120"})
    );
    let census = serde_json::json!({
        "presence": {"node": {"present": 1, "absent": 0, "neverSeen": 2}},
        "versions": {"agents": {"0.1.0": 1}, "others": 0},
    });
    assert_eq!(json["census"], census);
}

#[test]
fn figures_that_contradict_each_other_are_refused_and_unknown_metrics_left_out() {
    let with = |metrics: &str| {
        let json = format!(r#"{{"start":0,"end":1,"health":"ok","metrics":{{{metrics}}}}}"#);
        Rollup::parse(json.as_bytes())
    };
    let sound = r#"{"count":2,"min":"1","max":"3","sum":"4"}"#;
    assert_eq!(with(&format!(r#""load5":{sound}"#)).unwrap().metrics[&Metric::Load5].mean(), 2.0);
    assert!(with(&format!(r#""fanSpeed":{sound}"#)).unwrap().metrics.is_empty());
    for (from, to) in
        [("\"2\"", "\"2\""), ("2,", "0,"), ("\"1\"", "\"5\""), ("\"4\"", "\"7\""), ("\"4\"", "\"1.5\"")]
    {
        let broken = sound.replacen(from, to, 1);
        assert_eq!(with(&format!(r#""load5":{broken}"#)).is_ok(), from == to, "{broken}");
    }
    assert!(matches!(Rollup::parse(&vec![b' '; MAX_BYTES + 1]), Err(BadRollup::TooLarge(_))));
}
