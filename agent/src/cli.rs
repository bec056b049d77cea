//! The command line as types. What the commands do stands elsewhere.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{config::Override, exit::ExitCode};

/// One agent of the mesh: runs a role (`agent --level node`), or one of the commands below.
///
/// Standard output carries data, standard error everything else.
#[derive(Debug, Parser)]
#[command(name = "agent", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, after_help = ExitCode::help())]
pub struct Cli {
    /// The command; without one the agent runs the role that `role` describes.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Where the configuration comes from.
    #[command(flatten)]
    pub role: RoleArgs,
}

/// A command other than running a role.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole four-level mesh on this machine
    #[cfg(feature = "dev")]
    Dev(DevArgs),
    /// Show how a running agent fares
    Status(StatusArgs),
    /// Cut a link on purpose for a while, and report what waited and how it healed
    Drill(DrillArgs),
    /// Give an order to an agent below or to a whole subtree: a command, or the state of a service
    Send(SendArgs),
    /// Measure this machine
    #[cfg(feature = "dev")]
    #[command(subcommand)]
    Bench(Bench),
    /// Look at the configuration without running anything
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// What configures a role. Every flag wins over the environment, which wins over the file.
#[derive(Debug, Clone, Default, Args)]
pub struct RoleArgs {
    /// Level to run at
    #[arg(long, value_name = "node|cluster|site|global")]
    pub level: Option<String>,
    /// Configuration file (TOML), also LUCENT_CONFIG; see `agent config explain`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where this agent stands, such as s1/c1/n1; not needed at global
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Directory for everything that must survive a restart
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Least important log level that is written
    #[arg(long, value_name = "error|warn|info|debug|trace")]
    pub log_level: Option<String>,
    /// How log lines look
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<String>,
    /// Set any other key of the configuration, such as nats.listen=127.0.0.1:0; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
}

impl RoleArgs {
    /// The flags as the configuration's topmost layer. They are checked there, together with all other
    /// values, so that every mistake is named at once.
    pub fn overrides(&self) -> Vec<Override> {
        let flags = [
            ("--level", "level", &self.level),
            ("--path", "path", &self.path),
            ("--state-dir", "state_dir", &self.state_dir),
            ("--log-level", "log.level", &self.log_level),
            ("--log-format", "log.format", &self.log_format),
        ];
        let set = self.set.iter().map(|(key, value)| ("--set", key.as_str(), value.as_str()));
        let named = flags.into_iter().filter_map(|(flag, key, value)| Some((flag, key, value.as_deref()?)));
        set.chain(named)
            .map(|(flag, key, value)| Override { flag, key: key.to_owned(), value: value.to_owned() })
            .collect()
    }
}

/// `agent dev`
#[cfg(feature = "dev")]
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Stop after this long, such as 30s; without it, run until interrupted
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::config::parse_duration)]
    pub run_for: Option<std::time::Duration>,
    /// How the closing summary on standard output looks
    #[arg(long, value_enum, default_value_t = SummaryFormat::Text)]
    pub summary: SummaryFormat,
    /// Keep the mesh's state here; without it, in a temporary directory that is removed at the end
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Events that each node publishes per second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
}

/// How `agent dev` sums up.
#[cfg(feature = "dev")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SummaryFormat {
    /// For people.
    Text,
    /// For programs: one JSON object.
    Json,
}

/// `agent status`: which agent, and how to show it.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// What became of all events: published, arrived, lost and why; global knows
    #[arg(long)]
    pub loss: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// How the agent is found.
    #[command(flatten)]
    pub target: StatusTarget,
}

/// `agent send`
#[derive(Debug, Args)]
pub struct SendArgs {
    /// For whom: the agent of this machine, or one below it
    #[arg(long, value_name = "PATH")]
    pub to: hierarchy::Path,
    /// For all agents below that one, too
    #[arg(long)]
    pub all: bool,
    /// For how long the order is good; it is never said later
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = crate::config::parse_duration)]
    pub expires: std::time::Duration,
    /// The lane that it goes down in
    #[arg(long, value_name = "critical|normal|bulk", default_value = "normal")]
    pub lane: hierarchy::Lane,
    /// Wait so long for word of it; the exit code is 1 if it expired or nothing was heard
    #[arg(long, value_name = "DURATION", value_parser = crate::config::parse_duration)]
    pub wait: Option<std::time::Duration>,
    /// What it is said on behind `lucent.`, such as commands.trading.halt
    pub subject: String,
    /// What is said
    #[arg(default_value = "{}")]
    pub body: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Configuration file of the agent on this machine
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory of the agent on this machine
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub state_dir: Option<PathBuf>,
}

/// `agent drill`
#[derive(Debug, Args)]
pub struct DrillArgs {
    /// Whose link to its parent is cut: the agent of this machine, or one below it
    #[arg(long, value_name = "PATH")]
    pub cut: hierarchy::Path,
    /// For how long, such as 30s or 2m; the link comes back by itself
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::config::parse_duration)]
    pub lasting: std::time::Duration,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Configuration file of the agent on this machine
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory of the agent on this machine
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub state_dir: Option<PathBuf>,
}

/// How `agent status` finds the agent: at most one of these is set.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct StatusTarget {
    /// Configuration file of the agent
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory of the agent
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// HTTP address of the agent, such as 127.0.0.1:9300
    #[arg(long, value_name = "IP:PORT")]
    pub http: Option<SocketAddr>,
}

/// `agent bench ...`
#[cfg(feature = "dev")]
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Measure the way from a node to global: events per second, latency, memory
    Link(BenchArgs),
    /// Durable ingest at one node: many publishers, each answered once its event is on disk
    Ingest(BenchArgs),
    /// The drain of a great backlog of bulk, and what is more urgent meanwhile
    Backlog(BenchArgs),
    /// Many children of one parent: what it takes, and what happens when all heal at once
    Children(BenchChildrenArgs),
}

/// `agent bench children`
#[cfg(feature = "dev")]
#[derive(Debug, Args)]
pub struct BenchChildrenArgs {
    /// How many children; 1000, or 100 with --quick
    #[arg(long, value_name = "COUNT")]
    pub children: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub bench: BenchArgs,
}

/// `agent bench ...`
#[cfg(feature = "dev")]
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Within 45 seconds, for a rough figure
    #[arg(long)]
    pub quick: bool,
    /// The agent program to measure, such as one built for the edge; without it, this one
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
}

/// `agent config ...`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration is right, and name every mistake in it
    Check(RoleArgs),
    /// Print every key with its meaning and default, as a configuration file to start from
    Explain,
}

/// A command line that is not to be carried out: a wrong one, or one that asks for help or the version.
#[derive(Debug)]
pub struct Early(clap::Error);

impl Early {
    /// What the process exits with: 0 after help or version, 64 for a wrong command line.
    pub fn code(&self) -> ExitCode {
        if self.0.use_stderr() { ExitCode::Usage } else { ExitCode::Ok }
    }

    /// Prints the help or the complaint, each to where it belongs.
    pub fn print(&self) {
        // Where the terminal is gone there is nobody left to tell.
        let _ = self.0.print();
    }
}

/// Parses a command line, the program's name first.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Early> {
    Cli::try_parse_from(args).map_err(Early)
}

fn key_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as nats.listen=127.0.0.1:0")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, Early> {
        super::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_role_runs_without_a_command_and_its_flags_become_overrides() {
        let line = "agent --level node --path s1/c1/n1 --state-dir /tmp/x --set nats.listen=127.0.0.1:0";
        let cli = parse(line).unwrap();
        assert!(cli.command.is_none());
        let overrides = cli.role.overrides();
        let pairs: Vec<_> = overrides.iter().map(|o| (o.flag, o.key.as_str(), o.value.as_str())).collect();
        let expected = [
            ("--set", "nats.listen", "127.0.0.1:0"),
            ("--level", "level", "node"),
            ("--path", "path", "s1/c1/n1"),
            ("--state-dir", "state_dir", "/tmp/x"),
        ];
        assert_eq!(pairs, expected);
    }

    #[test]
    fn wrong_usage_exits_64_and_help_exits_0() {
        let wrong = [
            "agent --nonsense",
            "agent nonsense",
            "agent --set novalue",
            "agent --level node status",
            "agent status --config a --http 127.0.0.1:1",
        ];
        for line in wrong {
            assert_eq!(parse(line).unwrap_err().code(), ExitCode::Usage, "{line}");
        }
        for line in ["agent --help", "agent --version", "agent config --help"] {
            assert_eq!(parse(line).unwrap_err().code(), ExitCode::Ok, "{line}");
        }
    }

    #[test]
    fn help_documents_every_exit_code() {
        let help = parse("agent --help").unwrap_err().0.to_string();
        for code in ExitCode::ALL {
            assert!(help.contains(&format!("{:>2}  {}", code.code(), code.meaning())), "{help}");
        }
    }

    #[cfg(feature = "dev")]
    #[test]
    fn dev_takes_a_duration_a_summary_and_a_rate() {
        let Some(Command::Dev(dev)) = parse("agent dev --for 30s --summary json --rate 7").unwrap().command
        else {
            panic!("not the dev command")
        };
        assert_eq!(dev.run_for, Some(std::time::Duration::from_secs(30)));
        assert_eq!((dev.summary, dev.rate), (SummaryFormat::Json, 7));
        assert_eq!(parse("agent dev --for 30").unwrap_err().code(), ExitCode::Usage);
    }

    #[test]
    fn config_check_takes_the_flags_of_a_role() {
        let cli = parse("agent config check --config a.toml --level site").unwrap();
        let Some(Command::Config(ConfigCommand::Check(role))) = cli.command else {
            panic!("not config check")
        };
        assert_eq!((role.config, role.level.as_deref()), (Some("a.toml".into()), Some("site")));
    }
}
