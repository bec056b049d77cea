//! Whether the own server can store, said to all who need to know; and when it has to be started again for that.
//!
//! A stream of nats-server into which a write failed takes no more until the server is started again: it
//! does not even answer publishers. Nothing that it had acknowledged is lost by that. So a server with such a
//! stream is started again, but not while the disk is full, where the first write would fail as the last did.

mod blocks;
mod inspection;
mod refusal;
pub mod room;
pub mod set_aside;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

pub(super) use blocks::keep_damaged;
use hierarchy::rollup::Health;
pub use inspection::is_sound;
pub use refusal::{RefusalParts, run as refuse_for_frozen};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use self::{inspection::Found, room::Room};
use crate::metrics::Metrics;

/// How often the store is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// So many looks in a row must miss a stream: a server that is starting has not opened them all.
const MISSES: u32 = 3;
/// Wait before a server is started again for its store's sake: half to all of it, by chance, so that a rack
/// of machines on one storage does not come back in one moment. It doubles up to [`MAX_WAIT`] where the store
/// does not stay sound for [`STEADY`].
const WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(60);
const STEADY: Duration = Duration::from_secs(120);

/// How the store fares, as `/status` tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreState {
    /// Why nothing can be stored just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// What needs looking after although events are stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Bytes that are free where the store is.
    pub free_bytes: u64,
    /// Streams into which a write failed, and why. They take nothing until the server is started again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub frozen: BTreeMap<String, String>,
    /// Streams that the agent had made and that the server does not have any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Damaged files that were set aside and still lie there.
    pub set_aside: usize,
}

impl StoreState {
    /// What this makes of the agent's health.
    pub fn health(&self) -> Health {
        match () {
            () if self.trouble.is_some() => Health::Failing,
            () if !self.warnings.is_empty() => Health::Degraded,
            () => Health::Ok,
        }
    }
}

/// Looks after the store of one server.
pub(super) struct Store {
    /// The directory of the server's files.
    dir: PathBuf,
    monitor: Option<SocketAddr>,
    /// Bytes that the streams may take together.
    promised: u64,
    /// The streams that must be there, once they were made.
    expected: Arc<OnceLock<Vec<String>>>,
    state: watch::Sender<StoreState>,
    metrics: Metrics,
    wait: Duration,
    restarted: Option<Instant>,
    misses: u32,
    /// Short of room, until there is plenty again.
    is_short: bool,
}

impl Store {
    pub(super) fn new(
        dir: &Path,
        monitor: Option<SocketAddr>,
        promised: u64,
        expected: Arc<OnceLock<Vec<String>>>,
        metrics: &Metrics,
    ) -> (Store, watch::Receiver<StoreState>) {
        let (state, receiver) = watch::channel(StoreState::default());
        let store = Store {
            dir: dir.to_owned(),
            monitor,
            promised,
            expected,
            state,
            metrics: metrics.clone(),
            wait: WAIT,
            restarted: None,
            misses: 0,
            is_short: false,
        };
        (store, receiver)
    }

    /// Returns once the server has to be started again for its store to take events; why. Cancel-safe.
    pub(super) async fn broken(&mut self) -> String {
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(reason) = self.look().await else { continue };
            if self.restarted.is_some_and(|at| at.elapsed() > STEADY) {
                self.wait = WAIT;
            }
            let wait = self.wait.mul_f64(0.5 + chance() / 2.0);
            tracing::warn!(reason, in_ = ?wait, "the nats-server is to be started again for its store");
            tokio::time::sleep(wait).await;
            // The space may be gone again.
            if self.look().await.is_some() {
                self.wait = (self.wait * 2).min(MAX_WAIT);
                self.restarted = Some(Instant::now());
                // Said before the server goes: nobody may answer in the place of its streams any more.
                self.state.send_modify(|state| state.frozen.clear());
                tokio::time::sleep(refusal::HEARD_WITHIN).await;
                return reason;
            }
        }
    }

    /// Tells what there is to see; why the server must be started again, if it must and may.
    async fn look(&mut self) -> Option<String> {
        let found = inspection::look(self.monitor).await;
        let room = match found.is_sound() && !self.is_short {
            true => room::look(&self.dir),
            false => {
                // A disk that is failing may take its time.
                let dir = self.dir.clone();
                tokio::task::spawn_blocking(move || room::try_it(&dir)).await.unwrap_or_default()
            }
        };
        let missing = self.missing(&found);
        let trouble = self.trouble(&found, &room);
        let frozen = found.frozen;
        let restart = (!frozen.is_empty() || found.disabled) && !self.is_short && room.fault.is_none();
        let set_aside = set_aside::count(&self.dir);
        let warnings = self.warnings(&room, set_aside);
        let state = StoreState { trouble, warnings, free_bytes: room.free, frozen, missing, set_aside };
        self.metrics.store_free.set(i64::try_from(state.free_bytes).unwrap_or(i64::MAX));
        self.metrics.store_frozen.set(state.frozen.len() as i64);
        self.metrics.store_set_aside.set(state.set_aside as i64);
        let reason = state.trouble.clone();
        self.tell(state);
        restart.then(|| reason.unwrap_or_default())
    }

    fn trouble(&mut self, found: &Found, room: &Room) -> Option<String> {
        let enough = if self.is_short { room::PLENTY } else { room::LEAST };
        self.is_short = room.is_below(enough);
        let full = |streams: &str| {
            format!("disk full: {} free, {} needed{streams}", mib(room.free), mib(room::PLENTY))
        };
        let streams: Vec<&str> = found.frozen.keys().map(String::as_str).collect();
        let first = found.frozen.values().next().map_or("", String::as_str);
        let of = streams.join(", ");
        match () {
            () if self.is_short && streams.is_empty() => Some(full("")),
            () if self.is_short => Some(full(&format!("; frozen: {of}"))),
            () if let Some(fault) = &room.fault => Some(format!("disk cannot be written: {fault}")),
            () if !streams.is_empty() => Some(format!("a write failed, frozen: {of} ({first})")),
            () if found.disabled => Some("the nats-server has given JetStream up".to_owned()),
            () => None,
        }
    }

    /// Streams that were made and are not there any more.
    fn missing(&mut self, found: &Found) -> Vec<String> {
        let Some(expected) = self.expected.get().filter(|_| found.answered) else { return Vec::new() };
        let streams = set_aside::streams_dir(&self.dir);
        let gone = |name: &&String| found.refused.contains(*name) || !streams.join(name).exists();
        let missing: Vec<String> = expected.iter().filter(gone).cloned().collect();
        self.misses = if missing.is_empty() { 0 } else { self.misses + 1 };
        if self.misses >= MISSES { missing } else { Vec::new() }
    }

    fn warnings(&self, room: &Room, set_aside: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        if set_aside > 0 {
            warnings.push(format!(
                "damaged files of {set_aside} streams were set aside: look at {} and remove what is not needed",
                set_aside::dir(&self.dir).display()
            ));
        }
        if room.total > 0 && room.total < self.promised {
            warnings.push(format!(
                "the disk has {} in all, less than nats.max_file promises to the streams ({}): lower it",
                mib(room.total),
                mib(self.promised)
            ));
        }
        warnings
    }

    /// Says what is new, once.
    fn tell(&self, state: StoreState) {
        self.state.send_if_modified(|known| {
            match (&known.trouble, &state.trouble) {
                (None, Some(trouble)) => tracing::error!(trouble, "the store of this level takes nothing"),
                (Some(_), None) => {
                    tracing::info!(
                        free_bytes = state.free_bytes,
                        "the store of this level takes events again"
                    );
                }
                _ => {}
            }
            for warning in state.warnings.iter().filter(|warning| !known.warnings.contains(warning)) {
                tracing::warn!(warning, "the store of this level needs looking after");
            }
            let changed = *known != state;
            *known = state;
            changed
        });
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A number from 0 to 1 that nobody can tell before.
fn chance() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX)
}
