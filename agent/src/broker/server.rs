//! The server's process: started, watched, started again, stopped; or taken over from an agent that
//! was killed.
//!
//! ```text
//!              dies                 waited
//!   Running ----------> BackingOff ---------> Running
//!      |                    |
//!      +------ stop --------+-----> Stopped
//! ```

mod watched;

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nats_config::{Password, Passwords, ServerOptions, names, render};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use watched::Watched;

use super::{
    BrokerError,
    binary::Binary,
    connect, last_words, log_tail,
    store::{self, Store, StoreState, set_aside},
};
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
/// So often one start may be tried without a stream over which the server dies.
const WITHOUT: usize = 16;
/// What a Go program exits with that has met a fault of its own.
const PANICKED: i32 = 2;
/// The server's log begins a new file at this many bytes.
const LOG_BYTES: u64 = 4 << 20;

/// A server that runs and is watched.
pub struct Server {
    /// Where clients connect.
    pub client: SocketAddr,
    /// The agent's passwords on it.
    pub passwords: Passwords,
    /// How its store fares.
    pub store: watch::Receiver<StoreState>,
    /// Takes steps that bring up the connection to the parent.
    pub steps: mpsc::Sender<Step>,
    files: Files,
    expected: Arc<OnceLock<Vec<String>>>,
    cancel: CancellationToken,
    watching: Tasks,
}

#[derive(Debug, Clone)]
struct Files {
    dir: PathBuf,
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

        let launch =
            Launch { binary: binary.clone(), files: files.clone(), config, logged: AtomicU64::default() };
        let left = left_behind(dir);
        // Where the pid file was lost or is an older one, more than one may run.
        for pid in all_left_behind(dir).into_iter().filter(|pid| Some(*pid) != left) {
            tracing::warn!(pid = pid.as_raw(), "stopping a second nats-server in this state directory");
            stop_process(Process::Adopted(pid)).await;
        }
        let same = fs::read_to_string(&files.config).is_ok_and(|on_disk| on_disk == launch.config);
        let process = match left {
            Some(pid) if same && store::is_sound(options.monitor_listen).await => {
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
                        "stopping the nats-server of an earlier agent: it is configured otherwise, or does not store"
                    );
                    stop_process(Process::Adopted(pid)).await;
                }
                claim_all(&options)?;
                launch.again().await?
            }
        };

        let cancel = CancellationToken::new();
        let mut watching = Tasks::new(cancel.clone());
        watching.spawn("nats-server log", log_tail::run(files.log.clone(), cancel.clone()));
        let client = options.client_listen;
        let process = match launch.until_up(process, client, &options.passwords).await {
            Ok(process) => process,
            Err(error) => {
                watching.stop(Duration::from_secs(1)).await;
                return Err(error);
            }
        };
        let expected = Arc::<OnceLock<Vec<String>>>::default();
        let (monitor, promised) = (options.monitor_listen, options.max_file_store);
        let (looking, store) = Store::new(dir, monitor, promised, expected.clone(), metrics);
        let (steps, taken) = mpsc::channel(1);
        let watched =
            Watched { launch, client, paused, steps: taken, store: looking, metrics: metrics.clone() };
        watching.spawn("nats-server", watched.watch(process, cancel.clone()));
        let passwords = options.passwords;
        Ok(Server { client, passwords, store, steps, files, expected, cancel, watching })
    }

    /// From now on these streams and buckets must be there.
    pub fn expect(&self, streams: Vec<String>) {
        let _ = self.expected.set(streams);
    }

    /// Returns once streams are gone that must be there; which.
    pub fn lost_streams(&self) -> impl Future<Output = Vec<String>> + use<> {
        let mut store = self.store.clone();
        async move {
            let lost =
                store.wait_for(|state| !state.missing.is_empty()).await.map(|state| state.missing.clone());
            match lost {
                Ok(lost) => lost,
                // The server is being stopped.
                Err(_) => std::future::pending().await,
            }
        }
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

/// How a server is started, again and again.
struct Launch {
    binary: Binary,
    files: Files,
    config: String,
    /// How long the log was before the last start.
    logged: AtomicU64,
}

impl Launch {
    /// The configuration is written anew each time: the file may have been damaged since.
    async fn again(&self) -> Result<Process, BrokerError> {
        let dir = self.files.dir.clone();
        // Reading blocks takes its time; what goes wrong with it is no reason not to start.
        let _ = tokio::task::spawn_blocking(move || store::keep_damaged(&dir)).await;
        self.logged.store(last_words::length(&self.files.log), Ordering::Relaxed);
        spawn(&self.binary, &self.files, &self.config).map(Process::Own)
    }

    /// Waits until the server answers. One that dies over a stream is started again without it.
    async fn until_up(
        &self,
        mut process: Process,
        client: SocketAddr,
        passwords: &Passwords,
    ) -> Result<Process, BrokerError> {
        for _ in 0..WITHOUT {
            match wait_until_up(process, client, passwords).await {
                Err(Down::Died { code: Some(PANICKED), end }) => {
                    let Some(stream) = self.died_over() else {
                        return Err(self.not_up(&end));
                    };
                    self.go_without(&stream, &end)?;
                    process = self.again().await?;
                }
                Err(Down::Died { end, .. } | Down::Silent { end }) => return Err(self.not_up(&end)),
                Ok(process) => return Ok(process),
            }
        }
        stop_process(process).await;
        Err(self.not_up(&format!("it died over {WITHOUT} streams")))
    }

    fn died_over(&self) -> Option<String> {
        last_words::died_over(&self.files.log, self.logged.load(Ordering::Relaxed))
    }

    fn go_without(&self, stream: &str, end: &str) -> Result<(), BrokerError> {
        let kept = set_aside::whole(&self.files.dir, stream)?;
        tracing::error!(stream, end, kept_in = %kept.display(),
            "nats-server died while it read this stream: its files are set aside, and it is made anew");
        Ok(())
    }

    fn not_up(&self, end: &str) -> BrokerError {
        BrokerError::NotUp(format!("{end}; it says: {}", last_words::complaint(&self.files.log)))
    }
}

fn spawn(binary: &Binary, files: &Files, config: &str) -> Result<Child, BrokerError> {
    write_private(&files.config, config)?;
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

/// Why a server did not come up.
enum Down {
    Died { end: String, code: Option<i32> },
    Silent { end: String },
}

async fn wait_until_up(
    mut process: Process,
    client: SocketAddr,
    passwords: &Passwords,
) -> Result<Process, Down> {
    let deadline = tokio::time::Instant::now() + UP_WITHIN;
    let address = client.to_string();
    loop {
        if let Some((end, code)) = ended(&mut process) {
            return Err(Down::Died { end, code });
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
            return Err(Down::Silent { end: format!("no answer in {UP_WITHIN:?}") });
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

/// How a process ended, for people, and its exit code where there is one.
type End = (String, Option<i32>);

/// How the process ended, if it did.
fn ended(process: &mut Process) -> Option<End> {
    match process {
        Process::Own(child) => match child.try_wait() {
            Ok(Some(status)) => Some((status.to_string(), status.code())),
            Ok(None) => None,
            Err(error) => Some((error.to_string(), None)),
        },
        Process::Adopted(pid) => (!is_alive(*pid)).then(|| ("it is gone".to_owned(), None)),
    }
}

async fn until_ended(process: &mut Process) -> End {
    match process {
        Process::Own(child) => match child.wait().await {
            Ok(status) => (status.to_string(), status.code()),
            Err(error) => (error.to_string(), None),
        },
        Process::Adopted(pid) => {
            while is_alive(*pid) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            ("it is gone".to_owned(), None)
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

async fn kill_process(process: &mut Process) {
    if let Some(pid) = process.pid() {
        let _ = kill(pid, Signal::SIGKILL);
        until_ended(process).await;
    }
}

/// The server that runs with the files in `dir`, if one does.
pub fn left_behind(dir: &Path) -> Option<Pid> {
    left_running(&Files::within(dir)).or_else(|| all_left_behind(dir).first().copied())
}

/// Stops the server that runs with the files in `dir`, if one does.
pub async fn stop_left_behind(dir: &Path) {
    for pid in all_left_behind(dir) {
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
            dir: dir.to_owned(),
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

/// Whether the process was started with this configuration file. Others may name it, as an editor does.
fn names_config(pid: Pid, config: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;

    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments: Vec<&[u8]> = command.split(|&b| b == 0).collect();
    arguments.windows(2).any(|pair| pair == [b"--config".as_slice(), config.as_os_str().as_bytes()])
}

/// Whether the process exists and is no zombie.
fn is_alive(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state is the first field behind the name, which stands in parentheses.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
