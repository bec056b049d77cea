//! Keeps an eye on this machine and on the children: samples, presence, roll-ups.

use std::time::Duration;

use async_nats::Client;
use coordinator::{
    Aggregator, Registry,
    aggregate::Place,
    ledger::Report,
    registry::{ChildStatus, Event, Lag},
};
use hierarchy::{
    Level, Path,
    link::{Skew, Tick},
    rollup::{Health, Version},
    subject::{self, Speaker},
};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::store::StoreState,
    clock::{MeshTime, Monotonic},
    link::{downlink::FromChild, uplink::UplinkState},
    telemetry::Sampler,
};

/// How often presence is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the watch needs.
pub struct WatchParts {
    /// Where this agent stands.
    pub path: Path,
    /// Measures the machine.
    pub sampler: Sampler,
    /// How often.
    pub interval: Duration,
    /// Over how long a coordinator rolls up.
    pub window: Duration,
    /// The connection in account MESH.
    pub mesh: Client,
    /// What time it is.
    pub time: MeshTime,
    /// The children.
    pub registry: Registry,
    /// What children say.
    pub reports: mpsc::Receiver<FromChild>,
    /// How the own store fares.
    pub store: watch::Receiver<StoreState>,
    /// The link to the parent; `None` at global.
    pub uplink: Option<watch::Receiver<UplinkState>>,
    /// What became of all events; only global knows.
    pub losses: watch::Receiver<Option<Report>>,
    /// Told how the children fare.
    pub children: watch::Sender<Vec<ChildStatus>>,
    /// Told how this agent fares.
    pub health: watch::Sender<Health>,
}

/// Watches until cancelled.
pub async fn run(mut parts: WatchParts, cancel: CancellationToken) -> Result<(), std::convert::Infallible> {
    let clock = Monotonic::new();
    let version: Version = crate::VERSION.parse().expect("the version of this crate is short and plain");
    let mut aggregator =
        Aggregator::new(parts.path.clone(), version, parts.window, clock.now(), parts.time.now());
    let mut sample = tokio::time::interval(parts.interval);
    let mut look = tokio::time::interval(LOOK_EVERY);
    for timer in [&mut sample, &mut look] {
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            Some(report) = parts.reports.recv() => parts.on_report(&mut aggregator, report, clock.now()),
            _ = sample.tick() => parts.sample(&mut aggregator).await,
            _ = look.tick() => parts.look(&mut aggregator, clock.now()).await,
        }
    }
}

impl WatchParts {
    fn on_report(&mut self, aggregator: &mut Aggregator, report: FromChild, now: Tick) {
        let noted = match report {
            FromChild::Hello { child, version } => match version.parse() {
                Ok(version) => self.registry.seen(&child, now, version).map_err(|error| error.to_string()),
                Err(_) => Err(format!("{child} tells no version")),
            },
            FromChild::Seen { child, version, lag } => {
                let seen = match version.and_then(|version| version.parse().ok()) {
                    Some(version) => self.registry.seen(&child, now, version),
                    None => Ok(()),
                };
                let lag = lag.map(|(lane, batches)| (lane, Lag { events: batches, bytes: 0 }));
                seen.and_then(|()| match lag {
                    Some((lane, lag)) => self.registry.lags(&child, lane, lag),
                    None => Ok(()),
                })
                .map_err(|error| error.to_string())
            }
            FromChild::Clock { child, skew } => self
                .registry
                .clock(&child, skew)
                .map(|was_apart| self.say(&child, skew, was_apart))
                .map_err(|error| error.to_string()),
            FromChild::Report { subject, incarnation, seq, data } => {
                let place = Place { incarnation, seq };
                let arrived = aggregator.arrived(&mut self.registry, &subject, place, &data);
                arrived.map(|_| ()).map_err(|error| error.to_string())
            }
        };
        if let Err(reason) = noted {
            tracing::warn!(reason, "a child's report is passed over");
        }
    }

    /// Names who differs from whom, once.
    fn say(&self, child: &Path, skew: Skew, was_apart: bool) {
        let parent = &self.path;
        if skew.is_apart() && !was_apart {
            tracing::warn!(%child, %parent, seconds_ahead = skew.ahead_seconds(),
                "a child's clock differs from this machine's; set the one that is wrong");
        } else if was_apart && !skew.is_apart() {
            tracing::info!(%child, %parent, "a child's clock agrees with this machine's again");
        }
    }

    async fn sample(&mut self, aggregator: &mut Aggregator) {
        let health = *self.health.borrow();
        let sample = self.sampler.sample(self.time.now(), health);
        if self.path.level() == Level::Node {
            self.publish(subject::TELEMETRY, &sample).await;
        } else {
            aggregator.own_sample(&sample);
        }
    }

    async fn look(&mut self, aggregator: &mut Aggregator, now: Tick) {
        for event in self.registry.tick(now) {
            match event {
                Event::ChildLost { child, silent_ms } => tracing::warn!(%child, silent_ms, "child is absent"),
                Event::ChildSuspect { child, silent_ms } => {
                    tracing::debug!(%child, silent_ms, "child is silent")
                }
                Event::ChildAppeared { child, .. } => tracing::info!(%child, "child appeared"),
                Event::ChildReturned { child, .. } => tracing::info!(%child, "child is back"),
            }
        }
        let cut_off = self.uplink.as_ref().is_some_and(|uplink| !uplink.borrow().open);
        let unaccounted = |report: &Report| report.totals.iter().any(|(_, totals)| totals.unaccounted > 0);
        let alarm = self.losses.borrow().as_ref().is_some_and(unaccounted);
        // A clock outside the own certificate's time is wrong, or the certificate is over.
        let clock =
            self.uplink.as_ref().is_some_and(|uplink| uplink.borrow().is_apart()) || !self.time.holds();
        let health = if cut_off || alarm || clock { Health::Degraded } else { Health::Ok };
        let health = health.max(self.store.borrow().health());
        self.health.send_if_modified(|known| std::mem::replace(known, health) != health);
        self.children.send_replace(self.registry.statuses(now).collect());
        if self.path.level() != Level::Node
            && let Some(rollup) = aggregator.tick(now, self.time.now(), &self.registry)
        {
            self.publish(subject::ROLLUP, &rollup).await;
        }
    }

    /// Soft state: a sample that is not taken by the store is followed by the next one.
    async fn publish<T: Serialize>(&self, tail: &str, value: &T) {
        let subject = Speaker::of(&self.path).with_tail(tail);
        let Ok(body) = serde_json::to_vec(value) else { return };
        if let Err(error) = self.mesh.publish(subject, body.into()).await {
            tracing::debug!(%error, "a sample was not published");
        }
    }
}
