//! What acts at a level, as long as it may: for the whole life of an agent that is alone at its path, for a
//! term of the lease where it has replicas. Everything that writes into the level's store or speaks on its
//! links is started here and nowhere else.

use std::{net::SocketAddr, sync::Arc};

use async_nats::jetstream;
use coordinator::{ledger::Report, registry::ChildStatus};
use hierarchy::{
    ByLane, Level,
    link::{ChildLimits, PackLimits},
    rollup::Health,
    signing::Verifier,
};
use nats_config::{
    names,
    streams::{BINDINGS_BUCKET, LINK_BUCKET, TASKS_BUCKET},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    AppError,
    nats::{Connections, open_bucket},
    options::{lane_bounds, make_policy, make_registry, stream_limits},
    signer::make_signer,
};
use crate::{
    accounting::{
        LossNotes, Numbered,
        audit::{self, AuditParts},
        told,
    },
    broker::{
        self, BrokerError,
        store::{RefusalParts, StoreState, refuse_for_frozen},
    },
    clock::MeshTime,
    config::Config,
    dead_letters::dead_letters,
    dispatch::{
        custody::Custody,
        home::{Home, HomeParts},
        hub::{Hub, HubParts},
        records::Records,
        worker::{Worker, WorkerParts},
    },
    drill::{self, DrillParts},
    ingest::{Ingest, IngestParts},
    lanes::{
        Fill, Guards, LaneRules, Tails,
        gate::Gate,
        keeper::{self, KeeperParts},
        tail::Tail,
    },
    link::{
        bindings::Bindings,
        custody,
        downlink::{Downlink, DownlinkParts},
        uplink::{Uplink, UplinkParts, UplinkState},
        watchdog::{self, Step, Stuck, WatchdogParts},
    },
    metrics::{Metrics, Watermark},
    orders::{Orders, OrdersParts},
    supervise::Tasks,
    svid::Svid,
    telemetry::Sampler,
    watch as watching,
};

/// Key bindings that a verifier keeps at hand.
const BINDINGS_AT_HAND: usize = 16 * 1024;
/// Messages between tasks of one agent.
const QUEUE: usize = 4096;
/// Messages in the flow of orders that wait for it.
const ORDERS_QUEUE: usize = 256;

/// What a role is started with, again for each term.
pub(super) struct Ground {
    pub(super) config: Config,
    pub(super) svid: Svid,
    /// The time that this agent goes by.
    pub(super) time: MeshTime,
    pub(super) connections: Connections,
    /// `None` where others run it.
    pub(super) own_server: Option<OwnServer>,
    /// How the own server's store fares.
    pub(super) store: watch::Receiver<StoreState>,
    pub(super) js: jetstream::Context,
    pub(super) metrics: Metrics,
    pub(super) board: Board,
}

/// A way to the watched server of this agent.
pub(super) struct OwnServer {
    pub(super) steps: mpsc::Sender<Step>,
    pub(super) monitor: SocketAddr,
}

/// What a role tells, and what outlives it. `http` reads it.
pub(super) struct Board {
    pub(super) uplink: watch::Sender<UplinkState>,
    pub(super) stuck: watch::Sender<Option<Stuck>>,
    pub(super) children: watch::Sender<Vec<ChildStatus>>,
    pub(super) losses: watch::Sender<Option<Report>>,
    pub(super) health: watch::Sender<Health>,
}

impl Default for Board {
    fn default() -> Board {
        Board {
            uplink: watch::channel(UplinkState::default()).0,
            stuck: watch::channel(None).0,
            children: watch::channel(Vec::new()).0,
            losses: watch::channel(None).0,
            health: watch::channel(Health::Ok).0,
        }
    }
}

impl Board {
    /// A role that has ended knows nothing.
    pub(super) fn clear(&self) {
        self.uplink.send_replace(UplinkState::default());
        self.stuck.send_replace(None);
        self.children.send_replace(Vec::new());
        self.losses.send_replace(None);
        self.health.send_replace(Health::Ok);
    }
}

/// Starts everything that acts; `over` ends it.
pub(super) async fn start(ground: &Ground, over: CancellationToken) -> Result<Tasks, AppError> {
    let Ground { config, svid, time, connections, own_server, store, js, metrics, board } = ground;
    // A key of its own for each term: that a child does not know it tells the child to greet.
    let signer = Arc::new(make_signer(svid)?);
    let bucket = |name: &'static str| open_bucket(js, name);
    let (link, bindings, tasks_bucket) =
        (bucket(LINK_BUCKET).await?, bucket(BINDINGS_BUCKET).await?, bucket(TASKS_BUCKET).await?);
    let (audit_bucket, orders_bucket) = (link.clone(), link.clone());
    let mut bindings = Bindings::new(bindings);
    // So that whoever reads what this agent signs, as answers to tasks, can verify it.
    bindings
        .keep(signer.kid(), signer.binding())
        .await
        .map_err(|error| BrokerError::Stream { name: BINDINGS_BUCKET.into(), reason: error.to_string() })?;

    let order_bindings = bindings.clone();

    let mut tasks = Tasks::new(over);
    let token = tasks.token();
    let (letters, writer) = dead_letters(metrics);
    tasks.spawn("dead letters", writer.run(js.clone(), token.clone()));

    let released = Arc::<ByLane<Watermark>>::default();
    let has_parent = connections.up.is_some();
    let has_children = connections.down.is_some();
    let checkpointed = Arc::new(if has_children { Guards::closed() } else { Guards::open() });
    let (to_parent, to_parent_rx) = mpsc::channel(QUEUE);
    let (from_parent_tx, from_parent) = mpsc::channel(QUEUE);
    let (to_children, to_children_rx) = mpsc::channel(QUEUE);
    let (reached_tx, reached) = mpsc::channel(QUEUE);
    let (drills_tx, drills) = mpsc::channel(16);
    let (orders_from_parent_tx, orders_from_parent) = mpsc::channel(ORDERS_QUEUE);
    let (orders_from_children_tx, orders_from_children) = mpsc::channel(ORDERS_QUEUE);
    let (cut_tx, cut) = watch::channel(None);
    let (reports, reports_rx) = mpsc::channel(QUEUE);
    let (work, work_rx) = mpsc::channel(QUEUE);

    let uplink = board.uplink.subscribe();
    let tails: Option<Tails> = has_parent
        .then(|| Arc::new(ByLane::new(|_| if has_children { Tail::closed() } else { Tail::open() })));
    let untold = Arc::new(Guards::open());
    let notes = LossNotes::new(untold.clone());
    let fill = Arc::<Fill>::default();
    if let (Some(up), Some(tails)) = (connections.up.clone(), tails.clone()) {
        let packed = Arc::new(Guards::closed());
        let numbered = Arc::<Numbered>::default();
        let telling =
            told::run(config.path.clone(), js.clone(), notes.clone(), numbered.clone(), token.clone());
        tasks.spawn("loss receipts", telling);
        let parts = IngestParts {
            path: config.path.clone(),
            signer: signer.clone(),
            time: time.clone(),
            js: js.clone(),
            bucket: link.clone(),
            mesh: connections.mesh.clone(),
            gate: Gate::new(make_policy(config)?, metrics.clone()),
            rules: LaneRules::new(
                config.priorities.iter().map(|rule| (rule.subject.clone(), rule.lane)).collect(),
            ),
            pack: PackLimits {
                events: config.link.batch_events,
                bytes: config.link.batch_bytes,
                linger: config.link.linger,
            },
            guards: packed.clone(),
            tails: tails.clone(),
            numbered,
            notes: notes.clone(),
            fill: fill.clone(),
            store: store.clone(),
            reached,
            dead_letters: letters.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn("ingest", Ingest::run(parts, token.clone()));
        let parts = KeeperParts {
            path: config.path.clone(),
            js: js.clone(),
            bounds: lane_bounds(config),
            released: released.clone(),
            fill: fill.clone(),
            guards: vec![packed.clone(), checkpointed.clone()],
            notes: notes.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn("keeper", keeper::run(parts, token.clone()));
        let parts = UplinkParts {
            path: config.path.clone(),
            signer: signer.clone(),
            time: time.clone(),
            verifier: Verifier::new(svid.trust.clone(), 64),
            bindings: bindings.clone(),
            js: js.clone(),
            bucket: link.clone(),
            up,
            gate: Gate::new(make_policy(config)?, metrics.clone()),
            limits: ChildLimits {
                frames: config.link.in_flight,
                retry: config.link.retry,
                ..ChildLimits::default()
            },
            released: released.clone(),
            state: board.uplink.clone(),
            handoffs: from_parent_tx,
            from_above: orders_from_parent_tx,
            to_children: has_children.then(|| to_children.clone()),
            reached: reached_tx,
            drills: drills_tx,
            cut: cut.clone(),
            orders: to_parent_rx,
            tails,
            notes: notes.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn("uplink", Uplink::run(parts, token.clone()));
        let guards = vec![packed, untold, checkpointed.clone()];
        tasks.spawn("custody", custody::run(js.clone(), released, guards, token.clone()));
    }
    if let (Some(down), Some(leaf)) = (connections.down.clone(), config.leaf.clone()) {
        let parts = DownlinkParts {
            path: config.path.clone(),
            signer: signer.clone(),
            time: time.clone(),
            verifier: Verifier::new(svid.trust.clone(), BINDINGS_AT_HAND),
            bindings,
            js: js.clone(),
            bucket: link,
            shared: config.replicas.is_some(),
            down,
            reports,
            work,
            from_below: orders_from_children_tx,
            orders: to_children_rx,
            checkpointed,
            tails,
            leaf,
            fill: Some(fill.clone()),
            notes: has_parent.then_some(notes),
            dead_letters: letters.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn("downlink", Downlink::run(parts, token.clone()));
    }

    let parts = OrdersParts {
        path: config.path.clone(),
        children: config.leaf.as_ref().map_or_else(Vec::new, |leaf| leaf.children.clone()),
        signer: signer.clone(),
        verifier: Verifier::new(svid.trust.clone(), 64),
        bindings: order_bindings,
        js: js.clone(),
        bucket: orders_bucket,
        shared: config.replicas.is_some(),
        mesh: connections.mesh.clone(),
        down: connections.down.clone(),
        from_parent: orders_from_parent,
        to_parent: has_parent.then(|| to_parent.clone()),
        from_children: orders_from_children,
        dead_letters: letters.clone(),
        time: time.clone(),
        metrics: metrics.clone(),
    };
    tasks.spawn("orders", Orders::run(parts, token.clone()));
    let limits = stream_limits(config);
    let parts = RefusalParts {
        store: store.clone(),
        mesh: connections.mesh.clone(),
        streams: nats_config::streams(config.level(), &limits),
        buckets: nats_config::kv_buckets(config.level(), &limits),
        fill,
    };
    tasks.spawn("refusals", refuse_for_frozen(parts, token.clone()));
    let parts = DrillParts {
        path: config.path.clone(),
        js: js.clone(),
        mesh: connections.mesh.clone(),
        uplink: has_parent.then(|| uplink.clone()),
        cut: cut_tx,
        to_children: has_children.then(|| to_children.clone()),
        orders: drills,
    };
    tasks.spawn("drill", drill::run(parts, token.clone()));
    if let (Some(server), Some(parent)) = (own_server, &config.parent) {
        let parts = WatchdogParts {
            patience: config.link.stuck_after,
            parents: parent.addresses.iter().map(ToString::to_string).collect(),
            monitor: broker::dialable(server.monitor),
            account: names::UP,
            uplink: uplink.clone(),
            cut,
            server: server.steps.clone(),
            stuck: board.stuck.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn("link watchdog", watchdog::run(parts, token.clone()));
    }
    if !has_parent {
        let report = board.losses.clone();
        let parts = AuditParts { js: js.clone(), bucket: audit_bucket, report, metrics: metrics.clone() };
        tasks.spawn("audit", audit::run(parts, token.clone()));
    }

    let custody = Custody::new(js.clone(), tasks_bucket.clone());
    let records = Records::new(tasks_bucket);
    if config.level() == Level::Node {
        let parts = WorkerParts {
            path: config.path.clone(),
            js: js.clone(),
            custody,
            runners: config.runners.clone(),
            from_parent,
            to_parent,
            dead_letters: letters,
            metrics: metrics.clone(),
        };
        tasks.spawn("worker", Worker::run(parts, token.clone()));
    } else {
        let parts = HubParts {
            path: config.path.clone(),
            js: js.clone(),
            custody: custody.clone(),
            records: records.clone(),
            work: work_rx,
            to_children,
            from_parent,
            to_parent: has_parent.then_some(to_parent),
            dead_letters: letters.clone(),
        };
        tasks.spawn("hub", Hub::run(parts, token.clone()));
        let parts = HomeParts {
            path: config.path.clone(),
            js: js.clone(),
            signer: signer.clone(),
            time: time.clone(),
            records,
            custody,
            dead_letters: letters,
            metrics: metrics.clone(),
        };
        tasks.spawn("home", Home::run(parts, token.clone()));
    }

    let parts = watching::WatchParts {
        path: config.path.clone(),
        sampler: Sampler::new(&config.state_dir).map_err(|error| AppError::Machine(error.to_string()))?,
        interval: config.telemetry.interval,
        window: config.telemetry.window,
        mesh: connections.mesh.clone(),
        time: time.clone(),
        registry: make_registry(config)?,
        reports: reports_rx,
        store: store.clone(),
        uplink: has_parent.then_some(uplink),
        losses: board.losses.subscribe(),
        children: board.children.clone(),
        health: board.health.clone(),
    };
    tasks.spawn("watch", watching::run(parts, token.clone()));
    Ok(tasks)
}
