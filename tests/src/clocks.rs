//! Agents whose wall clocks are wrong, by libfaketime. Their monotonic clocks are right, as on a real machine.
//! The nats-servers are static programs and see the machine's own clock.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use crate::program;

/// How far the clock of each agent is off, and the program that runs agents so.
#[derive(Debug)]
pub struct Clocks {
    dir: TempDir,
    /// Stands in for the `agent` program.
    pub program: PathBuf,
}

impl Clocks {
    /// Clocks that are right until they are set; `None` with the reason printed where there is no libfaketime.
    pub fn right() -> Option<Clocks> {
        let Some(library) = program::from_setup("LUCENT_TEST_FAKETIME") else {
            println!("skipped: there is no libfaketime; scripts/setup test says why");
            return None;
        };
        let dir = tempfile::tempdir().expect("there is room for temporary files");
        let lines = format!(
            "export FAKETIME_TIMESTAMP_FILE={dir:?}/$at FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_CACHE_DURATION=1\n\
             [ -e \"$FAKETIME_TIMESTAMP_FILE\" ] || echo +0 >\"$FAKETIME_TIMESTAMP_FILE\"\n\
             export LD_PRELOAD={library:?}",
            dir = dir.path(),
        );
        let program = program::wrapped_agent(dir.path(), &lines);
        Some(Clocks { dir, program })
    }

    /// Sets the clock of the agent at `at` off by so many seconds, from within a second on.
    pub fn set(&self, at: &str, seconds: i64) {
        let file = self.dir.path().join(at.replace('/', "_"));
        let new = file.with_extension("new");
        // In one step: the agent may look at any time.
        fs::write(&new, format!("{seconds:+}\n")).expect("the directory can be written");
        fs::rename(&new, &file).expect("the directory can be written");
    }
}
