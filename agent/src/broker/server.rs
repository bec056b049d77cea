//! The server's process: started, watched, started again, stopped; or taken over from an agent that
//! was killed.
//!
//! ```text
//!              dies                 waited
//!   Running ----------> BackingOff ---------> Running
//!      |                    |
//!      +------ stop --------+-----> Stopped
//! ```

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nats_config::{Password, Passwords, ServerOptions, names, render};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{BrokerError, binary::Binary, connect, log_tail, pulse, redial};
use crate::{link::watchdog::Step, metrics::Metrics, supervise::Tasks};

/// How long a server may take to answer after it was started, recovering its streams.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// How long a server may take to end after it was asked to.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// Wait before the first restart; doubles up to [`MAX_BACKOFF`], and begins anew once the server has
/// run for [`STEADY`].
const BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
const STEADY: Duration = Duration::from_secs(30);
/// How often an adopted server, which is nobody's child, is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The server's log begins a new file at this many bytes.
const LOG_BYTES: u64 = 4 << 20;

/// A server that runs and is watched.
pub struct Server {
    /// Where clients connect.
    pub client: SocketAddr,
    /// The agent's passwords on it.
    pub passwords: Passwords,
    /// Takes steps that bring up the connection to the parent.
    pub steps: mpsc::Sender<Step>,
    files: Files,
    cancel: CancellationToken,
    watching: Tasks,
}

#[derive(Debug, Clone)]
struct Files {
    config: PathBuf,
    pid: PathBuf,
    log: PathBuf,
}

enum Process {
    /// Started by this agent.
    Own(Child),
    /// Started by an agent that is gone.
    Adopted(Pid),
}

impl Process {
    fn pid(&self) -> Option<Pid> {
        match self {
            Process::Own(child) => child.id().map(|id| Pid::from_raw(id as i32)),
            Process::Adopted(pid) => Some(*pid),
        }
    }
}

impl Server {
    /// Starts the server in `dir`, or adopts the one that an earlier agent left running there with the
    /// very same configuration. Returns once it answers.
    pub async fn start(
        binary: &Binary,
        dir: &Path,
        mut options: ServerOptions,
        metrics: &Metrics,
    ) -> Result<Server, BrokerError> {
        let files = Files::within(dir);
        options.pid_file = Some(files.pid.clone());
        let text = |options: &ServerOptions| -> Result<String, BrokerError> {
            Ok(format!("{}\nlogfile_size_limit: {LOG_BYTES}\n", render(options)?))
        };
        let config = text(&options)?;
        let mut paused = options.clone();
        paused.parents.iter_mut().for_each(|parents| parents.paused = true);
        let paused = text(&paused)?;

        let left = left_running(&files);
        let process = match left {
            Some(pid) if fs::read_to_string(&files.config).is_ok_and(|on_disk| on_disk == config) => {
                tracing::info!(
                    pid = pid.as_raw(),
                    "the nats-server of an earlier agent still runs; taking it over"
                );
                Process::Adopted(pid)
            }
            left => {
                if let Some(pid) = left {
                    tracing::info!(
                        pid = pid.as_raw(),
                        "stopping the nats-server of an earlier agent: it is configured otherwise"
                    );
                    stop_process(Process::Adopted(pid)).await;
                }
                claim_all(&options)?;
                write_private(&files.config, &config)?;
                Process::Own(spawn(binary, &files)?)
            }
        };

        let cancel = CancellationToken::new();
        let mut watching = Tasks::new(cancel.clone());
        watching.spawn("nats-server log", log_tail::run(files.log.clone(), cancel.clone()));
        let client = options.client_listen;
        let process = match wait_until_up(process, client, &options.passwords, &files).await {
            Ok(process) => process,
            Err(error) => {
                watching.stop(Duration::from_secs(1)).await;
                return Err(error);
            }
        };
        let (steps, taken) = mpsc::channel(1);
        let watched = Watched {
            binary: binary.clone(),
            client,
            files: files.clone(),
            paused,
            steps: taken,
            metrics: metrics.clone(),
        };
        watching.spawn("nats-server", watched.watch(process, cancel.clone()));
        Ok(Server { client, passwords: options.passwords, steps, files, cancel, watching })
    }

    /// Asks the server to end, waits, and kills it if it does not.
    pub async fn stop(self) {
        self.cancel.cancel();
        self.watching.stop(STOP_WITHIN + Duration::from_secs(2)).await;
        let _ = fs::remove_file(&self.files.pid);
    }
}

/// The passwords of an earlier run in this directory, so that a server left running can be adopted, or
/// new ones.
pub fn passwords(dir: &Path) -> Result<Passwords, BrokerError> {
    let path = dir.join("passwords");
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let mut kept = kept.lines().map(Password::new);
    if let (Some(Ok(agent)), Some(Ok(up)), Some(Ok(down)), Some(Ok(sys))) =
        (kept.next(), kept.next(), kept.next(), kept.next())
    {
        return Ok(Passwords { agent, up, down, sys });
    }
    let mut lines = String::new();
    let mut fresh = || {
        // Two random UUIDs hold 244 random bits.
        let text = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        lines.push_str(&text);
        lines.push('\n');
        Password::new(text).expect("hexadecimal digits are a password")
    };
    let passwords = Passwords { agent: fresh(), up: fresh(), down: fresh(), sys: fresh() };
    write_private(&path, &lines)?;
    Ok(passwords)
}

/// Writes a file that only its owner may read, in one step.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), BrokerError> {
    let unwritable = |error: io::Error| BrokerError::Unwritable {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    let next = path.with_extension("next");
    let write = || {
        let _ = fs::remove_file(&next);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    write().map_err(unwritable)
}

/// Each listener must be free before the server is started: its own complaint would come late and
/// unnamed.
fn claim_all(options: &ServerOptions) -> Result<(), BrokerError> {
    super::claim("nats.listen", options.client_listen)?;
    if let Some(monitor) = options.monitor_listen {
        super::claim("nats.monitor", monitor)?;
    }
    if let Some(leaf) = &options.leaf_listen {
        super::claim("leaf.listen", leaf.address)?;
    }
    Ok(())
}

fn spawn(binary: &Binary, files: &Files) -> Result<Child, BrokerError> {
    Command::new(&binary.program)
        .arg("--config")
        .arg(&files.config)
        .arg("--log")
        .arg(&files.log)
        // Go frees memory late unless told that there is a limit.
        .env("GOMEMLIMIT", binary.heap_limit.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C at a terminal reaches the whole group; the order of shutdown is the agent's to choose.
        .process_group(0)
        // Where a start is given up half-way, by an error or a signal, the server goes with it.
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| BrokerError::NotUp(error.to_string()))
}

async fn wait_until_up(
    mut process: Process,
    client: SocketAddr,
    passwords: &Passwords,
    files: &Files,
) -> Result<Process, BrokerError> {
    let deadline = tokio::time::Instant::now() + UP_WITHIN;
    let address = client.to_string();
    loop {
        if let Some(end) = ended(&mut process) {
            return Err(BrokerError::NotUp(format!("{end}; it says: {}", last_complaint(&files.log))));
        }
        let probe = connect::connect(address.as_str(), names::AGENT_USER, passwords.agent.expose(), "probe");
        let up = match tokio::time::timeout(Duration::from_secs(2), probe).await {
            Ok(Ok(client)) => jetstream_answers(client).await,
            _ => false,
        };
        if up {
            return Ok(process);
        }
        if tokio::time::Instant::now() >= deadline {
            stop_process(process).await;
            return Err(BrokerError::NotUp(format!(
                "no answer in {UP_WITHIN:?}; it says: {}",
                last_complaint(&files.log)
            )));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Whether JetStream is there: it answers that it has no such stream. (The account's figures would say
/// the same, but the client cannot read what servers before 2.10 tell of them.)
pub async fn jetstream_answers(client: async_nats::Client) -> bool {
    use async_nats::jetstream::{self, context::GetStreamErrorKind::JetStream};

    let mut js = jetstream::new(client);
    js.set_timeout(Duration::from_secs(2));
    match js.get_stream("LUCENT_PROBE").await {
        Ok(_) => true,
        Err(error) => {
            matches!(error.kind(), JetStream(said) if said.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND)
        }
    }
}

/// What is watched, and how it is started again.
struct Watched {
    binary: Binary,
    client: SocketAddr,
    files: Files,
    /// The configuration with the connection to the parent left out.
    paused: String,
    steps: mpsc::Receiver<Step>,
    metrics: Metrics,
}

impl Watched {
    /// Watches the process and starts it again, until cancelled; then stops it.
    async fn watch(
        mut self,
        mut process: Process,
        cancel: CancellationToken,
    ) -> Result<(), std::convert::Infallible> {
        let (mut wait, client) = (BACKOFF, self.client);
        loop {
            let started = tokio::time::Instant::now();
            let end = tokio::select! {
                () = cancel.cancelled() => {
                    stop_process(process).await;
                    return Ok(());
                }
                end = self.until_ended(&mut process) => end,
                silent = pulse::lost(client) => {
                    // What it has acknowledged is written; a new one reads it.
                    kill_process(process).await;
                    format!("it did not answer for {silent:.1?} and was killed")
                }
            };
            wait = if started.elapsed() > STEADY { BACKOFF } else { wait };
            tracing::error!(end, again_in = ?wait, "nats-server ended; starting it again");
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
                wait = (wait * 2).min(MAX_BACKOFF);
                match spawn(&self.binary, &self.files) {
                    Ok(child) => {
                        self.metrics.server_restarts.inc();
                        process = Process::Own(child);
                        break;
                    }
                    Err(error) => tracing::error!(%error, "nats-server cannot be started"),
                }
            }
        }
    }

    /// Waits until the process has ended, and takes steps meanwhile. Where this is cancelled in the middle of a
    /// step, its rest is done by whoever starts the server again.
    async fn until_ended(&mut self, process: &mut Process) -> String {
        loop {
            let step = tokio::select! {
                end = until_ended(process) => return end,
                Some(step) = self.steps.recv() => step,
            };
            let Some(pid) = process.pid() else { continue };
            match step {
                Step::Redial => {
                    if let Err(error) = redial::redial(&self.files.config, &self.paused, pid).await {
                        tracing::warn!(%error, "nats-server could not be told to dial the parent anew");
                    }
                }
                Step::Restart => {
                    terminate(process).await;
                    return "it was stopped, since it does not connect to the parent".into();
                }
            }
        }
    }
}

/// How the process ended, if it did.
fn ended(process: &mut Process) -> Option<String> {
    match process {
        Process::Own(child) => match child.try_wait() {
            Ok(Some(status)) => Some(status.to_string()),
            Ok(None) => None,
            Err(error) => Some(error.to_string()),
        },
        Process::Adopted(pid) => (!is_alive(*pid)).then(|| "it is gone".to_owned()),
    }
}

async fn until_ended(process: &mut Process) -> String {
    match process {
        Process::Own(child) => match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        },
        Process::Adopted(pid) => {
            while is_alive(*pid) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            "it is gone".to_owned()
        }
    }
}

async fn stop_process(mut process: Process) {
    terminate(&mut process).await;
}

async fn terminate(process: &mut Process) {
    let Some(pid) = process.pid() else { return };
    let _ = kill(pid, Signal::SIGTERM);
    if tokio::time::timeout(STOP_WITHIN, until_ended(process)).await.is_err() {
        tracing::warn!(pid = pid.as_raw(), "nats-server did not end when asked; killing it");
        let _ = kill(pid, Signal::SIGKILL);
        until_ended(process).await;
    }
}

async fn kill_process(mut process: Process) {
    if let Some(pid) = process.pid() {
        let _ = kill(pid, Signal::SIGKILL);
        until_ended(&mut process).await;
    }
}

/// The server that runs with the files in `dir`, if one does.
pub fn left_behind(dir: &Path) -> Option<Pid> {
    left_running(&Files::within(dir))
}

/// Stops the server that runs with the files in `dir`, if one does.
pub async fn stop_left_behind(dir: &Path) {
    if let Some(pid) = left_behind(dir) {
        stop_process(Process::Adopted(pid)).await;
    }
}

/// Every server that runs with the files in `dir`, also one that has not written its pid file yet.
pub fn all_left_behind(dir: &Path) -> Vec<Pid> {
    let config = Files::within(dir).config;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    pids.filter(|pid| names_config(*pid, &config) && is_alive(*pid)).collect()
}

impl Files {
    fn within(dir: &Path) -> Files {
        Files {
            config: dir.join("nats-server.conf"),
            pid: dir.join("nats-server.pid"),
            log: dir.join("nats-server.log"),
        }
    }
}

/// The process of the pid file, where it is alive and really runs this configuration.
fn left_running(files: &Files) -> Option<Pid> {
    let pid = Pid::from_raw(fs::read_to_string(&files.pid).ok()?.trim().parse().ok()?);
    (names_config(pid, &files.config) && is_alive(pid)).then_some(pid)
}

/// Whether the process was started with this configuration file.
fn names_config(pid: Pid, config: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;

    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|&b| b == 0).any(|argument| argument == config.as_os_str().as_bytes())
}

/// Whether the process exists and is no zombie.
fn is_alive(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state is the first field behind the name, which stands in parentheses.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// What the server complained about last.
fn last_complaint(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let complaint = text
        .lines()
        .rev()
        .find(|line| line.contains("[FTL]") || line.contains("[ERR]") || line.contains("nats-server:"));
    complaint.unwrap_or("nothing").trim().to_owned()
}
