//! Commands that speak with the agent of this machine, through its server.

use std::path::Path as FilePath;

use async_nats::Client;

use crate::{
    broker::{connect::connect, server},
    status,
};

/// The agent of this machine cannot be spoken with.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It is not there.
    #[error(transparent)]
    Status(#[from] status::StatusError),
    /// Its server cannot be reached.
    #[error("the agent's nats-server cannot be reached: {0}; is the agent running, and are you its user?")]
    Connect(String),
}

/// A connection with the rights of the agent that has this state directory.
pub async fn attach(state_dir: &FilePath, name: &str) -> Result<Client, AttachError> {
    let unreachable = |reason: String| AttachError::Connect(reason);
    let addresses = status::addresses(state_dir)?;
    let passwords = server::passwords(&state_dir.join("nats")).map_err(|e| unreachable(e.to_string()))?;
    let user = nats_config::names::AGENT_USER;
    let client = connect(addresses.nats.as_str(), user, passwords.agent.expose(), name).await;
    client.map_err(|e| unreachable(e.to_string()))
}
