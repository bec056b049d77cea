//! Lanes: events of one lane keep their order, and a more urgent lane goes before a less urgent one.

use std::{
    fmt,
    ops::{Index, IndexMut},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// How urgent an event is: `metadata.priority` in an envelope, and the queue that it waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Overtakes everything. When full, new events are refused.
    Critical,
    /// What is not said to be otherwise. When full, the oldest events go.
    #[default]
    Normal,
    /// Waits for everything. When full, the oldest events go.
    Bulk,
}

impl Lane {
    /// All lanes, the most urgent first.
    pub const ALL: [Lane; 3] = [Lane::Critical, Lane::Normal, Lane::Bulk];

    /// The name, as in JSON and in subjects.
    pub const fn as_str(self) -> &'static str {
        match self {
            Lane::Critical => "critical",
            Lane::Normal => "normal",
            Lane::Bulk => "bulk",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a lane is critical, normal or bulk")]
pub struct NoLane;

impl FromStr for Lane {
    type Err = NoLane;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Lane::ALL.into_iter().find(|lane| lane.as_str() == s).ok_or(NoLane)
    }
}

/// One value for each lane. In JSON an object with the lanes' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByLane<T> {
    /// For [`Lane::Critical`].
    pub critical: T,
    /// For [`Lane::Normal`].
    pub normal: T,
    /// For [`Lane::Bulk`].
    pub bulk: T,
}

impl<T> ByLane<T> {
    /// Asks for the value of each lane in turn.
    pub fn new(mut value: impl FnMut(Lane) -> T) -> ByLane<T> {
        ByLane { critical: value(Lane::Critical), normal: value(Lane::Normal), bulk: value(Lane::Bulk) }
    }

    /// The lanes and their values, the most urgent first.
    pub fn iter(&self) -> impl Iterator<Item = (Lane, &T)> {
        Lane::ALL.into_iter().zip([&self.critical, &self.normal, &self.bulk])
    }

    /// The lanes and their values, the most urgent first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Lane, &mut T)> {
        Lane::ALL.into_iter().zip([&mut self.critical, &mut self.normal, &mut self.bulk])
    }

    /// What becomes of each value.
    pub fn map<U>(&self, mut change: impl FnMut(Lane, &T) -> U) -> ByLane<U> {
        ByLane::new(|lane| change(lane, &self[lane]))
    }
}

impl<T> Index<Lane> for ByLane<T> {
    type Output = T;

    fn index(&self, lane: Lane) -> &T {
        match lane {
            Lane::Critical => &self.critical,
            Lane::Normal => &self.normal,
            Lane::Bulk => &self.bulk,
        }
    }
}

impl<T> IndexMut<Lane> for ByLane<T> {
    fn index_mut(&mut self, lane: Lane) -> &mut T {
        match lane {
            Lane::Critical => &mut self.critical,
            Lane::Normal => &mut self.normal,
            Lane::Bulk => &mut self.bulk,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_build_what_they_parse_and_the_most_urgent_is_first() {
        for lane in Lane::ALL {
            assert_eq!(lane.to_string().parse(), Ok(lane));
            assert_eq!(serde_json::to_string(&lane).unwrap(), format!("\"{lane}\""));
        }
        assert_eq!("urgent".parse::<Lane>(), Err(NoLane));
        assert!(Lane::ALL.is_sorted());
    }

    #[test]
    fn each_lane_has_its_own_value() {
        let mut values = ByLane::new(|lane| lane as u8);
        values[Lane::Bulk] = 9;
        assert_eq!(values.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [0, 1, 9]);
        assert_eq!(values.map(|lane, _| lane), ByLane::new(|lane| lane));
    }
}
