//! The exit codes: a contract with scripts, service managers and people.

use std::fmt::Write;

/// How a run of `agent` ended. The numbers from 64 on are those of `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for was done.
    Ok = 0,
    /// It was tried and failed.
    Failure = 1,
    /// The command line or the configuration is wrong; trying again does not help.
    Usage = 64,
    /// The nats-server is missing, too old or does not start.
    Unavailable = 69,
    /// The state directory cannot be created or written.
    CannotCreate = 73,
    /// The agent's identity cannot be used: no certificate, no key, expired, or for another path.
    Identity = 77,
}

impl ExitCode {
    /// All codes, lowest first.
    pub const ALL: [ExitCode; 6] = [
        ExitCode::Ok,
        ExitCode::Failure,
        ExitCode::Usage,
        ExitCode::Unavailable,
        ExitCode::CannotCreate,
        ExitCode::Identity,
    ];

    /// The number that the process exits with.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What the code means, as `--help` says it.
    pub const fn meaning(self) -> &'static str {
        match self {
            ExitCode::Ok => "success",
            ExitCode::Failure => "failure",
            ExitCode::Usage => "wrong command line or configuration",
            ExitCode::Unavailable => "nats-server is missing, too old or does not start",
            ExitCode::CannotCreate => "the state directory cannot be created or written",
            ExitCode::Identity => "the identity cannot be used: missing, expired or for another path",
        }
    }

    /// The list of codes that closes `--help`.
    pub fn help() -> String {
        ExitCode::ALL.iter().fold("Exit codes:\n".to_owned(), |mut help, code| {
            // Writing into a String cannot fail.
            let _ = writeln!(help, "  {:>2}  {}", code.code(), code.meaning());
            help
        })
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.code().into()
    }
}
