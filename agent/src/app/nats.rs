//! The nats-server of a role, started or found running elsewhere, with the agent's connections into it and
//! its store there.

use std::{net::SocketAddr, time::Duration};

use async_nats::{
    Client,
    jetstream::{self, kv},
};
use nats_config::names;

use super::{
    AppError,
    options::{server_options, stream_limits},
};
use crate::{
    broker::{
        self, BrokerError,
        binary::Binary,
        connect::connect,
        server::{self, Server},
    },
    config::{Config, Nats},
    metrics::Metrics,
    status::Addresses,
};

/// How long servers that others run may take until they keep streams.
const EXTERNAL_READY_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The agent's ways into its server.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) mesh: Client,
    pub(super) up: Option<Client>,
    pub(super) down: Option<Client>,
}

impl Connections {
    pub(super) fn all(&self) -> impl Iterator<Item = &Client> {
        [Some(&self.mesh), self.up.as_ref(), self.down.as_ref()].into_iter().flatten()
    }
}

pub(super) async fn start_broker(
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
            let urls = external.urls.clone();
            let as_user = async |credentials: &crate::config::Credentials| {
                connect(urls.clone(), &credentials.user, credentials.password.expose(), "external").await
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
            let first = external.urls.first().map(|url| format!("{}:{}", url.host(), url.port()));
            Ok((None, version, connections, addresses(first.unwrap_or_default())))
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

/// Makes this level's streams and buckets, and has the server watched for them. An own server is ready when it is up.
/// The servers of a cluster may still have to find each other.
pub(super) async fn ensure_streams(
    config: &Config,
    server: Option<&Server>,
    js: &jetstream::Context,
) -> Result<(), BrokerError> {
    let limits = stream_limits(config);
    let streams = nats_config::streams(config.level(), &limits);
    let buckets = nats_config::kv_buckets(config.level(), &limits);
    let dir = server.map(|_| config.state_dir.join("nats"));
    let deadline = tokio::time::Instant::now() + EXTERNAL_READY_WITHIN;
    loop {
        match broker::streams::ensure(js, &streams, &buckets, dir.as_deref()).await {
            Err(error) if server.is_none() && tokio::time::Instant::now() < deadline => {
                tracing::info!(%error, "waiting for JetStream");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            made => break made?,
        }
    }
    if let Some(server) = server {
        let buckets = buckets.into_iter().map(|bucket| format!("KV_{}", bucket.bucket));
        server.expect(streams.into_iter().map(|stream| stream.name).chain(buckets).collect());
    }
    Ok(())
}

pub(super) async fn open_bucket(
    js: &jetstream::Context,
    name: &'static str,
) -> Result<kv::Store, BrokerError> {
    js.get_key_value(name)
        .await
        .map_err(|error| BrokerError::Stream { name: name.into(), reason: error.to_string() })
}
