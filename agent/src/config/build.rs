//! From settings to the checked configuration, section by section.
//!
//! Each function reads *all* its keys before it gives up on any, so that one run names every mistake.

use std::net::SocketAddr;

use hierarchy::{ByLane, Id, Level, Path};

use super::{
    checked::{
        Config, Credentials, Embedded, External, Http, IdentityFiles, LaneBound, Leaf, Link, Log, Names,
        Nats, Parent, Replicas, Secret, SyncMode, Telemetry, children_of,
    },
    error::Problem,
    reader::Reader,
    tables,
};

/// The configuration, unless the reader has recorded a mistake.
pub(super) fn config(r: &mut Reader) -> Option<Config> {
    let level = r.parsed("level");
    let path = path(r, level);
    let trust_domain = r.parsed("trust_domain");
    let state_dir = r.path("state_dir");
    let identity = identity(r);
    let nats = nats(r, level);
    let replicas = replicas(r, level, nats.as_ref());
    let leaf = leaf(r, level, path.as_ref());
    let parent = parent(r, level);
    let link = link(r);
    let telemetry = telemetry(r);
    let http = r.parsed("http.listen").map(|listen| Http { listen });
    let log = log(r);
    let policy = tables::policy(r);
    let priorities = tables::priorities(r);
    let lanes = lanes(r);
    let runners = tables::runners(r, level);
    refuse_clashing_ports(
        r,
        &[
            ("nats.listen", nats.as_ref().and_then(|nats| Some(nats.embedded()?.listen))),
            ("nats.monitor", nats.as_ref().and_then(|nats| Some(nats.embedded()?.monitor))),
            ("leaf.listen", leaf.as_ref().and_then(|leaf| Some(leaf.as_ref()?.listen))),
            ("http.listen", http.as_ref().map(|http| http.listen)),
        ],
    );

    Some(Config {
        path: path?,
        trust_domain: trust_domain?,
        state_dir: state_dir?,
        identity: identity?,
        nats: nats?,
        replicas: replicas?,
        leaf: leaf?,
        parent: parent?,
        link: link?,
        telemetry: telemetry?,
        http: http?,
        log: log?,
        policy: policy?,
        priorities: priorities?,
        lanes: lanes?,
        runners: runners?,
    })
}

fn path(r: &mut Reader, level: Option<Level>) -> Option<Path> {
    let path = r.parsed::<Path>("path");
    let level = level?;
    let example = match level {
        Level::Node => "s1/c1/n1",
        Level::Cluster => "s1/c1",
        Level::Site => "s1",
        Level::Global => "global",
    };
    match path {
        Some(path) if path.level() == level => Some(path),
        Some(_) => {
            r.refuse("path", Problem::PathDepth { level, example });
            None
        }
        None if r.is_set("path") => None,
        None if level == Level::Global => Some(Path::global()),
        None => {
            r.missing("path", format!("a {level} needs one: give --path {example}, or path in the file"));
            None
        }
    }
}

fn identity(r: &mut Reader) -> Option<IdentityFiles> {
    let (cert, key, bundle) = (r.path("identity.cert"), r.path("identity.key"), r.path("identity.bundle"));
    Some(IdentityFiles { cert: cert?, key: key?, bundle: bundle? })
}

fn nats(r: &mut Reader, level: Option<Level>) -> Option<Nats> {
    match r.text("nats.mode")?.as_str() {
        "embedded" => {
            let problem = "is for nats.mode = \"external\": set the mode, or remove the key";
            r.refuse_all("nats.external.", &Problem::Contradiction(problem.to_owned()));
            embedded(r, level).map(Nats::Embedded)
        }
        "external" => {
            let problem = "is for nats.mode = \"embedded\": set the mode, or remove the key";
            // Not nats.server: a machine may name the program for all its agents in the environment.
            for key in [
                "nats.listen",
                "nats.local_password",
                "nats.monitor",
                "nats.max_memory",
                "nats.max_file",
                "nats.heap_limit",
                "nats.sync",
            ] {
                r.refuse_all(key, &Problem::Contradiction(problem.to_owned()));
            }
            external(r, level).map(Nats::External)
        }
        _ => {
            r.refuse_form("nats.mode");
            embedded(r, level);
            None
        }
    }
}

fn embedded(r: &mut Reader, level: Option<Level>) -> Option<Embedded> {
    let server = r.program("nats.server");
    let (listen, monitor) = (r.parsed::<SocketAddr>("nats.listen"), r.parsed::<SocketAddr>("nats.monitor"));
    let local_password = r.text("nats.local_password");
    if local_password.is_none() && listen.is_some_and(|listen| !listen.ip().is_loopback()) {
        let problem = "is no loopback address: set nats.local_password as well, or listen on 127.0.0.1";
        r.refuse("nats.listen", Problem::Contradiction(problem.to_owned()));
    }
    if monitor.is_some_and(|monitor| !monitor.ip().is_loopback()) {
        let problem = "is no loopback address, and monitoring asks for no password: listen on 127.0.0.1";
        r.refuse("nats.monitor", Problem::Contradiction(problem.to_owned()));
    }
    if local_password.as_ref().is_some_and(|password| nats_config::Password::new(password.as_str()).is_err())
    {
        r.refuse_form("nats.local_password");
    }
    let (max_memory, max_file) = (r.size("nats.max_memory"), r.size("nats.max_file"));
    // Measured (ADR 0009): a tighter limit costs a quarter of the throughput once stores have grown.
    let heap_limit = match (r.size("nats.heap_limit"), level) {
        (None, _) if r.is_set("nats.heap_limit") => None,
        (None, Some(Level::Node)) => Some(256 << 20),
        (None, _) => Some(512 << 20),
        (set, _) => set,
    };
    // Measured: with batches `always` costs little; where events are stored one by one it costs 30 times.
    let sync = match (r.parsed("nats.sync"), level) {
        (None, _) if r.is_set("nats.sync") => None,
        (None, Some(Level::Node)) => Some(SyncMode::ServerDefault),
        (None, _) => Some(SyncMode::Always),
        (set, _) => set,
    };
    Some(Embedded {
        server: server?,
        listen: listen?,
        local_password: local_password.map(Secret),
        monitor: monitor?,
        max_memory: max_memory?,
        max_file: max_file?,
        heap_limit: heap_limit?,
        sync: sync?,
    })
}

fn external(r: &mut Reader, level: Option<Level>) -> Option<External> {
    let urls = external_urls(r);
    let copies = r.count("nats.external.copies");
    if let Some(level) = level.filter(|level| *level != Level::Global) {
        let remedy = "only global's streams have copies, remove the key";
        r.refuse_all("nats.external.copies", &Problem::Misplaced { level, remedy });
    }
    let mesh = credentials(r, "mesh");
    let up = match level {
        Some(level @ Level::Global) => {
            r.refuse_all(
                "nats.external.up_",
                &Problem::Misplaced { level, remedy: "nothing is above it, remove the key" },
            );
            Some(None)
        }
        _ => credentials(r, "up").map(Some),
    };
    let down = match level {
        Some(level @ Level::Node) => {
            r.refuse_all(
                "nats.external.down_",
                &Problem::Misplaced { level, remedy: "nothing is below it, remove the key" },
            );
            Some(None)
        }
        _ => credentials(r, "down").map(Some),
    };
    let copies = match copies {
        None if r.is_set("nats.external.copies") => None,
        set => Some(set.unwrap_or(1)),
    };
    Some(External { urls: urls?, copies: copies?, mesh: mesh?, up: up?, down: down? })
}

fn external_urls(r: &mut Reader) -> Option<Vec<async_nats::ServerAddr>> {
    const KEY: &str = "nats.external.urls";
    let texts = r.list::<String>(KEY);
    if !r.is_set(KEY) {
        r.missing(KEY, "give the server's address, as in [\"tls://nats.example:4222\"]");
        return None;
    }
    let urls: Option<Vec<async_nats::ServerAddr>> = texts?.iter().map(|text| text.parse().ok()).collect();
    let plain = |url: &async_nats::ServerAddr| !url.has_user_pass() && matches!(url.scheme(), "nats" | "tls");
    let urls = urls.filter(|urls| !urls.is_empty() && urls.iter().all(plain));
    if urls.is_none() {
        r.refuse_form(KEY);
    }
    urls
}

/// `Some(None)` where there are none. Below global more than one stream would have to be guarded, and what lies
/// in the inbox.
fn replicas(r: &mut Reader, level: Option<Level>, nats: Option<&Nats>) -> Option<Option<Replicas>> {
    let (take_over, instance) = (r.duration("replicas.take_over"), r.text("replicas.instance"));
    if let Some(level) = level.filter(|level| *level != Level::Global) {
        let remedy = "only global can have replicas in this version, remove section [replicas]";
        r.refuse_all("replicas.", &Problem::Misplaced { level, remedy });
        return Some(None);
    }
    if !r.is_set("replicas.take_over") {
        return Some(None);
    }
    if nats.is_some_and(|nats| nats.embedded().is_some()) {
        let problem = "is for nats.mode = \"external\": replicas share a server that others run";
        r.refuse("replicas.take_over", Problem::Contradiction(problem.to_owned()));
    }
    Some(Some(Replicas { take_over: take_over?, instance }))
}

fn credentials(r: &mut Reader, account: &str) -> Option<Credentials> {
    let [user, password] = ["user", "password"].map(|part| {
        let key = format!("nats.external.{account}_{part}");
        if !r.is_set(&key) {
            r.missing(&key, format!("give the {part} for account {}", account.to_uppercase()));
        }
        r.text(&key)
    });
    Some(Credentials { user: user?, password: Secret(password?) })
}

/// `Some(None)` at a node, which has no children.
fn leaf(r: &mut Reader, level: Option<Level>, path: Option<&Path>) -> Option<Option<Leaf>> {
    let (listen, children) = (r.parsed("leaf.listen"), r.list::<Id>("leaf.children"));
    let (credit, limits) = (r.size("leaf.credit"), tables::child_limits(r));
    if let Some(level @ Level::Node) = level {
        r.refuse_all(
            "leaf.",
            &Problem::Misplaced { level, remedy: "it has no children, remove section [leaf]" },
        );
        r.refuse_all(
            "child_limit[",
            &Problem::Misplaced { level, remedy: "it has no children, remove [[child_limit]]" },
        );
        return Some(None);
    }
    let children = children_of(path?, &children?)?;
    for (i, limit) in limits.iter().flatten().enumerate() {
        let known = |child: &Path| limit.child.contains(child.id());
        if matches!(limit.child, Names::Only(_)) && !children.is_empty() && !children.iter().any(known) {
            let problem = "is no child in leaf.children: correct one of the two";
            r.refuse(&format!("child_limit[{i}].child"), Problem::Contradiction(problem.to_owned()));
        }
    }
    Some(Some(Leaf { listen: listen?, children, credit: credit?, limits: limits? }))
}

/// `Some(None)` at global, which has no parent.
fn parent(r: &mut Reader, level: Option<Level>) -> Option<Option<Parent>> {
    let addresses = r.list("parent.addresses");
    match level? {
        level @ Level::Global => {
            r.refuse_all(
                "parent.",
                &Problem::Misplaced { level, remedy: "it has no parent, remove section [parent]" },
            );
            Some(None)
        }
        level if !r.is_set("parent.addresses") || addresses.as_ref().is_some_and(Vec::is_empty) => {
            r.missing(
                "parent.addresses",
                format!("a {level} needs a parent: give its HOST:PORT in the file"),
            );
            None
        }
        _ => Some(Some(Parent { addresses: addresses? })),
    }
}

fn link(r: &mut Reader) -> Option<Link> {
    let (batch_events, batch_bytes) = (r.count("link.batch_events"), r.size("link.batch_bytes"));
    let (linger, in_flight, retry) =
        (r.duration("link.linger"), r.count("link.in_flight"), r.duration("link.retry"));
    let stuck_after = r.duration("link.stuck_after");
    Some(Link {
        batch_events: batch_events?,
        batch_bytes: usize::try_from(batch_bytes?).ok()?,
        linger: linger?,
        in_flight: in_flight?,
        retry: retry?,
        stuck_after: stuck_after?,
    })
}

fn lanes(r: &mut Reader) -> Option<ByLane<LaneBound>> {
    let bounds = ByLane::new(|lane| {
        let bytes_key = format!("lanes.{lane}_bytes");
        let bytes = r.size(&bytes_key);
        let age = r.duration(&format!("lanes.{lane}_age"))?;
        (bytes.is_some() || !r.is_set(&bytes_key)).then_some(LaneBound { bytes, age })
    });
    Some(ByLane { critical: bounds.critical?, normal: bounds.normal?, bulk: bounds.bulk? })
}

fn telemetry(r: &mut Reader) -> Option<Telemetry> {
    let (interval, window) = (r.duration("telemetry.interval"), r.duration("telemetry.window"));
    let telemetry = Telemetry { interval: interval?, window: window? };
    if telemetry.window < telemetry.interval {
        let problem = "must not be shorter than telemetry.interval: lengthen it or sample more often";
        r.refuse("telemetry.window", Problem::Contradiction(problem.to_owned()));
    }
    Some(telemetry)
}

fn log(r: &mut Reader) -> Option<Log> {
    let (format, level) = (r.parsed("log.format"), r.parsed("log.level"));
    Some(Log { format: format?, level: level? })
}

/// Two listeners on one port are seen here rather than when the second one fails to start.
fn refuse_clashing_ports(r: &mut Reader, listeners: &[(&str, Option<SocketAddr>)]) {
    let known: Vec<_> = listeners.iter().filter_map(|(name, address)| Some((*name, (*address)?))).collect();
    for (i, (name, address)) in known.iter().enumerate() {
        let clash = known[..i].iter().find(|(_, other)| {
            let shares_host =
                address.ip() == other.ip() || address.ip().is_unspecified() || other.ip().is_unspecified();
            address.port() == other.port() && address.port() != 0 && shares_host
        });
        if let Some((other, _)) = clash {
            let problem = format!("needs a port of its own, {other} has the same one");
            r.refuse(name, Problem::Contradiction(problem));
        }
    }
}
