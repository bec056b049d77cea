//! A mesh of real processes in a temporary directory.

use std::{
    net::{SocketAddr, TcpListener},
    ops::{Deref, DerefMut},
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use agent::{
    broker::server,
    dev::{
        fleet::{Fleet, FleetError, log_file},
        plan::{Plan, PlannedAgent},
    },
};
use async_nats::{Client, ConnectOptions};
use hierarchy::Path;
use nats_config::names;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{eventually, guardian::Guardian, processes, program, scrape, turn::Turn};

/// How long an agent may take to come up again and link to its parent.
pub const LINKED_WITHIN: Duration = Duration::from_secs(60);

/// How long a killed server may hold its ports.
const PORTS_FREE_WITHIN: Duration = Duration::from_secs(10);

/// A mesh that runs. Dropped, all its processes are killed; after a failed test its logs are shown.
pub struct Mesh {
    fleet: Fleet,
    // Fields are dropped in this order: processes first, then their files, then the place.
    _guardian: Guardian,
    dir: TempDir,
    _turn: Turn,
}

/// The path of this text.
pub fn path(text: &str) -> Path {
    text.parse().expect("tests write well formed paths")
}

/// Directories, identities and configuration files of agents at these paths, none of which runs yet.
pub fn lay_out(dir: &FilePath, paths: &[&str], mut extra: impl FnMut(&Path, &mut String)) -> Plan {
    let paths: Vec<Path> = paths.iter().map(|text| path(text)).collect();
    let server = format!("[nats]\nserver = {:?}\n", program::nats_server());
    let planned = Plan::lay_out(dir, &paths, |path, config| {
        *config = config.replace("[nats]\n", &server);
        extra(path, config);
    });
    planned.unwrap_or_else(|error| panic!("{error}"))
}

impl Mesh {
    /// Starts agents at these paths, with all their parents among them.
    pub async fn start(paths: &[&str]) -> Mesh {
        Mesh::start_with(paths, |_, _| {}).await
    }

    /// As [`Mesh::start`]; `extra` may change an agent's configuration file.
    pub async fn start_with(paths: &[&str], extra: impl FnMut(&Path, &mut String)) -> Mesh {
        Mesh::start_program(program::agent(), paths, extra).await
    }

    /// As [`Mesh::start_with`], with another program that behaves as `agent` does.
    pub async fn start_program(
        program: PathBuf,
        paths: &[&str],
        mut extra: impl FnMut(&Path, &mut String),
    ) -> Mesh {
        let turn = Turn::take().await;
        let dir = tempfile::tempdir().expect("there is room for temporary files");
        let guardian = Guardian::over(dir.path());
        let mut ports = turn.ports();
        let plan = lay_out(dir.path(), paths, |path, config| {
            *config = ports.replace_in(config);
            extra(path, config);
        });
        let started = Fleet::start_with(program, plan, |_| {}).await;
        let fleet = started.unwrap_or_else(|error| panic!("{error}"));
        Mesh { fleet, _guardian: guardian, dir, _turn: turn }
    }

    /// As [`Mesh::start`], but global is not started: it is for `lay_out_global` to say what runs there, with its
    /// place in the plan and free ports.
    pub async fn start_below(
        paths: &[&str],
        mut extra: impl FnMut(&Path, &mut String),
        lay_out_global: impl FnOnce(&PlannedAgent, &mut dyn FnMut() -> SocketAddr),
    ) -> Mesh {
        let turn = Turn::take().await;
        let dir = tempfile::tempdir().expect("there is room for temporary files");
        let guardian = Guardian::over(dir.path());
        let mut ports = turn.ports();
        let mut plan = lay_out(dir.path(), paths, |path, config| {
            *config = ports.replace_in(config);
            extra(path, config);
        });
        let global = plan.agents.remove(0);
        assert_eq!(global.path, Path::global(), "parents come first");
        lay_out_global(&global, &mut || ports.one());
        let started = Fleet::start_with(program::agent(), plan, |_| {}).await;
        let fleet = started.unwrap_or_else(|error| panic!("{error}"));
        Mesh { fleet, _guardian: guardian, dir, _turn: turn }
    }

    /// Where all its files are.
    pub fn dir(&self) -> &FilePath {
        self.dir.path()
    }

    /// A connection as an application on the agent's machine has it.
    pub async fn client(&self, at: &str) -> Client {
        self.fleet.connect(&path(at)).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// A connection with the agent's own rights.
    pub async fn agents_client(&self, at: &str) -> Client {
        self.fleet.connect_as_agent(&path(at)).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// A connection as one of the agent's own users: `up`, `down` or `sys`.
    pub async fn client_as(&self, at: &str, user: &str) -> Client {
        let at = path(at);
        let passwords =
            server::passwords(&self.fleet.agent(&at).state.join("nats")).expect("the agent has run");
        let password = match user {
            names::UP_USER => passwords.up,
            names::DOWN_USER => passwords.down,
            names::SYS_USER => passwords.sys,
            other => panic!("no such user: {other}"),
        };
        let address = self.fleet.addresses(&at).expect("the agent runs").nats;
        let options = ConnectOptions::with_user_and_password(user.to_owned(), password.expose().to_owned());
        options.connect(address).await.expect("the agent's server takes the agent's users")
    }

    /// Starts an agent that does not run and waits until it is linked to its parent.
    pub async fn start_again(&mut self, at: &str) {
        let at = path(at);
        let started = async {
            self.fleet.spawn(&at)?;
            self.fleet.wait_until_linked(&at, Instant::now() + LINKED_WITHIN).await
        };
        let started: Result<(), FleetError> = started.await;
        started.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits until the agent is linked to its parent.
    pub async fn linked(&mut self, at: &str) {
        let linked = self.fleet.wait_until_linked(&path(at), Instant::now() + LINKED_WITHIN).await;
        linked.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Kills the agent's nats-server with SIGKILL; false where none runs just now.
    pub fn kill_server(&self, at: &str) -> bool {
        let pid = self.fleet.server_pid(&path(at));
        pid.inspect(|pid| processes::signal(*pid, Signal::SIGKILL)).is_some()
    }

    /// Kills the agent and its nats-server with SIGKILL, as a power cut does, and waits until the system has
    /// taken back the server's ports: a process that is dying holds them for a moment.
    pub async fn kill_both(&mut self, at: &str) {
        let address = self.fleet.addresses(&path(at)).expect("the agent has run").nats;
        self.fleet.kill_agent(&path(at)).await;
        self.kill_server(at);
        eventually!(PORTS_FREE_WITHIN, TcpListener::bind(&address));
    }

    /// What the agent counts.
    pub async fn numbers(&self, at: &str) -> scrape::Numbers {
        match self.fleet.addresses(&path(at)) {
            Some(addresses) => scrape::Numbers::of(addresses.http).await,
            None => scrape::Numbers::default(),
        }
    }

    /// The agent's log so far.
    pub fn log(&self, at: &str) -> String {
        std::fs::read_to_string(log_file(self.fleet.agent(&path(at)))).unwrap_or_default()
    }

    /// Stops all agents, children first; what of the mesh's processes still runs then.
    pub async fn stop(&mut self) -> Vec<processes::Process> {
        let paths: Vec<Path> = self.fleet.plan.agents.iter().rev().map(|agent| agent.path.clone()).collect();
        for path in paths {
            self.fleet.stop_one(&path).await;
        }
        processes::naming(self.dir())
    }
}

impl Deref for Mesh {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

impl DerefMut for Mesh {
    fn deref_mut(&mut self) -> &mut Fleet {
        &mut self.fleet
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for agent in &self.fleet.plan.agents {
                let log = std::fs::read_to_string(log_file(agent)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                println!("--- {}", agent.path);
                lines[lines.len().saturating_sub(20)..].iter().for_each(|line| println!("{line}"));
            }
        }
        // The fleet kills agents and servers by their ids; this catches one that was just being started.
        processes::kill_all(self.dir.path());
    }
}
