//! The processes that a test has started, told by its temporary directory in their command lines.

use std::{fs, path::Path as FilePath};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A process that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its command line.
    pub command: String,
}

/// The processes whose command lines name something in `dir`, zombies left out.
pub fn naming(dir: &FilePath) -> Vec<Process> {
    let dir = dir.display().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        // A zombie has no command line.
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        command.contains(&dir).then_some(Process { pid, command })
    })
    .collect()
}

/// Whether the process has ended, waited for or not.
pub fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state is the first field behind the name, which stands in parentheses.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Sends a signal to a process that the test has started.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).expect("process ids are small");
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Kills what still runs in `dir`.
pub(crate) fn kill_all(dir: &FilePath) {
    // Twice: an agent that was about to start its server may have done so in between.
    for _ in 0..2 {
        for process in naming(dir) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}
