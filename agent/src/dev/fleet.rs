//! The mesh's processes: started, waited for, asked, stopped.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, time::Duration};

use async_nats::Client;
use hierarchy::{Level, Path};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::plan::{Plan, PlannedAgent};
use crate::{
    broker::{BrokerError, server},
    exit::ExitCode,
    status::{self, Addresses, Status},
};

/// How long the whole mesh may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(90);
/// How long one agent may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Why a mesh does not run.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Its files could not be made.
    #[error("the mesh could not be laid out: {0}")]
    Plan(String),
    /// A port or the nats-server.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// An agent ended.
    #[error("agent {path} ended ({status}); its log {log} ends with:\n{tail}")]
    Ended {
        /// Which.
        path: Path,
        /// How.
        status: String,
        /// Its exit code, where it had one.
        code: Option<i32>,
        /// Its log.
        log: String,
        /// What it said last.
        tail: String,
    },
    /// It did not come up in time.
    #[error("agent {path} is not up after {waited:?}; its log {log} ends with:\n{tail}")]
    NotUp {
        /// Which.
        path: Path,
        /// How long it was waited for.
        waited: Duration,
        /// Its log.
        log: String,
        /// What it said last.
        tail: String,
    },
    /// NATS did not do what it was asked.
    #[error("NATS at {path}: {reason}")]
    Nats {
        /// Whose.
        path: Path,
        /// What it said.
        reason: String,
    },
}

impl FleetError {
    /// What the process exits with: the agent's own code where it had one.
    pub fn code(&self) -> ExitCode {
        match self {
            FleetError::Ended { code: Some(code), .. } => ExitCode::ALL
                .into_iter()
                .find(|known| i32::from(known.code()) == *code && *known != ExitCode::Ok)
                .unwrap_or(ExitCode::Failure),
            FleetError::Broker(_) => ExitCode::Unavailable,
            _ => ExitCode::Failure,
        }
    }
}

/// A mesh that runs. Dropped, its agents are killed and their servers with them.
pub struct Fleet {
    /// The plan it was started from.
    pub plan: Plan,
    program: PathBuf,
    running: BTreeMap<Path, Child>,
}

impl Fleet {
    /// Starts every agent, parents first, and waits until each is ready and linked to its parent. `up` is
    /// told of each.
    pub async fn start(plan: Plan, up: impl FnMut(&Path)) -> Result<Fleet, FleetError> {
        let program = std::env::current_exe().map_err(|error| FleetError::Plan(error.to_string()))?;
        Fleet::start_with(program, plan, up).await
    }

    /// As [`Fleet::start`], with this `agent` program.
    pub async fn start_with(
        program: PathBuf,
        plan: Plan,
        mut up: impl FnMut(&Path),
    ) -> Result<Fleet, FleetError> {
        let mut fleet = Fleet { plan, program, running: BTreeMap::new() };
        for agent in fleet.plan.agents.clone() {
            fleet.spawn(&agent.path)?;
        }
        let deadline = tokio::time::Instant::now() + UP_WITHIN;
        for agent in fleet.plan.agents.clone() {
            fleet.wait_until_linked(&agent.path, deadline).await?;
            up(&agent.path);
        }
        Ok(fleet)
    }

    /// Starts one agent, which must not be running.
    pub fn spawn(&mut self, path: &Path) -> Result<(), FleetError> {
        let agent = self.agent(path).clone();
        let failed = |error: std::io::Error| FleetError::Plan(format!("agent {path}: {error}"));
        let log =
            std::fs::File::options().create(true).append(true).open(log_file(&agent)).map_err(failed)?;
        let child = Command::new(&self.program)
            .arg("--level")
            .arg(agent.path.level().as_str())
            .arg("--config")
            .arg(&agent.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for `agent dev`, which then stops the agents in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        self.running.insert(path.clone(), child);
        Ok(())
    }

    /// Waits until the agent is ready and, below global, linked to its parent.
    pub async fn wait_until_linked(
        &mut self,
        path: &Path,
        deadline: tokio::time::Instant,
    ) -> Result<(), FleetError> {
        loop {
            if let Some(status) = self.running.get_mut(path).and_then(|child| child.try_wait().ok().flatten())
            {
                return Err(self.ended(path, status));
            }
            if self.status(path).await.is_some_and(|status| status.parent.is_none_or(|parent| parent.open)) {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let (log, tail) = self.last_words(path);
                return Err(FleetError::NotUp { path: path.clone(), waited: UP_WITHIN, log, tail });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The first agent that ends; never returns while all run.
    pub async fn first_exit(&mut self) -> FleetError {
        loop {
            let mut ended = None;
            for (path, child) in &mut self.running {
                if let Ok(Some(status)) = child.try_wait() {
                    ended = Some((path.clone(), status));
                }
            }
            if let Some((path, status)) = ended {
                return self.ended(&path, status);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What the agent says of itself; `None` where it does not answer.
    pub async fn status(&self, path: &Path) -> Option<Status> {
        let http = self.addresses(path)?.http;
        tokio::task::spawn_blocking(move || status::fetch(http).ok()).await.ok().flatten()
    }

    /// Where the agent listens.
    pub fn addresses(&self, path: &Path) -> Option<Addresses> {
        status::addresses(&self.agent(path).state).ok()
    }

    /// A connection as an application on the agent's machine has it.
    pub async fn connect(&self, path: &Path) -> Result<Client, FleetError> {
        let failed = |reason: String| FleetError::Nats { path: path.clone(), reason };
        let address = self.addresses(path).ok_or_else(|| failed("it has no address".into()))?.nats;
        async_nats::connect(address).await.map_err(|error| failed(error.to_string()))
    }

    /// A connection with the agent's own rights, to look behind the scenes.
    pub async fn connect_as_agent(&self, path: &Path) -> Result<Client, FleetError> {
        let failed = |reason: String| FleetError::Nats { path: path.clone(), reason };
        let address = self.addresses(path).ok_or_else(|| failed("it has no address".into()))?.nats;
        let passwords = server::passwords(&self.agent(path).state.join("nats"))?;
        crate::broker::connect::connect(
            address,
            nats_config::names::AGENT_USER,
            passwords.agent.expose(),
            "audit",
        )
        .await
        .map_err(|error| failed(error.to_string()))
    }

    /// The paths at a level.
    pub fn at(&self, level: Level) -> Vec<Path> {
        self.plan.agents.iter().map(|agent| agent.path.clone()).filter(|path| path.level() == level).collect()
    }

    /// The agent's process id, while it runs.
    pub fn agent_pid(&self, path: &Path) -> Option<u32> {
        self.running.get(path).and_then(Child::id)
    }

    /// The process id of the agent's nats-server, while it runs.
    pub fn server_pid(&self, path: &Path) -> Option<u32> {
        server::left_behind(&self.agent(path).state.join("nats")).map(|pid| pid.as_raw() as u32)
    }

    /// Asks one agent to end and waits for it.
    pub async fn stop_one(&mut self, path: &Path) {
        let Some(mut child) = self.running.remove(path) else { return };
        if let Some(pid) = child.id() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }

    /// Kills one agent, and only it, with SIGKILL.
    pub async fn kill_agent(&mut self, path: &Path) {
        if let Some(mut child) = self.running.remove(path) {
            let _ = child.kill().await;
        }
    }

    /// Stops all, children before parents, so that what they last said still finds a hearer.
    pub async fn stop(mut self) {
        let paths: Vec<Path> = self.plan.agents.iter().rev().map(|agent| agent.path.clone()).collect();
        for path in paths {
            self.stop_one(&path).await;
        }
    }

    /// The planned agent at `path`.
    pub fn agent(&self, path: &Path) -> &PlannedAgent {
        self.plan.agents.iter().find(|agent| agent.path == *path).expect("only planned paths are asked for")
    }

    fn ended(&self, path: &Path, status: std::process::ExitStatus) -> FleetError {
        let (log, tail) = self.last_words(path);
        FleetError::Ended { path: path.clone(), status: status.to_string(), code: status.code(), log, tail }
    }

    fn last_words(&self, path: &Path) -> (String, String) {
        let file = log_file(self.agent(path));
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        (file.display().to_string(), lines[lines.len().saturating_sub(8)..].join("\n"))
    }
}

/// The agent's log.
pub fn log_file(agent: &PlannedAgent) -> PathBuf {
    agent.config.with_file_name("agent.log")
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // An agent's server outlives an agent that is killed, by design; so it is ended here, and after its
        // agent, which would start it again.
        self.running.clear();
        for agent in &self.plan.agents {
            for pid in server::all_left_behind(&agent.state.join("nats")) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}
