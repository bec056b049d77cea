//! What a run of `agent dev` comes to.

use std::fmt::Write as _;

use serde_json::json;

use super::{audit::Seen, fleet::Fleet, traffic::Sent};

/// The closing summary.
pub(super) struct Summary {
    agents: usize,
    levels: usize,
    published: u64,
    at_global: u64,
    verified: u64,
    rejected: u64,
    lost: u64,
    duplicated: u64,
    out_of_order: u64,
    sent: Sent,
    p50: f64,
    p99: f64,
    nats_server: String,
}

impl Summary {
    pub(super) async fn new(fleet: &Fleet, sent: &Sent, seen: &Seen) -> Summary {
        let mut rejected = seen.unverified;
        let mut nats_server = String::new();
        for agent in &fleet.plan.agents {
            if let Some(status) = fleet.status(&agent.path).await {
                rejected += status.refused;
                nats_server = status.nats_server;
            }
        }
        let levels: std::collections::BTreeSet<_> =
            fleet.plan.agents.iter().map(|a| a.path.level()).collect();
        Summary {
            agents: fleet.plan.agents.len(),
            levels: levels.len(),
            published: sent.events.values().sum(),
            at_global: seen.origins.values().map(|numbers| numbers.count - numbers.doubled).sum(),
            verified: seen.origins.values().map(|numbers| numbers.count).sum(),
            rejected,
            lost: sent.events.iter().map(|(node, published)| seen.missing(node, *published)).sum(),
            duplicated: seen.origins.values().map(|numbers| numbers.doubled).sum(),
            out_of_order: seen.origins.values().map(|numbers| numbers.out_of_order).sum(),
            sent: sent.clone(),
            p50: seen.latency(0.5),
            p99: seen.latency(0.99),
            nats_server,
        }
    }

    /// Whether nothing was lost, doubled, out of order or rejected, and something was published at all.
    pub(super) fn is_sound(&self) -> bool {
        self.published > 0 && self.lost + self.duplicated + self.rejected + self.out_of_order == 0
    }

    pub(super) fn to_json(&self) -> String {
        let Summary {
            agents,
            levels,
            published,
            at_global,
            verified,
            rejected,
            lost,
            duplicated,
            sent,
            p50,
            p99,
            nats_server,
            ..
        } = self;
        json!({
            "agents": agents,
            "levels": levels,
            "events": { "published": published, "at_global": at_global, "verified": verified, "rejected": rejected,
                        "lost": lost, "duplicated": duplicated },
            "tasks": { "submitted": sent.tasks_submitted, "completed": sent.tasks_completed, "failed": sent.tasks_failed },
            "latency_ms": { "p50": p50, "p99": p99 },
            "nats_server": nats_server,
        })
        .to_string()
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} agents on {} levels, nats-server {}",
            self.agents, self.levels, self.nats_server
        );
        let _ = writeln!(
            text,
            "events   {} published, {} at global, {} lost, {} duplicated, {} rejected",
            self.published, self.at_global, self.lost, self.duplicated, self.rejected
        );
        let _ = writeln!(
            text,
            "tasks    {} submitted, {} completed, {} failed",
            self.sent.tasks_submitted, self.sent.tasks_completed, self.sent.tasks_failed
        );
        let _ = writeln!(text, "latency  {:.0} ms in the middle, {:.0} ms for 99 of 100", self.p50, self.p99);
        text
    }
}
