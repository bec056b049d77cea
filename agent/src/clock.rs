//! The one place that reads clocks.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use hierarchy::{
    Millis,
    link::{Reading, Tick, skew},
};

/// Now, by this machine's wall clock, which may be wrong: see [`MeshTime`].
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

/// The time that this agent goes by: its wall clock's, unless the parent told that it is wrong. Clones share it.
#[derive(Debug, Clone)]
pub struct MeshTime(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    monotonic: Monotonic,
    window: [Millis; 2],
    told: Mutex<Option<Reading>>,
}

impl MeshTime {
    /// Nobody has told anything yet. `window` is from when to when this agent's certificate holds.
    pub fn new(window: [Millis; 2]) -> MeshTime {
        MeshTime(Arc::new(Shared { monotonic: Monotonic::new(), window, told: Mutex::default() }))
    }

    /// The clock that readings are taken by.
    pub fn monotonic(&self) -> Monotonic {
        self.0.monotonic
    }

    /// What the parent has told of its time.
    pub fn tell(&self, reading: Option<Reading>) {
        *self.0.told.lock().unwrap_or_else(PoisonError::into_inner) = reading;
    }

    fn told(&self) -> Option<Reading> {
        *self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now, as well as this agent knows.
    pub fn now(&self) -> Millis {
        skew::time(wall(), self.told(), self.0.monotonic.now())
    }

    /// The time to date a signature with.
    pub fn stamp(&self) -> Millis {
        skew::stamp(wall(), self.told(), self.0.monotonic.now(), self.0.window)
    }

    /// Whether this agent's certificate holds now.
    pub fn holds(&self) -> bool {
        (self.0.window[0]..=self.0.window[1]).contains(&self.now())
    }
}
