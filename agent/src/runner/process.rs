//! The `process` runner: one process an attempt, JSON in on standard input, JSON lines out.
//!
//! **In:** one JSON object, then end of file: `task_id`, `attempt`, `agent_type`, `task`, `payload`,
//! `metadata`. In the environment: `LUCENT_TASK_ID`, `LUCENT_EPOCH`, `LUCENT_IDEMPOTENCY_KEY`, what the
//! configuration adds, and of the agent's own only `PATH`, `HOME` and `LANG`, so that no secret leaks.
//!
//! **Out:** any number of lines `{"progress": 0.4, "message": "..."}` with progress from 0 to 1, and
//! `{"result": <any JSON>}`, the last of which counts. Exit code 0 with a result is success; all else is failure.
//!
//! **End:** the process leads a process group of its own. When it has ended, whatever it left behind in
//! that group is killed. On timeout and cancellation the group gets SIGTERM, a grace period, then SIGKILL; if
//! the future is dropped, SIGKILL at once. A descendant that leaves the group on purpose (`setsid`) escapes,
//! and if the *agent* is killed with SIGKILL nobody is left to kill the group: the service manager's control
//! group covers both.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{FailureReason, Job, Outcome, Progress, output::Output};

/// How long output is still read after everything that may be killed was killed. What is in the pipes is
/// there by then; only a descendant that left the group can hold them open longer.
const DRAIN: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 16 << 10;
/// The only variables that a process inherits.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];

/// Which program to run and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// A bare name, looked up on PATH, or an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its working directory.
    pub workdir: PathBuf,
    /// Added to its environment.
    pub env: BTreeMap<String, String>,
    /// After how long it is asked to stop.
    pub timeout: Duration,
    /// How long after that it is killed.
    pub grace: Duration,
}

impl From<&crate::config::Runner> for ProcessSpec {
    fn from(runner: &crate::config::Runner) -> Self {
        ProcessSpec {
            program: runner.program.clone(),
            args: runner.args.clone(),
            workdir: runner.workdir.clone(),
            env: runner.env.clone(),
            timeout: runner.timeout,
            grace: runner.grace,
        }
    }
}

/// Runs one attempt to its end. Progress for which `progress` has no room is skipped.
///
/// When this returns, the process has ended and its group was killed; dropping the future kills the group too.
pub async fn run(
    spec: &ProcessSpec,
    job: Job,
    progress: mpsc::Sender<Progress>,
    cancel: CancellationToken,
) -> Outcome {
    if cancel.is_cancelled() {
        return Outcome::Cancelled;
    }
    let mut child = match command(spec, &job).spawn() {
        Ok(child) => child,
        Err(cause) => return Outcome::Failed { reason: cannot_start(spec, &cause), log_tail: String::new() },
    };
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out_bytes, mut err_bytes) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    // Input is written while output is read: the process may wait for us to take the one before the other.
    let mut feed = std::pin::pin!(feed(child.stdin.take(), job));
    let mut fed = false;
    let mut output = Output::default();
    let report = |report| drop(progress.try_send(report));
    let mut attempt = Attempt::new(Group::led_by(child), spec);

    while !attempt.is_over(stdout.is_none() && stderr.is_none()) {
        tokio::select! {
            n = read(&mut stdout, &mut out_bytes) => output.stdout(&out_bytes[..n], report),
            n = read(&mut stderr, &mut err_bytes) => output.stderr(&err_bytes[..n]),
            () = &mut feed, if !fed => fed = true,
            status = attempt.group.leader.wait(), if attempt.status.is_none() => attempt.exited(status),
            () = cancel.cancelled(), if attempt.stage == Stage::Running => attempt.stop(Stop::Cancelled),
            () = sleep_until(attempt.due) => attempt.overdue(),
        }
    }
    output.end(report);
    attempt.outcome(output, spec)
}

/// An attempt from its start to its end:
///
/// ```text
///            exit
///  Running ──────────────────────────> Killed ──> over, when the pipes are closed or after DRAIN
///     │ timeout, cancel                  ^
///     └────────────────> Stopping ───────┘ after the grace period
///                        SIGTERM  │        SIGKILL
///                                 └──> over, when the leader has ended and the pipes are closed
/// ```
struct Attempt {
    group: Group,
    stage: Stage,
    /// When the stage ends if nothing else happens.
    due: Instant,
    grace: Duration,
    /// Why it was asked to end, if it was.
    stop: Option<Stop>,
    /// How the leader ended, if it has.
    status: Option<io::Result<ExitStatus>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Stopping,
    Killed,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    TimedOut,
    Cancelled,
}

impl Attempt {
    fn new(group: Group, spec: &ProcessSpec) -> Attempt {
        let due = Instant::now() + spec.timeout;
        Attempt { group, stage: Stage::Running, due, grace: spec.grace, stop: None, status: None }
    }

    fn is_over(&self, pipes_closed: bool) -> bool {
        self.stage == Stage::Over || (self.status.is_some() && pipes_closed)
    }

    /// The leader has ended. Unless all were asked to end and may take their time, the rest is killed.
    fn exited(&mut self, status: io::Result<ExitStatus>) {
        self.status = Some(status);
        if self.stage == Stage::Running {
            self.kill();
        }
    }

    fn overdue(&mut self) {
        match self.stage {
            Stage::Running => self.stop(Stop::TimedOut),
            Stage::Stopping => self.kill(),
            Stage::Killed | Stage::Over => self.stage = Stage::Over,
        }
    }

    fn stop(&mut self, why: Stop) {
        self.stop = Some(why);
        self.stage = Stage::Stopping;
        self.due = Instant::now() + self.grace;
        self.group.signal(Signal::SIGTERM);
    }

    fn kill(&mut self) {
        self.stage = Stage::Killed;
        self.due = Instant::now() + DRAIN;
        self.group.signal(Signal::SIGKILL);
    }

    fn outcome(self, output: Output, spec: &ProcessSpec) -> Outcome {
        let log_tail = output.log_tail();
        let reason = match (self.stop, &self.status) {
            (Some(Stop::Cancelled), _) => return Outcome::Cancelled,
            (Some(Stop::TimedOut), _) => FailureReason::TimedOut(spec.timeout),
            (None, Some(Ok(status))) => match (status.code(), status.signal()) {
                (Some(0), _) => match output.into_result() {
                    Ok(result) => return Outcome::Succeeded { result },
                    Err(ignored) => FailureReason::NoResult(ignored),
                },
                (Some(code), _) => FailureReason::Exit(code),
                (None, signal) => FailureReason::Signal(signal.unwrap_or_default()),
            },
            (None, Some(Err(cause))) => FailureReason::Lost(cause.kind()),
            (None, None) => FailureReason::Lost(io::ErrorKind::Other),
        };
        Outcome::Failed { reason, log_tail }
    }
}

/// A process and the process group that it leads. Dropping it kills the group, and the runtime reaps the leader.
struct Group {
    leader: Child,
    id: Option<Pid>,
}

impl Group {
    fn led_by(leader: Child) -> Group {
        let id = leader.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Group { leader, id }
    }

    fn signal(&self, signal: Signal) {
        if let Some(id) = self.id {
            // An error says that the group is empty, which is as well.
            let _ = killpg(id, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

fn command(spec: &ProcessSpec, job: &Job) -> Command {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .current_dir(&spec.workdir)
        .env_clear()
        .envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .envs(&spec.env)
        .env("LUCENT_TASK_ID", &job.task_id)
        .env("LUCENT_EPOCH", job.epoch.to_string())
        .env("LUCENT_IDEMPOTENCY_KEY", &job.idempotency_key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that a signal reaches its descendants and none of ours.
        .process_group(0)
        .kill_on_drop(true);
    command
}

fn cannot_start(spec: &ProcessSpec, cause: &io::Error) -> FailureReason {
    let remedy = match cause.kind() {
        io::ErrorKind::NotFound if !spec.workdir.is_dir() => {
            "its working directory does not exist: create it"
        }
        io::ErrorKind::NotFound => "there is no such program: install it, or correct the runner's command",
        io::ErrorKind::PermissionDenied => "make it executable for the agent's user",
        _ => "start it by hand as the agent's user to see why",
    };
    FailureReason::CannotStart { program: spec.program.display().to_string(), kind: cause.kind(), remedy }
}

/// Gives the process its input, then end of file. One that does not read it may still do its work.
async fn feed(stdin: Option<ChildStdin>, job: Job) {
    let input = serde_json::to_vec(&job).expect("texts, numbers and raw JSON always serialize");
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(&input).await;
    }
}

/// Reads some bytes; at the end of the pipe closes it and answers 0. Waits for ever on a closed one.
async fn read(pipe: &mut Option<impl AsyncRead + Unpin>, bytes: &mut [u8]) -> usize {
    let Some(open) = pipe else { return std::future::pending().await };
    let n = open.read(bytes).await.unwrap_or(0);
    if n == 0 {
        *pipe = None;
    }
    n
}

#[cfg(test)]
mod tests;
