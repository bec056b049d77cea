//! Commands that speak with the agent of this machine, through its server.

use std::path::PathBuf;

use async_nats::Client;

use crate::{
    broker::{connect::connect, server},
    config::{Config, External, Nats},
    status,
};

/// Where the agent of this machine is found.
#[derive(Debug, Clone)]
pub enum OwnAgent {
    /// By its state directory, where its own server's address and passwords lie.
    Embedded(PathBuf),
    /// By the configuration of a server that others run.
    External(Box<External>),
}

impl From<Config> for OwnAgent {
    fn from(config: Config) -> OwnAgent {
        match config.nats {
            Nats::External(external) => OwnAgent::External(Box::new(external)),
            Nats::Embedded(_) => OwnAgent::Embedded(config.state_dir),
        }
    }
}

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

/// A connection with the rights of the agent.
pub async fn attach(agent: &OwnAgent, name: &str) -> Result<Client, AttachError> {
    let unreachable = |reason: String| AttachError::Connect(reason);
    let client = match agent {
        OwnAgent::Embedded(state_dir) => {
            let addresses = status::addresses(state_dir)?;
            let passwords =
                server::passwords(&state_dir.join("nats")).map_err(|e| unreachable(e.to_string()))?;
            let user = nats_config::names::AGENT_USER;
            connect(addresses.nats.as_str(), user, passwords.agent.expose(), name).await
        }
        OwnAgent::External(external) => {
            let user = &external.mesh;
            connect(external.urls.clone(), &user.user, user.password.expose(), name).await
        }
    };
    client.map_err(|e| unreachable(e.to_string()))
}
