//! The composition root: what a role is made of, in the order in which it starts and stops.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{
    Client,
    jetstream::{self, context::ContextBuilder, kv},
};
use coordinator::{Registry, policy, registry};
use hierarchy::{
    ByLane, Level, Millis,
    envelope::Sender,
    link::{ChildLimits, PackLimits},
    rollup::Health,
    signing::{Signer, Verifier},
};
use nats_config::{
    LeafListen, LeafRemote, ServerOptions, StreamLimits, SyncPolicy, TlsFiles, names,
    streams::{BINDINGS_BUCKET, LINK_BUCKET, TASKS_BUCKET},
};
use nix::fcntl::{Flock, FlockArg};
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
    broker::{self, BrokerError, binary::Binary, connect::connect, server, server::Server},
    clock,
    config::{Config, Nats, PolicyAction, SyncMode},
    dead_letters::dead_letters,
    dispatch::{
        custody::Custody,
        home::{Home, HomeParts},
        hub::{Hub, HubParts},
        records::Records,
        worker::{Worker, WorkerParts},
    },
    exit::ExitCode,
    http::{self, Facts},
    ingest::{Ingest, IngestParts},
    lanes::{
        Fill, Guards, LaneRules, Tails,
        keeper::{self, Bound, KeeperParts},
        tail::Tail,
    },
    link::{
        bindings::Bindings,
        custody,
        downlink::{Downlink, DownlinkParts},
        uplink::{Uplink, UplinkParts, UplinkState},
    },
    metrics::{Metrics, Watermark},
    status::{ADDRESS_FILE, Addresses},
    supervise::{TaskEnd, Tasks},
    svid::{Svid, SvidError},
    telemetry::Sampler,
    watch as watching,
};

/// Key bindings that a verifier keeps at hand.
const BINDINGS_AT_HAND: usize = 16 * 1024;
/// Messages between tasks of one agent.
const QUEUE: usize = 4096;
/// How long the tasks may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// Why a role could not run, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The state directory cannot be used.
    #[error(
        "the state directory {path} cannot be used: {reason}; create it and give it to this user, or set state_dir"
    )]
    State {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another agent uses it.
    #[error("another agent runs with the state directory {0}; stop it, or set another state_dir")]
    InUse(PathBuf),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] SvidError),
    /// The identity's key cannot sign.
    #[error("the identity's key cannot sign: {0}; an ECDSA P-256 key is needed")]
    Key(#[from] rustls::Error),
    /// The nats-server.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A part of the configuration that only shows when it is put to use.
    #[error("{0}")]
    Config(String),
    /// Something this machine lacks.
    #[error("{0}")]
    Machine(String),
    /// A task that must run ended.
    #[error(transparent)]
    Task(#[from] TaskEnd),
}

impl AppError {
    /// What the process exits with.
    pub fn code(&self) -> ExitCode {
        match self {
            AppError::State { .. }
            | AppError::InUse(_)
            | AppError::Broker(BrokerError::Unwritable { .. }) => ExitCode::CannotCreate,
            AppError::Identity(_) | AppError::Key(_) => ExitCode::Identity,
            AppError::Config(_) => ExitCode::Usage,
            AppError::Broker(_) => ExitCode::Unavailable,
            AppError::Machine(_) | AppError::Task(_) => ExitCode::Failure,
        }
    }
}

/// Runs the role until SIGTERM or SIGINT, or until something fails that it cannot do without.
pub async fn run(config: Config) -> Result<(), AppError> {
    let machine = |error: std::io::Error| AppError::Machine(error.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(machine)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(machine)?;

    let _lock = lock_state(&config)?;
    let nats_dir = config.state_dir.join("nats");
    let started = tokio::select! {
        agent = Agent::start(config) => Some(agent?),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    let Some(mut agent) = started else {
        // Whoever stops an agent means its server, too: the one of an agent that was killed before.
        server::stop_left_behind(&nats_dir).await;
        return Ok(());
    };
    let ended = tokio::select! {
        end = agent.tasks.first_failure() => Err(end.into()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    agent.stop().await;
    ended
}

/// A role that runs.
struct Agent {
    tasks: Tasks,
    server: Option<Server>,
    clients: Vec<Client>,
    address_file: PathBuf,
}

/// The agent's ways into its server.
struct Connections {
    mesh: Client,
    up: Option<Client>,
    down: Option<Client>,
}

impl Agent {
    /// The order matters: what can be refused at once is looked at first, and nothing listens to others
    /// before this agent's own store is there.
    async fn start(config: Config) -> Result<Agent, AppError> {
        let started = Instant::now();
        let svid = Svid::load(&config.identity, &config.spiffe_id(), clock::wall())?;
        let signer = Arc::new(make_signer(&svid)?);
        let metrics = Metrics::new();
        let listener = listen_http(config.http.listen).await?;
        let http = listener.local_addr().map_err(|error| AppError::Machine(error.to_string()))?;

        let (server, version, connections, mut addresses) = start_broker(&config, &metrics).await?;
        addresses.http = http;
        let js = ContextBuilder::new().timeout(Duration::from_secs(5)).build(connections.mesh.clone());
        ensure_streams(&config, &js).await?;
        let bucket = |name: &'static str| open_bucket(&js, name);
        let (link, bindings, tasks_bucket) =
            (bucket(LINK_BUCKET).await?, bucket(BINDINGS_BUCKET).await?, bucket(TASKS_BUCKET).await?);
        let audit_bucket = link.clone();
        let mut bindings = Bindings::new(bindings);
        // So that whoever reads what this agent signs, as answers to tasks, can verify it.
        bindings.keep(signer.kid(), signer.binding()).await.map_err(|error| BrokerError::Stream {
            name: BINDINGS_BUCKET.into(),
            reason: error.to_string(),
        })?;

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
                js: js.clone(),
                bucket: link.clone(),
                mesh: connections.mesh.clone(),
                policy: make_policy(&config)?,
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
                dead_letters: letters.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn("ingest", Ingest::run(parts, token.clone()));
            let parts = KeeperParts {
                path: config.path.clone(),
                js: js.clone(),
                bounds: lane_bounds(&config),
                fill: fill.clone(),
                guards: vec![packed.clone(), checkpointed.clone()],
                notes: notes.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn("keeper", keeper::run(parts, token.clone()));
            let parts = UplinkParts {
                path: config.path.clone(),
                signer: signer.clone(),
                verifier: Verifier::new(svid.trust.clone(), 64),
                bindings: bindings.clone(),
                js: js.clone(),
                bucket: link.clone(),
                up,
                policy: make_policy(&config)?,
                limits: ChildLimits {
                    frames: config.link.in_flight,
                    retry: config.link.retry,
                    ..ChildLimits::default()
                },
                released: released.clone(),
                state: uplink_state,
                handoffs: from_parent_tx,
                orders: to_parent_rx,
                tails,
                notes: notes.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn("uplink", Uplink::run(parts, token.clone()));
            let guards = vec![packed, untold, checkpointed.clone()];
            tasks.spawn("custody", custody::run(js.clone(), released, guards, token.clone()));
        }
        if let Some(down) = connections.down.clone() {
            let parts = DownlinkParts {
                path: config.path.clone(),
                signer: signer.clone(),
                verifier: Verifier::new(svid.trust.clone(), BINDINGS_AT_HAND),
                bindings,
                js: js.clone(),
                bucket: link,
                down,
                reports,
                work,
                orders: to_children_rx,
                checkpointed,
                tails,
                fill: has_parent.then_some(fill),
                notes: has_parent.then_some(notes),
                dead_letters: letters.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn("downlink", Downlink::run(parts, token.clone()));
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
            registry: make_registry(&config)?,
            reports: reports_rx,
            uplink: uplink.clone(),
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
            uplink,
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

/// To be held as long as the agent runs.
fn lock_state(config: &Config) -> Result<Flock<File>, AppError> {
    let path = config.state_dir.clone();
    let unusable = |error: std::io::Error| AppError::State { path: path.clone(), reason: error.to_string() };
    fs::create_dir_all(path.join("nats")).map_err(unusable)?;
    let file = File::create(path.join("lock")).map_err(unusable)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| AppError::InUse(path.clone()))
}

fn make_signer(svid: &Svid) -> Result<Signer, rustls::Error> {
    let sender = Sender {
        service_id: "lucent-agent".into(),
        instance_id: uuid::Uuid::new_v4().to_string().into(),
        version: crate::VERSION.into(),
        node_id: svid.identity.path.to_string().into(),
    };
    let mut seed = [0; 32];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut seed)
        .map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
    let validity: [Millis; 2] = svid.validity;
    Signer::new(svid.identity.clone(), sender, &seed, svid, &svid.chain, validity)
}

async fn listen_http(address: SocketAddr) -> Result<TcpListener, AppError> {
    broker::claim("http.listen", address)?;
    TcpListener::bind(address).await.map_err(|error| AppError::Machine(error.to_string()))
}

async fn start_broker(
    config: &Config,
    metrics: &Metrics,
) -> Result<(Option<Server>, String, Connections, Addresses), AppError> {
    let addresses = |nats: String| Addresses {
        pid: std::process::id(),
        http: SocketAddr::from(([127, 0, 0, 1], 0)),
        nats,
        monitor: None,
        leaf: None,
    };
    match &config.nats {
        Nats::External(external) => {
            let url = external.url.clone();
            let as_user = async |credentials: &crate::config::Credentials| {
                connect(url.clone(), &credentials.user, credentials.password.expose(), "external").await
            };
            let connections = Connections {
                mesh: as_user(&external.mesh).await?,
                up: match &external.up {
                    Some(credentials) => Some(as_user(credentials).await?),
                    None => None,
                },
                down: match &external.down {
                    Some(credentials) => Some(as_user(credentials).await?),
                    None => None,
                },
            };
            let version = connections.mesh.server_info().version;
            Ok((
                None,
                version,
                connections,
                addresses(format!("{}:{}", external.url.host(), external.url.port())),
            ))
        }
        Nats::Embedded(embedded) => {
            let binary = Binary::find(&embedded.server, embedded.heap_limit).await?;
            binary.check(faces_loopback_only(config))?;
            let dir = config.state_dir.join("nats");
            let mut options = server_options(config, &binary)?;
            options.passwords = server::passwords(&dir)?;
            let (monitor, leaf) =
                (options.monitor_listen, options.leaf_listen.as_ref().map(|leaf| leaf.address));
            let server = Server::start(&binary, &dir, options, metrics).await?;
            let address = broker::dialable(server.client).to_string();
            let passwords = &server.passwords;
            let as_user = async |user: &str, password: &nats_config::Password, name: &str| {
                connect(address.as_str(), user, password.expose(), name).await
            };
            let mesh = as_user(names::AGENT_USER, &passwords.agent, "mesh").await?;
            let up = match config.parent {
                Some(_) => Some(as_user(names::UP_USER, &passwords.up, "up").await?),
                None => None,
            };
            let down = match config.leaf {
                Some(_) => Some(as_user(names::DOWN_USER, &passwords.down, "down").await?),
                None => None,
            };
            let addresses = Addresses { monitor, leaf, ..addresses(address) };
            let version = binary.version.to_string();
            Ok((Some(server), version, Connections { mesh, up, down }, addresses))
        }
    }
}

/// Whether nobody beyond this machine can reach the server, nor it them.
fn faces_loopback_only(config: &Config) -> bool {
    let leaf = config.leaf.as_ref().is_none_or(|leaf| leaf.listen.ip().is_loopback());
    let parents = config.parent.as_ref().is_none_or(|parent| {
        parent.addresses.iter().all(|address| {
            let host = address.host.as_str();
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        })
    });
    leaf && parents
}

/// Ports of 0 become free ones here, once for the life of this agent.
fn server_options(config: &Config, binary: &Binary) -> Result<ServerOptions, AppError> {
    let Nats::Embedded(embedded) = &config.nats else {
        return Err(AppError::Config("an external server has no options".into()));
    };
    let dir = config.state_dir.join("nats");
    let ports = Ports::kept(&dir);
    let tls = || TlsFiles {
        cert: config.identity.cert.clone(),
        key: config.identity.key.clone(),
        ca: config.identity.bundle.clone(),
    };
    let mut options = ServerOptions::new(
        config.path.clone(),
        binary.version,
        config.trust_domain.as_str(),
        dir.join("jetstream"),
        ports.fill("nats.listen", embedded.listen)?,
        server::passwords(&dir)?,
    );
    if let Some(password) = &embedded.local_password {
        let password = nats_config::Password::new(password.expose());
        options.local_password = Some(password.map_err(|error| AppError::Config(error.to_string()))?);
    }
    options.monitor_listen = Some(ports.fill("nats.monitor", embedded.monitor)?);
    options.max_memory_store = embedded.max_memory;
    options.max_file_store = embedded.max_file;
    options.sync = match embedded.sync {
        SyncMode::ServerDefault => SyncPolicy::ServerDefault,
        SyncMode::Always => SyncPolicy::Always,
        SyncMode::Every(interval) => SyncPolicy::Every(interval),
    };
    if let Some(leaf) = &config.leaf {
        options.leaf_listen = Some(LeafListen {
            address: ports.fill("leaf.listen", leaf.listen)?,
            tls: tls(),
            children: leaf.children.clone(),
        });
    }
    if let Some(parent) = &config.parent {
        let addresses = parent.addresses.iter().map(ToString::to_string).collect();
        options.parents = Some(LeafRemote { addresses, tls: tls() });
    }
    Ok(options)
}

/// The ports that an earlier agent chose in this state directory. A server that it left running listens
/// there still; and children find their parent where it was.
struct Ports(Option<Addresses>);

impl Ports {
    fn kept(dir: &std::path::Path) -> Ports {
        let file = dir.parent().map(|state| state.join(ADDRESS_FILE));
        Ports(file.and_then(|file| serde_json::from_slice(&fs::read(file).ok()?).ok()))
    }

    fn fill(&self, key: &'static str, address: SocketAddr) -> Result<SocketAddr, BrokerError> {
        if address.port() != 0 {
            return Ok(address);
        }
        let kept = self.0.as_ref().and_then(|kept| match key {
            "nats.listen" => kept.nats.parse().ok(),
            "nats.monitor" => kept.monitor,
            "leaf.listen" => kept.leaf,
            _ => None,
        });
        match kept.filter(|kept: &SocketAddr| kept.ip() == address.ip()) {
            Some(kept) => Ok(kept),
            None => broker::claim(key, address),
        }
    }
}

/// Below what the server refuses, so that the agent is the first to notice.
fn lane_bounds(config: &Config) -> ByLane<Bound> {
    let limits = stream_limits(config);
    config.lanes.map(|lane, bound| {
        let most = nats_config::streams::lane_bytes(lane, &limits) / 10 * 9;
        Bound { bytes: bound.bytes.unwrap_or(most).min(most), age: bound.age }
    })
}

/// One server stands alone: nothing could hold a second replica.
fn stream_limits(config: &Config) -> StreamLimits {
    let max_file = config.nats.embedded().map_or(10 << 30, |embedded| embedded.max_file);
    StreamLimits { core_replicas: 1, ..StreamLimits::new(max_file) }
}

async fn ensure_streams(config: &Config, js: &jetstream::Context) -> Result<(), BrokerError> {
    let limits = stream_limits(config);
    let streams = nats_config::streams(config.level(), &limits);
    broker::streams::ensure(js, &streams, &nats_config::kv_buckets(config.level(), &limits)).await
}

async fn open_bucket(js: &jetstream::Context, name: &'static str) -> Result<kv::Store, BrokerError> {
    js.get_key_value(name)
        .await
        .map_err(|error| BrokerError::Stream { name: name.into(), reason: error.to_string() })
}

fn make_policy(config: &Config) -> Result<coordinator::Policy, AppError> {
    let rule = |rule: &crate::config::PolicyRule| -> Result<policy::Rule, AppError> {
        let subject = rule.subject.parse().map_err(|error| AppError::Config(format!("policy: {error}")))?;
        let action = match rule.action {
            PolicyAction::Forward => policy::Action::Forward,
            PolicyAction::Aggregate => policy::Action::Aggregate,
            PolicyAction::Drop => policy::Action::Drop,
            PolicyAction::Sample(one_in) => policy::Action::Sample {
                one_in: one_in
                    .try_into()
                    .map_err(|_| AppError::Config("policy: one_in must be above 0".into()))?,
            },
        };
        Ok(policy::Rule { subject, action })
    };
    let rules = config.policy.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    coordinator::Policy::new(config.level(), rules)
        .map_err(|error| AppError::Config(format!("policy: {error}")))
}

fn make_registry(config: &Config) -> Result<Registry, AppError> {
    let children = config.leaf.as_ref().map(|leaf| leaf.children.clone()).unwrap_or_default();
    // Children offer room once a second, whatever else they have to say.
    let limits = registry::Limits::of_interval(Duration::from_secs(2));
    Registry::new(config.path.clone(), limits, children).map_err(|error| AppError::Config(error.to_string()))
}

fn write_addresses(path: &std::path::Path, addresses: &Addresses) -> Result<(), AppError> {
    let failed = |reason: String| AppError::State { path: path.to_owned(), reason };
    let text = serde_json::to_vec_pretty(addresses).map_err(|error| failed(error.to_string()))?;
    let next = path.with_extension("next");
    fs::write(&next, text).and_then(|()| fs::rename(&next, path)).map_err(|error| failed(error.to_string()))
}
