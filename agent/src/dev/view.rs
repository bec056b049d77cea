//! What `agent dev` shows while it runs, on standard error: progress, then a live tree.

use std::{collections::BTreeMap, time::Duration};

use hierarchy::{Level, Path};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{audit::Audit, fleet::Fleet, plan::Plan, traffic::Traffic};

/// Progress and tree. On anything but a terminal only the plain lines appear.
pub(super) struct View {
    screen: MultiProgress,
    lines: BTreeMap<Path, ProgressBar>,
    total: ProgressBar,
    published_before: BTreeMap<Path, u64>,
}

impl View {
    pub(super) fn new(plan: &Plan) -> View {
        let screen = MultiProgress::new();
        let waiting = ProgressStyle::with_template("{spinner} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let mut lines = BTreeMap::new();
        // In tree order: a parent stands before its children.
        let mut paths: Vec<&Path> = plan.agents.iter().map(|agent| &agent.path).collect();
        paths.sort();
        for path in paths {
            let line = screen.add(ProgressBar::new_spinner().with_style(waiting.clone()));
            line.set_message(format!("{}starting", label(path)));
            line.enable_steady_tick(Duration::from_millis(120));
            lines.insert(path.clone(), line);
        }
        let total = screen.add(ProgressBar::new_spinner().with_style(waiting));
        View { screen, lines, total, published_before: BTreeMap::new() }
    }

    pub(super) fn up(&self, path: &Path) {
        if let Some(line) = self.lines.get(path) {
            line.disable_steady_tick();
            line.set_message(format!("{}up", label(path)));
        }
    }

    pub(super) fn say_where_to_connect(&self, fleet: &Fleet) {
        let mut text = String::from("the mesh is up; connect any NATS client:\n");
        for agent in &fleet.plan.agents {
            if let Some(addresses) = fleet.addresses(&agent.path) {
                let path = agent.path.to_string();
                text.push_str(&format!(
                    "  {path:<10} nats://{:<22} http://{}/status\n",
                    addresses.nats, addresses.http
                ));
            }
        }
        text.push_str("  e.g. nats sub 'lucent.hierarchy.>' at global; Ctrl-C stops everything\n");
        self.screen.suspend(|| eprint!("{text}"));
    }

    /// One line an agent: state, rate, lag, refusals.
    pub(super) async fn refresh(&mut self, fleet: &Fleet, traffic: &Traffic, audit: &Audit) {
        let (sent, seen) = (traffic.so_far(), audit.so_far());
        for (path, line) in &self.lines {
            let Some(status) = fleet.status(path).await else {
                line.set_message(format!("{}does not answer", label(path)));
                continue;
            };
            let mut text = format!("{}{:<9}", label(path), format!("{:?}", status.health));
            if let Some(parent) = &status.parent {
                let link = if parent.open { "linked" } else { "CUT OFF" };
                text.push_str(&format!(" {link:<8} waiting {:<7}", parent.lag()));
            }
            if path.level() == Level::Node {
                let published = sent.events.get(path).copied().unwrap_or(0);
                let before = self.published_before.insert(path.clone(), published).unwrap_or(0);
                let rate = published.saturating_sub(before);
                let numbers = seen.origins.get(path).map_or(0, |numbers| numbers.in_order);
                text.push_str(&format!(" {rate:>6} ev/s  published {published:<8} at global {numbers}"));
            } else {
                text.push_str(&format!(" {} children", status.children.len()));
            }
            if status.refused > 0 {
                text.push_str(&format!("  refused {}", status.refused));
            }
            line.set_message(text);
        }
        self.total.set_message(format!(
            "tasks {} submitted, {} done, {} failed; latency {:.0} ms, 99 %: {:.0} ms",
            sent.tasks_submitted,
            sent.tasks_completed,
            sent.tasks_failed,
            seen.latency(0.5),
            seen.latency(0.99)
        ));
    }

    pub(super) fn end(&self) {
        for line in self.lines.values().chain([&self.total]) {
            line.abandon();
        }
        self.screen.suspend(|| eprintln!("publishing has stopped; waiting for what is under way"));
    }
}

/// The path, indented by its depth.
fn label(path: &Path) -> String {
    let indent = "  ".repeat(path.segments().len());
    format!("{:<16}", format!("{indent}{}", path.id()))
}
