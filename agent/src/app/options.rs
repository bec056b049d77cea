//! What the configuration says, in the terms of the parts that it is for.

use std::{fs, net::SocketAddr, time::Duration};

use coordinator::{Registry, policy, registry};
use hierarchy::ByLane;
use nats_config::{LeafListen, LeafRemote, ServerOptions, StreamLimits, SyncPolicy, TlsFiles};

use super::AppError;
use crate::{
    broker::{self, BrokerError, binary::Binary, server},
    config::{Config, Nats, PolicyAction, SyncMode},
    lanes::keeper::Bound,
    status::{ADDRESS_FILE, Addresses},
};

/// Ports of 0 become free ones here, once for the life of this agent.
pub(super) fn server_options(config: &Config, binary: &Binary) -> Result<ServerOptions, AppError> {
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
        options.parents = Some(LeafRemote { addresses, tls: tls(), paused: false });
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
pub(super) fn lane_bounds(config: &Config) -> ByLane<Bound> {
    let limits = stream_limits(config);
    config.lanes.map(|lane, bound| {
        let most = nats_config::streams::lane_bytes(lane, &limits) / 10 * 9;
        Bound { bytes: bound.bytes.unwrap_or(most).min(most), age: bound.age }
    })
}

/// The agent's own server stands alone: nothing could hold a second copy.
pub(super) fn stream_limits(config: &Config) -> StreamLimits {
    let (max_file, core_replicas) = match &config.nats {
        Nats::Embedded(embedded) => (embedded.max_file, 1),
        Nats::External(external) => (10 << 30, external.copies),
    };
    StreamLimits { core_replicas, ..StreamLimits::new(max_file) }
}

pub(super) fn make_policy(config: &Config) -> Result<coordinator::Policy, AppError> {
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

pub(super) fn make_registry(config: &Config) -> Result<Registry, AppError> {
    let children = config.leaf.as_ref().map(|leaf| leaf.children.clone()).unwrap_or_default();
    // Children offer room once a second, whatever else they have to say.
    let limits = registry::Limits::of_interval(Duration::from_secs(2));
    Registry::new(config.path.clone(), limits, children).map_err(|error| AppError::Config(error.to_string()))
}
