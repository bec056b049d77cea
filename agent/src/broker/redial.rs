//! Has a server dial its parent anew without stopping it: by a reload without the connection to the parent, and
//! one with it. Both also have it read its certificates again. A server too old to know this only does that.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{BrokerError, server::write_private};

/// How long the server gets to read a configuration and let go of the connection.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// Where the real configuration lies for the moment.
struct Aside {
    config: PathBuf,
    kept: PathBuf,
}

impl Aside {
    /// Puts another one in its place.
    fn put(config: &Path, instead: &str) -> Result<Aside, BrokerError> {
        let (kept, paused) = (config.with_extension("kept"), config.with_extension("paused"));
        write_private(&paused, instead)?;
        let aside = Aside { config: config.to_owned(), kept };
        fs::rename(config, &aside.kept)
            .and_then(|()| fs::rename(&paused, config))
            .map_err(unwritable(config))?;
        Ok(aside)
    }
}

impl Drop for Aside {
    /// Back in its place, also where this is given up half-way. Renaming needs no room on a full disk.
    fn drop(&mut self) {
        if let Err(error) = fs::rename(&self.kept, &self.config) {
            tracing::error!(%error, "the nats-server's configuration could not be put back");
        }
    }
}

/// Does it. Cancelled in the middle, the configuration is in its place, and the server to be reloaded or
/// started again.
///
/// Errors: the configuration cannot be written, or the process is gone.
pub(super) async fn redial(config: &Path, paused: &str, server: Pid) -> Result<(), BrokerError> {
    let reload = || kill(server, Signal::SIGHUP).map_err(|errno| BrokerError::NotUp(errno.to_string()));
    {
        let _aside = Aside::put(config, paused)?;
        reload()?;
        tokio::time::sleep(READ_WITHIN).await;
    }
    reload()
}

fn unwritable(path: &Path) -> impl Fn(io::Error) -> BrokerError {
    move |error| BrokerError::Unwritable { path: path.display().to_string(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_back_in_its_place_whatever_becomes_of_the_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("nats-server.conf");
        fs::write(&config, "real").unwrap();
        let aside = Aside::put(&config, "paused").unwrap();
        assert_eq!(fs::read_to_string(&config).unwrap(), "paused");
        drop(aside);
        assert_eq!(fs::read_to_string(&config).unwrap(), "real");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
