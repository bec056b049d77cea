//! Why a role ends before it is told to, and what the process then exits with.

use std::path::PathBuf;

use crate::{broker::BrokerError, exit::ExitCode, supervise::TaskEnd, svid::SvidError};

/// Why a role could not run, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The state directory cannot be used.
    #[error(
        "the state directory {path} cannot be used: {reason}; create it and give it to this user, or set state_dir"
    )]
    State {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another agent uses it.
    #[error("another agent runs with the state directory {0}; stop it, or set another state_dir")]
    InUse(PathBuf),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] SvidError),
    /// The identity's key cannot sign.
    #[error("the identity's key cannot sign: {0}; an ECDSA P-256 key is needed")]
    Key(#[from] rustls::Error),
    /// The nats-server.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A part of the configuration that only shows when it is put to use.
    #[error("{0}")]
    Config(String),
    /// Something this machine lacks.
    #[error("{0}")]
    Machine(String),
    /// A task that must run ended.
    #[error(transparent)]
    Task(#[from] TaskEnd),
}

impl AppError {
    /// What the process exits with.
    pub fn code(&self) -> ExitCode {
        match self {
            AppError::State { .. }
            | AppError::InUse(_)
            | AppError::Broker(BrokerError::Unwritable { .. }) => ExitCode::CannotCreate,
            AppError::Identity(_) | AppError::Key(_) => ExitCode::Identity,
            AppError::Config(_) => ExitCode::Usage,
            AppError::Broker(_) => ExitCode::Unavailable,
            AppError::Machine(_) | AppError::Task(_) => ExitCode::Failure,
        }
    }
}
