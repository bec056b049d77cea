//! The composition root: what a role is made of, in the order in which it starts and stops.

mod error;
mod nats;
mod options;
mod signer;
mod state_dir;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Client, jetstream::context::ContextBuilder};
pub use error::AppError;
use hierarchy::{
    ByLane, Level,
    link::{ChildLimits, PackLimits},
    rollup::Health,
    signing::Verifier,
};
use nats::{ensure_streams, open_bucket, start_broker};
use nats_config::{
    names,
    streams::{BINDINGS_BUCKET, LINK_BUCKET, TASKS_BUCKET},
};
use options::{lane_bounds, make_policy, make_registry, stream_limits};
use signer::make_signer;
use state_dir::{lock_state, write_addresses};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    accounting::{
        LossNotes, Numbered,
        audit::{self, AuditParts},
        told,
    },
    broker::{
        self, BrokerError,
        server::{self, Server},
        store::{RefusalParts, StoreState, refuse_for_frozen, room},
    },
    clock::{self, MeshTime},
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
    http::{self, Facts},
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
        watchdog::{self, WatchdogParts},
    },
    metrics::{Metrics, Watermark},
    orders::{Orders, OrdersParts},
    status::ADDRESS_FILE,
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
/// Wait before a role begins anew whose streams are gone; doubles up to [`STEADY`] where it does not run for that
/// long.
const BEGIN_ANEW: Duration = Duration::from_millis(250);
const STEADY: Duration = Duration::from_secs(60);
/// How long the tasks may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// Runs the role until SIGTERM or SIGINT, or until something fails that it cannot do without.
pub async fn run(config: Config) -> Result<(), AppError> {
    let machine = |error: std::io::Error| AppError::Machine(error.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(machine)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(machine)?;

    let _lock = lock_state(&config)?;
    let nats_dir = config.state_dir.join("nats");
    let mut wait = BEGIN_ANEW;
    loop {
        let begun = Instant::now();
        let started = tokio::select! {
            agent = Agent::start(config.clone()) => Some(agent?),
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        let Some(mut agent) = started else {
            // Whoever stops an agent means its server, too: the one of an agent that was killed before.
            server::stop_left_behind(&nats_dir).await;
            return Ok(());
        };
        let ended = tokio::select! {
            end = agent.tasks.first_failure() => Some(Err(end.into())),
            _ = terminate.recv() => Some(Ok(())),
            _ = interrupt.recv() => Some(Ok(())),
            lost = lost_streams(agent.server.as_ref()) => {
                tracing::error!(?lost, "streams of this level are gone: the role begins anew in this process");
                None
            }
        };
        agent.stop().await;
        if let Some(ended) = ended {
            return ended;
        }
        wait = if begun.elapsed() > STEADY { BEGIN_ANEW } else { (wait * 2).min(STEADY) };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// Whatever the tasks have in memory is about streams that are not there any more.
async fn lost_streams(server: Option<&Server>) -> Vec<String> {
    match server {
        Some(server) => server.lost_streams().await,
        None => std::future::pending().await,
    }
}

/// A role that runs.
struct Agent {
    tasks: Tasks,
    server: Option<Server>,
    clients: Vec<Client>,
    address_file: PathBuf,
}

impl Agent {
    /// The order matters: what can be refused at once is looked at first, and nothing listens to others
    /// before this agent's own store is there.
    async fn start(config: Config) -> Result<Agent, AppError> {
        let started = Instant::now();
        let svid = Svid::load(&config.identity, &config.spiffe_id(), clock::wall())?;
        let signer = Arc::new(make_signer(&svid)?);
        let time = MeshTime::new(svid.validity);
        let metrics = Metrics::new();
        let listener = listen_http(config.http.listen).await?;
        let http = listener.local_addr().map_err(|error| AppError::Machine(error.to_string()))?;

        wait_for_room(&config, &listener).await?;
        let (server, version, connections, mut addresses) = start_broker(&config, &metrics).await?;
        addresses.http = http;
        let js = ContextBuilder::new().timeout(Duration::from_secs(5)).build(connections.mesh.clone());
        ensure_streams(&config, server.as_ref(), &js).await?;
        // A server that others run is theirs to look after.
        let (_, sound) = watch::channel(StoreState::default());
        let store = server.as_ref().map_or(sound, |server| server.store.clone());
        let bucket = |name: &'static str| open_bucket(&js, name);
        let (link, bindings, tasks_bucket) =
            (bucket(LINK_BUCKET).await?, bucket(BINDINGS_BUCKET).await?, bucket(TASKS_BUCKET).await?);
        let (audit_bucket, orders_bucket) = (link.clone(), link.clone());
        let mut bindings = Bindings::new(bindings);
        // So that whoever reads what this agent signs, as answers to tasks, can verify it.
        bindings.keep(signer.kid(), signer.binding()).await.map_err(|error| BrokerError::Stream {
            name: BINDINGS_BUCKET.into(),
            reason: error.to_string(),
        })?;

        let order_bindings = bindings.clone();

        let mut tasks = Tasks::new(CancellationToken::new());
        let token = tasks.token();
        let (letters, writer) = dead_letters(&metrics);
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

        let (uplink_state, uplink) = watch::channel(UplinkState::default());
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
                gate: Gate::new(make_policy(&config)?, metrics.clone()),
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
                bounds: lane_bounds(&config),
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
                gate: Gate::new(make_policy(&config)?, metrics.clone()),
                limits: ChildLimits {
                    frames: config.link.in_flight,
                    retry: config.link.retry,
                    ..ChildLimits::default()
                },
                released: released.clone(),
                state: uplink_state,
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
        let limits = stream_limits(&config);
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
        let (stuck_tx, stuck) = watch::channel(None);
        if let (Some(server), Some(parent), Some(monitor)) = (&server, &config.parent, addresses.monitor) {
            let parts = WatchdogParts {
                patience: config.link.stuck_after,
                parents: parent.addresses.iter().map(ToString::to_string).collect(),
                monitor: broker::dialable(monitor),
                account: names::UP,
                uplink: uplink.clone(),
                cut: cut.clone(),
                server: server.steps.clone(),
                stuck: stuck_tx,
                metrics: metrics.clone(),
            };
            tasks.spawn("link watchdog", watchdog::run(parts, token.clone()));
        }
        let (report, losses) = watch::channel(None);
        if !has_parent {
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
                js,
                signer,
                time: time.clone(),
                records,
                custody,
                dead_letters: letters,
                metrics: metrics.clone(),
            };
            tasks.spawn("home", Home::run(parts, token.clone()));
        }

        let (health_tx, health) = watch::channel(Health::Ok);
        let (children_tx, children) = watch::channel(Vec::new());
        let uplink = has_parent.then_some(uplink);
        let parts = watching::WatchParts {
            path: config.path.clone(),
            sampler: Sampler::new(&config.state_dir).map_err(|error| AppError::Machine(error.to_string()))?,
            interval: config.telemetry.interval,
            window: config.telemetry.window,
            mesh: connections.mesh.clone(),
            time,
            registry: make_registry(&config)?,
            reports: reports_rx,
            store: store.clone(),
            uplink: uplink.clone(),
            losses: losses.clone(),
            children: children_tx,
            health: health_tx,
        };
        tasks.spawn("watch", watching::run(parts, token.clone()));

        let address_file = config.state_dir.join(ADDRESS_FILE);
        write_addresses(&address_file, &addresses)?;
        tracing::info!(level = %config.level(), path = %config.path, http = %addresses.http, nats = addresses.nats,
            leaf = ?addresses.leaf, nats_server = version, "agent is up");
        let facts = Facts {
            path: config.path,
            nats_server: version,
            started,
            addresses,
            mesh: connections.mesh.clone(),
            health,
            store,
            uplink,
            stuck,
            children,
            losses,
            metrics,
        };
        tasks.spawn("http", http::run(listener, Arc::new(facts), token));
        let clients =
            [Some(connections.mesh), connections.up, connections.down].into_iter().flatten().collect();
        Ok(Agent { tasks, server, clients, address_file })
    }

    /// First whoever makes messages, then the connections, so that what was said is also sent, the server
    /// last.
    async fn stop(self) {
        tracing::info!("agent is stopping");
        self.tasks.stop(STOP_WITHIN).await;
        for client in self.clients {
            let _ = tokio::time::timeout(Duration::from_secs(2), client.flush()).await;
        }
        if let Some(server) = self.server {
            server.stop().await;
        }
        let _ = fs::remove_file(self.address_file);
    }
}

/// A server that is started without room would freeze its streams at once. The agent is there meanwhile, and
/// says why it is not ready.
async fn wait_for_room(config: &Config, listener: &TcpListener) -> Result<(), AppError> {
    let dir = config.state_dir.join("nats");
    let room = room::look(&dir);
    if config.nats.embedded().is_none() || !room.is_below(room::LEAST) {
        return Ok(());
    }
    let (free, needed) = (room.free, room::PLENTY);
    let reason = format!("disk full: {free} bytes free, {needed} needed; the start waits for room");
    tracing::error!(reason, "the store of this level takes nothing");
    let machine = |error: std::io::Error| AppError::Machine(error.to_string());
    // The same listener serves the agent later.
    let again = nix::unistd::dup(listener).map_err(|error| AppError::Machine(error.to_string()))?;
    let again = TcpListener::from_std(again.into()).map_err(machine)?;
    let cancel = CancellationToken::new();
    let mut serving = Tasks::new(cancel.clone());
    serving.spawn("http", http::run_waiting(again, reason, cancel));
    room::wait_for_plenty(&dir).await;
    serving.stop(Duration::from_secs(1)).await;
    tracing::info!("there is room again; starting");
    Ok(())
}

async fn listen_http(address: SocketAddr) -> Result<TcpListener, AppError> {
    broker::claim("http.listen", address)?;
    TcpListener::bind(address).await.map_err(|error| AppError::Machine(error.to_string()))
}
