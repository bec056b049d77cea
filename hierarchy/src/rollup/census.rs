//! Who is there, and what they run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Version;
use crate::Level;

/// How many versions a census names; agents of any other are counted without it.
pub const MAX_VERSIONS: usize = 12;

/// The agents of a subtree as last heard of, counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Census {
    /// Agents by level.
    #[serde(default)]
    pub presence: BTreeMap<Level, Presence>,
    /// Present agents by version.
    #[serde(default)]
    pub versions: Versions,
}

/// The agents of one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// Heard of lately.
    pub present: u64,
    /// Heard of before, but silent now, or behind one that is.
    pub absent: u64,
    /// Expected by configuration, but never heard of.
    pub never_seen: u64,
}

/// Agents by version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// The first [`MAX_VERSIONS`] versions in the order of their text.
    agents: BTreeMap<Version, u64>,
    /// Agents of all other versions.
    others: u64,
}

impl Census {
    /// Adds the agents of another subtree. Associative and commutative.
    pub fn merge(&mut self, other: &Census) {
        for (&level, presence) in &other.presence {
            self.presence.entry(level).or_default().merge(*presence);
        }
        self.versions.merge(&other.versions);
    }
}

impl Presence {
    /// Adds other agents.
    pub fn merge(&mut self, other: Presence) {
        self.present = self.present.saturating_add(other.present);
        self.absent = self.absent.saturating_add(other.absent);
        self.never_seen = self.never_seen.saturating_add(other.never_seen);
    }

    /// The same agents once nothing can be heard of them.
    pub fn cut_off(self) -> Presence {
        Presence { present: 0, absent: self.present.saturating_add(self.absent), never_seen: self.never_seen }
    }
}

impl Versions {
    /// Counts `agents` more of a version.
    pub fn add(&mut self, version: Version, agents: u64) {
        let count = self.agents.entry(version).or_default();
        *count = count.saturating_add(agents);
        self.bound();
    }

    /// Adds other agents. Associative and commutative in spite of the bound: a version is left out only
    /// where enough others stand before it, and those stand before it in every sum as well.
    pub fn merge(&mut self, other: &Versions) {
        for (version, &agents) in &other.agents {
            let count = self.agents.entry(version.clone()).or_default();
            *count = count.saturating_add(agents);
        }
        self.others = self.others.saturating_add(other.others);
        self.bound();
    }

    /// The named versions and how many agents run each.
    pub fn iter(&self) -> impl Iterator<Item = (&Version, u64)> {
        self.agents.iter().map(|(version, &agents)| (version, agents))
    }

    /// How many agents run any other version.
    pub fn others(&self) -> u64 {
        self.others
    }

    fn bound(&mut self) {
        while self.agents.len() > MAX_VERSIONS {
            let Some((_, agents)) = self.agents.pop_last() else { break };
            self.others = self.others.saturating_add(agents);
        }
    }
}
