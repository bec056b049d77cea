//! What a server's configuration is made from.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use hierarchy::{Level, Path};

use crate::version::ServerVersion;

/// Everything that stands in one server's configuration. [`ServerOptions::new`] fills in what is
/// rarely changed; [`ServerOptions::check`] says what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// Where the server stands; its level follows.
    pub path: Path,
    /// The server that will read the configuration: what it does not know is left out.
    pub version: ServerVersion,
    /// The trust domain of the children's SPIFFE ids, as in `lucent.dev`.
    pub trust_domain: String,
    /// Where JetStream stores.
    pub store_dir: PathBuf,
    /// Where the server writes its process id.
    pub pid_file: Option<PathBuf>,
    /// Where applications and the agent connect: a loopback address, unless applications need a password.
    pub client_listen: SocketAddr,
    /// The password of local applications; `None` lets every program on this machine connect.
    pub local_password: Option<Password>,
    /// Where the server answers HTTP on its own state: a loopback address.
    pub monitor_listen: Option<SocketAddr>,
    /// Bytes that JetStream may hold in memory; 0 for none.
    pub max_memory_store: u64,
    /// Bytes that JetStream may store. Left to itself the server takes three quarters of the disk.
    pub max_file_store: u64,
    /// When stored messages reach the disk.
    pub sync: SyncPolicy,
    /// The agent's own passwords.
    pub passwords: Passwords,
    /// Where children connect; none at a node.
    pub leaf_listen: Option<LeafListen>,
    /// Who the parent is; none at global.
    pub parents: Option<LeafRemote>,
    /// Silence after which a peer is asked for a sign of life. With `ping_max` it decides how soon a
    /// peer that hangs is noticed: a child notices after `ping_max + 1` of them at most, a parent one
    /// later; so within 6 s with 1 s and 4.
    pub ping_interval: Duration,
    /// Unanswered pings after which a connection is given up. A sign of life may take `ping_max` intervals
    /// over a slow line, with what is before it: 4 s with 1 s and 4, of which the link takes two.
    pub ping_max: u32,
    /// Pause between attempts to reach the parent, and so the time that fail-over takes.
    pub reconnect: Duration,
    /// How long one write to a peer may take before the peer counts as lost. The link keeps no more under
    /// way than its line carries in two seconds.
    pub write_deadline: Duration,
    /// Bytes of the largest message. A frame of a link carries a whole batch.
    pub max_payload: u32,
    /// How long a server that was asked to retire takes to let go of its clients.
    pub lame_duck: Duration,
}

/// When JetStream's writes reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Every two minutes: a power cut may lose what was acknowledged since.
    ServerDefault,
    /// Before each acknowledgement.
    Always,
    /// At this interval.
    Every(Duration),
}

/// The passwords of the agent's users, one per account. Nobody else is told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passwords {
    /// Of `agent` in MESH.
    pub agent: Password,
    /// Of `up` in UP.
    pub up: Password,
    /// Of `down` in DOWN.
    pub down: Password,
    /// Of `sys` in SYS.
    pub sys: Password,
}

/// A password in plain text, which its `Debug` form hides: 16 to 128 characters of `A-Z`, `a-z`,
/// `0-9`, `_` and `-`. It stands in the configuration as it is, so that file is for the agent alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

/// A text that is not a [`Password`]. It does not say which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this password is refused: 16 to 128 random characters of A-Z, a-z, 0-9, `_` and `-`")]
pub struct PasswordError;

/// Where children connect, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafListen {
    /// The listener; unlike the others it faces the network, behind mutual TLS.
    pub address: SocketAddr,
    /// The server's certificate, with a DNS name or IP address that children dial.
    pub tls: TlsFiles,
    /// The children that are admitted: direct children of the server's path, in any order.
    pub children: Vec<Path>,
}

/// How to reach the parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafRemote {
    /// `host:port` of the parent's server and of those that stand in for it, best first.
    pub addresses: Vec<String>,
    /// The certificate under whose SPIFFE id the parent admits this server.
    pub tls: TlsFiles,
    /// Whether the server is not to be connected to it just now. Paused and resumed by two reloads, a server
    /// dials anew; one without [`Feature::PausedRemotes`](crate::version::Feature) knows no pause.
    pub paused: bool,
}

/// PEM files of a TLS endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, leaf first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who is trusted to name the peer. Each of them can assert every id.
    pub ca: PathBuf,
}

impl ServerOptions {
    /// Options with the defaults of the path's level, without parent and children.
    pub fn new(
        path: Path,
        version: ServerVersion,
        trust_domain: impl Into<String>,
        store_dir: impl Into<PathBuf>,
        client_listen: SocketAddr,
        passwords: Passwords,
    ) -> ServerOptions {
        let level = path.level();
        ServerOptions {
            path,
            version,
            trust_domain: trust_domain.into(),
            store_dir: store_dir.into(),
            pid_file: None,
            client_listen,
            local_password: None,
            monitor_listen: None,
            max_memory_store: 64 << 20,
            max_file_store: if level == Level::Node { 1 << 30 } else { 8 << 30 },
            sync: SyncPolicy::default_for(level),
            passwords,
            leaf_listen: None,
            parents: None,
            ping_interval: Duration::from_secs(1),
            ping_max: 4,
            reconnect: Duration::from_secs(1),
            write_deadline: Duration::from_secs(10),
            max_payload: 8 << 20,
            lame_duck: Duration::from_secs(30),
        }
    }
}

impl SyncPolicy {
    /// Above the node whole batches are stored and syncing each costs little; at the node, where
    /// events are stored one by one, it would cost thirty times the throughput.
    pub const fn default_for(level: Level) -> SyncPolicy {
        match level {
            Level::Node => SyncPolicy::ServerDefault,
            Level::Cluster | Level::Site | Level::Global => SyncPolicy::Always,
        }
    }
}

impl Password {
    /// `text` as a password.
    pub fn new(text: impl Into<String>) -> Result<Password, PasswordError> {
        let text = text.into();
        // The alphabet also keeps out what the server takes for a bcrypt hash.
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let accepted = (16..=128).contains(&text.len()) && text.bytes().all(legal);
        accepted.then_some(Password(text)).ok_or(PasswordError)
    }

    /// The password itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_random_text_that_does_not_show_in_logs() {
        let password = Password::new("Zm9vYmFyYmF6cXV4_-0").unwrap();
        assert_eq!(format!("{password:?}"), "Password(..)");
        let long = "a".repeat(129);
        for bad in ["", "short", "sixteen chars!!!", "\"quoted-password\"", "$2a$10$abcdefghijklm", &long] {
            assert_eq!(Password::new(bad), Err(PasswordError), "{bad:?} was accepted");
        }
    }
}
