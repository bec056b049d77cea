//! A core as it is run in a data centre: global's nats-servers, which no agent started, and two replicas of its
//! agent beside them. The levels below are a mesh as any other.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path as FilePath, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use agent::{
    dev::{fleet::log_file, plan::PlannedAgent},
    status::{self, Addresses, Status},
};
use async_nats::{Client, ConnectOptions};
use coordinator::ledger::Report;
use hierarchy::Path;
use nats_config::{LeafListen, Password, Passwords, ServerOptions, SyncPolicy, TlsFiles, names};
use nix::sys::signal::Signal;

use crate::{Mesh, eventually, mesh::path, processes, program, valve::Valve};

/// How long replicas may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// How soon another one acts.
pub const TAKE_OVER: &str = "2500ms";

/// Servers and replicas.
pub struct Core {
    global: PlannedAgent,
    servers: Vec<Server>,
    replicas: Vec<Replica>,
    passwords: Passwords,
}

struct Server {
    client: SocketAddr,
    config: PathBuf,
    process: Child,
}

struct Replica {
    name: &'static str,
    agent: PlannedAgent,
    process: Option<Child>,
    /// Its way to the first server.
    valve: Valve,
}

impl Core {
    /// A core of so many servers and two replicas, and below it a mesh of the agents at `paths`, without global.
    pub async fn start(servers: usize, paths: &[&str]) -> (Core, Mesh) {
        Core::start_with(servers, paths, |_, _| {}).await
    }

    /// As [`Core::start`]; `extra` may change the configuration file of an agent below.
    pub async fn start_with(
        servers: usize,
        paths: &[&str],
        extra: impl FnMut(&Path, &mut String),
    ) -> (Core, Mesh) {
        let all: Vec<&str> = std::iter::once("global").chain(paths.iter().copied()).collect();
        let mut core = None;
        let mut mesh = Mesh::start_below(&all, extra, |global, ports| {
            core = Some(Core::lay_out(global, servers, ports));
        })
        .await;
        let core = core.expect("it was laid out");
        mesh.plan.agents.insert(0, core.global.clone());
        core.wait_for_holder(None).await;
        for at in paths {
            mesh.linked(at).await;
        }
        (core, mesh)
    }

    fn lay_out(global: &PlannedAgent, servers: usize, ports: &mut dyn FnMut() -> SocketAddr) -> Core {
        let home = global.config.parent().expect("a file has a folder").to_owned();
        let planned = Planned::read(&global.config);
        let password = || Password::new(uuid::Uuid::new_v4().simple().to_string()).expect("it is long");
        let passwords = Passwords { agent: password(), up: password(), down: password(), sys: password() };
        let routes: Vec<SocketAddr> = (0..servers).map(|_| ports()).collect();
        let servers: Vec<Server> = (0..servers)
            .map(|n| {
                let leaf = if n == 0 { planned.leaf } else { ports() };
                Server::start(&home, n, ports(), leaf, &planned.children, &passwords, &routes)
            })
            .collect();
        let others: String =
            servers[1..].iter().map(|server| format!(", \"nats://{}\"", server.client)).collect();
        let replicas = ["a", "b"].map(|name| {
            let valve = Valve::before(servers[0].client, ports());
            let urls = format!("\"nats://{}\"{others}", valve.address());
            let folder = home.with_file_name(format!("global-{name}"));
            fs::create_dir_all(&folder).expect("there is room for temporary files");
            let agent = PlannedAgent {
                path: path("global"),
                config: folder.join("agent.toml"),
                state: folder.join("state"),
            };
            let text = planned.replica(&home, name, &urls, routes.len(), &passwords);
            fs::write(&agent.config, text).expect("there is room for temporary files");
            let mut replica = Replica { name, agent, process: None, valve };
            replica.spawn();
            replica
        });
        // Whoever asks for global's address is led to the first server.
        let addresses = Addresses {
            pid: std::process::id(),
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            nats: servers[0].client.to_string(),
            monitor: None,
            leaf: Some(planned.leaf),
        };
        fs::create_dir_all(&global.state).expect("there is room for temporary files");
        let text = serde_json::to_vec(&addresses).expect("addresses are JSON");
        fs::write(global.state.join(status::ADDRESS_FILE), text).expect("there is room for temporary files");
        Core { global: global.clone(), servers, replicas: replicas.into(), passwords }
    }

    /// A connection with the agent's own rights.
    pub async fn agents_client(&self) -> Client {
        let password = self.passwords.agent.expose().to_owned();
        let options = ConnectOptions::with_user_and_password(names::AGENT_USER.to_owned(), password);
        let servers: Vec<String> = self.servers.iter().map(|server| server.client.to_string()).collect();
        options.custom_inbox_prefix(names::AGENT_INBOX).connect(servers).await.expect("a server is there")
    }

    /// What a replica says of itself; `None` where it does not answer.
    pub async fn status(&self, name: &str) -> Option<Status> {
        let state = self.replica(name).agent.state.clone();
        let ask = move || status::fetch(status::addresses(&state).ok()?.http).ok();
        tokio::task::spawn_blocking(ask).await.ok().flatten()
    }

    /// The code of a page of a replica.
    pub async fn page(&self, name: &str, page: &str) -> Option<(u16, String)> {
        let http = status::addresses(&self.replica(name).agent.state).ok()?.http;
        crate::scrape::get(http, page).await
    }

    /// What became of all events, as the one that acts says.
    pub async fn losses(&self) -> Option<Report> {
        let state = self.replica(self.holder().await?).agent.state.clone();
        let ask = move || status::fetch_losses(status::addresses(&state).ok()?.http).ok();
        tokio::task::spawn_blocking(ask).await.ok().flatten()
    }

    /// The replica that says it acts.
    pub async fn holder(&self) -> Option<&'static str> {
        for replica in &self.replicas {
            // One that is stopped does not answer.
            let acts = self.status(replica.name).await.and_then(|status| Some(status.replica?.acts));
            if acts == Some(true) {
                return Some(replica.name);
            }
        }
        None
    }

    /// Waits until one acts, another one than `not`.
    pub async fn wait_for_holder(&self, not: Option<&str>) -> &'static str {
        eventually!(UP_WITHIN, {
            self.holder().await.filter(|holder| Some(*holder) != not).ok_or("nobody acts, or the same one")
        })
    }

    /// The other one.
    pub fn other(&self, name: &str) -> &'static str {
        self.replicas.iter().map(|replica| replica.name).find(|other| *other != name).expect("there are two")
    }

    /// Sends a signal to a replica. Killed with SIGKILL it is waited for.
    pub fn signal(&mut self, name: &str, signal: Signal) {
        let replica = self.replica_mut(name);
        let process = replica.process.as_mut().expect("it runs");
        processes::signal(process.id(), signal);
        if signal == Signal::SIGKILL {
            let _ = process.wait();
        }
    }

    /// Waits for a replica that was asked to end, and starts it again.
    pub async fn start_again(&mut self, name: &str) {
        let replica = self.replica_mut(name);
        let process = replica.process.as_mut().expect("it was started");
        eventually!(UP_WITHIN, {
            process
                .try_wait()
                .map_err(|error| error.to_string())
                .and_then(|ended| ended.ok_or("it runs".into()))
        });
        // The file of a killed one names an address where nobody is.
        let _ = fs::remove_file(replica.agent.state.join(status::ADDRESS_FILE));
        replica.spawn();
        eventually!(UP_WITHIN, self.status(name).await.ok_or("it does not answer"));
    }

    /// The way of a replica to a core's only server.
    pub fn valve(&self, name: &str) -> &Valve {
        &self.replica(name).valve
    }

    /// Kills a server with SIGKILL.
    pub fn kill_server(&mut self, n: usize) {
        let process = &mut self.servers[n].process;
        let _ = process.kill();
        let _ = process.wait();
    }

    /// Starts it again.
    pub fn start_server_again(&mut self, n: usize) {
        let server = &mut self.servers[n];
        server.process = run_server(&server.config);
    }

    /// A replica's log so far.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(log_file(&self.replica(name).agent)).unwrap_or_default()
    }

    fn replica(&self, name: &str) -> &Replica {
        self.replicas.iter().find(|replica| replica.name == name).expect("it is a or b")
    }

    fn replica_mut(&mut self, name: &str) -> &mut Replica {
        self.replicas.iter_mut().find(|replica| replica.name == name).expect("it is a or b")
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for replica in &self.replicas {
                let log = fs::read_to_string(log_file(&replica.agent)).unwrap_or_default();
                // There is one for each batch.
                let lines: Vec<&str> =
                    log.lines().filter(|line| !line.contains("could not be stored")).collect();
                println!("--- global, replica {}", replica.name);
                lines[lines.len().saturating_sub(40)..].iter().for_each(|line| println!("{line}"));
            }
        }
        let replicas = self.replicas.iter_mut().filter_map(|replica| replica.process.as_mut());
        for process in replicas.chain(self.servers.iter_mut().map(|server| &mut server.process)) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Server {
    fn start(
        home: &FilePath,
        n: usize,
        client: SocketAddr,
        leaf: SocketAddr,
        children: &[Path],
        passwords: &Passwords,
        routes: &[SocketAddr],
    ) -> Server {
        let folder = home.with_file_name(format!("server-{n}"));
        fs::create_dir_all(&folder).expect("there is room for temporary files");
        let identity = home.join("identity");
        let tls = TlsFiles {
            cert: identity.join("svid.pem"),
            key: identity.join("svid.key"),
            ca: identity.join("bundle.pem"),
        };
        let version = "2.14.5".parse().expect("it is a version");
        let options = ServerOptions {
            leaf_listen: Some(LeafListen { address: leaf, tls, children: children.to_vec() }),
            // The shares of the streams are of ten GiB where the agent did not make the server.
            max_file_store: 11 << 30,
            sync: SyncPolicy::Always,
            ..ServerOptions::new(
                Path::global(),
                version,
                agent::dev::identities::TRUST_DOMAIN,
                folder.join("jetstream"),
                client,
                passwords.clone(),
            )
        };
        let mut text = nats_config::render(&options).expect("the options are sound");
        if routes.len() > 1 {
            text = text.replace("server_name: \"global\"", &format!("server_name: \"global-{n}\""));
            let others: Vec<String> = routes.iter().map(|route| format!("\"nats://{route}\"")).collect();
            let own = routes[n];
            let _ = writeln!(
                text,
                "cluster {{ name: \"core\", listen: \"{own}\", routes: [{}] }}",
                others.join(", ")
            );
        }
        let config = folder.join("nats-server.conf");
        fs::write(&config, text).expect("there is room for temporary files");
        Server { client, process: run_server(&config), config }
    }
}

fn run_server(config: &FilePath) -> Child {
    let log = fs::File::options().create(true).append(true).open(config.with_extension("log"));
    Command::new(program::nats_server())
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.expect("there is room for temporary files"))
        .spawn()
        .expect("the server starts")
}

impl Replica {
    fn spawn(&mut self) {
        let log = fs::File::options().create(true).append(true).open(log_file(&self.agent));
        let process = Command::new(program::agent())
            .arg("--config")
            .arg(&self.agent.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("there is room for temporary files"))
            .spawn();
        self.process = Some(process.expect("the agent starts"));
    }
}

/// What the plan says of global.
struct Planned {
    leaf: SocketAddr,
    children: Vec<Path>,
}

impl Planned {
    fn read(config: &FilePath) -> Planned {
        let text = fs::read_to_string(config).expect("the plan has written it");
        let (_, leaf) = text.split_once("[leaf]").expect("global has children");
        let value = |key: &str| {
            let line = leaf.lines().find_map(|line| line.strip_prefix(key)).expect("the plan writes it");
            line.trim_start_matches(" = ").to_owned()
        };
        let listen = value("listen");
        let children = value("children");
        let ids = children.split('"').skip(1).step_by(2);
        Planned {
            leaf: listen.trim_matches('"').parse().expect("it is an address"),
            children: ids.map(path).collect(),
        }
    }

    fn replica(
        &self,
        home: &FilePath,
        name: &str,
        urls: &str,
        servers: usize,
        passwords: &Passwords,
    ) -> String {
        let identity = home.join("identity");
        let file = |name: &str| identity.join(name).display().to_string();
        let children: Vec<String> = self.children.iter().map(|child| format!("\"{}\"", child.id())).collect();
        format!(
            r#"
level = "global"
trust_domain = "lucent.dev"
state_dir = "state"

[identity]
cert = "{cert}"
key = "{key}"
bundle = "{bundle}"

[nats]
mode = "external"

[nats.external]
urls = [{urls}]
copies = {copies}
mesh_user = "agent"
mesh_password = "{mesh}"
down_user = "down"
down_password = "{down}"

[replicas]
take_over = "{TAKE_OVER}"
instance = "{name}"

[leaf]
children = [{children}]

[telemetry]
interval = "2s"
window = "5s"
"#,
            cert = file("svid.pem"),
            key = file("svid.key"),
            bundle = file("bundle.pem"),
            copies = if servers > 1 { 3 } else { 1 },
            mesh = passwords.agent.expose(),
            down = passwords.down.expose(),
            children = children.join(", "),
        )
    }
}
