//! What global says became of all events, as operators ask for it.

use std::time::Duration;

use coordinator::ledger::{Report, Totals};
use hierarchy::{Lane, loss::LossReason};

use crate::{Mesh, path, program};

const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

/// `agent status --loss --json` of global, or why there is no answer, as in the first moment of an agent.
pub async fn report(mesh: &Mesh) -> Result<Report, String> {
    let state = mesh.agent(&path("global")).state.display().to_string();
    let args = ["status", "--loss", "--json", "--state-dir", &state];
    let ended = program::run(&mut program::agent_command(args), ANSWERED_WITHIN).await;
    match ended.code {
        Some(0) => Ok(serde_json::from_str(&ended.stdout).expect("a report is JSON")),
        _ => Err(ended.stderr),
    }
}

/// What became of the events of an origin's lane. It must add up, always.
pub async fn of(mesh: &Mesh, origin: &str, lane: Lane) -> Result<Totals, String> {
    let report = report(mesh).await?;
    let row = report.rows.into_iter().find(|row| row.origin == path(origin) && row.lane == lane);
    let totals = row.map(|row| row.totals).unwrap_or_default();
    let Totals { published, arrived, policy, in_flight, missing, unaccounted, .. } = &totals;
    assert_eq!(*published, arrived + policy + totals.lost_events() + in_flight + missing, "{totals:?}");
    assert!(unaccounted <= missing, "{totals:?}");
    Ok(totals)
}

/// Events that were lost for this reason.
pub fn lost(totals: &Totals, reason: LossReason) -> u64 {
    totals.lost.get(&reason).copied().unwrap_or(0)
}

/// Whether everything has arrived, or is accounted for.
pub fn is_settled(totals: &Totals) -> bool {
    (totals.in_flight, totals.missing, totals.unaccounted) == (0, 0, 0)
}
