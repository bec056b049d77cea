//! Which nats-server there is, and whether it is good enough.

use std::path::{Path, PathBuf};

use nats_config::ServerVersion;

use super::BrokerError;

/// A nats-server program and its version.
#[derive(Debug, Clone)]
pub struct Binary {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: ServerVersion,
    /// How large its heap may grow, in bytes, before Go collects garbage with all its might.
    pub heap_limit: u64,
}

impl Binary {
    /// Asks the program for its version. A bare name is looked up on PATH by the system.
    pub async fn find(program: &Path, heap_limit: u64) -> Result<Binary, BrokerError> {
        let name = program.display().to_string();
        let output = tokio::process::Command::new(program).arg("--version").output();
        let output = tokio::time::timeout(std::time::Duration::from_secs(10), output);
        let output = match output.await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BrokerError::Missing(name));
            }
            Ok(Err(error)) => {
                return Err(BrokerError::NoVersion { program: name, reason: error.to_string() });
            }
            Err(_) => {
                return Err(BrokerError::NoVersion { program: name, reason: "no answer in 10 s".into() });
            }
        };
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let version = text.parse().map_err(|_| BrokerError::NoVersion { program: name, reason: text })?;
        Ok(Binary { program: program.to_owned(), version, heap_limit })
    }

    /// Says what this version lacks, and refuses it where it would face a network.
    pub fn check(&self, loopback_only: bool) -> Result<(), BrokerError> {
        let lacks: Vec<String> = self.version.lacks().iter().map(ToString::to_string).collect();
        if !lacks.is_empty() {
            tracing::warn!(version = %self.version, lacks = lacks.join(", "), "this nats-server lacks features");
        }
        if self.version.meets_floor() {
            return Ok(());
        }
        if !loopback_only {
            return Err(BrokerError::TooOld { found: self.version.to_string() });
        }
        tracing::warn!(
            version = %self.version,
            "this nats-server is below the version that production needs (2.14.4 or 2.12.14); it is used on loopback only"
        );
        Ok(())
    }
}
