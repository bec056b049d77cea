//! The configuration after all checks: what the rest of the agent works with.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use hierarchy::{Id, Identity, Level, Path, TrustDomain, link::RateLimit};

use super::units::{HostPort, parse_duration};

/// A complete, consistent configuration. All paths are absolute.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where this agent stands.
    pub path: Path,
    /// Whose identities are believed.
    pub trust_domain: TrustDomain,
    /// Directory for everything that must survive a restart. It need not exist yet.
    pub state_dir: PathBuf,
    /// The files of this agent's identity. None has been opened.
    pub identity: IdentityFiles,
    /// The nats-server of this level.
    pub nats: Nats,
    /// Present where others of the same path take turns with this agent.
    pub replicas: Option<Replicas>,
    /// Where children connect; `None` at a node.
    pub leaf: Option<Leaf>,
    /// Where the parent is; `None` at global.
    pub parent: Option<Parent>,
    /// How events are sent to the parent.
    pub link: Link,
    /// Samples of the machine.
    pub telemetry: Telemetry,
    /// Where health, metrics and status are served.
    pub http: Http,
    /// What is logged and how.
    pub log: Log,
    /// What happens to events on the way up; the first rule that fits decides, without one they are forwarded.
    pub policy: Vec<PolicyRule>,
    /// How much may wait in each lane.
    pub lanes: hierarchy::ByLane<LaneBound>,
    /// Which events take which lane; the first rule that fits decides.
    pub priorities: Vec<PriorityRule>,
    /// What runs tasks; the first that fits a task runs it. Empty above the node.
    pub runners: Vec<Runner>,
}

impl Config {
    /// The level of the path.
    pub fn level(&self) -> Level {
        self.path.level()
    }

    /// Who this agent must be according to its SVID.
    pub fn spiffe_id(&self) -> Identity {
        self.trust_domain.identity(self.path.clone())
    }
}

/// `[identity]`: an X.509 SVID in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Certificate chain, own certificate first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// CA certificates.
    pub bundle: PathBuf,
}

/// `[nats]`
#[derive(Debug, Clone, PartialEq)]
pub enum Nats {
    /// The agent runs its own server.
    Embedded(Embedded),
    /// The agent attaches to a server that others run.
    External(External),
}

impl Nats {
    /// The server that the agent runs, if it does.
    pub fn embedded(&self) -> Option<&Embedded> {
        match self {
            Nats::Embedded(embedded) => Some(embedded),
            Nats::External(_) => None,
        }
    }
}

/// A nats-server that the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// The program: a bare name, to be looked up on PATH, or an absolute path.
    pub server: PathBuf,
    /// Where local applications connect; port 0 stands for a free one. Loopback, unless there is a password.
    pub listen: SocketAddr,
    /// The password of local applications, where they need one.
    pub local_password: Option<Secret>,
    /// Where monitoring listens; port 0 stands for a free one.
    pub monitor: SocketAddr,
    /// Bytes for memory streams.
    pub max_memory: u64,
    /// Bytes for file streams.
    pub max_file: u64,
    /// Heap size in bytes from which the server collects garbage with all its might.
    pub heap_limit: u64,
    /// When stored messages reach the disk.
    pub sync: SyncMode,
}

/// When JetStream syncs what it stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// As the server does unasked: every 2 minutes.
    ServerDefault,
    /// Before each acknowledgement.
    Always,
    /// At this interval.
    Every(Duration),
}

impl FromStr for SyncMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let range = Duration::from_millis(1)..=Duration::from_secs(3600);
        match text {
            "default" => Ok(SyncMode::ServerDefault),
            "always" => Ok(SyncMode::Always),
            text => parse_duration(text).ok().filter(|d| range.contains(d)).map(SyncMode::Every).ok_or(()),
        }
    }
}

/// A server that others run, with the accounts MESH, UP and DOWN set up on it.
#[derive(Debug, Clone, PartialEq)]
pub struct External {
    /// The server, or servers of one cluster: at least one, without user and password.
    pub urls: Vec<async_nats::ServerAddr>,
    /// How many servers hold each stream.
    pub copies: u8,
    /// A user of account MESH.
    pub mesh: Credentials,
    /// A user of account UP; `None` at global.
    pub up: Option<Credentials>,
    /// A user of account DOWN; `None` at a node.
    pub down: Option<Credentials>,
}

/// `[replicas]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicas {
    /// How long after the last sign of one another one acts.
    pub take_over: Duration,
    /// What this one is called; `None` for host name and process id.
    pub instance: Option<String>,
}

/// A user and its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// A text that does not show itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(super) String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `[leaf]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Where children connect; port 0 stands for a free one.
    pub listen: SocketAddr,
    /// Paths of the direct children that may connect, all different.
    pub children: Vec<Path>,
    /// Bytes that all children together may have under way.
    pub credit: u64,
    /// How fast a child may send; the first that fits it.
    pub limits: Vec<ChildLimit>,
}

impl Leaf {
    /// How fast this child may send.
    pub fn limit_of(&self, child: &Path) -> Option<RateLimit> {
        self.limits.iter().find(|limit| limit.child.contains(child.id())).map(|limit| limit.rate)
    }
}

/// `[[child_limit]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildLimit {
    /// Ids of the children.
    pub child: Names,
    /// The limit of each.
    pub rate: RateLimit,
}

/// `[parent]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Where the parent listens for children: at least one, all different.
    pub addresses: Vec<HostPort>,
}

/// `[link]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Most events in a batch.
    pub batch_events: usize,
    /// Most bytes of events in a batch.
    pub batch_bytes: usize,
    /// How long a batch that is not full waits for more.
    pub linger: Duration,
    /// Most batches sent and not yet acknowledged.
    pub in_flight: usize,
    /// After how long without an answer something is sent again.
    pub retry: Duration,
    /// How long the link may be closed while the parent's server greets.
    pub stuck_after: Duration,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// How often the machine is sampled.
    pub interval: Duration,
    /// Over how long samples are rolled up; no less than the interval.
    pub window: Duration,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Where to listen; port 0 stands for a free one.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// Least important level that is written.
    pub level: tracing::Level,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(()),
        }
    }
}

/// `[[policy]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// A subject as NATS understands it, with `*` and `>`.
    pub subject: String,
    /// What happens to events on such subjects.
    pub action: PolicyAction,
}

/// `[lanes]`: how much may wait in a lane for the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneBound {
    /// Bytes; `None` for nine tenths of the lane's stream.
    pub bytes: Option<u64>,
    /// How long.
    pub age: Duration,
}

/// `[[priority]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorityRule {
    /// Which events it is for.
    pub subject: coordinator::Pattern,
    /// The lane that they take.
    pub lane: hierarchy::Lane,
}

/// What happens to an event on its way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyAction {
    /// It goes up as it is.
    Forward,
    /// It goes up as part of a summary.
    Aggregate,
    /// It stays here.
    Drop,
    /// One of this many goes up, at least 2.
    Sample(u32),
}

/// `[[runner]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// Which `{agent_type}` of `lucent.agents.{agent_type}.{task}` it serves.
    pub agent_type: Names,
    /// Which `{task}` it serves.
    pub task: Names,
    /// The program: a bare name, to be looked up on PATH, or an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Most tasks at once.
    pub slots: usize,
    /// After how long an attempt is stopped.
    pub timeout: Duration,
    /// How long a process that was asked to stop may take before it is killed.
    pub grace: Duration,
    /// Working directory of the process. It need not exist.
    pub workdir: PathBuf,
    /// Environment of the process, besides PATH, HOME, LANG and the task's own.
    pub env: BTreeMap<String, String>,
}

impl Runner {
    /// Whether this runner serves such tasks.
    pub fn serves(&self, agent_type: &str, task: &str) -> bool {
        self.agent_type.contains(agent_type) && self.task.contains(task)
    }
}

/// A set of names: all, or one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// `*`
    Any,
    /// This name only.
    Only(String),
}

impl Names {
    /// Whether `name` is one of them.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Names::Any => true,
            Names::Only(only) => only == name,
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Names::Any => "*",
            Names::Only(only) => only,
        })
    }
}

/// Ids as paths below `parent`; `None` where `parent` is a node's.
pub(super) fn children_of(parent: &Path, ids: &[Id]) -> Option<Vec<Path>> {
    ids.iter().map(|id| parent.child(id)).collect()
}
