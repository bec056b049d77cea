//! A server that runs: it is started again when it ends, replaced when it hangs, when its store is broken, and
//! when it does not connect to the parent.

use std::net::SocketAddr;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    BACKOFF, End, Launch, MAX_BACKOFF, PANICKED, Process, STEADY, kill_process, stop_process, terminate,
    until_ended,
};
use crate::{
    broker::{pulse, redial, store::Store},
    link::watchdog::Step,
    metrics::Metrics,
};

/// What is watched, and how it is started again.
pub(super) struct Watched {
    pub(super) launch: Launch,
    pub(super) client: SocketAddr,
    /// The configuration with the connection to the parent left out.
    pub(super) paused: String,
    pub(super) steps: mpsc::Receiver<Step>,
    pub(super) store: Store,
    pub(super) metrics: Metrics,
}

impl Watched {
    /// Watches the process and starts it again, until cancelled; then stops it.
    pub(super) async fn watch(
        mut self,
        mut process: Process,
        cancel: CancellationToken,
    ) -> Result<(), std::convert::Infallible> {
        let mut wait = BACKOFF;
        loop {
            let started = tokio::time::Instant::now();
            let Some((end, code)) = self.until_ended(&mut process, &cancel).await else {
                stop_process(process).await;
                return Ok(());
            };
            if code == Some(PANICKED)
                && let Some(stream) = self.launch.died_over()
                && let Err(error) = self.launch.go_without(&stream, &end)
            {
                tracing::error!(%error, "nats-server cannot be started without a stream that it dies over");
            }
            wait = if started.elapsed() > STEADY { BACKOFF } else { wait };
            tracing::error!(end, again_in = ?wait, "nats-server ended; starting it again");
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(MAX_BACKOFF);
                match self.launch.again().await {
                    Ok(again) => {
                        self.metrics.server_restarts.inc();
                        process = again;
                        break;
                    }
                    Err(error) => tracing::error!(%error, "nats-server cannot be started"),
                }
            }
        }
    }

    /// Waits until the process has ended, by itself or for a reason found here, and takes steps meanwhile; `None`
    /// where it is to be stopped. What is cut short in the middle of a step is done by whoever starts the server
    /// again.
    async fn until_ended(&mut self, process: &mut Process, cancel: &CancellationToken) -> Option<End> {
        loop {
            let step = tokio::select! {
                () = cancel.cancelled() => return None,
                end = until_ended(process) => return Some(end),
                silent = pulse::lost(self.client) => {
                    // What it has acknowledged is written; a new one reads it.
                    kill_process(process).await;
                    return Some((format!("it did not answer for {silent:.1?} and was killed"), None));
                }
                trouble = self.store.broken() => {
                    terminate(process).await;
                    return Some((format!("it was stopped, for its store: {trouble}"), None));
                }
                Some(step) = self.steps.recv() => step,
            };
            let Some(pid) = process.pid() else { continue };
            match step {
                Step::Redial => {
                    let told = tokio::select! {
                        () = cancel.cancelled() => return None,
                        told = redial::redial(&self.launch.files.config, &self.paused, pid) => told,
                    };
                    if let Err(error) = told {
                        tracing::warn!(%error, "nats-server could not be told to dial the parent anew");
                    }
                }
                Step::Restart => {
                    terminate(process).await;
                    return Some(("it was stopped, since it does not connect to the parent".into(), None));
                }
            }
        }
    }
}
