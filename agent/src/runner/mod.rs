//! Runners carry out tasks. What goes in and what comes out is the same for every kind of runner; how the
//! work is reached differs: [`process`] starts a program.

pub mod output;
pub mod process;

use std::{fmt, io, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;

/// Largest result, and longest line on a process's standard output: 1 MiB, as much as an envelope holds.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// How much of what a process last said goes with a failure: 4 KiB.
pub const LOG_TAIL_BYTES: usize = 4 << 10;
/// Longest message of a progress report; what is longer is cut.
pub const MAX_MESSAGE_CHARS: usize = 256;

/// One attempt at a task. Serialized, it is what the runner's program reads.
#[derive(Debug, Clone, Serialize)]
pub struct Job {
    /// The task.
    pub task_id: String,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// First name of `lucent.agents.{agent_type}.{task}`.
    pub agent_type: String,
    /// Second name.
    pub task: String,
    /// What to work on, passed on byte for byte.
    pub payload: Box<RawValue>,
    /// The task's metadata, passed on byte for byte.
    pub metadata: Box<RawValue>,
    /// Fencing number of the attempt: whoever writes for the task elsewhere shows it there.
    #[serde(skip)]
    pub epoch: u64,
    /// The same for all attempts at one task: lets a third party recognise a repetition.
    #[serde(skip)]
    pub idempotency_key: String,
}

/// How far an attempt has come, in its own words.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// From 0 to 1.
    pub fraction: f64,
    /// At most [`MAX_MESSAGE_CHARS`]; empty if there was none.
    pub message: String,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// There is a result.
    Succeeded {
        /// Any JSON, byte for byte as it was written.
        result: Box<RawValue>,
    },
    /// There is none.
    Failed {
        /// Why.
        reason: FailureReason,
        /// The last [`LOG_TAIL_BYTES`] of standard error and of output lines that meant nothing.
        log_tail: String,
    },
    /// It was cancelled before it had ended by itself.
    Cancelled,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FailureReason {
    /// The program did not start: a mistake of the configuration or the machine, not of the task.
    #[error("`{program}` cannot be started ({kind}): {remedy}")]
    CannotStart {
        /// The program as configured.
        program: String,
        /// What the system said.
        kind: io::ErrorKind,
        /// What to do.
        remedy: &'static str,
    },
    /// It ended well and said no result.
    #[error("no result: the program ended without a line {{\"result\": ...}} on standard output{0}")]
    NoResult(Ignored),
    /// It ended with an exit code other than 0.
    #[error("the program exited with code {0}")]
    Exit(i32),
    /// A signal ended it; 9 often means that memory ran out.
    #[error("the program was ended by signal {0}")]
    Signal(i32),
    /// It took too long and was stopped.
    #[error("the program was stopped after {} s, its timeout", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The system lost track of the process.
    #[error("the end of the program could not be observed ({0})")]
    Lost(io::ErrorKind),
}

/// Lines on standard output that were neither progress nor result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Lines that were something else; they are in the log tail.
    pub other: u64,
    /// Lines longer than [`MAX_LINE_BYTES`].
    pub too_long: u64,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.other > 0 {
            write!(f, "; lines that are neither progress nor result: {}", self.other)?;
        }
        if self.too_long > 0 {
            write!(f, "; lines longer than {MAX_LINE_BYTES} bytes: {}", self.too_long)?;
        }
        Ok(())
    }
}
