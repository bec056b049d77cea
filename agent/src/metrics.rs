//! What an agent counts, in the Prometheus text format.

use std::sync::atomic::{AtomicU64, Ordering};

use hierarchy::Refusal;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// A label `reason`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The refusal's or rule's stable name.
    pub reason: String,
}

/// A label `child`; bounded by the number of children that may connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChildLabel {
    /// The child's path.
    pub child: String,
}

/// A label `peer`: the parent or a child.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerLabel {
    /// Its path.
    pub peer: String,
}

/// A label `lane`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LaneLabel {
    /// The lane's name.
    pub lane: &'static str,
}

/// Labels of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LedgerLabel {
    /// The lane's name.
    pub lane: &'static str,
    /// What became of the events.
    pub state: &'static str,
}

/// All counters and gauges of one agent. Cheap to clone: clones share their values.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Events of this level that were packed into batches.
    pub events_packed: Counter,
    /// Batches that the parent has made durable.
    pub batches_delivered: Counter,
    /// Frames sent, repetitions included.
    pub frames_sent: Counter,
    /// Bytes of frames sent.
    pub frame_bytes_sent: Counter,
    /// 1 while the parent has accepted a session.
    pub uplink_open: Gauge,
    /// Bytes that may be under way to the parent, as its line is known.
    pub uplink_window: Gauge,
    /// Steps taken to bring up a link that was stuck, by step.
    pub link_heals: Family<Reason, Counter>,
    /// Batches between the parent's cursor and the end of a lane.
    pub uplink_lag: Family<LaneLabel, Gauge>,
    /// Seconds by which this machine's clock is ahead of a peer's.
    pub clock_ahead: Family<PeerLabel, Gauge<f64, AtomicU64>>,
    /// Bytes that wait in each lane.
    pub lane_bytes: Family<LaneLabel, Gauge>,
    /// Batches of each child that were made durable.
    pub batches_stored: Family<ChildLabel, Counter>,
    /// Events of each child in these batches.
    pub events_stored: Family<ChildLabel, Counter>,
    /// What became of all events, at global.
    pub ledger: Family<LedgerLabel, Gauge>,
    /// Events dropped by this agent, by reason.
    pub losses: Family<Reason, Counter>,
    /// Batches that came again and were recognised.
    pub batches_repeated: Family<ChildLabel, Counter>,
    /// Messages refused, by reason.
    pub refused: Family<Reason, Counter>,
    /// Messages that a policy kept from going up, by action.
    pub policy_kept: Family<Reason, Counter>,
    /// Dead letters that were dropped since there were too many.
    pub dead_letters_dropped: Counter,
    /// Bytes that are free where the store is.
    pub store_free: Gauge,
    /// Streams that take nothing since a write failed.
    pub store_frozen: Gauge,
    /// Damaged files that were set aside and still lie there.
    pub store_set_aside: Gauge,
    /// Starts of the nats-server after the first.
    pub server_restarts: Counter,
    /// Orders by what became of them here.
    pub orders: Family<Reason, Counter>,
    /// Orders that wait for a child.
    pub orders_waiting: Gauge,
    /// 1 while this replica acts.
    pub lease_held: Gauge,
    /// How often the lease has changed hands, as far as known.
    pub lease_epoch: Gauge,
    /// How often this replica began to act.
    pub take_overs: Counter,
    /// Tasks by outcome.
    pub tasks: Family<Reason, Counter>,
    /// Tasks that run on this agent now.
    pub tasks_running: Gauge<u64, AtomicU64>,
}

impl Metrics {
    /// The zeroes of every refusal are shown from the start, so that alerts can be written on them.
    pub fn new() -> Metrics {
        let metrics = Metrics::default();
        for refusal in Refusal::ALL {
            drop(metrics.refused.get_or_create(&Reason { reason: refusal.name().into() }));
        }
        metrics
    }

    /// Counts a refusal.
    pub fn refuse(&self, refusal: Refusal) {
        self.refused.get_or_create(&Reason { reason: refusal.name().into() }).inc();
    }

    /// How often anything was refused.
    pub fn refused_total(&self) -> u64 {
        let of =
            |refusal: Refusal| self.refused.get_or_create(&Reason { reason: refusal.name().into() }).get();
        Refusal::ALL.into_iter().map(of).sum()
    }

    /// Everything in the text format.
    pub fn encode(&self) -> String {
        let mut registry = Registry::with_prefix("lucent");
        let r = &mut registry;
        r.register("events_packed", "Events of this level packed into batches", self.events_packed.clone());
        r.register("batches_delivered", "Batches made durable by the parent", self.batches_delivered.clone());
        r.register(
            "frames_sent",
            "Frames sent to the parent, repetitions included",
            self.frames_sent.clone(),
        );
        r.register_with_unit(
            "frames_sent",
            "Bytes of frames sent",
            Unit::Bytes,
            self.frame_bytes_sent.clone(),
        );
        r.register("uplink_open", "1 while the parent has accepted a session", self.uplink_open.clone());
        r.register_with_unit(
            "uplink_window",
            "What may be under way to the parent",
            Unit::Bytes,
            self.uplink_window.clone(),
        );
        r.register("link_heals", "Steps taken to bring up a link that was stuck", self.link_heals.clone());
        r.register("uplink_lag", "Batches in a lane that the parent lacks", self.uplink_lag.clone());
        r.register_with_unit(
            "clock_ahead",
            "By how much this machine's clock is ahead of a peer's",
            Unit::Seconds,
            self.clock_ahead.clone(),
        );
        r.register_with_unit("lane", "Bytes that wait in a lane", Unit::Bytes, self.lane_bytes.clone());
        r.register("batches_stored", "Batches of children made durable", self.batches_stored.clone());
        r.register("events_stored", "Events of children made durable", self.events_stored.clone());
        r.register("batches_repeated", "Batches that came again", self.batches_repeated.clone());
        r.register("ledger_events", "Events by what became of them", self.ledger.clone());
        r.register("lost_events", "Events that this agent dropped, by reason", self.losses.clone());
        r.register("refused", "Messages refused, by reason", self.refused.clone());
        r.register("policy_kept", "Messages kept from going up, by action", self.policy_kept.clone());
        r.register(
            "dead_letters_dropped",
            "Dead letters beyond the bound",
            self.dead_letters_dropped.clone(),
        );
        r.register("server_restarts", "Restarts of the nats-server", self.server_restarts.clone());
        r.register("orders", "Orders by what became of them here", self.orders.clone());
        r.register("orders_waiting", "Orders that wait for a child", self.orders_waiting.clone());
        r.register_with_unit(
            "store_free",
            "Bytes free where the store is",
            Unit::Bytes,
            self.store_free.clone(),
        );
        r.register(
            "store_frozen",
            "Streams that take nothing since a write failed",
            self.store_frozen.clone(),
        );
        r.register("store_set_aside", "Damaged files set aside", self.store_set_aside.clone());
        r.register("lease_held", "1 while this replica acts", self.lease_held.clone());
        r.register("lease_epoch", "How often the lease has changed hands", self.lease_epoch.clone());
        r.register("take_overs", "How often this replica began to act", self.take_overs.clone());
        r.register("tasks", "Tasks by outcome", self.tasks.clone());
        r.register("tasks_running", "Tasks running here", self.tasks_running.clone());
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}

/// A number that one task writes and others read.
#[derive(Debug, Default)]
pub struct Watermark(AtomicU64);

impl Watermark {
    /// Raises it; a lower value changes nothing.
    pub fn raise(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
