//! The direct children of an agent: which there are, whether they are heard of, how far they lag.
//!
//! A child's state follows from when it was last heard of and what time it is, and from nothing else; so
//! it cannot be out of date, whatever was missed. Time is a monotonic clock's, since a step of the wall clock
//! must not lose a child or keep one.

use std::{collections::BTreeMap, time::Duration};

use hierarchy::{
    Lane, Level, Path,
    link::{Skew, Tick},
    rollup::{Census, Presence, Version},
};
use serde::{Deserialize, Serialize};

/// How long silence means what, and how many children there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A child that is silent for this long is suspect.
    pub suspect_after: Duration,
    /// A child that is silent for this long is absent.
    pub absent_after: Duration,
    /// Most children, configured or seen.
    pub children: usize,
}

impl Limits {
    /// For children that speak once in each `interval`: suspect after two intervals of silence, absent
    /// after three.
    pub fn of_interval(interval: Duration) -> Limits {
        Limits { suspect_after: interval * 2, absent_after: interval * 3, children: 10_000 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::of_interval(Duration::from_secs(5))
    }
}

/// Whether a child is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LinkState {
    /// Known by configuration alone.
    NeverSeen,
    /// Heard of lately.
    Up,
    /// Silent for longer than it should be; still counted as present.
    Suspect,
    /// Silent for so long that it is taken to be cut off or down.
    Absent,
}

/// How much of a child's lane the parent does not have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lag {
    /// Events.
    pub events: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Something that changed about a child since the tick before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    /// It is heard of for the first time.
    ChildAppeared {
        /// Who.
        child: Path,
        /// What it runs.
        version: Version,
    },
    /// It has fallen silent.
    ChildSuspect {
        /// Who.
        child: Path,
        /// For how long.
        silent_ms: u64,
    },
    /// It has been silent for so long that it is taken to be absent.
    ChildLost {
        /// Who.
        child: Path,
        /// For how long.
        silent_ms: u64,
    },
    /// It is heard of again after silence.
    ChildReturned {
        /// Who.
        child: Path,
        /// What it runs.
        version: Version,
    },
}

/// A child as `agent status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChildStatus {
    /// Where it stands.
    pub path: Path,
    /// Its level.
    pub level: Level,
    /// Whether it is heard of.
    pub state: LinkState,
    /// How long ago it was last heard of; absent where it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_ms_ago: Option<u64>,
    /// What it runs, as last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// What it has and this agent has not, by lane.
    pub lag: BTreeMap<Lane, Lag>,
    /// How far its clock is ahead of this agent's, as it told last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Skew>,
    /// The agents below it, by level, as its last roll-up told.
    pub descendants: BTreeMap<Level, Presence>,
}

/// Why the registry does not take something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// It stands elsewhere in the tree.
    #[error("{child} is no direct child of {parent}: an agent knows only the level right below it")]
    NotAChild {
        /// Whose registry it is.
        parent: Path,
        /// Who is not its child.
        child: Path,
    },
    /// There are too many.
    #[error("{child} is refused: there are already {limit} children; forget some or raise the limit")]
    TooMany {
        /// Who finds no room.
        child: Path,
        /// How many there may be.
        limit: usize,
    },
}

/// The direct children of one agent.
#[derive(Debug)]
pub struct Registry {
    own: Path,
    limits: Limits,
    children: BTreeMap<Path, Child>,
}

#[derive(Debug)]
struct Child {
    seen: Option<Seen>,
    /// The state that the last tick reported.
    reported: LinkState,
    lag: BTreeMap<Lane, Lag>,
    /// How far its clock is ahead.
    clock: Option<Skew>,
    /// What its last roll-up told of itself and those below.
    census: Option<Census>,
}

#[derive(Debug)]
struct Seen {
    at: Tick,
    version: Version,
}

impl Child {
    fn state(&self, limits: Limits, now: Tick) -> LinkState {
        match &self.seen {
            None => LinkState::NeverSeen,
            Some(seen) => match now.saturating_sub(seen.at) {
                silent if silent >= limits.absent_after => LinkState::Absent,
                silent if silent >= limits.suspect_after => LinkState::Suspect,
                _ => LinkState::Up,
            },
        }
    }
}

impl Registry {
    /// The registry of the agent at `own`, which expects the `configured` children.
    pub fn new(
        own: Path,
        limits: Limits,
        configured: impl IntoIterator<Item = Path>,
    ) -> Result<Registry, RegistryError> {
        let mut registry = Registry { own, limits, children: BTreeMap::new() };
        for child in configured {
            registry.child(&child)?;
        }
        Ok(registry)
    }

    /// Whose children these are.
    pub fn own(&self) -> &Path {
        &self.own
    }

    /// Whether `child` is configured or was seen.
    pub fn knows(&self, child: &Path) -> bool {
        self.children.contains_key(child)
    }

    /// A child was heard of: any verified message of its own will do. Makes it known where it was not.
    pub fn seen(&mut self, child: &Path, now: Tick, version: Version) -> Result<(), RegistryError> {
        self.child(child)?.seen = Some(Seen { at: now, version });
        Ok(())
    }

    /// How much a child still has to send in one lane.
    pub fn lags(&mut self, child: &Path, lane: Lane, lag: Lag) -> Result<(), RegistryError> {
        self.child(child)?.lag.insert(lane, lag);
        Ok(())
    }

    /// A child has found how far its clock is ahead of this agent's; whether the clocks were apart before.
    pub fn clock(&mut self, child: &Path, skew: Skew) -> Result<bool, RegistryError> {
        let before = self.child(child)?.clock.replace(skew);
        Ok(before.is_some_and(|before| before.is_apart()))
    }

    /// A child's roll-up told who is there: itself and those below it. What it tells of any higher level
    /// is not its to tell.
    pub fn reported(&mut self, child: &Path, mut census: Census) -> Result<(), RegistryError> {
        census.presence.retain(|&level, _| level < child.level());
        self.child(child)?.census = Some(census);
        Ok(())
    }

    /// Makes a child known that has not been heard of on its link yet.
    pub(crate) fn admit(&mut self, child: &Path) -> Result<(), RegistryError> {
        self.child(child).map(|_| ())
    }

    /// Strikes a child off, for one that has been taken away. A child that speaks again is known again.
    pub fn forget(&mut self, child: &Path) -> bool {
        self.children.remove(child).is_some()
    }

    /// What has changed since the tick before.
    pub fn tick(&mut self, now: Tick) -> Vec<Event> {
        let limits = self.limits;
        let changed = self.children.iter_mut().filter_map(|(path, child)| {
            let state = child.state(limits, now);
            let before = std::mem::replace(&mut child.reported, state);
            let seen = child.seen.as_ref().filter(|_| before != state)?;
            let child = path.clone();
            let silent_ms = millis(now.saturating_sub(seen.at));
            let version = seen.version.clone();
            Some(match (before, state) {
                (_, LinkState::Suspect) => Event::ChildSuspect { child, silent_ms },
                (_, LinkState::Absent) => Event::ChildLost { child, silent_ms },
                (LinkState::NeverSeen, _) => Event::ChildAppeared { child, version },
                (_, _) => Event::ChildReturned { child, version },
            })
        });
        changed.collect()
    }

    /// Who is there below this agent, itself not counted. Those behind an absent child count as absent:
    /// nothing can be heard of them.
    pub fn census(&self, now: Tick) -> Census {
        let mut census = Census::default();
        for (path, child) in &self.children {
            let state = child.state(self.limits, now);
            let present = matches!(state, LinkState::Up | LinkState::Suspect);
            let own = Presence {
                present: u64::from(present),
                absent: u64::from(state == LinkState::Absent),
                never_seen: u64::from(state == LinkState::NeverSeen),
            };
            census.presence.entry(path.level()).or_default().merge(own);
            match (&child.census, &child.seen) {
                (Some(told), _) if present => census.merge(told),
                (Some(told), _) => {
                    for (&level, below) in &told.presence {
                        census.presence.entry(level).or_default().merge(below.cut_off());
                    }
                }
                // It speaks for itself alone, as a node does, or has not told of those below yet.
                (None, Some(seen)) if present => census.versions.add(seen.version.clone(), 1),
                (None, _) => {}
            }
        }
        census
    }

    /// All children, in order of their paths.
    pub fn statuses(&self, now: Tick) -> impl Iterator<Item = ChildStatus> {
        self.children.iter().map(move |(path, child)| ChildStatus {
            path: path.clone(),
            level: path.level(),
            state: child.state(self.limits, now),
            last_seen_ms_ago: child.seen.as_ref().map(|seen| millis(now.saturating_sub(seen.at))),
            version: child.seen.as_ref().map(|seen| seen.version.clone()),
            lag: child.lag.clone(),
            clock: child.clock,
            descendants: child.census.as_ref().map(|census| census.presence.clone()).unwrap_or_default(),
        })
    }

    /// The entry of a direct child, made where there is none.
    fn child(&mut self, path: &Path) -> Result<&mut Child, RegistryError> {
        if path.parent().as_ref() != Some(&self.own) {
            return Err(RegistryError::NotAChild { parent: self.own.clone(), child: path.clone() });
        }
        let limit = self.limits.children;
        if !self.knows(path) && self.children.len() >= limit {
            return Err(RegistryError::TooMany { child: path.clone(), limit });
        }
        Ok(self.children.entry(path.clone()).or_insert_with(|| Child {
            seen: None,
            reported: LinkState::NeverSeen,
            lag: BTreeMap::new(),
            clock: None,
            census: None,
        }))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        text.parse().unwrap()
    }

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> Tick {
        Duration::from_secs(seconds)
    }

    /// Silence of 10 s is suspect, of 15 s absence.
    fn cluster() -> Registry {
        Registry::new(path("s1/c1"), Limits::default(), [path("s1/c1/n1")]).unwrap()
    }

    fn state(registry: &Registry, child: &str, now: Tick) -> LinkState {
        registry.statuses(now).find(|status| status.path == path(child)).unwrap().state
    }

    fn presence(present: u64, absent: u64, never_seen: u64) -> Presence {
        Presence { present, absent, never_seen }
    }

    #[test]
    fn a_child_that_is_silent_for_three_intervals_is_absent() {
        let mut registry = cluster();
        let n1 = path("s1/c1/n1");
        assert_eq!(state(&registry, "s1/c1/n1", at(100)), LinkState::NeverSeen);
        registry.seen(&n1, at(100), version("0.1.0")).unwrap();
        for (second, expected) in [
            (100, LinkState::Up),
            (109, LinkState::Up),
            (110, LinkState::Suspect),
            (114, LinkState::Suspect),
            (115, LinkState::Absent),
        ] {
            assert_eq!(state(&registry, "s1/c1/n1", at(second)), expected, "at {second} s");
        }
    }

    #[test]
    fn each_change_is_told_once() {
        let mut registry = cluster();
        let child = path("s1/c1/n1");
        let version = version("0.1.0");
        assert_eq!(registry.tick(at(0)), []);
        registry.seen(&child, at(1), version.clone()).unwrap();
        let appeared = Event::ChildAppeared { child: child.clone(), version: version.clone() };
        assert_eq!(registry.tick(at(1)), [appeared]);
        registry.seen(&child, at(2), version.clone()).unwrap();
        assert_eq!(registry.tick(at(2)), []);
        assert_eq!(registry.tick(at(12)), [Event::ChildSuspect { child: child.clone(), silent_ms: 10_000 }]);
        assert_eq!(registry.tick(at(13)), []);
        assert_eq!(registry.tick(at(17)), [Event::ChildLost { child: child.clone(), silent_ms: 15_000 }]);
        assert_eq!(registry.tick(at(18)), []);
        registry.seen(&child, at(20), version.clone()).unwrap();
        assert_eq!(registry.tick(at(20)), [Event::ChildReturned { child, version }]);
    }

    #[test]
    fn only_a_direct_child_is_taken() {
        let mut site = Registry::new(path("s1"), Limits::default(), []).unwrap();
        for stranger in ["s1/c1/n1", "s1", "global", "s2", "s2/c1"] {
            let refused = site.seen(&path(stranger), at(0), version("1"));
            assert!(matches!(refused, Err(RegistryError::NotAChild { .. })), "{stranger}");
        }
        assert!(site.seen(&path("s1/c1"), at(0), version("1")).is_ok());
        assert!(Registry::new(path("s1/c1/n1"), Limits::default(), [path("s1/c1")]).is_err());
    }

    #[test]
    fn there_are_no_more_children_than_the_limit_until_one_is_forgotten() {
        let limits = Limits { children: 2, ..Limits::default() };
        let mut registry = Registry::new(path("s1/c1"), limits, [path("s1/c1/n1")]).unwrap();
        registry.seen(&path("s1/c1/n2"), at(0), version("1")).unwrap();
        let third = path("s1/c1/n3");
        let refused = RegistryError::TooMany { child: third.clone(), limit: 2 };
        assert_eq!(registry.seen(&third, at(0), version("1")), Err(refused));
        assert!(registry.seen(&path("s1/c1/n1"), at(0), version("1")).is_ok());
        assert!(registry.forget(&path("s1/c1/n2")));
        assert!(registry.seen(&third, at(0), version("1")).is_ok());
    }

    #[test]
    fn those_behind_an_absent_child_count_as_absent() {
        let mut site = Registry::new(path("s1"), Limits::default(), [path("s1/c2")]).unwrap();
        let c1 = path("s1/c1");
        site.seen(&c1, at(0), version("2")).unwrap();
        assert_eq!(site.census(at(0)).versions.iter().collect::<Vec<_>>(), [(&version("2"), 1)]);

        let mut told = Census::default();
        told.presence.insert(Level::Node, presence(5, 1, 2));
        // Its own level and those above are known better here.
        told.presence.insert(Level::Cluster, presence(1, 0, 0));
        told.presence.insert(Level::Global, presence(99, 0, 0));
        told.versions.add(version("1"), 5);
        told.versions.add(version("2"), 1);
        site.reported(&c1, told).unwrap();

        let census = site.census(at(1));
        let expected = [(Level::Node, presence(5, 1, 2)), (Level::Cluster, presence(1, 0, 1))];
        assert_eq!(census.presence, expected.into());
        assert_eq!(census.versions.iter().map(|(_, agents)| agents).sum::<u64>(), 6);

        let census = site.census(at(60));
        let expected = [(Level::Node, presence(0, 6, 2)), (Level::Cluster, presence(0, 1, 1))];
        assert_eq!(census.presence, expected.into());
        assert_eq!(census.versions.iter().count(), 0);
    }

    #[test]
    fn the_status_of_a_child_in_json() {
        let mut site = Registry::new(path("s1"), Limits::default(), []).unwrap();
        let c1 = path("s1/c1");
        site.seen(&c1, at(1), version("0.1.0")).unwrap();
        site.lags(&c1, Lane::Bulk, Lag { events: 3, bytes: 700 }).unwrap();
        let status: Vec<_> = site.statuses(at(3)).collect();
        let expected = serde_json::json!([{
            "path": "s1/c1", "level": "cluster", "state": "up", "lastSeenMsAgo": 2000, "version": "0.1.0",
            "lag": {"bulk": {"events": 3, "bytes": 700}}, "descendants": {},
        }]);
        assert_eq!(serde_json::to_value(status).unwrap(), expected);
    }
}
