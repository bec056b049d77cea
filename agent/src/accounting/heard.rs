//! Which agents can be heard: who is cut off cannot explain what is missing.

use std::{collections::HashMap, ops::Range, time::Duration};

use hierarchy::{Path, link::Tick};

/// Agents say something of themselves every few seconds. After so long a pause what one knows may still be on
/// its way when it is heard again.
const SILENT_AFTER: Duration = Duration::from_secs(60);

/// When each agent was heard.
#[derive(Debug, Default)]
pub(super) struct Heard(HashMap<Path, Span>);

#[derive(Debug, Clone, Copy)]
struct Span {
    since: Tick,
    last: Tick,
}

impl Heard {
    /// Something that this agent wrote has arrived. There are no more of them than the link tells apart.
    pub(super) fn hear(&mut self, agent: &Path, now: Tick) {
        match self.0.get_mut(agent) {
            Some(span) if now.saturating_sub(span.last) <= SILENT_AFTER => span.last = now,
            Some(span) => *span = Span { since: now, last: now },
            None => _ = self.0.insert(agent.clone(), Span { since: now, last: now }),
        }
    }

    /// From when to when an origin and all agents above it were heard without a long pause.
    pub(super) fn all_on_the_way(&self, origin: &Path, now: Tick) -> Option<Range<Tick>> {
        let mut heard = Tick::ZERO..now;
        let mut at = Some(origin.clone()).filter(|path| *path != Path::global());
        while let Some(path) = at {
            let span = self.0.get(&path)?;
            heard = heard.start.max(span.since)..heard.end.min(span.last);
            at = path.parent().filter(|path| *path != Path::global());
        }
        Some(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::from_secs(seconds)
    }

    #[test]
    fn a_way_is_heard_from_the_last_agent_that_came_back_to_the_first_that_fell_silent() {
        let [site, cluster, node] = ["s1", "s1/c1", "s1/c1/n1"].map(|text| text.parse::<Path>().unwrap());
        let mut heard = Heard::default();
        heard.hear(&site, at(1));
        heard.hear(&cluster, at(2));
        assert_eq!(heard.all_on_the_way(&node, at(3)), None, "the node was never heard");
        heard.hear(&node, at(5));
        heard.hear(&site, at(50));
        heard.hear(&node, at(55));
        assert_eq!(heard.all_on_the_way(&node, at(60)), Some(at(5)..at(2)), "the cluster is silent");
        heard.hear(&cluster, at(100));
        assert_eq!(heard.all_on_the_way(&node, at(101)), Some(at(100)..at(50)));
        assert_eq!(heard.all_on_the_way(&site, at(101)), Some(at(1)..at(50)));
        assert_eq!(heard.all_on_the_way(&Path::global(), at(500)), Some(at(0)..at(500)));
    }
}
