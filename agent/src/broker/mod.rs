//! The nats-server of this level: found, configured, started, watched, stopped; and the agent's
//! connections to it.

pub mod binary;
pub mod connect;
mod last_words;
mod log_tail;
mod pulse;
mod redial;
pub mod server;
pub mod store;
pub mod streams;

use std::net::{IpAddr, SocketAddr, TcpListener};

/// What went wrong with the nats-server. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is no such program.
    #[error(
        "nats-server is not to be found as `{0}`; install it (scripts/setup nats) or name it with nats.server"
    )]
    Missing(String),
    /// It does not tell its version.
    #[error("`{program} --version` does not tell a version: {reason}")]
    NoVersion {
        /// The program.
        program: String,
        /// What it said.
        reason: String,
    },
    /// It has holes that this product cannot live with beyond loopback.
    #[error(
        "nats-server {found} is too old to face a network: it lets clients name certificate users without a \
         certificate; install 2.14.4 or newer (or 2.12.14 or newer of 2.12)"
    )]
    TooOld {
        /// The version found.
        found: String,
    },
    /// It cannot keep a replica out that lost the lease.
    #[error(
        "nats-server {found} cannot keep apart what replicas write; install 2.12 or newer, or remove [replicas]"
    )]
    NoFences {
        /// The version found.
        found: String,
    },
    /// Something listens there already.
    #[error("{key} = {address} is in use by another program; stop it or choose another port")]
    PortInUse {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on for another reason.
    #[error("{key} = {address} cannot be listened on: {reason}")]
    BadAddress {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// A file of the server's could not be written.
    #[error("{path} cannot be written: {reason}; check owner and free space of the state directory")]
    Unwritable {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// There are too many damaged files already.
    #[error(
        "the files of stream {stream} are damaged and cannot be set aside: {most} lie in {dir} already; look at them, move away what is not needed, and start the agent again"
    )]
    SetAside {
        /// Where they lie.
        dir: String,
        /// How many may.
        most: usize,
        /// Whose files.
        stream: String,
    },
    /// The options do not make a configuration.
    #[error("nats-server cannot be configured: {0}")]
    Render(#[from] nats_config::RenderError),
    /// It was started and ended, or does not answer.
    #[error("nats-server does not come up: {0}")]
    NotUp(String),
    /// A connection was refused.
    #[error("cannot connect to nats-server at {address} as `{user}`: {reason}")]
    Connect {
        /// Where.
        address: String,
        /// As whom.
        user: String,
        /// What it said.
        reason: String,
    },
    /// JetStream refused a stream or bucket.
    #[error("JetStream cannot hold {name}: {reason}")]
    Stream {
        /// The stream or bucket.
        name: String,
        /// What it said.
        reason: String,
    },
}

/// Where free ports are looked for: below those that the system gives to outgoing connections, which
/// could otherwise take a port between its being chosen and its being used.
const FREE_PORTS: std::ops::Range<u16> = 16_000..32_000;

/// The address with a free port in place of 0. An address in use is named with its key.
pub fn claim(key: &'static str, address: SocketAddr) -> Result<SocketAddr, BrokerError> {
    let listen = |address: SocketAddr| {
        TcpListener::bind(address).map(|_| address).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => BrokerError::PortInUse { key, address },
            _ => BrokerError::BadAddress { key, address, reason: error.to_string() },
        })
    };
    if address.port() != 0 {
        return listen(address);
    }
    let mut tried = listen(SocketAddr::new(address.ip(), random_port()));
    for _ in 0..64 {
        if matches!(tried, Err(BrokerError::PortInUse { .. })) {
            tried = listen(SocketAddr::new(address.ip(), random_port()));
        }
    }
    tried
}

fn random_port() -> u16 {
    let span = u128::from(FREE_PORTS.end - FREE_PORTS.start);
    FREE_PORTS.start + (uuid::Uuid::new_v4().as_u128() % span) as u16
}

/// How a program on this machine reaches a listener on `address`.
pub fn dialable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
