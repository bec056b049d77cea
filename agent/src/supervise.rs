//! Every task has a name, an owner and an end.

use std::future::Future;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Why a task ended that should have run on.
#[derive(Debug, thiserror::Error)]
pub enum TaskEnd {
    /// It gave up.
    #[error("{task} failed: {reason}")]
    Failed {
        /// Its name.
        task: &'static str,
        /// What it said.
        reason: String,
    },
    /// It panicked.
    #[error("{task} panicked; this is a defect, please report it with the log above")]
    Panicked {
        /// Its name.
        task: &'static str,
    },
}

/// The tasks of one owner. They share a cancellation token; a task that ends before it is cancelled
/// with an error, or panics, is the owner's to know.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<Result<(), TaskEnd>>,
    cancel: CancellationToken,
}

impl Tasks {
    /// No tasks yet; they will be cancelled by `cancel`.
    pub fn new(cancel: CancellationToken) -> Tasks {
        Tasks { set: JoinSet::new(), cancel }
    }

    /// The token that the tasks watch.
    pub fn token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Starts a task.
    pub fn spawn<F, E>(&mut self, task: &'static str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        self.set.spawn(async move {
            // A second task underneath lets a panic be told apart and named.
            let mut inner = JoinSet::new();
            inner.spawn(future);
            match inner.join_next().await {
                Some(Ok(Ok(()))) | None => Ok(()),
                Some(Ok(Err(error))) => Err(TaskEnd::Failed { task, reason: error.to_string() }),
                Some(Err(_)) => Err(TaskEnd::Panicked { task }),
            }
        });
    }

    /// Waits for the first task that fails. Never returns while all run or end well.
    pub async fn first_failure(&mut self) -> TaskEnd {
        loop {
            match self.set.join_next().await {
                Some(Ok(Err(end))) => return end,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Cancels all tasks and waits up to `patience` for them to end.
    pub async fn stop(mut self, patience: std::time::Duration) {
        self.cancel.cancel();
        let all = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("some tasks did not end in time and are dropped");
            self.set.abort_all();
        }
    }
}
