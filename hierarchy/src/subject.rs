//! The subject scheme of DESIGN section 3: one value that builds *and* parses.

use std::fmt;

use crate::{
    lane::Lane,
    level::Level,
    path::{Id, Path},
};

/// What a message under `lucent.hierarchy.` speaks for: a level and the id of an agent there.
///
/// ```
/// use hierarchy::subject::Speaker;
/// let speaker = Speaker::parse("lucent.hierarchy.node.n1.ticks").unwrap();
/// assert_eq!(speaker.to_string(), "lucent.hierarchy.node.n1");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// `lucent.hierarchy.global`
    Global,
    /// `lucent.hierarchy.{level}.{id}` below global.
    Agent(Level, Id),
}

/// Everything that the HIERARCHY stream keeps.
pub const HIERARCHY_ALL: &str = "lucent.hierarchy.>";
/// Everything that the AGENT_COORDINATION stream keeps.
pub const AGENTS_ALL: &str = "lucent.agents.>";
/// Everything that the DEAD_LETTERS stream keeps.
pub const DEAD_LETTERS_ALL: &str = "lucent.deadletter.>";
/// What a parent's agent reads in its DOWN account: the words of all its children.
pub const LINK_UP_ALL: &str = "lucent.link.up.>";

/// What stands in front of every event's subject.
const HIERARCHY_PREFIX: &str = "lucent.hierarchy.";
/// Tail of the subject on which an agent publishes samples of its machine.
pub const TELEMETRY: &str = "agent.telemetry";
/// Tail of the subject on which an agent states what it dropped of the events on their way up.
pub const LOSS: &str = "agent.loss";
/// Tail of the subject on which a coordinator publishes what it made of its children's samples.
pub const ROLLUP: &str = "agent.rollup";
/// Tail of the subject on which an agent reports what came of a drill.
pub const DRILL: &str = "agent.drill";
/// Tail of the subject on which an agent tells what became of an order.
pub const ORDER: &str = "agent.order";
/// Tail of the subject on which a node tells how far a task is.
pub const TASK_PROGRESS: &str = "agent.task.progress";
/// Tail of the subject on which an agent makes sure that its store is sound again.
pub const FENCE: &str = "agent.fence";
/// Tail of the subject on which a node reports the outcome of a task.
pub const TASK_RESULT: &str = "agent.task.result";

impl Speaker {
    /// Who an agent at `path` speaks as.
    pub fn of(path: &Path) -> Speaker {
        match path.segments().last() {
            Some(id) => Speaker::Agent(path.level(), id.clone()),
            None => Speaker::Global,
        }
    }

    /// The speaker of a subject, or `None` where the subject is not of the hierarchy family.
    pub fn parse(subject: &str) -> Option<Speaker> {
        let mut tokens = subject.split('.');
        if (tokens.next(), tokens.next()) != (Some("lucent"), Some("hierarchy")) {
            return None;
        }
        let speaker = match tokens.next()?.parse().ok()? {
            Level::Global => Speaker::Global,
            level => Speaker::Agent(level, tokens.next()?.parse().ok()?),
        };
        // An empty or wildcard token is no subject to publish on.
        tokens.all(|t| !t.is_empty() && t != "*" && t != ">").then_some(speaker)
    }

    /// The level that it speaks at.
    pub fn level(&self) -> Level {
        match self {
            Speaker::Global => Level::Global,
            Speaker::Agent(level, _) => *level,
        }
    }

    /// This speaker's subject with further tokens behind it.
    pub fn with_tail(&self, tail: &str) -> String {
        format!("{self}.{tail}")
    }

    /// The tokens of `subject` behind this speaker's own: `Some("")` for the bare subject, `None`
    /// where another speaks.
    pub fn tail_of<'a>(&self, subject: &'a str) -> Option<&'a str> {
        // Asked for every event: no text is built to compare with.
        let rest = subject.strip_prefix(HIERARCHY_PREFIX)?;
        let rest = match self {
            Speaker::Global => rest.strip_prefix(Level::Global.as_str())?,
            Speaker::Agent(level, id) => {
                rest.strip_prefix(level.as_str())?.strip_prefix('.')?.strip_prefix(id.as_str())?
            }
        };
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
    }
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Speaker::Global => f.write_str("lucent.hierarchy.global"),
            Speaker::Agent(level, id) => write!(f, "lucent.hierarchy.{level}.{id}"),
        }
    }
}

/// Requests to publish, of all applications of a level.
pub const PUBLISH_ALL: &str = "lucent.publish.>";

/// The event's subject that a request on `lucent.publish.hierarchy.>` asks to publish on.
pub fn of_publish(subject: &str) -> Option<String> {
    subject.strip_prefix("lucent.publish.hierarchy.").map(|rest| format!("{HIERARCHY_PREFIX}{rest}"))
}

/// Everything that waits in a lane for the way up: `lucent.lane.{lane}.>`.
pub fn lane_all(lane: Lane) -> String {
    format!("lucent.lane.{lane}.>")
}

/// Where a level keeps the batches that it made of its own events, in this lane.
pub fn lane_own(lane: Lane) -> String {
    format!("lucent.lane.{lane}.own")
}

/// Where a level keeps the batches of the levels below, in this lane: the batch's own subject behind
/// `lucent.lane.{lane}.below.` in place of `lucent.hierarchy.`. `None` for other subjects.
pub fn lane_below(lane: Lane, subject: &str) -> Option<String> {
    let rest = subject.strip_prefix(HIERARCHY_PREFIX)?;
    Some(format!("lucent.lane.{lane}.below.{rest}"))
}

/// The subject of a batch of the levels below that is kept on this one; the inverse of [`lane_below`].
pub fn of_lane_below(lane: Lane, subject: &str) -> Option<String> {
    let rest = subject.strip_prefix("lucent.lane.")?.strip_prefix(lane.as_str())?;
    rest.strip_prefix(".below.").map(|rest| format!("{HIERARCHY_PREFIX}{rest}"))
}

/// Where an agent makes sure that nothing it sent before is still on its way into this lane.
pub fn lane_fence(lane: Lane) -> String {
    format!("lucent.lane.{lane}.fence")
}

/// Where the child at `path` speaks to its parent: `lucent.link.up.{level}.{id}`.
pub fn link_up(path: &Path) -> String {
    format!("lucent.link.up.{}.{}", path.level(), path.id())
}

/// Where the child at `path` hears its parent: `lucent.link.down.{level}.{id}`.
pub fn link_down(path: &Path) -> String {
    format!("lucent.link.down.{}.{}", path.level(), path.id())
}

/// Which direct child of `parent` speaks on a `lucent.link.up.` subject.
pub fn link_up_child(parent: &Path, subject: &str) -> Option<Path> {
    let (level, id) = subject.strip_prefix("lucent.link.up.")?.split_once('.')?;
    let child = parent.child(&id.parse().ok()?)?;
    (child.level().as_str() == level).then_some(child)
}

/// Where dead letters of `origin` go. The origin's slashes become dashes' place in one token each:
/// `s1/c1/n1` is `lucent.deadletter.s1.c1.n1`.
pub fn dead_letter(origin: &Path) -> String {
    format!("lucent.deadletter.{}", origin.to_string().replace('/', "."))
}

/// The two names in `lucent.agents.{agent_type}.{task}`; the task may have further tokens.
pub fn agent_task(subject: &str) -> Option<(&str, &str)> {
    let (agent_type, task) = subject.strip_prefix("lucent.agents.")?.split_once('.')?;
    let legal = |s: &str| s.split('.').all(|t| !t.is_empty() && t != "*" && t != ">");
    (legal(agent_type) && legal(task)).then_some((agent_type, task))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speakers_build_what_they_parse() {
        for text in ["lucent.hierarchy.global", "lucent.hierarchy.site.s1", "lucent.hierarchy.node.n1"] {
            assert_eq!(Speaker::parse(text).unwrap().to_string(), text);
            let longer = format!("{text}.a.b");
            let speaker = Speaker::parse(&longer).unwrap();
            assert_eq!(speaker.tail_of(&longer), Some("a.b"));
            assert_eq!(speaker.tail_of(text), Some(""));
        }
        for bad in [
            "lucent.hierarchy",
            "lucent.hierarchy.node",
            "lucent.hierarchy.node.N",
            "lucent.hierarchy.rack.r1",
            "lucent.hierarchy.node.n1.",
            "lucent.hierarchy.node.n1.*",
            "lucent.hierarchy.node.n1.>",
            "jobs.x",
        ] {
            assert_eq!(Speaker::parse(bad), None, "{bad}");
        }
        let n1 = Speaker::parse("lucent.hierarchy.node.n1").unwrap();
        assert_eq!(n1.tail_of("lucent.hierarchy.node.n10"), None);
    }

    #[test]
    fn a_link_subject_names_only_a_direct_child() {
        let cluster: Path = "s1/c1".parse().unwrap();
        let node: Path = "s1/c1/n1".parse().unwrap();
        assert_eq!(link_up_child(&cluster, &link_up(&node)), Some(node.clone()));
        assert_eq!(link_up_child(&Path::global(), &link_up(&node)), None);
        assert_eq!(link_up_child(&cluster, "lucent.link.up.node.n1.x"), None);
        assert_eq!(link_up_child(&node, "lucent.link.up.node.n1"), None);
    }

    #[test]
    fn agent_tasks_have_a_type_and_a_task() {
        assert_eq!(agent_task("lucent.agents.yield.analysis"), Some(("yield", "analysis")));
        assert_eq!(agent_task("lucent.agents.training.lstm.v2"), Some(("training", "lstm.v2")));
        for bad in ["lucent.agents.yield", "lucent.agents..x", "lucent.agents.a.", "lucent.agents.a.>"] {
            assert_eq!(agent_task(bad), None, "{bad}");
        }
    }
}
