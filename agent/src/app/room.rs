//! The start on a full disk.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::{broker::store::room, config::Config, http, supervise::Tasks};

/// A server that is started without room would freeze its streams at once. The agent is there meanwhile, and
/// says why it is not ready.
pub(super) async fn wait_for_room(config: &Config, listener: &TcpListener) -> Result<(), AppError> {
    let dir = config.state_dir.join("nats");
    let room = room::look(&dir);
    if config.nats.embedded().is_none() || !room.is_below(room::LEAST) {
        return Ok(());
    }
    let (free, needed) = (room.free, room::PLENTY);
    let reason = format!("disk full: {free} bytes free, {needed} needed; the start waits for room");
    tracing::error!(reason, "the store of this level takes nothing");
    let machine = |error: std::io::Error| AppError::Machine(error.to_string());
    // The same listener serves the agent later.
    let again = nix::unistd::dup(listener).map_err(|error| AppError::Machine(error.to_string()))?;
    let again = TcpListener::from_std(again.into()).map_err(machine)?;
    let cancel = CancellationToken::new();
    let mut serving = Tasks::new(cancel.clone());
    serving.spawn("http", http::run_waiting(again, reason, cancel));
    room::wait_for_plenty(&dir).await;
    serving.stop(Duration::from_secs(1)).await;
    tracing::info!("there is room again; starting");
    Ok(())
}
