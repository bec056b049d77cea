//! What an agent tells of itself: the shape of `/status`, and `agent status`.

use std::{fmt::Write as _, net::SocketAddr, path::Path as FilePath};

use coordinator::{
    ledger::{Report, Totals},
    registry::{ChildStatus, LinkState},
};
use hierarchy::{Level, Path, link::Skew, rollup::Health};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    broker::store::StoreState,
    link::{uplink::UplinkState, watchdog::Stuck},
    replicas::ReplicaState,
};

/// The tree as one agent sees it: itself, its parent, its children.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Where the agent stands.
    pub path: Path,
    /// Its level.
    pub level: Level,
    /// Its software version.
    pub version: String,
    /// Its nats-server's version.
    pub nats_server: String,
    /// How it fares.
    pub health: Health,
    /// Seconds since it was started.
    pub uptime_seconds: u64,
    /// Messages it has refused.
    pub refused: u64,
    /// How the own store fares.
    #[serde(default)]
    pub store: StoreState,
    /// The link to the parent; absent at global.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<UplinkState>,
    /// What is wrong with the link, where it does not come up though it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_stuck: Option<Stuck>,
    /// How the replicas of this path stand; absent where there is one agent alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaState>,
    /// Its direct children.
    pub children: Vec<ChildStatus>,
    /// Where it can be reached on this machine.
    pub addresses: Addresses,
}

/// Where an agent can be reached. Also written to `agent.json` in its state directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// The agent's process.
    pub pid: u32,
    /// Health, metrics and status.
    pub http: SocketAddr,
    /// Where applications connect to NATS.
    pub nats: String,
    /// The nats-server's own HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<SocketAddr>,
    /// Where children connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf: Option<SocketAddr>,
}

/// The file in the state directory that says where the agent listens.
pub const ADDRESS_FILE: &str = "agent.json";

/// Why a status could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// No agent has written its addresses there.
    #[error("no agent has run with the state directory {0}; name it with --state-dir, --config or --http")]
    NoAgent(String),
    /// It does not know.
    #[error(
        "the agent at {0} does not know what became of all events; ask the one at global, or again in a moment"
    )]
    NotThere(SocketAddr),
    /// It does not answer.
    #[error("the agent at {address} does not answer ({reason}); is it running?")]
    NoAnswer {
        /// Where it was asked.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
}

/// Where the agent with this state directory listens.
pub fn addresses(state_dir: &FilePath) -> Result<Addresses, StatusError> {
    let missing = || StatusError::NoAgent(state_dir.display().to_string());
    let text = std::fs::read(state_dir.join(ADDRESS_FILE)).map_err(|_| missing())?;
    serde_json::from_slice(&text).map_err(|_| missing())
}

/// Asks an agent for its status.
pub fn fetch(http: SocketAddr) -> Result<Status, StatusError> {
    ask(http, "status")
}

/// Asks an agent what became of all events.
pub fn fetch_losses(http: SocketAddr) -> Result<Report, StatusError> {
    ask(http, "losses")
}

fn ask<T: DeserializeOwned>(http: SocketAddr, what: &str) -> Result<T, StatusError> {
    let no_answer = |reason: String| StatusError::NoAnswer { address: http, reason };
    let config =
        ureq::Agent::config_builder().timeout_global(Some(std::time::Duration::from_secs(3))).build();
    let mut response =
        config.new_agent().get(format!("http://{http}/{what}")).call().map_err(|error| match error {
            ureq::Error::StatusCode(404) => StatusError::NotThere(http),
            error => no_answer(error.to_string()),
        })?;
    let body = response.body_mut().read_to_vec().map_err(|error| no_answer(error.to_string()))?;
    serde_json::from_slice(&body).map_err(|error| no_answer(error.to_string()))
}

impl Status {
    /// The status for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} {}  {:?}  agent {}  nats-server {}  up {} s  refused {}",
            self.level,
            self.path,
            self.health,
            self.version,
            self.nats_server,
            self.uptime_seconds,
            self.refused
        );
        for line in self.store.trouble.iter().chain(&self.store.warnings) {
            let _ = writeln!(text, "  store   {line}");
        }
        if let Some(parent) = &self.parent {
            let state = if parent.open { "up" } else { "down" };
            let version = parent.parent_version.as_deref().unwrap_or("-");
            let clock = apart(parent.clock);
            let _ = writeln!(text, "  parent  {state}  waiting {}  agent {version}{clock}", parent.lag());
        }
        if let Some(stuck) = &self.link_stuck {
            let _ = write!(text, "          stuck for {} s: {}", stuck.seconds, stuck.reason);
            let _ = match stuck.last_step {
                Some(step) => writeln!(text, "; last step: {}", step.as_str()),
                None => writeln!(text),
            };
        }
        if let Some(replica) = &self.replica {
            let role = if replica.acts { "acts" } else { "stands by" };
            let holder = replica.holder.as_deref().unwrap_or("nobody");
            let _ = writeln!(
                text,
                "  replica {} {role}  lease held by {holder}, epoch {}",
                replica.instance, replica.epoch
            );
        }
        if self.children.is_empty() {
            return text;
        }
        let _ = writeln!(
            text,
            "  {:<24} {:<8} {:<11} {:>10} {:>9}  {:<10} below",
            "child", "level", "state", "last seen", "lag", "version"
        );
        for child in &self.children {
            let _ = writeln!(text, "  {}", child_line(child));
        }
        text
    }
}

/// What became of all events, for people.
pub fn losses_to_text(report: &Report) -> String {
    let mut text = format!(
        "{:<28} {:<9} {:>12} {:>12} {:>10} {:>10} {:>10} {:>11}  lost because of\n",
        "origin", "lane", "published", "arrived", "policy", "lost", "in flight", "unaccounted"
    );
    let mut line = |name: &str, lane: &str, totals: &Totals| {
        let reasons: Vec<String> =
            totals.lost.iter().map(|(reason, events)| format!("{reason} {events}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{name:<28} {lane:<9} {:>12} {:>12} {:>10} {:>10} {:>10} {:>11}  {}",
            totals.published,
            totals.arrived,
            totals.policy,
            totals.lost_events(),
            totals.in_flight + totals.missing - totals.unaccounted.min(totals.missing),
            totals.unaccounted,
            reasons.join(", ")
        );
    };
    for row in &report.rows {
        line(&row.origin.to_string(), row.lane.as_str(), &row.totals);
    }
    for (lane, totals) in report.totals.iter() {
        line(&format!("all {} origins", report.origins), lane.as_str(), totals);
    }
    if report.left_out > 0 {
        let _ = writeln!(text, "{} more rows; --json has the same", report.left_out);
    }
    text
}

fn child_line(child: &ChildStatus) -> String {
    let state = match child.state {
        LinkState::NeverSeen => "never seen",
        LinkState::Up => "up",
        LinkState::Suspect => "suspect",
        LinkState::Absent => "absent",
    };
    let seen = child.last_seen_ms_ago.map_or("-".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
    let lag: u64 = child.lag.values().map(|lag| lag.events).sum();
    let version = child.version.as_ref().map_or("-", |version| version.as_str());
    let below: Vec<String> = child
        .descendants
        .iter()
        .map(|(level, seen)| {
            format!("{} of {} {level}", seen.present, seen.present + seen.absent + seen.never_seen)
        })
        .collect();
    let (path, level, below) = (child.path.to_string(), child.level, below.join(", "));
    format!("{path:<24} {:<8} {state:<11} {seen:>10} {lag:>9}  {version:<10} {below}", level.as_str())
        + &apart(child.clock)
}

/// Nothing is said of clocks that agree.
fn apart(clock: Option<Skew>) -> String {
    let said = |skew: Skew| format!("  clock differs by {:+.1} s", skew.ahead_seconds());
    clock.filter(Skew::is_apart).map_or_else(String::new, said)
}
