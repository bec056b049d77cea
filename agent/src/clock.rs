//! The one place that reads clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hierarchy::{Millis, link::Tick};

/// Now, by the wall clock.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(since.as_millis() as u64)
}

/// Time since the machine was started, the time included for which it slept or this process was stopped: how
/// long a lease has really not been renewed.
pub fn since_boot() -> Tick {
    // The call fails for clocks that do not exist.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Tick::from).unwrap_or_default()
}

/// Waits until then; for ever where there is no such time.
pub async fn sleep_until(wake: Option<tokio::time::Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A clock that only runs forward, from when it was made.
#[derive(Debug, Clone, Copy)]
pub struct Monotonic(Instant);

impl Monotonic {
    /// Starts at zero.
    #[allow(clippy::new_without_default, reason = "starting a clock is an act, not a default value")]
    pub fn new() -> Monotonic {
        Monotonic(Instant::now())
    }

    /// Time since the start.
    pub fn now(&self) -> Tick {
        self.0.elapsed()
    }

    /// The instant at which [`Monotonic::now`] reads `tick`.
    pub fn instant(&self, tick: Tick) -> tokio::time::Instant {
        (self.0 + tick).into()
    }
}
