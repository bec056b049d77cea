//! Which lane an event goes in: what the publisher says, else what the configuration says, else normal.

use async_nats::HeaderMap;
use coordinator::Pattern;
use hierarchy::{Lane, subject};
use serde::Deserialize;

/// The header in which a publisher names the lane.
const PRIORITY: &str = "Lucent-Priority";
/// Where an event is itself an envelope, its `metadata.priority` names the lane. This is how such an
/// event must look for it to be read for that.
const HINT: &[u8] = b"\"priority\"";

/// An ordered list of subject patterns; the first that matches decides.
#[derive(Debug, Clone, Default)]
pub struct LaneRules(Vec<(Pattern, Lane)>);

#[derive(Deserialize)]
struct Envelope {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    priority: Lane,
}

impl LaneRules {
    /// The rules, in order.
    pub fn new(rules: Vec<(Pattern, Lane)>) -> LaneRules {
        LaneRules(rules)
    }

    /// The lane of an event.
    pub fn lane_of(&self, subject: &str, headers: Option<&HeaderMap>, data: &[u8]) -> Lane {
        if subject.ends_with(subject::LOSS) {
            return Lane::Critical;
        }
        let said = headers.and_then(|headers| headers.get(PRIORITY)).map(|value| value.as_str().parse());
        if let Some(Ok(lane)) = said {
            return lane;
        }
        if memchr::memmem::find(data, HINT).is_some()
            && let Ok(envelope) = serde_json::from_slice::<Envelope>(data)
        {
            return envelope.metadata.priority;
        }
        let matching = self.0.iter().find(|(pattern, _)| pattern.matches(subject));
        matching.map_or(Lane::Normal, |(_, lane)| *lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> LaneRules {
        LaneRules::new(vec![
            ("lucent.hierarchy.*.*.alerts.>".parse().unwrap(), Lane::Critical),
            ("lucent.hierarchy.*.*.logs.>".parse().unwrap(), Lane::Bulk),
        ])
    }

    #[test]
    fn the_publisher_decides_before_the_subject_and_the_subject_before_the_default() {
        let rules = rules();
        let lane = |subject: &str, header: Option<&str>, data: &str| {
            let headers = header.map(|lane| {
                let mut headers = HeaderMap::new();
                headers.insert(PRIORITY, lane);
                headers
            });
            rules.lane_of(&format!("lucent.hierarchy.node.n1.{subject}"), headers.as_ref(), data.as_bytes())
        };
        assert_eq!(lane("ticks", None, "{}"), Lane::Normal);
        assert_eq!(lane("alerts.fire", None, "{}"), Lane::Critical);
        assert_eq!(lane("logs.x", None, "not json"), Lane::Bulk);
        assert_eq!(lane("logs.x", Some("critical"), "{}"), Lane::Critical);
        assert_eq!(lane("logs.x", Some("at once"), "{}"), Lane::Bulk);
        assert_eq!(lane("ticks", None, r#"{"metadata":{"priority":"bulk"}}"#), Lane::Bulk);
        assert_eq!(lane("logs.x", None, r#"{"metadata":{"priority":"high"}}"#), Lane::Bulk);
        assert_eq!(lane("ticks", None, r#"{"priority":1}"#), Lane::Normal);
        assert_eq!(lane("agent.loss", Some("bulk"), "{}"), Lane::Critical);
    }
}
