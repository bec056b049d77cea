//! Which nats-server was found, and what it cannot do.

use std::{fmt, str::FromStr};

/// A nats-server version. A pre-release sorts before its release: `2.14.4-RC.1` need not have what
/// 2.14.4 fixed.
///
/// ```
/// use nats_config::ServerVersion;
/// let found: ServerVersion = "nats-server: v2.14.5".parse()?;
/// assert!(found.meets_floor());
/// # Ok::<(), nats_config::version::VersionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion {
    /// `2` in 2.14.5.
    pub major: u32,
    /// `14` in 2.14.5.
    pub minor: u32,
    /// `5` in 2.14.5.
    pub patch: u32,
    /// False for a pre-release such as 2.15.2-RC.1.
    pub release: bool,
}

/// A text that names no nats-server version; holds at most its first 80 characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no nats-server version: expected the output of `nats-server --version`, as in `nats-server: v2.14.5`"
)]
pub struct VersionError(pub String);

/// What the rendered configuration uses where the server has it and goes without where it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// `leafnodes.compression`: halves the bytes of a link.
    LeafCompression,
    /// `jetstream.sync_interval`: without it an acknowledged message may be lost to a power cut.
    SyncInterval,
    /// `authorization.auth_callout`: admission of children by the agent instead of a users table.
    AuthCallout,
    /// `leafnodes.tls.handshake_first` with a fallback delay for older children.
    HandshakeFirst,
    /// `first_info_timeout` of a leaf remote: patience on slow links.
    FirstInfoTimeout,
    /// `leafnodes.reconnect` as a duration: earlier ones read whole seconds.
    PreciseReconnect,
    /// `leafnodes.isolate_leafnode_interest`: a child cannot cut its sibling by echoing its loop subject.
    IsolateLeafInterest,
    /// `ignore_discovered_servers` of a leaf remote: a child dials only the addresses it was given, not
    /// the IP that a parent's greeting names first, which its certificate need not cover. The parent's
    /// `no_advertise` does not keep that IP back.
    IgnoreDiscoveredServers,
    /// `disabled` of a leaf remote, changed by a reload: a child dials its parent anew without a restart.
    PausedRemotes,
    /// The parent checks permissions of what a leaf sends, even if the leaf's server does not.
    LeafPermissionsEnforced,
    /// A user without password can only be claimed with a certificate.
    CertificateUsersProtected,
}

impl ServerVersion {
    /// The release `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> ServerVersion {
        ServerVersion { major, minor, patch, release: true }
    }

    /// Whether this server may be used in production: 2.14.4 or newer, or 2.12.14 and newer of 2.12.
    /// Earlier ones let a plaintext client claim a certificate user, and leaves past permissions.
    pub fn meets_floor(self) -> bool {
        self.has(Feature::CertificateUsersProtected)
    }

    /// Whether this server has `feature`.
    pub fn has(self, feature: Feature) -> bool {
        let same_line = |v: ServerVersion| (v.major, v.minor) == (self.major, self.minor);
        self >= feature.since() || feature.backport().is_some_and(|v| same_line(v) && self >= v)
    }

    /// What this server lacks, oldest feature first.
    pub fn lacks(self) -> Vec<Feature> {
        Feature::ALL.into_iter().filter(|&feature| !self.has(feature)).collect()
    }
}

impl Feature {
    /// All features, oldest first.
    pub const ALL: [Feature; 11] = [
        Feature::LeafCompression,
        Feature::SyncInterval,
        Feature::AuthCallout,
        Feature::HandshakeFirst,
        Feature::FirstInfoTimeout,
        Feature::PreciseReconnect,
        Feature::IsolateLeafInterest,
        Feature::IgnoreDiscoveredServers,
        Feature::PausedRemotes,
        Feature::LeafPermissionsEnforced,
        Feature::CertificateUsersProtected,
    ];

    /// The first release that has it, and with it every later one.
    pub const fn since(self) -> ServerVersion {
        match self {
            Feature::LeafCompression | Feature::SyncInterval | Feature::AuthCallout => {
                ServerVersion::new(2, 10, 0)
            }
            Feature::HandshakeFirst | Feature::FirstInfoTimeout | Feature::PreciseReconnect => {
                ServerVersion::new(2, 11, 0)
            }
            Feature::IsolateLeafInterest => ServerVersion::new(2, 12, 0),
            Feature::IgnoreDiscoveredServers | Feature::PausedRemotes | Feature::LeafPermissionsEnforced => {
                ServerVersion::new(2, 14, 0)
            }
            Feature::CertificateUsersProtected => ServerVersion::new(2, 14, 4),
        }
    }

    /// The first patch of an older line that has it too.
    pub const fn backport(self) -> Option<ServerVersion> {
        match self {
            Feature::LeafPermissionsEnforced => Some(ServerVersion::new(2, 12, 7)),
            Feature::CertificateUsersProtected => Some(ServerVersion::new(2, 12, 14)),
            _ => None,
        }
    }

    /// What it is, in plain words.
    pub const fn in_words(self) -> &'static str {
        match self {
            Feature::LeafCompression => "leaf compression",
            Feature::SyncInterval => "a choice of when to sync to disk",
            Feature::AuthCallout => "auth callout",
            Feature::HandshakeFirst => "TLS before the greeting",
            Feature::FirstInfoTimeout => "patience for a slow greeting",
            Feature::PreciseReconnect => "reconnect pauses below a second",
            Feature::IsolateLeafInterest => "isolation of children from each other",
            Feature::IgnoreDiscoveredServers => "dialling only the addresses it was given",
            Feature::PausedRemotes => "dialling the parent anew without a restart",
            Feature::LeafPermissionsEnforced => "permission checks on what a leaf sends",
            Feature::CertificateUsersProtected => "protection of certificate users from plaintext clients",
        }
    }
}

impl FromStr for ServerVersion {
    type Err = VersionError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        parse(s.trim()).ok_or_else(|| VersionError(s.chars().take(80).collect()))
    }
}

fn parse(text: &str) -> Option<ServerVersion> {
    let text = text.strip_prefix("nats-server:").unwrap_or(text).trim_start();
    let text = text.strip_prefix('v').unwrap_or(text);
    // `+` begins build data, which says nothing about the code.
    let text = text.split('+').next()?;
    let (numbers, pre) = text.split_once('-').map_or((text, None), |(n, pre)| (n, Some(pre)));
    let mut numbers = numbers.split('.').map(|n| {
        let digits = !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| n.parse::<u32>().ok()).flatten()
    });
    let (major, minor, patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    if numbers.next().is_some() || pre.is_some_and(|p| p.is_empty() || !p.bytes().all(legal)) {
        return None;
    }
    Some(ServerVersion { major, minor, patch, release: pre.is_none() })
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        if self.release { Ok(()) } else { f.write_str("-pre") }
    }
}

/// The feature and where to find it: `leaf compression (2.10)`, or `... (2.12.14 or 2.14.4)`.
impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.in_words())?;
        for version in self.backport().into_iter().chain([self.since()]) {
            if version != self.since() {
                write!(f, "{version} or ")?;
            } else if version.patch == 0 {
                write!(f, "{}.{}", version.major, version.minor)?;
            } else {
                write!(f, "{version}")?;
            }
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> ServerVersion {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_read_from_the_servers_own_words() {
        assert_eq!(version("nats-server: v2.14.5\n"), ServerVersion::new(2, 14, 5));
        assert_eq!(version("2.9.10"), ServerVersion::new(2, 9, 10));
        assert_eq!(version("v2.12.14+build.7"), ServerVersion::new(2, 12, 14));
        assert!(!version("v2.15.2-RC.1").release);
        assert!(version("2.15.2-RC.1") < version("2.15.2"));
        for bad in [
            "",
            "nats-server",
            "2.14",
            "2.14.5.6",
            "v2..5",
            "2.14.x",
            "2.14.+5",
            "2.14.5-",
            "2.14.99999999999",
            "nats: v2.1.1",
        ] {
            assert!(bad.parse::<ServerVersion>().is_err(), "{bad:?} was accepted");
        }
        let long = "9".repeat(1000).parse::<ServerVersion>().unwrap_err();
        assert!(long.0.len() <= 80);
    }

    #[test]
    fn the_floor_is_2_14_4_or_2_12_14() {
        for good in ["2.12.14", "2.12.20", "2.14.4", "2.14.5", "2.15.2-RC.1", "3.0.0"] {
            assert!(version(good).meets_floor(), "{good} was refused");
        }
        for bad in ["2.9.10", "2.11.30", "2.12.13", "2.13.99", "2.14.3", "2.14.4-RC.1", "2.12.14-RC.1"] {
            assert!(!version(bad).meets_floor(), "{bad} was accepted");
        }
    }

    #[test]
    fn what_a_server_lacks_is_said_in_plain_words() {
        assert!(version("2.14.5").lacks().is_empty());
        assert_eq!(version("2.12.14").lacks(), [Feature::IgnoreDiscoveredServers, Feature::PausedRemotes]);
        let words =
            |v: &str| version(v).lacks().iter().map(Feature::to_string).collect::<Vec<_>>().join(", ");
        assert_eq!(words("2.9.10").split(", ").next(), Some("leaf compression (2.10)"));
        assert_eq!(version("2.9.10").lacks().len(), Feature::ALL.len());
        assert_eq!(
            words("2.12.8"),
            "dialling only the addresses it was given (2.14), dialling the parent anew without a restart (2.14), protection of certificate users from plaintext clients (2.12.14 or 2.14.4)"
        );
        assert!(version("2.10.29").lacks().contains(&Feature::HandshakeFirst));
    }
}
