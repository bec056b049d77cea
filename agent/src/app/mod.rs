//! The composition root: what an agent is made of, in the order in which it starts and stops. What acts at its
//! level is in `role`.

mod error;
mod nats;
mod options;
mod role;
mod room;
mod signer;
mod state_dir;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::context::ContextBuilder;
use coordinator::lease::Limits;
pub use error::AppError;
use nats::{ensure_streams, open_bucket, start_broker};
use nats_config::{ServerVersion, streams::LINK_BUCKET};
use role::{Board, Ground, OwnServer};
use room::wait_for_room;
use signer::make_signer;
use state_dir::{lock_state, write_addresses};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{
        self, BrokerError,
        server::{self, Server},
        store::StoreState,
    },
    clock::{self, MeshTime},
    config::{Config, Replicas},
    http::{self, Facts},
    metrics::Metrics,
    replicas::{self, Keeper, LeaseParts, Seat, default_instance},
    status::ADDRESS_FILE,
    supervise::{TaskEnd, Tasks},
    svid::Svid,
};

/// Wait before a role begins anew whose streams are gone; doubles up to [`STEADY`] where it does not run for that
/// long.
const BEGIN_ANEW: Duration = Duration::from_millis(250);
const STEADY: Duration = Duration::from_secs(60);
/// How long the tasks may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(8);
/// How long the store may take to hear that the lease is free.
const RELEASED_WITHIN: Duration = Duration::from_secs(2);
/// Pause before a role that could not be started is started again.
const START_AGAIN: Duration = Duration::from_millis(500);
/// The first version whose streams understand fences.
const FENCES_SINCE: ServerVersion = ServerVersion::new(2, 12, 0);

/// Runs the agent until SIGTERM or SIGINT, or until something fails that it cannot do without.
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
        let lost = lost_streams(agent.server.as_ref());
        let ended = tokio::select! {
            end = agent.act() => Some(Err(end)),
            _ = terminate.recv() => Some(Ok(())),
            _ = interrupt.recv() => Some(Ok(())),
            lost = lost => {
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
fn lost_streams(server: Option<&Server>) -> impl Future<Output = Vec<String>> + use<> {
    let lost = server.map(Server::lost_streams);
    async move {
        match lost {
            Some(lost) => lost.await,
            None => std::future::pending().await,
        }
    }
}

/// An agent that runs.
struct Agent {
    ground: Ground,
    /// What acts, while it may.
    role: Option<Tasks>,
    /// Where there are replicas: the lease.
    seat: Option<Seat>,
    /// What runs all the time: `http`, and the keeper of the lease.
    always: Tasks,
    server: Option<Server>,
    address_file: PathBuf,
}

impl Agent {
    /// The order matters: what can be refused at once is looked at first, and nothing listens to others
    /// before this agent's own store is there.
    async fn start(config: Config) -> Result<Agent, AppError> {
        let started = Instant::now();
        let svid = Svid::load(&config.identity, &config.spiffe_id(), clock::wall())?;
        make_signer(&svid)?;
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
        let own_server = server.as_ref().zip(addresses.monitor);
        let own_server =
            own_server.map(|(server, monitor)| OwnServer { steps: server.steps.clone(), monitor });
        let time = MeshTime::new(svid.validity);
        let board = Board::default();
        let ground = Ground { config, svid, time, connections, own_server, store, js, metrics, board };

        let mut always = Tasks::new(CancellationToken::new());
        let (role, seat) = match &ground.config.replicas {
            None => (Some(role::start(&ground, CancellationToken::new()).await?), None),
            Some(replicas) => {
                refuse_without_fences(&version)?;
                let (seat, keeper) = take_seat(replicas, &ground).await?;
                always.spawn("lease", keeper.run(always.token()));
                (None, Some(seat))
            }
        };

        let Ground { config, connections, metrics, board, .. } = &ground;
        let address_file = config.state_dir.join(ADDRESS_FILE);
        write_addresses(&address_file, &addresses)?;
        tracing::info!(level = %config.level(), path = %config.path, http = %addresses.http, nats = addresses.nats,
            leaf = ?addresses.leaf, nats_server = version, "agent is up");
        let facts = Facts {
            path: config.path.clone(),
            nats_server: version,
            started,
            addresses,
            mesh: connections.mesh.clone(),
            health: board.health.subscribe(),
            store: ground.store.clone(),
            uplink: connections.up.as_ref().map(|_| board.uplink.subscribe()),
            stuck: board.stuck.subscribe(),
            children: board.children.subscribe(),
            losses: board.losses.subscribe(),
            replica: seat.as_ref().map(Seat::state),
            metrics: metrics.clone(),
        };
        always.spawn("http", http::run(listener, Arc::new(facts), always.token()));
        Ok(Agent { ground, role, seat, always, server, address_file })
    }

    /// Acts, where there are replicas whenever the lease is held. Returns only when something has failed.
    async fn act(&mut self) -> AppError {
        let Agent { ground, role, seat, always, .. } = self;
        let Some(seat) = seat else {
            return tokio::select! {
                end = first_failure(role) => end.into(),
                end = always.first_failure() => end.into(),
            };
        };
        loop {
            let term = tokio::select! {
                term = seat.take() => term,
                end = always.first_failure() => return end.into(),
            };
            match start_role(ground, &term.over).await {
                Ok(started) => *role = started,
                Err(error) => return error,
            }
            tokio::select! {
                () = term.over.cancelled() => {}
                end = first_failure(role) => return end.into(),
                end = always.first_failure() => return end.into(),
            }
            stop_role(role.take()).await;
            ground.board.clear();
        }
    }

    /// First whoever makes messages, then the lease, for nobody may act beside them; then the connections, so
    /// that what was said is also sent, the server last.
    async fn stop(self) {
        tracing::info!("agent is stopping");
        stop_role(self.role).await;
        if let Some(seat) = self.seat {
            seat.release(RELEASED_WITHIN).await;
        }
        self.always.stop(STOP_WITHIN).await;
        for client in self.ground.connections.all() {
            let _ = tokio::time::timeout(Duration::from_secs(2), client.flush()).await;
        }
        if let Some(server) = self.server {
            server.stop().await;
        }
        let _ = fs::remove_file(self.address_file);
    }
}

/// Servers that have just lost one of theirs may not answer at once. `None` where the term ends before they do.
async fn start_role(ground: &Ground, over: &CancellationToken) -> Result<Option<Tasks>, AppError> {
    loop {
        match role::start(ground, over.clone()).await {
            Ok(started) => return Ok(Some(started)),
            Err(AppError::Broker(error)) => tracing::warn!(%error, "this replica cannot act yet"),
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = over.cancelled() => return Ok(None),
            () = tokio::time::sleep(START_AGAIN) => {}
        }
    }
}

async fn first_failure(role: &mut Option<Tasks>) -> TaskEnd {
    match role {
        Some(role) => role.first_failure().await,
        None => std::future::pending().await,
    }
}

async fn stop_role(role: Option<Tasks>) {
    if let Some(role) = role {
        role.stop(STOP_WITHIN).await;
    }
}

async fn take_seat(replicas: &Replicas, ground: &Ground) -> Result<(Seat, Keeper), AppError> {
    let parts = LeaseParts {
        bucket: open_bucket(&ground.js, LINK_BUCKET).await?,
        instance: replicas.instance.clone().unwrap_or_else(default_instance),
        limits: Limits::of(replicas.take_over),
        metrics: ground.metrics.clone(),
    };
    Ok(replicas::seat(parts))
}

fn refuse_without_fences(version: &str) -> Result<(), AppError> {
    match version.parse::<ServerVersion>() {
        Ok(version) if version >= FENCES_SINCE => Ok(()),
        _ => Err(BrokerError::NoFences { found: version.to_owned() }.into()),
    }
}

async fn listen_http(address: SocketAddr) -> Result<TcpListener, AppError> {
    broker::claim("http.listen", address)?;
    TcpListener::bind(address).await.map_err(|error| AppError::Machine(error.to_string()))
}
