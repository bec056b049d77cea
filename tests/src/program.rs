//! The programs under test and how they are run to their end.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path as FilePath, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::process::Command;

/// Where `cargo` puts the profile's programs: two levels above a test's own program.
pub(crate) fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").to_owned()
}

/// The `agent` program: `LUCENT_AGENT`, or what `cargo build -p agent` has put beside the tests.
pub fn agent() -> PathBuf {
    if let Some(given) = std::env::var_os("LUCENT_AGENT") {
        return given.into();
    }
    let built = target_dir().join("agent");
    assert!(built.exists(), "{} is not there: run cargo build -p agent first", built.display());
    built
}

/// A program in `dir` that stands in for `agent`: first it does what these shell lines say, in which `$at` is the
/// agent's path, with `_` between its parts.
pub fn wrapped_agent(dir: &FilePath, lines: &str) -> PathBuf {
    let program = dir.join("wrapped-agent");
    // The agent's path stands in its configuration; global has none.
    let script = format!(
        "#!/bin/sh\n\
         for config; do case $config in *.toml) break ;; esac; done\n\
         at=$(sed -n 's/^path = \"\\(.*\\)\"/\\1/p' \"$config\" | tr / _)\n\
         at=${{at:-global}}\n\
         {lines}\n\
         exec {agent:?} \"$@\"\n",
        agent = agent(),
    );
    std::fs::write(&program, script).expect("the directory can be written");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, executable).expect("it is ours");
    program
}

/// The nats-server that the meshes run on: `LUCENT_NATS_SERVER`, or what `scripts/setup env` finds. Never just
/// any from PATH, which may be an old one.
pub fn nats_server() -> PathBuf {
    from_setup("LUCENT_NATS_SERVER")
        .unwrap_or_else(|| panic!("no nats-server is found: run scripts/setup test"))
}

/// A variable from the environment, or as `scripts/setup env` would set it.
pub fn from_setup(name: &str) -> Option<PathBuf> {
    if let Some(given) = std::env::var_os(name).filter(|given| !given.is_empty()) {
        return Some(given.into());
    }
    let setup = source_file("../scripts/setup");
    let script = format!("eval \"$('{}' env)\"; printf %s \"${{{name}:-}}\"", setup.display());
    let output = std::process::Command::new("bash").args(["-c", &script]).output().ok()?;
    let found = String::from_utf8(output.stdout).ok().filter(|found| !found.is_empty());
    found.map(PathBuf::from)
}

/// How a run of a program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    fn from(output: Output) -> Ended {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The lines of standard error that are not log lines.
    pub fn complaints(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| !is_log_line(line)).collect()
    }
}

/// Log lines begin with a time.
fn is_log_line(line: &str) -> bool {
    line.len() > 20 && line.as_bytes()[..4].iter().all(u8::is_ascii_digit) && line.as_bytes()[10] == b'T'
}

/// The `agent` program with these arguments, not yet started. It is killed when its handle is dropped.
pub fn agent_command<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(agent());
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a command to its end, which must come within `patience`.
pub async fn run(command: &mut Command, patience: Duration) -> Ended {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.spawn().expect("the program starts").wait_with_output();
    let ended = tokio::time::timeout(patience, output).await;
    let ended = ended.unwrap_or_else(|_| panic!("not ended within {patience:?}: {command:?}"));
    Ended::from(ended.expect("the program's output can be read"))
}

/// A Python with `nats-py`, or `None` with the reason printed: for tests that must then be skipped.
pub fn python() -> Option<PathBuf> {
    let python = from_setup("LUCENT_TEST_PYTHON");
    if python.is_none() {
        println!("skipped: there is no Python with nats-py; scripts/setup test says why");
    }
    python
}

/// A file of this crate.
pub fn source_file(name: &str) -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
