//! Paths: where an agent stands in the tree. Parsed once, then trusted.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::level::Level;

/// One segment of a path: `[a-z0-9_-]{1,63}`, so that it is one token of a NATS subject, one label
/// of a DNS name and one segment of a SPIFFE id, unchanged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(Arc<str>);

/// Why a text is not an [`Id`] or a [`Path`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A segment breaks the rule `[a-z0-9_-]{1,63}`.
    #[error("id `{0}` is refused: an id has 1 to 63 characters of a-z, 0-9, `_` and `-`")]
    BadId(String),
    /// More segments than there are levels.
    #[error("path `{0}` is refused: a path has at most 3 segments, as in site/cluster/node")]
    TooDeep(String),
}

impl Id {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = PathError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        if (1..=63).contains(&s.len()) && s.bytes().all(legal) {
            Ok(Id(s.into()))
        } else {
            // Refusals travel in logs and dead letters: an attacker must not choose their size.
            Err(PathError::BadId(s.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for Id {
    type Error = PathError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an agent stands: empty at global, `s1` for a site, `s1/c1` for a cluster, `s1/c1/n1` for a
/// node. Its text form is the segments joined by `/`, and `global` for the empty path.
///
/// ```
/// use hierarchy::{Level, Path};
/// let node: Path = "s1/c1/n1".parse()?;
/// assert_eq!(node.level(), Level::Node);
/// assert_eq!(node.parent().unwrap().to_string(), "s1/c1");
/// assert_eq!(Path::global().to_string(), "global");
/// # Ok::<(), hierarchy::PathError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Path(Vec<Id>);

impl Path {
    /// The path of the core.
    pub const fn global() -> Path {
        Path(Vec::new())
    }

    /// The path of these segments, outermost first.
    pub fn from_segments(segments: Vec<Id>) -> Result<Path, PathError> {
        match Level::at_depth(segments.len()) {
            Some(_) => Ok(Path(segments)),
            None => {
                let joined: Vec<_> = segments.iter().take(5).map(Id::as_str).collect();
                Err(PathError::TooDeep(joined.join("/")))
            }
        }
    }

    /// The level that stands at this depth.
    pub fn level(&self) -> Level {
        Level::at_depth(self.0.len()).unwrap_or(Level::Node)
    }

    /// The segments, outermost first.
    pub fn segments(&self) -> &[Id] {
        &self.0
    }

    /// The last segment: what stands in subjects. `global` at the top.
    pub fn id(&self) -> &str {
        self.0.last().map_or("global", Id::as_str)
    }

    /// The path directly above, unless this is the core's.
    pub fn parent(&self) -> Option<Path> {
        let (_, above) = self.0.split_last()?;
        Some(Path(above.to_vec()))
    }

    /// The path of the child `id`, unless this is a node's.
    pub fn child(&self, id: &Id) -> Option<Path> {
        self.level().child()?;
        let mut segments = self.0.clone();
        segments.push(id.clone());
        Some(Path(segments))
    }

    /// Whether `other` is this path or stands below it.
    pub fn contains(&self, other: &Path) -> bool {
        other.0.starts_with(&self.0)
    }

    /// The direct child of this path that `descendant` is or stands below.
    pub fn child_towards(&self, descendant: &Path) -> Option<Path> {
        let depth = self.0.len() + 1;
        (self.contains(descendant) && descendant.0.len() >= depth)
            .then(|| Path(descendant.0[..depth].to_vec()))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("global");
        }
        for (i, segment) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("/")?;
            }
            f.write_str(segment.as_str())?;
        }
        Ok(())
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s == "global" {
            return Ok(Path::global());
        }
        // One segment more than any level has is enough to see that there are too many.
        let segments = s.split('/').take(4).map(Id::from_str).collect::<Result<Vec<_>, _>>()?;
        Path::from_segments(segments)
    }
}

impl TryFrom<String> for Path {
    type Error = PathError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Path> for String {
    fn from(path: Path) -> Self {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside_the_alphabet_are_refused() {
        let long = "a".repeat(64);
        for bad in ["", "A", "a.b", "a b", "*", ">", "..", "é", "a/b", "%2e", "n1\0", "\u{0430}", &long] {
            assert!(bad.parse::<Id>().is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "n-1", "gpu_07", "0", &"a".repeat(63)] {
            assert!(good.parse::<Id>().is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn paths_round_trip_and_know_their_relatives() {
        for text in ["global", "s1", "s1/c1", "s1/c1/n1"] {
            assert_eq!(text.parse::<Path>().unwrap().to_string(), text);
        }
        for bad in ["", "/", "s1/", "/s1", "s1//n1", "s1/c1/n1/x", "s1/../n1"] {
            assert!(bad.parse::<Path>().is_err(), "{bad:?} was accepted");
        }
        let (site, node): (Path, Path) = ("s1".parse().unwrap(), "s1/c1/n1".parse().unwrap());
        assert!(site.contains(&node) && !node.contains(&site));
        assert_eq!(site.child_towards(&node).unwrap().to_string(), "s1/c1");
        assert_eq!(node.child_towards(&node), None);
        assert_eq!(Path::global().child_towards(&node), Some(site));
    }
}
