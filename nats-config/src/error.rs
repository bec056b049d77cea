//! Why options cannot become a configuration.

use std::net::SocketAddr;

use hierarchy::{Level, Path};

/// Options that no configuration is written for. Each names the option as it is called in
/// [`ServerOptions`](crate::ServerOptions).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A text or file name that the configuration syntax cannot carry unchanged.
    #[error("{key} `{text}` is refused: use UTF-8 without control characters")]
    Unwritable {
        /// The option.
        key: &'static str,
        /// Its value with everything unprintable escaped, cut after 80 characters.
        text: String,
    },
    /// Applications need no password, so their listener must not be reachable from elsewhere. Nor
    /// must the monitor, which shows every connection to whoever asks.
    #[error(
        "{key} {address} is refused: this listener asks for no password, so choose a loopback address such as 127.0.0.1"
    )]
    NotLoopback {
        /// The option.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// A port that the caller must choose, since others have to know it.
    #[error("{key} has port 0: choose a port")]
    NoPort {
        /// The option.
        key: &'static str,
    },
    /// A number, size or duration outside its bounds.
    #[error("{key} {value} is refused: choose {least} to {most}")]
    OutOfRange {
        /// The option.
        key: &'static str,
        /// Its value, with the unit.
        value: String,
        /// The least that is accepted.
        least: String,
        /// The most that is accepted.
        most: String,
    },
    /// A trust domain that SPIFFE does not allow.
    #[error("trust_domain `{0}` is refused: 1 to 255 characters of a-z, 0-9, `.`, `-` and `_`")]
    TrustDomain(String),
    /// A parent's address that is not `host:port`.
    #[error(
        "parents address `{0}` is refused: write host:port, as in c1.example.net:7422 or [2001:db8::1]:7422"
    )]
    ParentAddress(String),
    /// A parent without any address.
    #[error("parents has no address: name at least one host:port, or leave the parent out")]
    NoParentAddress,
    /// The core was given a parent.
    #[error("parents is set at global: the core has no parent, leave it out")]
    CoreHasNoParent,
    /// A node was told to accept children.
    #[error("leaf_listen is set at a node: nodes have no children, leave it out")]
    NodeHasNoChildren,
    /// Someone who is not a direct child was listed as one.
    #[error(
        "leaf_listen names {child} as a child of the {level} `{path}`: only direct children connect here"
    )]
    NotAChild {
        /// Who was listed.
        child: Path,
        /// The level of the server.
        level: Level,
        /// The path of the server.
        path: Path,
    },
}

/// `text` for an error: printable, and of a length that an attacker does not choose.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}
