//! From what the children measured to one roll-up for each window of time.
//!
//! A cluster merges the samples of its nodes, a site the roll-ups of its clusters, the core those of its
//! sites; each adds the samples of its own machine. A sample belongs to the window in which it *arrives*: the
//! clocks of the children may be wrong, and a window that waited for the slowest of them would never close.
//! So what a child sends after an outage counts when it is known here, not when it was measured.

use std::{collections::BTreeMap, time::Duration};

use hierarchy::{
    Level, Millis, Path,
    link::Tick,
    rollup::{BadRollup, Presence, Rollup, Sample, Version},
    subject::{ROLLUP, Speaker, TELEMETRY},
};

use crate::registry::{Registry, RegistryError};

/// How long a window is, unless configured.
pub const DEFAULT_WINDOW: Duration = Duration::from_secs(10);

/// An event's place in its origin's store. It orders the events of one origin without asking any clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which life of the origin's store.
    pub incarnation: u64,
    /// The event's sequence number in that life.
    pub seq: u64,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It counts in the open window.
    Counted,
    /// It was counted before, or one behind it was.
    Repeated,
    /// It is not for this level to count: another subject, another agent's child, or a coordinator's raw
    /// sample, which its roll-up contains.
    NotForUs,
}

/// Why an event that should count does not.
#[derive(Debug, thiserror::Error)]
pub enum AggregateError {
    /// Its payload is not a sample.
    #[error("{child} sent what is not a sample: {source}")]
    BadSample {
        /// Who sent it.
        child: Path,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Its payload is not a roll-up.
    #[error("{child} sent what is not a roll-up: {source}")]
    BadRollup {
        /// Who sent it.
        child: Path,
        /// What is wrong with it.
        source: BadRollup,
    },
    /// The registry does not take the child.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Makes the roll-ups of one coordinator.
#[derive(Debug)]
pub struct Aggregator {
    own: Path,
    version: Version,
    window: Duration,
    closes: Tick,
    open: Rollup,
    /// The last place counted of each child. Never more than the registry knows children.
    counted: BTreeMap<Path, Place>,
}

impl Aggregator {
    /// For the agent at `own`, which runs `version`. The first window opens now, which is `now` on the
    /// monotonic clock and `wall` on the other.
    pub fn new(own: Path, version: Version, window: Duration, now: Tick, wall: Millis) -> Aggregator {
        let open = Rollup::new(wall, wall);
        Aggregator { own, version, window, closes: now + window, open, counted: BTreeMap::new() }
    }

    /// Counts a sample of this agent's own machine.
    pub fn own_sample(&mut self, sample: &Sample) {
        self.open.add(self.own.level(), sample);
    }

    /// Counts a verified event of a child, where it is a sample or a roll-up. What a roll-up tells of the
    /// agents below goes to the registry.
    pub fn arrived(
        &mut self,
        registry: &mut Registry,
        subject: &str,
        place: Place,
        payload: &[u8],
    ) -> Result<Arrival, AggregateError> {
        let Some((child, tail)) = self.child_and_tail(subject) else { return Ok(Arrival::NotForUs) };
        let is_sample = match (child.level(), tail) {
            (Level::Node, TELEMETRY) => true,
            (Level::Cluster | Level::Site, ROLLUP) => false,
            _ => return Ok(Arrival::NotForUs),
        };
        let is_behind = |last: &Place| last.incarnation == place.incarnation && last.seq >= place.seq;
        if self.counted.get(&child).is_some_and(is_behind) {
            return Ok(Arrival::Repeated);
        }
        if is_sample {
            let sample: Sample = serde_json::from_slice(payload)
                .map_err(|source| AggregateError::BadSample { child: child.clone(), source })?;
            registry.admit(&child)?;
            self.open.add(child.level(), &sample);
        } else {
            let mut rollup = Rollup::parse(payload)
                .map_err(|source| AggregateError::BadRollup { child: child.clone(), source })?;
            registry.reported(&child, std::mem::take(&mut rollup.census))?;
            self.open.merge_measurements(&rollup);
        }
        self.counted.insert(child, place);
        Ok(Arrival::Counted)
    }

    /// Closes the window once its time is over, and hands out its roll-up, also where nothing was
    /// measured: that nothing was is worth knowing. Windows follow each other without a gap; one that is
    /// closed late has lasted that much longer, and says so.
    pub fn tick(&mut self, now: Tick, wall: Millis, registry: &Registry) -> Option<Rollup> {
        if now < self.closes {
            return None;
        }
        // Keep step, unless a whole window was missed.
        let on_time = self.closes + self.window;
        self.closes = if on_time > now { on_time } else { now + self.window };
        self.counted.retain(|child, _| registry.knows(child));

        let mut rollup = std::mem::replace(&mut self.open, Rollup::new(wall, wall));
        // The wall clock may have been set back.
        rollup.end = wall.max(rollup.start);
        rollup.census = registry.census(now);
        let own = Presence { present: 1, ..Presence::default() };
        rollup.census.presence.entry(self.own.level()).or_default().merge(own);
        rollup.census.versions.add(self.version.clone(), 1);
        Some(rollup)
    }

    /// The direct child that speaks on `subject`, and the tokens behind its name.
    fn child_and_tail<'a>(&self, subject: &'a str) -> Option<(Path, &'a str)> {
        let speaker = Speaker::parse(subject)?;
        let Speaker::Agent(level, id) = &speaker else { return None };
        let child = self.own.child(id).filter(|child| child.level() == *level)?;
        Some((child, speaker.tail_of(subject)?))
    }
}

#[cfg(test)]
mod tests {
    use hierarchy::rollup::{Health, MAX_BYTES, Metric};

    use super::*;
    use crate::registry::Limits;

    const WALL: Millis = Millis(1_756_809_000_000);

    fn path(text: &str) -> Path {
        text.parse().unwrap()
    }

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn sample(cpu: f64, health: &str) -> Vec<u8> {
        format!(
            r#"{{"takenAt":1,"version":"1","health":"{health}","cpuPercent":{cpu},"uptimeSeconds":60,
                "memory":{{"usedBytes":1,"totalBytes":4}},"swap":{{"usedBytes":0,"totalBytes":0}}}}"#
        )
        .into_bytes()
    }

    /// A coordinator whose clocks stand at a whole number of seconds.
    struct Coordinator {
        registry: Registry,
        aggregator: Aggregator,
        second: u64,
    }

    impl Coordinator {
        fn at(own: &str) -> Coordinator {
            let aggregator = Aggregator::new(path(own), version("2"), DEFAULT_WINDOW, Duration::ZERO, WALL);
            let registry = Registry::new(path(own), Limits::default(), []).unwrap();
            Coordinator { registry, aggregator, second: 0 }
        }

        fn hear(&mut self, child: &str) {
            self.registry.seen(&path(child), Duration::from_secs(self.second), version("1")).unwrap();
        }

        fn arrives(&mut self, subject: &str, seq: u64, payload: &[u8]) -> Result<Arrival, AggregateError> {
            let place = Place { incarnation: 1, seq };
            self.aggregator.arrived(&mut self.registry, subject, place, payload)
        }

        fn tick(&mut self, second: u64) -> Option<Rollup> {
            self.second = second;
            let wall = WALL.plus(Duration::from_secs(second));
            self.aggregator.tick(Duration::from_secs(second), wall, &self.registry)
        }
    }

    #[test]
    fn a_cluster_makes_one_rollup_of_its_nodes_and_its_own_machine() {
        let mut cluster = Coordinator::at("s1/c1");
        cluster.hear("s1/c1/n1");
        cluster.hear("s1/c1/n2");
        for (node, cpu, health) in [("n1", 10.0, "ok"), ("n2", 30.0, "failing")] {
            let subject = format!("lucent.hierarchy.node.{node}.agent.telemetry");
            assert_eq!(cluster.arrives(&subject, 1, &sample(cpu, health)).unwrap(), Arrival::Counted);
        }
        cluster.aggregator.own_sample(&serde_json::from_slice(&sample(80.0, "ok")).unwrap());
        assert_eq!(cluster.tick(9), None);
        let rollup = cluster.tick(10).unwrap();
        assert_eq!((rollup.start, rollup.end), (WALL, WALL.plus(DEFAULT_WINDOW)));
        assert_eq!(rollup.health, Health::Failing);
        assert_eq!(rollup.samples, [(Level::Node, 2), (Level::Cluster, 1)].into());
        let cpu = &rollup.metrics[&Metric::CpuPercent];
        assert_eq!((cpu.count(), cpu.mean(), cpu.max()), (3, 40.0, 80.0));
        assert_eq!(rollup.census.presence[&Level::Node].present, 2);
        assert_eq!(rollup.census.presence[&Level::Cluster].present, 1);
        let versions: Vec<_> = rollup.census.versions.iter().collect();
        assert_eq!(versions, [(&version("1"), 2), (&version("2"), 1)]);
    }

    #[test]
    fn what_two_clusters_told_a_site_tells_the_core() {
        let mut site = Coordinator::at("s1");
        for cluster in ["c1", "c2"] {
            let mut below = Coordinator::at(&format!("s1/{cluster}"));
            for node in 1..=3 {
                below.hear(&format!("s1/{cluster}/n{node}"));
                let subject = format!("lucent.hierarchy.node.n{node}.agent.telemetry");
                below.arrives(&subject, 1, &sample(f64::from(node) * 10.0, "ok")).unwrap();
            }
            let rollup = serde_json::to_vec(&below.tick(10).unwrap()).unwrap();
            assert!(rollup.len() < MAX_BYTES);
            site.hear(&format!("s1/{cluster}"));
            let subject = format!("lucent.hierarchy.cluster.{cluster}.agent.rollup");
            // Two windows of the clusters fall into one of the site.
            for seq in [1, 2] {
                assert_eq!(site.arrives(&subject, seq, &rollup).unwrap(), Arrival::Counted);
            }
        }
        let rollup = site.tick(10).unwrap();
        assert_eq!(rollup.samples, [(Level::Node, 12)].into());
        assert_eq!(rollup.metrics[&Metric::CpuPercent].mean(), 20.0);
        // That makes two samples of each node, but not two nodes.
        let present = rollup.census.presence.iter().map(|(&level, presence)| (level, presence.present));
        assert_eq!(present.collect::<Vec<_>>(), [(Level::Node, 6), (Level::Cluster, 2), (Level::Site, 1)]);
        assert_eq!(rollup.census.versions.iter().map(|(_, agents)| agents).sum::<u64>(), 9);
    }

    #[test]
    fn a_child_whose_clock_is_wrong_does_not_move_the_window() {
        let mut site = Coordinator::at("s1");
        for (cluster, wrong) in [("c1", Millis(0)), ("c2", Millis(u64::MAX))] {
            let rollup = serde_json::to_vec(&Rollup::new(wrong, wrong)).unwrap();
            let subject = format!("lucent.hierarchy.cluster.{cluster}.agent.rollup");
            assert_eq!(site.arrives(&subject, 1, &rollup).unwrap(), Arrival::Counted);
        }
        let rollup = site.tick(10).unwrap();
        assert_eq!((rollup.start, rollup.end), (WALL, WALL.plus(DEFAULT_WINDOW)));
    }

    #[test]
    fn a_sample_that_was_counted_or_overtaken_does_not_count() {
        let mut cluster = Coordinator::at("s1/c1");
        let mut send = |place: (u64, u64)| {
            let place = Place { incarnation: place.0, seq: place.1 };
            let subject = "lucent.hierarchy.node.n1.agent.telemetry";
            let payload = sample(1.0, "ok");
            cluster.aggregator.arrived(&mut cluster.registry, subject, place, &payload).unwrap()
        };
        let told = [(7, 5), (7, 5), (7, 4), (7, 6), (3, 1), (3, 1)].map(&mut send);
        let (counted, repeated) = (Arrival::Counted, Arrival::Repeated);
        assert_eq!(told, [counted, repeated, repeated, counted, counted, repeated]);
        assert_eq!(cluster.tick(10).unwrap().samples[&Level::Node], 3);
        // Nor does it in the next window.
        let again = cluster.aggregator.arrived(
            &mut cluster.registry,
            "lucent.hierarchy.node.n1.agent.telemetry",
            Place { incarnation: 3, seq: 1 },
            &sample(1.0, "ok"),
        );
        assert_eq!(again.unwrap(), Arrival::Repeated);
    }

    #[test]
    fn what_is_not_for_this_level_is_left_alone() {
        let mut site = Coordinator::at("s1");
        for subject in [
            "lucent.hierarchy.node.n1.agent.telemetry",
            "lucent.hierarchy.cluster.c1.agent.telemetry",
            "lucent.hierarchy.cluster.c1.agent.rollup.x",
            "lucent.hierarchy.cluster.c1",
            "lucent.hierarchy.site.s1.agent.rollup",
            "lucent.hierarchy.global.agent.rollup",
            "lucent.events.domain.order.placed",
        ] {
            assert_eq!(site.arrives(subject, 1, b"{}").unwrap(), Arrival::NotForUs, "{subject}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_counts_nowhere() {
        let mut cluster = Coordinator::at("s1/c1");
        let subject = "lucent.hierarchy.node.n1.agent.telemetry";
        let error = cluster.arrives(subject, 1, b"{").unwrap_err();
        assert!(error.to_string().starts_with("s1/c1/n1 sent what is not a sample"), "{error}");
        let mut site = Coordinator::at("s1");
        let huge = vec![b' '; MAX_BYTES + 1];
        let error = site.arrives("lucent.hierarchy.cluster.c1.agent.rollup", 1, &huge).unwrap_err();
        assert!(matches!(error, AggregateError::BadRollup { .. }));
        assert!(cluster.tick(10).unwrap().samples.is_empty() && site.tick(10).unwrap().samples.is_empty());
    }

    #[test]
    fn a_child_beyond_the_limit_counts_nowhere() {
        let mut cluster = Coordinator::at("s1/c1");
        let limits = Limits { children: 1, ..Limits::default() };
        cluster.registry = Registry::new(path("s1/c1"), limits, [path("s1/c1/n1")]).unwrap();
        let error = cluster.arrives("lucent.hierarchy.node.n2.agent.telemetry", 1, &sample(1.0, "ok"));
        assert!(matches!(error, Err(AggregateError::Registry(_))));
        assert!(cluster.tick(10).unwrap().samples.is_empty());
    }

    #[test]
    fn windows_follow_each_other_without_a_gap_and_keep_step() {
        let mut core = Coordinator::at("global");
        let bounds = |rollup: Rollup| [rollup.start, rollup.end].map(|t| t.since(WALL).as_secs());
        assert_eq!(core.tick(11).map(bounds), Some([0, 11]));
        assert_eq!(core.tick(19), None);
        assert_eq!(core.tick(20).map(bounds), Some([11, 20]));
        assert_eq!(core.tick(57).map(bounds), Some([20, 57]));
        assert_eq!(core.tick(66), None);
        assert_eq!(core.tick(67).map(bounds), Some([57, 67]));
    }
}
