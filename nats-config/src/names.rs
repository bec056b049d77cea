//! The names that configuration, agent and applications must agree on.

use hierarchy::Path;

/// The account of local applications and of JetStream.
pub const MESH: &str = "MESH";
/// The account in which the agent talks with its parent.
pub const UP: &str = "UP";
/// The account in which the agent talks with its children.
pub const DOWN: &str = "DOWN";
/// The account that monitors.
pub const SYS: &str = "SYS";

/// The user of [`MESH`] that needs no password: every application on this machine.
pub const LOCAL_USER: &str = "local";
/// The agent's user in [`MESH`].
pub const AGENT_USER: &str = "agent";
/// The agent's user in [`UP`].
pub const UP_USER: &str = "up";
/// The agent's user in [`DOWN`].
pub const DOWN_USER: &str = "down";
/// The agent's user in [`SYS`].
pub const SYS_USER: &str = "sys";

/// The first token of the inboxes on which the agent's connection to [`MESH`] hears replies.
/// Applications may neither publish nor listen there: they could otherwise answer in the server's
/// place and tell the agent that something is stored that is not.
pub const AGENT_INBOX: &str = "_INBOX_LUCENT";

/// The durable consumers that are the agent's, on whichever stream. Applications can neither create,
/// change, delete, read nor acknowledge under these names; every other name is theirs.
pub const AGENT_CONSUMERS: [&str; 4] = ["lucent", "lucent_critical", "lucent_normal", "lucent_bulk"];

/// The server's name and JetStream domain: level and path joined by `:`, as in `node:s1:c1:n1`, and
/// `global` at the top.
///
/// A domain is one token of a subject, so `.` cannot separate, and an id may contain `-` and `_`:
/// with `-` between segments, `a-b/c` and `a/b-c` would both be `cluster-a-b-c`, and two JetStreams
/// under one domain name take each other's requests. No id contains `:`, so no two paths share a name.
pub fn domain(path: &Path) -> String {
    let mut name = path.level().to_string();
    for id in path.segments() {
        name.push(':');
        name.push_str(id.as_str());
    }
    name
}

/// The SPIFFE id of the agent at `path`, as in `spiffe://lucent.dev/mesh/s1/c1/n1`; the core is
/// `spiffe://lucent.dev/mesh`. It is the user name under which a child's certificate is admitted.
pub fn spiffe_id(trust_domain: &str, path: &Path) -> String {
    let mut id = format!("spiffe://{trust_domain}/mesh");
    for segment in path.segments() {
        id.push('/');
        id.push_str(segment.as_str());
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_paths_never_share_a_domain() {
        let domain = |path: &str| domain(&path.parse().unwrap());
        assert_eq!(domain("s1/c1/n1"), "node:s1:c1:n1");
        assert_eq!(domain("global"), "global");
        // A site may be called `global`, and ids may look like a separator.
        assert_ne!(domain("global"), domain("global/global"));
        assert_ne!(domain("a-b/c"), domain("a/b-c"));
        assert_ne!(domain("a_/b"), domain("a/_b"));
    }

    #[test]
    fn spiffe_ids_follow_the_path() {
        let id = |path: &str| spiffe_id("lucent.dev", &path.parse().unwrap());
        assert_eq!(id("global"), "spiffe://lucent.dev/mesh");
        assert_eq!(id("s1/c1/n1"), "spiffe://lucent.dev/mesh/s1/c1/n1");
    }
}
