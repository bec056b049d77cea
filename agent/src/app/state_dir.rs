//! The state directory: held by one agent at a time, and where others read how to reach it.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};

use super::AppError;
use crate::{config::Config, status::Addresses};

/// To be held as long as the agent runs.
pub(super) fn lock_state(config: &Config) -> Result<Flock<File>, AppError> {
    let path = config.state_dir.clone();
    let unusable = |error: std::io::Error| AppError::State { path: path.clone(), reason: error.to_string() };
    fs::create_dir_all(path.join("nats")).map_err(unusable)?;
    let file = File::create(path.join("lock")).map_err(unusable)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| AppError::InUse(path.clone()))
}

pub(super) fn write_addresses(path: &Path, addresses: &Addresses) -> Result<(), AppError> {
    let failed = |reason: String| AppError::State { path: path.to_owned(), reason };
    let text = serde_json::to_vec_pretty(addresses).map_err(|error| failed(error.to_string()))?;
    let next = path.with_extension("next");
    let write = || {
        let mut file = File::create(&next)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    write().map_err(|error: std::io::Error| failed(error.to_string()))
}
