//! The four levels of the mesh.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where in the tree an agent stands: `node` < `cluster` < `site` < `global`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Edge hardware: the leaves of the tree.
    Node,
    /// A rack or a plant.
    Cluster,
    /// A region.
    Site,
    /// The core; there is one.
    Global,
}

/// A word that names no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a level: use node, cluster, site or global")]
pub struct UnknownLevel(pub String);

impl Level {
    /// All levels, lowest first.
    pub const ALL: [Level; 4] = [Level::Node, Level::Cluster, Level::Site, Level::Global];

    /// The level's name as it stands in subjects, configuration and envelopes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Node => "node",
            Level::Cluster => "cluster",
            Level::Site => "site",
            Level::Global => "global",
        }
    }

    /// How many segments the path of an agent at this level has: 0 at global, 3 at node.
    pub const fn depth(self) -> usize {
        match self {
            Level::Global => 0,
            Level::Site => 1,
            Level::Cluster => 2,
            Level::Node => 3,
        }
    }

    /// The level whose paths have `depth` segments.
    pub const fn at_depth(depth: usize) -> Option<Level> {
        match depth {
            0 => Some(Level::Global),
            1 => Some(Level::Site),
            2 => Some(Level::Cluster),
            3 => Some(Level::Node),
            _ => None,
        }
    }

    /// The level above, unless this is the top.
    pub const fn parent(self) -> Option<Level> {
        match self {
            Level::Node => Some(Level::Cluster),
            Level::Cluster => Some(Level::Site),
            Level::Site => Some(Level::Global),
            Level::Global => None,
        }
    }

    /// The level below, unless this is the bottom.
    pub const fn child(self) -> Option<Level> {
        match self {
            Level::Node => None,
            Level::Cluster => Some(Level::Node),
            Level::Site => Some(Level::Cluster),
            Level::Global => Some(Level::Site),
        }
    }

    /// The levels below this one, nearest first.
    pub fn below(self) -> impl Iterator<Item = Level> {
        std::iter::successors(self.child(), |level| level.child())
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Level::ALL.into_iter().find(|level| level.as_str() == s).ok_or_else(|| UnknownLevel(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_and_child_are_inverse_and_depth_agrees() {
        for level in Level::ALL {
            assert_eq!(Level::at_depth(level.depth()), Some(level));
            assert_eq!(level.as_str().parse::<Level>(), Ok(level));
            if let Some(parent) = level.parent() {
                assert_eq!(parent.child(), Some(level));
                assert_eq!(parent.depth() + 1, level.depth());
                assert!(parent > level);
            }
        }
        assert_eq!(Level::Site.below().collect::<Vec<_>>(), [Level::Cluster, Level::Node]);
        assert!("Node".parse::<Level>().is_err());
    }
}
